"""A few training examples of a task: k of each class, or k in all where it has no label words."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import tasks
from prompt_tuning.data.files import Row
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.data.readers.tfds_source import check_prepared
from prompt_tuning.data.tasks import RowSource
from prompt_tuning.errors import UserError

ENDING = r"_\d+shot_seed\d+$"  # of the names that `register` gives


def register(name: str, k: int, seed: int, lengths: Mapping[str, int], use_cached: bool) -> str:
    """Registers `NAME_Kshot_seedSEED`: a task with k training examples of each class, other splits
    as they are; a mixture of such tasks, at its own rates, for a mixture.

    A class is a label word. Of a task without label words, k examples are drawn in all. The choice
    depends on the seed and the source's order alone; more examples are these and others.

    Args:
      name: of a registered task or mixture.
      k: examples a class.
      seed: of the choice.
      lengths: tokens that "inputs" and "targets" are cut to.
      use_cached: reads the task from SeqIO's cache where it has one.

    Returns:
      The name registered.

    Raises:
      UserError: if k is not positive, or (when training examples are read) a class has fewer.
    """
    if k < 1:
        raise UserError(f"FEW_SHOT = {k}: must be at least 1, or None for all examples")
    if seed < 0:
        raise UserError(f"FEW_SHOT_SEED = {seed}: must be 0 or more")
    found = seqio.get_mixture_or_task(name)
    limited = f"{name}_{k}shot_seed{seed}"
    if isinstance(found, seqio.Task):
        _register_task(found, limited, k, seed, lengths, use_cached)
        return limited
    parts = []
    for task in seqio.get_subtasks(found):
        part = task.name
        if "train" in task.splits:
            part = register(task.name, k, seed, lengths, use_cached)
        parts.append((part, found.get_rate(task)))
    seqio.MixtureRegistry.remove(limited)
    seqio.MixtureRegistry.add(limited, parts)
    tasks.LABELS[limited] = tasks.labels_of(name)
    return limited


def by_class(targets: Sequence[str], labels: Sequence[str], seed: int) -> list[list[int]]:
    """The places of each label among `targets`, each list in random order; one list without labels.

    Args:
      targets: N texts.
      labels: K words; targets that are none of them are left out.
      seed: of the orders.
    """
    found = np.asarray(targets, object)
    groups = [np.flatnonzero(found == label) for label in labels] or [np.arange(len(found))]
    return [
        np.random.default_rng([seed, number]).permutation(group).tolist()
        for number, group in enumerate(groups)
    ]


def read_rows(
    task: seqio.Task, split: str, lengths: Mapping[str, int], use_cached: bool
) -> list[Row]:
    """The texts of a split's examples, in their order."""
    if isinstance(task.source, RowSource):
        return task.source.rows(split)
    return [_row(task, example) for example in _examples(task, split, lengths, use_cached)]


class FewShotSource(MemorySource):
    """Of a task's training examples those chosen, its other splits whole; tokenised already."""

    def __init__(
        self, task: seqio.Task, k: int, seed: int, lengths: Mapping[str, int], use_cached: bool
    ) -> None:
        super().__init__(task.splits)
        self._task, self._k, self._seed = task, k, seed
        self._lengths, self._use_cached = dict(lengths), use_cached

    def columns(self, split: str) -> dict[str, Any]:
        if split != "train":
            raise KeyError(f"{split}: only the training examples are in memory")
        return self._train

    @functools.cached_property
    def _train(self) -> dict[str, Any]:
        examples = list(_examples(self._task, "train", self._lengths, self._use_cached))
        rows = [_row(self._task, example) for example in examples]
        chosen = _chosen(self._task.name, [row.targets for row in rows], self._k, self._seed)
        ids = {
            name: tf.ragged.constant([examples[i][name].tolist() for i in chosen], tf.int32)
            for name in ("inputs", "targets")
        }
        return ids | {
            "inputs_pretokenized": tf.constant([rows[i].inputs for i in chosen]),
            "targets_pretokenized": tf.constant([rows[i].targets for i in chosen]),
        }

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **options: Any,
    ) -> tf.data.Dataset:
        """Dataset of a split's examples, the training split's shuffled anew in each epoch."""
        if split == "train":
            return super().get_dataset(split, shuffle, seed, shard_info, **options)
        return _dataset(self._task, split, self._lengths, self._use_cached)


def _register_task(
    task: seqio.Task, name: str, k: int, seed: int, lengths: Mapping[str, int], use_cached: bool
) -> None:
    if use_cached and task.supports_caching and not task.cache_dir:
        raise UserError(f"{task.name}: is not cached; set USE_CACHED_TASKS = False")
    preprocessors: Sequence[Any] = ()
    source: MemorySource
    if isinstance(task.source, RowSource):
        rows = {split: functools.partial(task.source.rows, split) for split in task.splits}
        train = functools.partial(_chosen_rows, task, k, seed)
        source, preprocessors = RowSource(rows | {"train": train}), task.preprocessors
    else:
        source = FewShotSource(task, k, seed, lengths, use_cached)
    tasks.LABELS[name] = tasks.labels_of(task.name)
    tasks.HIDDEN_SPLITS[name] = tasks.HIDDEN_SPLITS.get(task.name, ())
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=list(preprocessors),
        output_features=task.output_features,
        postprocess_fn=task.postprocessor,
        metric_fns=list(task.metric_fns),
        shuffle_buffer_size=None,
    )


def _chosen_rows(task: seqio.Task, k: int, seed: int) -> list[Row]:
    rows = task.source.rows("train")
    return [rows[i] for i in _chosen(task.name, [row.targets for row in rows], k, seed)]


def _chosen(task: str, targets: Sequence[str], k: int, seed: int) -> list[int]:
    labels = tasks.labels_of(task)
    groups = by_class(targets, labels, seed)
    for label, group in zip(labels or ("",), groups, strict=True):
        if len(group) < k:
            which = f" of the class {label!r}" if label else ""
            raise UserError(
                f"FEW_SHOT = {k}: {task} has only {len(group)} training examples{which}"
            )
    return sorted(i for group in groups for i in group[:k])


def _examples(task: seqio.Task, split: str, lengths: Mapping[str, int], use_cached: bool) -> Any:
    return _dataset(task, split, lengths, use_cached).as_numpy_iterator()


def _dataset(
    task: seqio.Task, split: str, lengths: Mapping[str, int], use_cached: bool
) -> tf.data.Dataset:
    check_prepared(task, split, use_cached)
    return task.get_dataset(dict(lengths), split=split, use_cached=use_cached, shuffle=False)


def _row(task: seqio.Task, example: Mapping[str, Any]) -> Row:
    return Row(*(tasks.text_of(task, example, name) for name in ("inputs", "targets")))

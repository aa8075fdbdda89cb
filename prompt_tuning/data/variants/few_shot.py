"""A few training examples of a task: k per class, or k in all if it has no label words."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prompt_tuning.data import label_words, tasks
from prompt_tuning.data.files import Row
from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.readers.memory_source import MemorySource
from prompt_tuning.data.readers.tfds_source import check_prepared
from prompt_tuning.data.tasks import RowSource
from prompt_tuning.errors import UserError, whole_number

SUFFIX = r"_\d+shot_seed\d+$"  # of the names that `register` gives


@dataclasses.dataclass(frozen=True)
class FewShot:
    """Which training examples are kept.

    Attributes:
      examples: Examples per class, or in all if the task has no label words.
      seed: Seed of their choice; a larger number adds to the examples of a smaller one.

    Raises:
      UserError: If `examples` is no positive whole number, or `seed` none from 0.
    """

    examples: int
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            whole_number("FEW_SHOT", self.examples, 1)
        except UserError as error:
            raise UserError(f"{error}, or None for all examples") from None
        whole_number("FEW_SHOT_SEED", self.seed, 0)

    def choose(self, task: seqio.Task, targets: Sequence[str]) -> list[int]:
        """Indices of the chosen examples of a task, in their order.

        Raises:
          UserError: If a class has too few examples.
        """
        labels = tasks.words_of(task)
        groups = by_class(targets, labels, self.seed)
        for label, group in zip(labels or ("",), groups, strict=True):
            if len(group) < self.examples:
                which = f" of the class {label!r}" if label else ""
                raise UserError(
                    f"FEW_SHOT = {self.examples}: {task.name} has only {len(group)} training "
                    f"examples{which}"
                )
        return sorted(i for group in groups for i in group[: self.examples])


def register(name: str, few_shot: FewShot, lengths: Mapping[str, int], use_cached: bool) -> str:
    """Registers `NAME_Kshot_seedSEED`, a task with few training examples.

    Its other splits are those of `name`. For a mixture, registers a mixture of such tasks at the
    same rates. The choice depends on the seed and the source's order alone; too few examples are an
    error when training examples are read.

    Args:
      name: A registered task or mixture.
      few_shot: The training examples to keep.
      lengths: Most tokens of "inputs" and "targets".
      use_cached: Whether to read the task from SeqIO's cache where it has one.

    Returns:
      The name of the new task or mixture.

    Raises:
      UserError: If the task is not cached and should be.
    """
    provider = seqio.get_mixture_or_task(name)
    new_name = f"{name}_{few_shot.examples}shot_seed{few_shot.seed}"
    if isinstance(provider, seqio.Task):
        _register_task(provider, new_name, few_shot, lengths, use_cached)
        return new_name
    rates = {}
    for task in tasks.parts(name):
        trains = "train" in task.splits
        part = register(task.name, few_shot, lengths, use_cached) if trains else task.name
        rates[part] = provider.get_rate(task)
    tasks.add_mixture(new_name, rates)
    return new_name


def by_class(targets: Sequence[str], labels: Sequence[str], seed: int) -> list[list[int]]:
    """Indices of each label's targets in random order; one list of all if there are no labels.

    Args:
      targets: N texts.
      labels: K words.
      seed: Seed of the orders.

    Raises:
      UserError: If there are labels, and a target is none of them.
    """
    if labels and (others := [target for target in targets if target not in labels]):
        raise UserError(
            f"the target {others[0]!r} of {len(others)} training examples is none of the label "
            f"words {', '.join(map(repr, labels))}, among which examples are drawn; write it as one"
        )
    words = np.asarray(targets, object)
    groups = [np.flatnonzero(words == label) for label in labels] or [np.arange(len(words))]
    return [
        np.random.default_rng([seed, number]).permutation(group).tolist()
        for number, group in enumerate(groups)
    ]


def read_rows(
    task: seqio.Task, split: str, lengths: Mapping[str, int], use_cached: bool
) -> list[Row]:
    """The texts of a split's examples, in the source's order."""
    if isinstance(task.source, RowSource):
        return task.source.rows(split)
    return [_row(task, example) for example in _examples(task, split, lengths, use_cached)]


class FewShotSource(MemorySource):
    """Tokenised examples of a task: the chosen ones of its split "train", all of other splits."""

    def __init__(
        self, task: seqio.Task, few_shot: FewShot, lengths: Mapping[str, int], use_cached: bool
    ) -> None:
        super().__init__(task.splits)
        self._task, self._few_shot = task, few_shot
        self._lengths, self._use_cached = dict(lengths), use_cached

    def columns(self, split: str) -> dict[str, Any]:
        if split != "train":
            raise KeyError(f"{split}: only the training examples are in memory")
        return self._train

    @functools.cached_property
    def _train(self) -> dict[str, Any]:
        examples = list(_examples(self._task, "train", self._lengths, self._use_cached))
        rows = [_row(self._task, example) for example in examples]
        chosen = self._few_shot.choose(self._task, [row.targets for row in rows])
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
        """Dataset of a split's examples, the training split's reshuffled in each epoch."""
        if split == "train":
            return super().get_dataset(split, shuffle, seed, shard_info, **options)
        return _dataset(self._task, split, self._lengths, self._use_cached)


def _register_task(
    task: seqio.Task,
    new_name: str,
    few_shot: FewShot,
    lengths: Mapping[str, int],
    use_cached: bool,
) -> None:
    if use_cached and task.supports_caching and not task.cache_dir:
        raise UserError(f"{task.name}: is not cached; set USE_CACHED_TASKS = False")
    preprocessors: Sequence[Any] = ()
    source: MemorySource
    if isinstance(task.source, RowSource):
        rows = {split: functools.partial(task.source.rows, split) for split in task.splits}
        train = functools.partial(_chosen_rows, task, few_shot)
        source, preprocessors = RowSource(rows | {"train": train}), task.preprocessors
    else:
        source = FewShotSource(task, few_shot, lengths, use_cached)
    tasks.add(
        new_name,
        source=source,
        preprocessors=preprocessors,
        output_features=task.output_features,
        postprocess_fn=task.postprocessor,
        metric_fns=task.metric_fns,
        labels=tasks.labels_of(task),
        hidden_splits=tasks.hidden_splits(task),
        target_prefix=tasks.target_prefix(task),
        text_fields=tasks.text_fields(task),
    )


def _chosen_rows(task: seqio.Task, few_shot: FewShot) -> list[Row]:
    rows = task.source.rows("train")
    return [rows[i] for i in few_shot.choose(task, [row.targets for row in rows])]


def _examples(
    task: seqio.Task, split: str, lengths: Mapping[str, int], use_cached: bool
) -> Iterator[dict[str, Any]]:
    return _dataset(task, split, lengths, use_cached).as_numpy_iterator()


def _dataset(
    task: seqio.Task, split: str, lengths: Mapping[str, int], use_cached: bool
) -> tf.data.Dataset:
    check_prepared(task, split, use_cached)
    return task.get_dataset(dict(lengths), split=split, use_cached=use_cached, shuffle=False)


def _row(task: seqio.Task, example: Mapping[str, Any]) -> Row:
    targets = tasks.text_of(task, example, "targets")
    return Row(
        inputs=tasks.text_of(task, example, "inputs"),
        targets=label_words.without_prefix(tasks.target_prefix(task), targets),
    )

"""The data of a run: a registered task by name, or the user's own files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from prompt_tuning.data import metrics, tasks
from prompt_tuning.data.batches import TaskData, import_tasks
from prompt_tuning.data.batching.settings import Batching
from prompt_tuning.data.catalogue import all_tasks, mixtures
from prompt_tuning.data.catalogue.text_task import TFDS
from prompt_tuning.data.files import TextFiles
from prompt_tuning.data.quiet import seqio
from prompt_tuning.data.readers.records import BadRows
from prompt_tuning.data.unicode_form import composed
from prompt_tuning.data.variants import few_shot as few_shot_tasks
from prompt_tuning.data.variants import sentinel
from prompt_tuning.data.variants.few_shot import FewShot
from prompt_tuning.errors import UserError, true_or_false
from prompt_tuning.evaluation.sets import RANK_MEMORY_GIB

FILES_TASK = "files"
_CATALOGUE: list[str] = []  # what the last call has registered of the package's tasks
_OF_FILES: dict[str, tasks.Task] = {}  # what FILE_TASKS has registered in this process


def task_data(
    *,
    task: str | Sequence[str] | None,
    files: TextFiles,
    vocabulary: seqio.Vocabulary,
    lengths: Mapping[str, int],
    batch_size: int,
    file_tasks: Mapping[str, Callable[[], TextFiles]] = MappingProxyType({}),
    benchmarks_dir: str = "",
    seed: int = 0,
    module: str | None = None,
    use_cached: bool = False,
    batching: str = "padded",
    bucket_bounds: Sequence[int] = (),
    packed_lengths: Mapping[str, int] | None = None,
    tokens_per_batch: int | None = None,
    cache_dir: str = "",
    eval_examples: int | None = None,
    few_shot: int | None = None,
    few_shot_seed: int = 0,
    skip_bad_rows: int = 0,
    sentinel_targets: bool = False,
    rank_memory_gib: float = RANK_MEMORY_GIB,
    balanced_classes: bool = False,
) -> TaskData:
    """Registers the package's tasks and the user's files, and returns the data of a run.

    Args:
      task: Name of a registered SeqIO task or mixture, or of one of `file_tasks`; a list of tasks
        to mix at equal rates; or None to use `files`.
      files: The user's own data, if `task` is None.
      vocabulary: Vocabulary of the model, which the package's own tasks use too.
      file_tasks: Functions that return the files of further tasks, by name; only those named in
        `task` are called.
      benchmarks_dir: Folder of local data sets that the tasks of `catalogue` are read from; "" for
        TensorFlow Datasets.
      lengths, batch_size, seed, module, use_cached, cache_dir, eval_examples, rank_memory_gib,
        balanced_classes: See `TaskData`.
      batching, bucket_bounds, packed_lengths, tokens_per_batch: See `Batching`.
      few_shot, few_shot_seed: Training examples per class and the seed of their choice (see
        `FewShot`); None for all.
      skip_bad_rows: Most malformed rows to skip, over all files.
      sentinel_targets: Whether to put a sentinel before every target (see `sentinel.register`).

    Raises:
      UserError: If neither or both of `task` and `files` are set, and as `TaskData`.
    """
    if task and files.splits:
        raise UserError(
            f"MIXTURE_OR_TASK_NAME = {task!r} and files are both set; set one of the two"
        )
    if tuple(files.metrics) != metrics.DEFAULT and not files.splits:
        raise UserError(
            f"METRICS = {files.metrics!r}: is for files of your own; a task of FILE_TASKS has "
            "metrics of its own in files.of_folder, and a registered task its own"
        )
    true_or_false("SENTINEL_TARGETS", sentinel_targets)
    bad_rows = BadRows(skip_bad_rows)
    names = [composed(name) for name in ([task] if isinstance(task, str) else task or ()) if name]
    file_tasks = {composed(name): files_of for name, files_of in file_tasks.items()}
    named_files = {name: file_tasks[name]() for name in names if name in file_tasks}
    named_files = {FILES_TASK: files} if files.splits else named_files
    for name, text_files in named_files.items():
        text_files = named_files[name] = dataclasses.replace(text_files, bad_rows=bad_rows)
        for split in text_files.splits:
            text_files.rows(split)  # raises every mistake before anything else is loaded
    if not (names or files.splits):
        raise UserError(
            "no data: set MIXTURE_OR_TASK_NAME, or files of your own: TRAIN_FILE and "
            "VALIDATION_FILE to train, TEST_FILE to evaluate, INPUT_FILE to predict"
        )
    if module:
        import_tasks(module)
    tasks.register_demo_tasks(vocabulary)
    for name in _CATALOGUE:  # of another folder, which may have other tasks
        seqio.TaskRegistry.remove(name)
        seqio.MixtureRegistry.remove(name)
    _CATALOGUE[:] = all_tasks.register(vocabulary, benchmarks_dir or TFDS, bad_rows)
    for name, text_files in named_files.items():
        if name != FILES_TASK:
            _check_is_free(name)
        _OF_FILES[name] = tasks.register_files(name, text_files, vocabulary)
    if len(names) > 1:
        names = [mixtures.of_tasks(names)]
    data = TaskData(
        names[0] if names else FILES_TASK,
        lengths,
        batch_size,
        seed=seed,
        module=module,
        use_cached=use_cached,
        batching=Batching(batching, bucket_bounds, packed_lengths, tokens_per_batch),
        cache_dir=cache_dir,
        eval_examples=eval_examples,
        bad_rows=bad_rows,
        rank_memory_gib=rank_memory_gib,
        balanced_classes=balanced_classes,
    )
    _check_vocabulary(data, vocabulary)
    if sentinel_targets:
        data = dataclasses.replace(data, task=sentinel.register(data.task))
    if few_shot is None:
        return data
    chosen = FewShot(few_shot, few_shot_seed)
    return dataclasses.replace(
        data, task=few_shot_tasks.register(data.task, chosen, lengths, use_cached)
    )


def _check_is_free(name: str) -> None:
    """Raises UserError for the name of a task that is not of FILE_TASKS."""
    registered = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name in registered and seqio.get_mixture_or_task(name) is not _OF_FILES.get(name):
        raise UserError(
            f"FILE_TASKS has {name!r}: there is a registered task of this name; choose another name"
        )


def _check_vocabulary(data: TaskData, vocabulary: seqio.Vocabulary) -> None:
    for name, feature in data.provider.output_features.items():
        if feature.vocabulary != vocabulary:
            raise UserError(
                f"MIXTURE_OR_TASK_NAME = {data.task!r}: the vocabulary of its {name} is not "
                "the model's; register the task with the model's vocabulary"
            )

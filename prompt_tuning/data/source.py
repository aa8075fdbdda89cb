"""Which task a run is on: a registered one by name, or the user's own files."""

from collections.abc import Mapping, Sequence

from prompt_tuning.data import benchmarks, tasks
from prompt_tuning.data.batches import TaskData
from prompt_tuning.data.files import TextFiles
from prompt_tuning.data.quiet import seqio
from prompt_tuning.errors import UserError

FILES_TASK = "files"


def task_data(
    *,
    task: str | None,
    files: TextFiles,
    vocabulary: seqio.Vocabulary,
    lengths: Mapping[str, int],
    batch_size: int,
    benchmarks_dir: str = "",
    seed: int = 0,
    module: str | None = None,
    use_cached: bool = False,
    batching: str = "padded",
    bucket_bounds: Sequence[int] = (),
    packed_lengths: Mapping[str, int] | None = None,
) -> TaskData:
    """The data of a run.

    Args:
      task: a registered SeqIO task or mixture, or None to use `files`.
      files: the user's own data, if `task` is None.
      vocabulary: of the model; also of the demo and benchmark tasks.
      benchmarks_dir: a folder of local data sets that GLUE and SuperGLUE are read from; "" for
        TensorFlow Datasets.
      lengths, batch_size, seed, module, use_cached, batching, bucket_bounds, packed_lengths: see
        `TaskData`.

    Raises:
      UserError: if neither or both are given, and whatever `TaskData` refuses.
    """
    if task and files.splits:
        raise UserError(
            f"MIXTURE_OR_TASK_NAME = {task!r} and files are both set; set one of the two"
        )
    if files.splits:
        for split in files.splits:
            files.rows(split)  # every mistake shows before anything else is loaded
        tasks.register_files(FILES_TASK, files, vocabulary)
    elif not task:
        raise UserError(
            "no data: set MIXTURE_OR_TASK_NAME, or files of your own: TRAIN_FILE and "
            "VALIDATION_FILE to train, TEST_FILE to evaluate, INPUT_FILE to predict"
        )
    tasks.register_demo_tasks(vocabulary)
    benchmarks.register_benchmarks(vocabulary, benchmarks_dir or benchmarks.TFDS)
    data = TaskData(
        task or FILES_TASK,
        lengths,
        batch_size,
        seed,
        module,
        use_cached,
        batching,
        bucket_bounds,
        packed_lengths,
    )
    _check_vocabulary(data.task, vocabulary)
    return data


def _check_vocabulary(task: str, vocabulary: seqio.Vocabulary) -> None:
    features = seqio.get_mixture_or_task(task).output_features
    for name, feature in features.items():
        if feature.vocabulary != vocabulary:
            raise UserError(
                f"MIXTURE_OR_TASK_NAME = {task!r}: its {name} have another vocabulary than the "
                "model; register the task with the model's"
            )

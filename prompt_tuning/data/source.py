"""Which task a run is on: a registered one by name, or the user's own files."""

from collections.abc import Mapping, Sequence

from prompt_tuning.data import tasks
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
    seed: int = 0,
    module: str | None = None,
    use_cached: bool = False,
    batching: str = "padded",
    bucket_bounds: Sequence[int] = (),
) -> TaskData:
    """The data of a run.

    Args:
      task: a registered SeqIO task or mixture, or None to use `files`.
      files: the user's own data, if `task` is None.
      vocabulary: of the model; also of the demo tasks.
      lengths, batch_size, seed, module, use_cached, batching, bucket_bounds: see `TaskData`.

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
        raise UserError("no data: set MIXTURE_OR_TASK_NAME, or TRAIN_FILE and VALIDATION_FILE")
    tasks.register_demo_tasks(vocabulary)
    return TaskData(
        task or FILES_TASK,
        lengths,
        batch_size,
        seed,
        module,
        use_cached,
        batching,
        bucket_bounds,
    )

"""Checks at once that data of TensorFlow Datasets are available; its client tries for minutes."""

from pathlib import Path

from prompt_tuning.data.quiet import seqio, tfds
from prompt_tuning.errors import UserError
from prompt_tuning.runtime.connectivity import no_storage
from prompt_tuning.runtime.files import is_remote


def check_prepared(task: seqio.Task, split: str, use_cached: bool = False) -> None:
    """Raises UserError if data of TensorFlow Datasets can be neither read nor downloaded."""
    from_cache = use_cached and task.supports_caching
    if from_cache or not isinstance(task.source, seqio.TfdsDataSource):
        return
    dataset, data_dir = task.source.tfds_dataset.get_split_params(split)
    folder = str(data_dir or tfds.core.constants.DATA_DIR)
    if is_remote(folder) or _is_prepared(Path(folder).expanduser(), dataset):
        return
    if reason := no_storage():
        raise UserError(
            f"{task.name}: {dataset} of TensorFlow Datasets is not prepared in {folder}, and the "
            f"network cannot be reached ({reason}); give --tfds_data_dir, or local files by "
            "BENCHMARKS_DIR"
        )


def _is_prepared(folder: Path, dataset: str) -> bool:
    name, _, version = dataset.partition(":")
    patterns = (f"{name}/{version}", f"{name}/*/{version}")  # the second for the default config
    return any(any(folder.glob(f"{pattern}/dataset_info.json")) for pattern in patterns)

"""python -m prompt_tuning.convert: a backbone from one format into another, leaf by leaf."""

from collections.abc import Callable, Mapping

import numpy as np
from etils import epath

from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint.formats import huggingface, safetensors_file, t5x, t5x_orbax
from prompt_tuning.errors import UserError
from prompt_tuning.t5.config import T5Config, preset

Leaves = Mapping[str, safetensors_file.Array]


def convert(
    source: epath.PathLike,
    target: epath.PathLike,
    form: str,
    model: str | None = None,
    dtype: str | None = None,
) -> None:
    """Writes the backbone `source` to `target`; one leaf is in memory at a time.

    Args:
      source: what `checkpoint.backbone.load` reads.
      target: the path to make: for `t5x` and `orbax` a folder `checkpoint_STEP`, for `huggingface`
        a folder, for `safetensors` a file of that suffix.
      form: one of `FORMATS`.
      model: the preset that `source` is of; None: as its `config.json` says.
      dtype: of what is written; None: as it is stored.

    Raises:
      UserError, CheckpointError: if one of these does not fit, or `target` exists.
    """
    path = epath.Path(target).expanduser()
    if path.exists():
        raise UserError(f"--to={target}: exists; choose another path, or remove it first")
    config = _config(source, model)
    leaves = backbone.open_leaves(source, huggingface.shapes_of(config))
    try:
        FORMATS[form](
            path, leaves, config, np.dtype(dtype or safetensors_file.common_dtype(leaves))
        )
    except OSError as error:
        raise UserError(
            f"--to={target}: cannot be written ({error}); check access and the room on the disk"
        ) from error


def _config(source: epath.PathLike, model: str | None) -> T5Config:
    if model is not None:
        try:
            return preset(model)
        except ValueError as error:
            raise UserError(f"--model: {error}") from error
    folder = epath.Path(source).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    if not (folder / huggingface.CONFIG).exists():
        raise UserError(
            f"--from={source}: no {huggingface.CONFIG} there says which model it is; give --model, "
            "such as --model=t5_1_1_base"
        )
    return huggingface.config_of(folder)


def _to_t5x(path: epath.Path, leaves: Leaves, config: T5Config, dtype: np.dtype) -> None:
    t5x.write_checkpoint(path, leaves, step=_step(path), dtype=dtype)


def _to_orbax(path: epath.Path, leaves: Leaves, config: T5Config, dtype: np.dtype) -> None:
    t5x_orbax.write_checkpoint(path, leaves, step=_step(path), dtype=dtype)


def _step(path: epath.Path) -> int:
    name, _, step = path.name.rpartition("_")
    if name != "checkpoint" or not step.isdecimal():
        raise UserError(
            f"--to={path}: T5X reads folders named checkpoint_STEP; give such a name, as "
            f"{path / 'checkpoint_0'}"
        )
    return int(step)


def _to_huggingface(path: epath.Path, leaves: Leaves, config: T5Config, dtype: np.dtype) -> None:
    huggingface.save(path, leaves, config, dtype=dtype)


def _to_safetensors(path: epath.Path, leaves: Leaves, config: T5Config, dtype: np.dtype) -> None:
    if path.suffix != safetensors_file.SUFFIX:
        raise UserError(f"--to={path}: give a file whose name ends in {safetensors_file.SUFFIX}")
    safetensors_file.write(path, leaves, dtype)


FORMATS: Mapping[str, Callable[[epath.Path, Leaves, T5Config, np.dtype], None]] = {
    "huggingface": _to_huggingface,
    "t5x": _to_t5x,
    "orbax": _to_orbax,
    "safetensors": _to_safetensors,
}

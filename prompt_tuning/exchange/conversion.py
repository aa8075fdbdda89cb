"""Converts a backbone from one checkpoint format to another, leaf by leaf."""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
from etils import epath

from prompt_tuning import families
from prompt_tuning.checkpoint import backbone
from prompt_tuning.checkpoint.formats import huggingface, safetensors_file, t5x, t5x_orbax
from prompt_tuning.errors import UserError
from prompt_tuning.families import preset
from prompt_tuning.transformer.config import Config

Leaves = Mapping[str, safetensors_file.Array]


def convert(
    source: epath.PathLike,
    target: epath.PathLike,
    form: str,
    model: str | None = None,
    dtype: str | None = None,
) -> None:
    """Writes the backbone at `source` to `target`, with one leaf in memory at a time.

    Args:
      source: checkpoint in any format that `checkpoint.backbone.load` reads.
      target: path to create: a folder `checkpoint_STEP` for `t5x` and `orbax`, a folder for
        `huggingface`, a `.safetensors` file for `safetensors`.
      form: one of `FORMATS`.
      model: preset of the backbone, or a folder whose `config.json` has the shape; None for the
        `config.json` beside the weights.
      dtype: dtype to write; None to keep the stored one.

    Raises:
      UserError, CheckpointError: if an argument does not fit, or `target` exists.
    """
    path = epath.Path(target).expanduser()
    if path.exists():
        raise UserError(f"--to={target}: already exists; choose another path, or remove it first")
    config = _config(source, model)
    known = (of_preset.of_model for of_preset in families.PRESETS.values())
    if form != "huggingface" and config.of_model not in known:
        warnings.warn(
            f"--format={form}: has no {families.CONFIG}, and that of {source} is no preset's; read "
            f"{target} with MODEL_PRESET = the folder of that {families.CONFIG}",
            stacklevel=2,
        )
    leaves = backbone.open_leaves(source, huggingface.shapes_of(config))
    written_dtype = np.dtype(dtype or safetensors_file.common_dtype(leaves))
    try:
        FORMATS[form](path, leaves, config, written_dtype)
    except OSError as error:
        raise UserError(
            f"--to={target}: cannot be written ({error}); check access and free disk space"
        ) from error


def _config(source: epath.PathLike, model: str | None) -> Config:
    if model is not None:
        try:
            config = preset(model)
        except ValueError as error:
            raise UserError(f"--model: {error}") from error
        backbone.check_config(source, config)
        return config
    folder = epath.Path(source).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    if not (folder / families.CONFIG).exists():
        raise UserError(
            f"--from={source}: no {families.CONFIG} beside the weights states the shape; give "
            "--model, a preset such as t5_1_1_base or t5gemma_b_b, or a folder with its "
            f"{families.CONFIG}"
        )
    return families.read(folder)


def _to_t5x(path: epath.Path, leaves: Leaves, config: Config, dtype: np.dtype) -> None:
    t5x.write_checkpoint(path, leaves, step=_step(path), dtype=dtype)


def _to_orbax(path: epath.Path, leaves: Leaves, config: Config, dtype: np.dtype) -> None:
    t5x_orbax.write_checkpoint(path, leaves, step=_step(path), dtype=dtype)


def _step(path: epath.Path) -> int:
    name, _, step = path.name.rpartition("_")
    if name != "checkpoint" or not step.isdecimal():
        raise UserError(
            f"--to={path}: T5X reads folders named checkpoint_STEP; use such a name, as in "
            f"{path / 'checkpoint_0'}"
        )
    return int(step)


def _to_huggingface(path: epath.Path, leaves: Leaves, config: Config, dtype: np.dtype) -> None:
    huggingface.save(path, leaves, config, dtype=dtype)


def _to_safetensors(path: epath.Path, leaves: Leaves, config: Config, dtype: np.dtype) -> None:
    if path.suffix != safetensors_file.SUFFIX:
        raise UserError(f"--to={path}: the file name must end in {safetensors_file.SUFFIX}")
    safetensors_file.write(path, leaves, dtype)


FORMATS: Mapping[str, Callable[[epath.Path, Leaves, Config, np.dtype], None]] = {
    "huggingface": _to_huggingface,
    "t5x": _to_t5x,
    "orbax": _to_orbax,
    "safetensors": _to_safetensors,
}

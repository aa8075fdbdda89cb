"""The families of backbones: a folder each, and a line here.

Everything above this module takes a configuration of any family and asks for the rest here.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from prompt_tuning.errors import CheckpointError, UserError
from prompt_tuning.gemma import config as gemma_config
from prompt_tuning.gemma import huggingface as gemma_names
from prompt_tuning.gemma.network import T5Gemma
from prompt_tuning.t5 import config as t5_config
from prompt_tuning.t5 import huggingface as t5_names
from prompt_tuning.t5.network import T5
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.network import EncoderDecoder
from prompt_tuning.transformer.sites import Sites
from prompt_tuning.transformer.vocabulary import SENTINEL

CONFIG = "config.json"  # of a Hugging Face folder


class Names(Protocol):
    """A module `huggingface` of a family: its checkpoints in Hugging Face's format."""

    @property
    def MODEL_TYPES(self) -> tuple[str, ...]:
        """Values of `model_type` in config.json."""

    @property
    def PREFIXES(self) -> tuple[str, ...]:
        """How the names of its tensors begin."""

    @property
    def COPIES(self) -> Mapping[str, tuple[str, ...]]:
        """Names of each table's copies; a checkpoint has one or more, and we write the first."""

    @property
    def TIED(self) -> Mapping[str, str]:
        """Paths of tables by the names of further copies, in models that tie them."""

    @property
    def UNUSED(self) -> frozenset[str]:
        """Tensors of checkpoints that the model does not use."""

    def their_name(self, path: str) -> str:
        """Hugging Face's name of the leaf at a path."""

    def config_of(self, path: epath.Path, content: Mapping[str, Any]) -> Config:
        """The configuration that the content of a config.json at `path` describes."""

    def config_fields(self, config: Any, dtype: np.dtype) -> dict[str, Any]:
        """The content of config.json for a backbone stored in `dtype`."""


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family gives.

    Attributes:
      config: class of its configurations.
      model: its model, from a configuration and sites.
      presets: configurations by name.
      huggingface: its checkpoints in Hugging Face's format.
      sentinels: whether it is pre-trained with T5's sentinels, of span corruption.
    """

    config: type[Config]
    model: Callable[..., EncoderDecoder]
    presets: Mapping[str, Config]
    huggingface: Names
    sentinels: bool


FAMILIES = (
    Family(t5_config.T5Config, T5, t5_config.PRESETS, t5_names, sentinels=True),
    Family(gemma_config.T5GemmaConfig, T5Gemma, gemma_config.PRESETS, gemma_names, sentinels=False),
)
PRESETS: Mapping[str, Config] = MappingProxyType(
    {name: config for family in FAMILIES for name, config in family.presets.items()}
)


def of(config: Config) -> Family:
    """The family of a configuration."""
    return next(family for family in FAMILIES if isinstance(config, family.config))


def model(config: Config, sites: Sites = Sites()) -> EncoderDecoder:
    """The model of a configuration, with a tuning method acting at its sites."""
    return of(config).model(config, sites)


def check_target_prefix(config: Config, prefix: str) -> None:
    """Checks that targets begin with no sentinel that a backbone was not pre-trained with.

    Raises:
      UserError: if they do.
    """
    family = of(config)
    if SENTINEL in prefix and not family.sentinels:
        raise UserError(
            f"SENTINEL_TARGETS: targets begin with {SENTINEL}, which no "
            f"{family.huggingface.MODEL_TYPES[0]} is pre-trained with; leave it out"
        )


@functools.cache
def init_shapes(config: Config, sites: Sites = Sites()) -> Any:
    """Parameter tree of `model(config, sites)`: boxed shapes, nothing allocated."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    init = model(config, sites).init
    return jax.eval_shape(init, jax.random.key(0), tokens, tokens, tokens)["params"]


def preset(name: str, dropout_rate: float = 0.0, **numerics: Any) -> Config:
    """Returns the shape of a backbone.

    Args:
      name: a preset, or a Hugging Face folder whose `config.json` has the shape.
      dropout_rate: dropout probability in training.
      **numerics: further fields of `Config`.

    Raises:
      UserError: if there is no such preset or folder.
      CheckpointError: as `read`.
    """
    if name in PRESETS:
        shape = PRESETS[name]
    elif (epath.Path(name).expanduser() / CONFIG).exists():
        shape = read(name)
    else:
        raise UserError(
            f"no preset named {name!r}, and no folder with a {CONFIG}; presets: "
            f"{', '.join(sorted(PRESETS))}"
        )
    return dataclasses.replace(shape, dropout_rate=dropout_rate, **numerics)


def read(folder: epath.PathLike) -> Config:
    """Reads the shape of a backbone from a Hugging Face folder's `config.json`.

    Raises:
      CheckpointError: if there is none, or naming a field with an unsupported value.
    """
    path = epath.Path(folder).expanduser() / CONFIG
    content = read_json(path)
    kind = content.get("model_type")
    by_type = {kind: family for family in FAMILIES for kind in family.huggingface.MODEL_TYPES}
    if not isinstance(kind, str) or kind not in by_type:
        *others, last = by_type
        raise CheckpointError(
            f"{path}: model_type is {kind!r}; must be {', '.join(others)} or {last}"
        )
    if "quantization_config" in content:
        raise CheckpointError(f"{path}: quantization_config: give an unquantised checkpoint")
    try:
        return by_type[kind].huggingface.config_of(path, content)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_json(path: epath.Path, whole: str = "checkpoint") -> dict[str, Any]:
    """Reads a JSON object; `whole` names what the file is a part of, for messages.

    Raises:
      CheckpointError: if the file does not exist or contains anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not valid JSON ({error}); copy the {whole} again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object; copy the {whole} again")
    return content

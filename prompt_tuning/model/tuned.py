"""A model with its parameters: initialised or read from checkpoints, laid out on devices."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array

from prompt_tuning import families, sharding
from prompt_tuning.checkpoint import backbone, card, fingerprint
from prompt_tuning.checkpoint.card import Card, TrainedWith
from prompt_tuning.errors import CheckpointError, UserError, whole_number
from prompt_tuning.families import init_shapes
from prompt_tuning.methods import choices
from prompt_tuning.methods.base import Backbone, Method
from prompt_tuning.methods.prompt_file import prompt_start
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.runtime import distributed
from prompt_tuning.sharding import Layout
from prompt_tuning.transformer import int8, stacked_leaves
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.network import EncoderDecoder
from prompt_tuning.transformer.paths import DECODER_EMBEDDING, EMBEDDING, Params, flatten, unflatten
from prompt_tuning.transformer.stacked_leaves import layer_shapes, stack


@dataclasses.dataclass(frozen=True)
class TunedModel:
    """A model with its parameters, ready to predict.

    Attributes:
      model: Backbone with the method at its sites.
      split: Division of the leaves into trained and frozen.
      trained: Tree of trained leaves.
      frozen: Tree of frozen leaves.
      layout: Layout of the leaves on the devices.
      source: Path of the backbone's weights; "" for random weights.
      sums: Fingerprint sums, by path, of leaves that were converted to int8 or float16 when they
        were read.
      trained_with: What the leaves were trained with, as a card or the data of `fit` say; data to
        answer on are compared with it. None if unknown, or not to be compared.
      first_tokens: First tokens of the targets that the leaves were trained on, where no more is
        known of them.
    """

    model: EncoderDecoder
    split: ParamSplit
    trained: Params
    frozen: Params
    layout: Layout
    source: str = ""
    sums: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    trained_with: TrainedWith | None = None
    first_tokens: frozenset[int] = frozenset()

    @property
    def params(self) -> dict:
        return self.split.merge(self.trained, self.frozen)

    @property
    def backbone(self) -> Params:
        """The present leaves of the backbone, by path."""
        leaves = flatten(self.params).items()
        return {path: leaf for path, leaf in leaves if path in self.split.backbone}

    def check_not_donated(self) -> None:
        """Checks that no training has taken the leaves, whose buffers it donates to its first step.

        Raises:
          UserError: If the model was given to `fit`.
        """
        leaves = [*flatten(self.trained).values(), *flatten(self.frozen).values()]
        if any(isinstance(leaf, Array) and leaf.is_deleted() for leaf in leaves):
            raise UserError(
                "this model was given to fit before, which took its trained leaves: go on with the "
                "model that fit returned, or initialize another one"
            )

    def without_method(self) -> "TunedModel":
        """Returns the backbone alone, with its present leaves."""
        shapes = {path: self.split.shapes[path] for path in self.split.backbone}
        split = ParamSplit(shapes, frozenset(), frozenset())
        return TunedModel(
            families.model(self.model.config), split, {}, unflatten(self.backbone), self.layout
        )


def initialize(
    config: Config,
    method: Method,
    *,
    layout: Layout,
    seed: int = 0,
    checkpoint: epath.PathLike | None = None,
    encode: Callable[[str], list[int]] | None = None,
    labels: Sequence[str] = (),
    tasks: Sequence[str] = (),
) -> TunedModel:
    """Builds a model: backbone leaves come from a checkpoint, added leaves from the method.

    Every leaf is created or read directly onto its shards.

    Args:
      config: Configuration of the backbone.
      method: Tuning method.
      layout: Layout from `sharding.layout`.
      seed: Seed of the random initialisation.
      checkpoint: Backbone weights, see `checkpoint.backbone.load`; random weights if None.
      encode: Function from text to token ids, for initialisers and methods that read words.
      labels: Label words of the task, likewise.
      tasks: Names of the training tasks, in the order of a batch's `tasks`, for methods that have
        parameters for each.

    Raises:
      ValueError: If a setting or a leaf does not fit; the message names it.
    """
    seed, labels = whole_number("RANDOM_SEED", seed, 0), choices.words("labels", labels)
    method = method.for_task(encode, labels, choices.words("tasks", tasks))
    model, split = families.model(config, method), ParamSplit.of(config, method)
    boxed = init_shapes(config, method)
    shardings = flatten(sharding.shardings_of(boxed, layout))
    shapes = {
        path: sharding.with_sharding(leaf, shardings[path]) for path, leaf in split.shapes.items()
    }
    loaded: dict[str, Any] = {}
    sums: dict[str, np.ndarray] = {}
    if checkpoint is not None:
        backbone.check_config(checkpoint, config)
        stored = {path: leaf for path, leaf in shapes.items() if path in split.backbone}
        loaded, sums = _read(checkpoint, stored)
    missing = {path: leaf for path, leaf in shapes.items() if path not in loaded}
    leaves = loaded | _random_leaves(model, missing, seed)
    backbone_leaves = {path: leaves[path] for path in split.backbone}
    identity = functools.partial(fingerprint.of, backbone_leaves, sums)
    values = method.initial_values(
        Backbone(
            leaves[EMBEDDING],
            encode,
            labels,
            identity,
            leaves.get(DECODER_EMBEDDING),
            config.of_model,
        ),
        seed,
    )
    for path, value in values.items():
        leaves[path] = sharding.place(np.asarray(value, np.float32), shardings[path])
    trained, frozen = split.split(unflatten(leaves))
    return TunedModel(
        model, split, trained, frozen, layout, str(checkpoint or ""), sums, _start_of(method)
    )


def _start_of(method: Method) -> TrainedWith | None:
    """What the prompt that a method starts from was trained with; warns if it stood elsewhere."""
    start = prompt_start(method)
    saved = card.read(start.path) if start else None
    if start is None or saved is None:
        return None
    placement = method.said("placement") or "prefix"
    if saved.placement not in ("", placement):
        warnings.warn(
            f"{start.path}: was trained as {saved.placement!r}, and stands as {placement!r} here",
            stacklevel=3,
        )
    return _compared(saved, start.allow_other_backbone)


def _compared(saved: Card | None, allow_other_backbone: bool) -> TrainedWith | None:
    """What data are compared with, of what a card says."""
    if saved is None or saved.trained_with is None or not allow_other_backbone:
        return saved.trained_with if saved else None
    return dataclasses.replace(saved.trained_with, vocabulary="", model={})


def _read(
    checkpoint: epath.PathLike, wanted: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads leaves of a checkpoint, and returns the fingerprint sums of those that are rounded.

    They become int8 or float16, each before the next one is read. Sums, by path in the file, are
    those of the values that were read.

    Raises:
      CheckpointError: As `backbone.load`; also if such a leaf is not finite, or not as float16.
    """
    in_files, sums = stacked_leaves.layer_shapes(wanted), {}

    def finish(path: str, leaf: jax.Array) -> Any:
        if not rounds(in_files[path]):
            return leaf
        sums[path] = fingerprint.sum_of(path, leaf)
        if not int8.is_int8(in_files[path]):
            narrow = leaf.astype(jnp.float16)
            if not distributed.to_host(jnp.isfinite(narrow).all()):
                raise CheckpointError(
                    f"BACKBONE_DTYPE = 'float16': {path} of {checkpoint} has values above its "
                    "largest number; use bfloat16"
                )
            return narrow
        quantize = jax.jit(int8.quantize, static_argnums=1, out_shardings=_places(in_files[path]))
        return jax.block_until_ready(quantize(leaf, path.rpartition("/")[2]))

    def rounds(leaf: Any) -> bool:
        """Whether a leaf's values may not round to the same bfloat16 as those of the file."""
        return int8.is_int8(leaf) or leaf.dtype == jnp.float16

    def as_read(leaf: Any) -> jax.ShapeDtypeStruct:
        place = jax.tree.leaves(leaf)[0].sharding
        dtype = jnp.float32 if leaf.dtype == jnp.float16 else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place)

    read = {path: as_read(leaf) for path, leaf in in_files.items()}
    each = finish if any(map(rounds, in_files.values())) else None
    return stacked_leaves.stack(backbone.load(checkpoint, read, each), wanted), sums


def _places(leaf: Any) -> Any:
    return jax.tree.map(lambda part: part.sharding, leaf)


def _random_leaves(model: EncoderDecoder, wanted: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Creates the `wanted` leaves by the modules' initialisers; the compiler drops all others."""
    if not wanted:
        return {}
    tokens = jnp.zeros((1, 2), jnp.int32)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        leaves = flatten(nn.unbox(model.init(key, tokens, tokens, tokens)["params"]))
        return {
            path: int8.quantize(leaves[path], path)
            if int8.is_int8(leaf)
            else leaves[path].astype(leaf.dtype)
            for path, leaf in wanted.items()
        }

    return jax.jit(init, out_shardings=_places(wanted))(jax.random.key(seed))


def with_trained(
    tuned: TunedModel,
    path: epath.PathLike,
    allow_other_backbone: bool = False,
    allow_other_settings: bool = False,
) -> TunedModel:
    """Returns `tuned` with trained leaves from a file of `checkpoint.trained`, onto their shards.

    The model answers only on data that agree with the file's card, unless `allow_other_settings`.

    Raises:
      CheckpointError: If the file's leaves are not the trained leaves of this model, or its card
        names another backbone, or other settings of the method, that are not allowed.
    """
    if not allow_other_settings:
        method = cast(Method, tuned.model.sites)
        card.check_method(path, type(method).__name__, method.settings)
    if not allow_other_backbone:
        card.check(path, lambda: fingerprint.of(tuned.backbone, tuned.sums))
        of_file = card.read(path)
        said = of_file.trained_with if of_file else None
        card.check_model(said, path, model=tuned.model.config.of_model)
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in flatten(tuned.trained).items()
    }
    leaves = backbone.load_safetensors(epath.Path(path).expanduser(), layer_shapes(wanted))
    saved = card.read(path)
    if saved is not None and saved.checksum:
        card.check_values(saved, path, {name: distributed.to_host(leaves[name]) for name in leaves})
    return dataclasses.replace(
        tuned,
        trained=unflatten(stack(leaves, wanted)),
        trained_with=None if allow_other_settings else _compared(saved, allow_other_backbone),
        first_tokens=frozenset(),
    )

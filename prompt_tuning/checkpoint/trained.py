"""A run's trained leaves as one `.safetensors` file, by path."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath
from safetensors.numpy import save as serialize

from prompt_tuning.checkpoint import backbone, card, fingerprint
from prompt_tuning.checkpoint.files import renamed_when_done
from prompt_tuning.params import flatten, unflatten
from prompt_tuning.scanned import layer_shapes, stack, unstack
from prompt_tuning.trainer import TunedModel


def save(path: epath.PathLike, leaves: Mapping[str, np.ndarray]) -> None:
    """Writes trained leaves (flat paths) in their own dtypes."""
    with renamed_when_done(path) as temporary:
        temporary.write_bytes(serialize(unstack(leaves)))


def with_trained(
    tuned: TunedModel, path: epath.PathLike, allow_other_backbone: bool = False
) -> TunedModel:
    """`tuned` with its trained leaves read from a file of `save`, onto their shards.

    Raises:
      CheckpointError: if the file's leaves are not the trained leaves of this model, or its card
        names another backbone.
    """
    if not allow_other_backbone:
        card.check(path, lambda: fingerprint.of(tuned.backbone, tuned.sums))
    wanted = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for name, leaf in flatten(tuned.trained).items()
    }
    leaves = backbone.load_safetensors(epath.Path(path).expanduser(), layer_shapes(wanted))
    return dataclasses.replace(tuned, trained=unflatten(stack(leaves, wanted)))

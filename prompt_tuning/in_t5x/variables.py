"""Variables and tokens in the form that T5X's models take; imports no T5X."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import core
from flax.linen import partitioning
from jax import Array
from jaxtyping import Int

from prompt_tuning.errors import UserError
from prompt_tuning.methods.prompt import place
from prompt_tuning.transformer.paths import flatten, unflatten


def in_t5x_form(
    variables: dict[str, Any] | core.FrozenDict, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the variables of `Module.init` as T5X takes them, with `values` in place of some.

    Args:
      variables: Collections; parameters may be boxed with their logical axes, as ours are, or have
        them in the collection `params_axes`, as T5X's do.
      values: Arrays by path, for parameters that do not start at random.

    Returns:
      Collections without boxes, with the axes of all parameters in `params_axes`.

    Raises:
      UserError: If a value has no parameter, or one of another shape.
    """
    variables = core.unfreeze(variables)
    params = flatten(variables["params"])
    axes = flatten(variables.get("params_axes", {}))
    for path, leaf in params.items():
        if isinstance(leaf, nn.Partitioned):
            params[path] = leaf.value
            axes[f"{path}_axes"] = partitioning.AxisMetadata(leaf.names)
    for path, value in values.items():
        shape = params[path].shape if path in params else None
        if shape != value.shape:
            raise UserError(
                f"{path}: the initial value is {value.shape}, the network's parameter {shape}; is "
                "the checkpoint one of this network?"
            )
        params[path] = jnp.asarray(value)
    return variables | {"params": unflatten(params), "params_axes": unflatten(axes)}


def real(tokens: Int[Array, "batch length"]) -> Int[Array, "batch length"]:
    """1 at tokens, 0 at padding."""
    return (tokens > 0).astype(jnp.int32)


def longer(
    tokens: Int[Array, "batch length"], length: int, placement: str | int
) -> Int[Array, "batch longer"]:
    """1 at tokens and prompt, 0 at padding: stands for tokens, of which T5X makes its masks."""
    embedded, prompt = jnp.zeros((*tokens.shape, 1)), jnp.zeros((length, 1))
    return place(embedded, real(tokens), prompt, placement)[1]


def labels(is_trained: Callable[[str], bool], params: Any) -> Any:
    """A tree like `params`, which may be frozen, of "train" and "frozen" by path."""

    def label(keys: Any, _: Any) -> str:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        return "train" if is_trained(path) else "frozen"

    return jax.tree_util.tree_map_with_path(label, params)


def check_whole(stored: Collection[str], wanted: Collection[str]) -> None:
    """Checks that a checkpoint has each leaf of a backbone and no other.

    Args:
      stored, wanted: Paths of the leaves, `target/...`.

    Raises:
      UserError: If a leaf is missing, which T5X would start at random, or has no use here.
    """
    missing, unused = sorted({*wanted} - {*stored}), sorted({*stored} - {*wanted})
    problems = {"lacks": missing, "has, without use in the network,": unused}
    faults = [f"{what} {_some(names)}" for what, names in problems.items() if names]
    if faults:
        raise UserError(
            f"the checkpoint {'; it '.join(faults)}; give one of this network, or rename its "
            "leaves by utils.RestoreCheckpointConfig.assignment_map"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"

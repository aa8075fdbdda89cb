"""Rows of any number and length through compiled functions: padded to powers of two, in batches."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from prompt_tuning import decoding, sharding
from prompt_tuning.decoding import Sampling
from prompt_tuning.runtime.distributed import to_host
from prompt_tuning.sharding import Layout
from prompt_tuning.t5.network import T5
from prompt_tuning.t5.paths import Params

SHORTEST = 16  # tokens of the smallest bucket

# Of model, settings, parameters, tokens [B, T], slots [B] and further arrays [B, ...].
Function = Callable[..., tuple[Array, ...]]


@dataclasses.dataclass(frozen=True)
class Search:
    """What a decoding is compiled for: most tokens, how they are drawn, or beams and penalty."""

    length: int
    sampling: Sampling | None = None
    beams: int = 1
    alpha: float = 0.6


class Batches:
    """Runs functions over rows in batches.

    Attributes:
      compiled: how many programs were compiled.
    """

    def __init__(self, layout: Layout, batch_size: int) -> None:
        """`batch_size` is the most rows of a batch, which divides over the layout's devices."""
        sharding.check_batch_size(batch_size, layout, "batch_size")
        self._layout, self._size, self.compiled = layout, batch_size, 0

        def run(
            function: Function, model: T5, settings: Any, params: Params, rows: tuple[Array, ...]
        ) -> tuple[Array, ...]:
            self.compiled += 1  # Python comes by when JAX compiles
            return function(model, settings, params, *rows)

        self._run = jax.jit(run, static_argnums=(0, 1, 2))

    def map(
        self,
        function: Function,
        settings: Any,
        model: T5,
        params: Params,
        ids: Sequence[Sequence[int]],
        slots: Sequence[int],
        *arguments: np.ndarray,
    ) -> list[np.ndarray]:
        """What the function returns for all rows, in their order.

        Args:
          function: see `Function`.
          settings: hashable; compiled for.
          model, params: its parameters are no constants of what is compiled.
          ids: tokens of each row, one or more.
          slots: of each row.
          *arguments: further arrays, [rows, ...].
        """
        order = np.array(sorted(range(len(ids)), key=lambda row: -len(ids[row])))
        inputs = (np.asarray(slots, np.int32), *arguments)
        results, counts = [], []
        with sharding.on(self._layout):
            for start in range(0, len(order), self._size):
                rows = order[start : start + self._size]
                counts.append(len(rows))
                rows = np.pad(rows, (0, self._filled(len(rows)) - len(rows)), mode="edge")
                tokens = np.zeros((len(rows), power(len(ids[rows[0]]), SHORTEST)), np.int32)
                for padded, row in zip(tokens, rows, strict=True):
                    padded[: len(ids[row])] = ids[row]
                arrays = {str(i): x for i, x in enumerate((tokens, *(x[rows] for x in inputs)))}
                placed = tuple(sharding.put_batch(arrays, self._layout).values())
                results.append(self._run(function, model, settings, params, placed))
        back = np.argsort(order)
        return [
            np.concatenate([to_host(x)[:n] for x, n in zip(part, counts, strict=True)])[back]
            for part in zip(*results, strict=True)
        ]

    def _filled(self, rows: int) -> int:
        return min(power(rows, self._layout.row_shards), self._size)


def classify(
    model: T5, settings: None, params: Params, tokens: Array, slots: Array, targets: Array
) -> tuple[Array]:
    """Log p [B, K] of targets [B, K, L]."""
    return (decoding.score(model, params, tokens, targets, slots),)


def generate(
    model: T5,
    search: Search,
    params: Params,
    tokens: Array,
    slots: Array,
    limits: Array,
    stops: Array,
    keys: Array,
) -> tuple[Array, Array]:
    """Tokens [B, L] and scores [B], from limits [B], stops [B, S], and the numbers [B, 2], seed and
    row, that random keys are made of.
    """
    step_fn, cache = decoding.start(model, params, tokens, search.length, slots)
    batch, length = tokens.shape[0], search.length
    ends: dict[str, Any] = {"limits": limits, "stops": stops}
    if search.beams > 1:
        found = decoding.beam_search(
            step_fn,
            cache,
            batch=batch,
            beams=search.beams,
            length=length,
            alpha=search.alpha,
            **ends,
        )
        return found.tokens[:, 0], found.scores[:, 0]
    draw = None
    if search.sampling is not None:
        draw = search.sampling, decoding.keys_of(keys[0, 0], keys[:, 1])
    found = decoding.decode(step_fn, cache, batch=batch, length=length, draw=draw, **ends)
    return found.tokens, found.scores


def embed(model: T5, settings: None, params: Params, tokens: Array, slots: Array) -> tuple[Array]:
    """The encoder's mean state [B, D] over the tokens."""
    apply: Callable[..., Any] = model.apply
    encoded = apply({"params": params}, tokens, tasks=slots, method=model.encode)
    states = encoded.states[:, -tokens.shape[1] :].astype(jnp.float32)
    real = (tokens > 0)[..., None]
    return (jnp.sum(states * real, axis=1) / jnp.sum(real, axis=1),)


def power(count: int, smallest: int = 1) -> int:
    """`smallest` times the power of two that is enough for `count`."""
    while smallest < count:
        smallest *= 2
    return smallest

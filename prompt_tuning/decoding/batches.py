"""Runs functions over rows of any number and length: plans batches, pads them, restores the order.

Evaluation and serving share `map_rows`. `plan` needs no device, so that a scheduler can use it too.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from prompt_tuning import decoding, sharding
from prompt_tuning.errors import UserError
from prompt_tuning.runtime.distributed import to_host
from prompt_tuning.sharding import Layout
from prompt_tuning.transformer.network import EncoderDecoder
from prompt_tuning.transformer.paths import Params, flatten

SHORTEST = 16  # tokens of the shortest batch

# From model, settings, parameters, tokens [B, T], slots [B] and further arrays [B, ...].
Function = Callable[..., tuple[Array, ...]]
# From parameters, tokens [B, T], slots [B] and further arrays [B, ...] to arrays [B, ...].
Executable = Callable[..., tuple[np.ndarray, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Rows that are computed together.

    Attributes:
      rows: Indices of the rows.
      shape: Rows and tokens after padding, (B, T).
    """

    rows: np.ndarray
    shape: tuple[int, int]

    def tokens(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """The rows' tokens [B, T] int32 from the ids of all rows; 0 is padding."""
        tokens = np.zeros(self.shape, np.int32)
        for padded, row in zip(tokens, self._padded_rows, strict=True):
            padded[: len(ids[row])] = ids[row]
        return tokens

    def take(self, arrays: Any) -> Any:
        """The rows' part [B, ...] of a pytree of arrays [N, ...]."""
        return jax.tree.map(lambda array: array[self._padded_rows], arrays)

    @property
    def _padded_rows(self) -> np.ndarray:
        return np.pad(self.rows, (0, self.shape[0] - len(self.rows)), mode="edge")


def plan(
    lengths: Sequence[int], batch_size: int, *, fewest_rows: int = 1, longest: int | None = None
) -> list[Batch]:
    """Divides rows into batches of similar length and of few shapes, since each shape is compiled.

    The longest rows come first: what does not fit into memory fails at once. Missing rows of the
    last batch are copies of its last row.

    Args:
      lengths: Number of tokens of each row.
      batch_size: Most rows of a batch.
      fewest_rows: Rows are padded to this number times a power of two, at most to `batch_size`.
      longest: Most tokens of a batch, which are otherwise 16 times a power of two; None for no
        bound.
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches = []
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = power(lengths[rows[0]], SHORTEST)
        shape = (
            min(power(len(rows), fewest_rows), batch_size),
            width if longest is None else min(width, longest),
        )
        batches.append(Batch(rows, shape))
    return batches


def map_rows(
    function: Callable[..., Any],
    ids: Sequence[Sequence[int]],
    arrays: Any,
    *,
    layout: Layout,
    batch_size: int,
    fewest_rows: int | None = None,
    longest: int | None = None,
) -> Any:
    """Applies a function to rows in batches, and returns its results in the order of the rows.

    Args:
      function: Called with tokens [B, T] and `arrays` of the batch, both on the devices; returns a
        pytree of arrays [B, ...].
      ids: Token ids of each row, N rows, at least one.
      arrays: Pytree of arrays [N, ...].
      layout: Devices that the rows of a batch are divided over.
      batch_size, longest: As in `plan`.
      fewest_rows: As in `plan`; None for one row per part of the layout.

    Returns:
      The function's pytree, with NumPy arrays [N, ...].
    """
    lengths = [len(row) for row in ids]
    fewest_rows = fewest_rows or layout.row_shards
    batches = plan(lengths, batch_size, fewest_rows=fewest_rows, longest=longest)
    results = []
    with sharding.on(layout):
        for batch in batches:
            inputs = sharding.put_batch((batch.tokens(ids), batch.take(arrays)), layout)
            results.append(function(*inputs))
    back = np.argsort(np.concatenate([batch.rows for batch in batches]))

    def ordered(*parts: Array) -> np.ndarray:
        real = [to_host(x)[: len(b.rows)] for x, b in zip(parts, batches, strict=True)]
        return np.concatenate(real)[back]

    return jax.tree.map(ordered, *results)


def check_finite(
    results: Any, model: EncoderDecoder, params: Params, trained: Collection[str] = ()
) -> None:
    """Checks that the results of a model are finite numbers.

    Args:
      results: Tree of arrays.
      model: The model.
      params: Its leaves.
      trained: Paths of the leaves that a run trained.

    Raises:
      UserError: Names the cause of a NaN or an infinity.
    """
    arrays = [
        array for array in jax.tree.leaves(results) if np.issubdtype(array.dtype, np.floating)
    ]
    if all(np.isfinite(array).all() for array in arrays):
        return
    for path, leaf in flatten(params).items():
        parts = [part for part in jax.tree.leaves(leaf) if jnp.issubdtype(part.dtype, jnp.floating)]
        if not all(to_host(jnp.isfinite(part).all()) for part in parts):
            leaf_of = "trained leaf" if path in trained else "leaf"
            cause = "use another checkpoint"
            if path in trained:
                cause = "the training diverged; train with a lower LEARNING_RATE"
            raise UserError(
                f"the model's scores are not finite numbers: its {leaf_of} {path} has a NaN or an "
                f"infinity; {cause}"
            )
    dtype = model.config.dtype
    advice = "overflow; use bfloat16" if dtype == "float16" else "overflow; use float32"
    raise UserError(
        f"ACTIVATION_DTYPE = {dtype!r}: the model's scores are not finite numbers although its "
        f"leaves are: its activations {advice}"
    )


def power(count: int, smallest: int = 1) -> int:
    """The first of `smallest` times 1, 2, 4, ... that is at least `count`."""
    while smallest < count:
        smallest *= 2
    return smallest


@dataclasses.dataclass(frozen=True)
class Search:
    """Static settings of a decoding; each combination is compiled.

    Attributes:
      length: Maximum number of tokens.
      beams: Number of beams; 1 for no beam search.
      alternatives: Number of most likely tokens that are reported at each step, A.
    """

    length: int
    beams: int = 1
    alternatives: int = 0


class Programs:
    """Compiled functions of a model, run over rows in batches.

    Attributes:
      compiled: Number of programs compiled so far.
    """

    def __init__(self, layout: Layout, batch_size: int) -> None:
        """`batch_size` is the most rows of a batch; a multiple of the layout's row shards."""
        sharding.check_batch_size(batch_size, layout, "batch_size")
        self._layout, self._batch_size, self.compiled = layout, batch_size, 0

        def run(
            function: Function,
            model: EncoderDecoder,
            settings: Any,
            params: Params,
            tokens: Array,
            arrays: tuple[Array, ...],
        ) -> tuple[Array, ...]:
            self.compiled += 1  # runs only while JAX traces, so this counts compilations
            return function(model, settings, params, tokens, *arrays)

        self._run = jax.jit(run, static_argnums=(0, 1, 2))

    def executable(
        self,
        function: Function,
        settings: Any,
        model: EncoderDecoder,
        params: Params,
        *inputs: np.ndarray,
    ) -> Executable:
        """Compiles a function for the shapes of its inputs, ahead of time.

        Args:
          function, settings, model, params: As in `map`.
          *inputs: Tokens [B, T], slots [B] and further arrays [B, ...], of any values.

        Returns:
          A function of parameters and such inputs that compiles nothing, and returns the arrays
          [B, ...].
        """
        tokens, *arrays = sharding.put_batch(inputs, self._layout)
        with sharding.on(self._layout):
            lowered = self._run.lower(function, model, settings, params, tokens, tuple(arrays))
            compiled = lowered.compile()

        def run(params: Params, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
            tokens, *arrays = sharding.put_batch(inputs, self._layout)
            return jax.tree.map(to_host, compiled(params, tokens, tuple(arrays)))

        return run

    def map(
        self,
        function: Function,
        settings: Any,
        model: EncoderDecoder,
        params: Params,
        ids: Sequence[Sequence[int]],
        *arrays: np.ndarray,
    ) -> tuple[np.ndarray, ...]:
        """What the function returns for all rows, in their order.

        Args:
          function: See `Function`.
          settings: Hashable settings; static, so each value is compiled.
          model: Model; static as well.
          params: Parameters of the model; not part of what is compiled.
          ids: Token ids of each row.
          *arrays: Slots [N] and further arrays [N, ...].
        """

        def run(tokens: Array, placed: tuple[Array, ...]) -> tuple[Array, ...]:
            return self._run(function, model, settings, params, tokens, placed)

        results = map_rows(run, ids, arrays, layout=self._layout, batch_size=self._batch_size)
        check_finite(results, model, params)
        return results


def classify(
    model: EncoderDecoder,
    most_bytes: float,
    params: Params,
    tokens: Array,
    slots: Array,
    targets: Array,
) -> tuple[Array]:
    """The log-probabilities [B, K] of targets [B, K, L]; see `decoding.score`."""
    return (decoding.score(model, params, tokens, targets, slots, most_bytes),)


def generate(
    model: EncoderDecoder,
    search: Search,
    params: Params,
    tokens: Array,
    slots: Array,
    limits: Array,
    stops: Array,
    alpha: Array,
    keys: Array,
    temperature: Array,
    top_k: Array,
    top_p: Array,
    with_alternatives: Array,
) -> tuple[Array, ...]:
    """Tokens [B, L], scores [B], log p [B, L], the most likely tokens [B, L, A] and their log p.

    The fields of `decoding.Decoded`; from beam search the last three are [B, 0].

    Args:
      model, search, params, tokens, slots: See `Function`.
      limits: [B] int32, each row's maximum number of tokens.
      stops: [B, S] int32, tokens that end a row.
      alpha: [B] float32, exponent of beam search's length penalty.
      keys: [B, 2] uint32, seed and number of each row, from which its random key is made.
      temperature, top_k, top_p: [B], see `decoding.Draws`; unused in beam search.
      with_alternatives: [B] bool, see `decoding.decode`.
    """
    step_fn, cache = decoding.start(model, params, tokens, search.length, slots)
    batch, length = tokens.shape[0], search.length
    ends: dict[str, Any] = {"limits": limits, "stops": stops}
    if search.beams > 1:
        decoded = decoding.beam_search(
            step_fn, cache, batch=batch, beams=search.beams, length=length, alpha=alpha, **ends
        )
        nothing = (decoded.scores[:, :0],) * 3
        return decoded.tokens[:, 0], decoded.scores[:, 0], *nothing
    draws = decoding.Draws(decoding.keys_of(keys[:, 0], keys[:, 1]), temperature, top_k, top_p)
    decoded = decoding.decode(
        step_fn,
        cache,
        batch=batch,
        length=length,
        draws=draws,
        alternatives=search.alternatives,
        with_alternatives=with_alternatives,
        **ends,
    )
    return tuple(jax.tree.leaves(decoded))


def embed(
    model: EncoderDecoder, settings: None, params: Params, tokens: Array, slots: Array
) -> tuple[Array]:
    """The encoder's mean state [B, D] over the tokens."""
    apply: Callable[..., Any] = model.apply
    encoded = apply({"params": params}, tokens, tasks=slots, method=model.encode)
    states = encoded.states[:, -tokens.shape[1] :].astype(jnp.float32)
    return (jnp.mean(states, axis=1, where=(tokens > 0)[..., None]),)

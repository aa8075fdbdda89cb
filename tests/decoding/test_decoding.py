"""Decoding loops over a chain of tokens, whose sequences can be enumerated."""

import functools
import itertools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from prompt_tuning import decoding
from prompt_tuning.decoding import EOS, Sampling
from prompt_tuning.decoding.beam import penalty

V = 5
LONGEST = 6
# [row, step, last token, next token]; one table per step, so that no two sequences tie.
TABLES = 1.5 * np.random.default_rng(3).normal(size=(3, LONGEST, V, V)).astype(np.float32)
# Log p of a token is a difference of numbers below 16, which float32 rounds to 2^-21. Four such
# errors are allowed for each token of a sequence, in each of two scores that are compared.
TOLERANCE = 2 * LONGEST * 4 * 2**-21


class Chain(flax.struct.PyTreeNode):
    """A cache: a row's logits depend on its table, the step and its last token."""

    tables: jax.Array | np.ndarray
    index: int = 0

    def rows(self, index: jax.Array) -> "Chain":
        return self.replace(tables=self.tables[index])


def step(tokens: jax.Array, cache: Chain) -> tuple[jax.Array, Chain]:
    table = cache.tables[:, cache.index]
    logits = jnp.take_along_axis(table, tokens[:, None, None], axis=1)[:, 0]
    return logits, cache.replace(index=cache.index + 1)


def log_p(tables: np.ndarray, sequence: Sequence[int]) -> float:
    """Log p of a sequence, from one row's tables."""
    total, last = 0.0, 0
    for table, token in zip(tables.astype(np.float64), sequence, strict=False):
        total += table[last, token] - np.log(np.exp(table[last]).sum())
        last = token
    return total


def every_finished(tables: np.ndarray, length: int, alpha: float, stops=(EOS,)) -> dict:
    """All sequences that end within `length` tokens, with their scores."""
    scores = {}
    for n in range(1, length + 1):
        for sequence in itertools.product(range(V), repeat=n):
            if sequence[-1] in stops and not set(sequence[:-1]) & set(stops):
                scores[sequence] = log_p(tables, sequence) / ((5 + n) / 6) ** alpha
    return scores


@functools.partial(jax.jit, static_argnums=(0, 1))
def _search(
    beams: int, length: int, alpha: float, limits: jax.Array, stops: jax.Array
) -> decoding.Decoded:
    return decoding.beam_search(
        step,
        Chain(jnp.asarray(TABLES)),
        batch=len(TABLES),
        beams=beams,
        length=length,
        alpha=alpha,
        limits=limits,
        stops=stops,
    )


def search(
    beams: int, length: int, *, alpha: float = 0.6, limits=None, stops=(EOS, EOS)
) -> decoding.Decoded:
    """One program for all penalties, limits and stop tokens, two for each row."""
    limits = np.full(len(TABLES), length) if limits is None else limits
    stops = np.broadcast_to(stops, (len(TABLES), 2))
    return _search(beams, length, alpha, np.asarray(limits, np.int32), stops)


def check_row(decoded: decoding.Decoded, row: int, expected: dict, places: int) -> None:
    best = sorted(expected.items(), key=lambda item: -item[1])[:places]
    length = decoded.tokens.shape[-1]
    for place, (sequence, score) in enumerate(best):
        padded = np.pad(sequence, (0, length - len(sequence)))
        np.testing.assert_array_equal(decoded.tokens[row, place], padded)
        assert decoded.scores[row, place] == pytest.approx(score, rel=0, abs=TOLERANCE)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_wide_beam_is_a_search_of_everything(alpha):
    # The last step has 64 unfinished sequences of length 3, so 320 candidates: none is cut.
    decoded = search(160, 4, alpha=alpha)
    for row, tables in enumerate(TABLES):
        expected = every_finished(tables, 4, alpha)
        assert len(expected) == 1 + 4 + 16 + 64
        check_row(decoded, row, expected, 85)


def test_each_row_of_a_beam_has_its_own_length_and_stops():
    limits, stops = np.array([4, 2, 3]), np.array([[1, 1], [1, 3], [2, 2]])
    decoded = search(160, 4, limits=limits, stops=stops)
    for row, tables in enumerate(TABLES):
        expected = every_finished(tables, limits[row], 0.6, stops[row].tolist())
        check_row(decoded, row, expected, len(expected))
        nothing = decoded.scores[row, len(expected) :]
        assert np.isneginf(nothing).all()
        assert not decoded.tokens[row, len(expected) :].any()


def test_a_row_without_an_end_gives_its_unfinished_sequences():
    decoded = search(160, 4, limits=[3] * len(TABLES), stops=V)
    for row, tables in enumerate(TABLES):
        paths = {path: log_p(tables, path) for path in itertools.product(range(V), repeat=3)}
        check_row(decoded, row, paths, 25)


def test_penalty_is_that_of_t5x():
    np.testing.assert_allclose(penalty(0.6, jnp.arange(4)), [(n / 6) ** 0.6 for n in (5, 6, 7, 8)])


@functools.partial(jax.jit, static_argnums=0)
def _decode(length: int, tables: jax.Array, options: dict) -> decoding.Decoded:
    return decoding.decode(step, Chain(tables), batch=len(tables), length=length, **options)


def decode(length: int, tables: np.ndarray = TABLES, *, stops=V, limits=None, draws=None):
    """One program for all values of the options; two stop tokens for each row."""
    limits = np.full(len(tables), length) if limits is None else limits
    options = {
        "limits": np.asarray(limits, np.int32),
        "stops": np.broadcast_to(np.asarray(stops, np.int32), (len(tables), 2)),
        "draws": draws,
    }
    return _decode(length, tables, options)


def test_greedy_scores_and_limits():
    limits = np.array([6, 0, 2])
    decoded = decode(6, limits=limits)
    for row, tables in enumerate(TABLES):
        path = [0]
        for table in tables[: limits[row]]:
            path.append(int(table[path[-1]].argmax()))
        np.testing.assert_array_equal(decoded.tokens[row], np.pad(path[1:], (0, 7 - len(path))))
        assert decoded.scores[row] == pytest.approx(log_p(tables, path[1:]), rel=0, abs=TOLERANCE)


@pytest.mark.parametrize("asked", [[True, False, False], [False] * 3])
def test_log_p_of_each_token_and_of_the_most_likely_ones(asked):
    decoded = jax.jit(
        lambda tables, asked: decoding.decode(
            step,
            Chain(tables),
            batch=3,
            length=4,
            stops=[V],
            alternatives=2,
            with_alternatives=asked,
        )
    )(TABLES, np.array(asked))
    for row, tables in enumerate(TABLES):
        tokens = np.asarray(decoded.tokens[row]).tolist()
        sums = np.cumsum(decoded.log_p[row])
        expected = [log_p(tables, tokens[: i + 1]) for i in range(4)]
        np.testing.assert_allclose(sums, expected, rtol=0, atol=TOLERANCE)
    if any(asked):  # a greedy token is the most likely one
        np.testing.assert_array_equal(decoded.top_tokens[0, :, 0], decoded.tokens[0])
        np.testing.assert_allclose(decoded.top_log_p[0, :, 0], decoded.log_p[0], atol=TOLERANCE)
        assert (decoded.top_log_p[0, :, 1] < decoded.top_log_p[0, :, 0]).all()


def test_greedy_stops_at_any_of_the_stop_tokens_of_the_row():
    free = np.asarray(decode(6).tokens)
    stops = np.stack([free[:, 2], free[:, 4]], axis=1)
    decoded = np.asarray(decode(6, stops=stops).tokens)
    for row in range(len(TABLES)):
        end = min(np.flatnonzero(np.isin(free[row], stops[row])))
        np.testing.assert_array_equal(decoded[row, : end + 1], free[row, : end + 1])
        assert not decoded[row, end + 1 :].any()


SAMPLINGS = [
    Sampling(),
    Sampling(top_k=V + 1),
    Sampling(top_k=2),
    Sampling(top_p=0.7),
    Sampling(temperature=2.0, top_k=4, top_p=0.8),
]


def distribution(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The distribution to draw from, one token at a time."""
    p = np.exp(logits.astype(np.float64) / sampling.temperature)
    order = np.argsort(-p)
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0.0
    p /= p.sum()
    kept, total = [], 0.0
    for token in order:
        if total < sampling.top_p:
            kept.append(token)
            total += p[token]
    p[[token for token in range(len(p)) if token not in kept]] = 0.0
    return p / p.sum()


def draws(keys: Sequence[int], samplings: Sequence[Sampling | None], seed: int = 0):
    return decoding.Draws(decoding.keys_of(seed, keys), *decoding.sampling_arrays(samplings))


@functools.cache
def drawn_tokens() -> np.ndarray:
    """Two tokens of 4,000 rows for each of SAMPLINGS, all in one batch: [settings, 4000, 2]."""
    rows = 4_000 * len(SAMPLINGS)
    tables = np.broadcast_to(TABLES[0], (rows, *TABLES.shape[1:]))
    samplings = [sampling for sampling in SAMPLINGS for _ in range(4_000)]
    decoded = decode(2, tables, draws=draws(range(rows), samplings, seed=7))
    return np.asarray(decoded.tokens).reshape(len(SAMPLINGS), 4_000, 2)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_samples_follow_the_distribution(sampling):
    first, second = drawn_tokens()[SAMPLINGS.index(sampling)].T
    check_counts(first, distribution(TABLES[0, 0, 0], sampling))
    common = np.bincount(first).argmax()
    check_counts(second[first == common], distribution(TABLES[0, 1, common], sampling))


def test_a_batch_samples_some_rows_and_takes_the_most_likely_token_in_others():
    drawn = decode(6, draws=draws([4, 5, 6], [Sampling(), None, Sampling(2.0, 3)]))
    greedy = decode(6)
    np.testing.assert_array_equal(drawn.tokens[1], greedy.tokens[1])
    assert drawn.scores[1] == pytest.approx(float(greedy.scores[1]), rel=0, abs=TOLERANCE)
    assert (np.asarray(drawn.tokens)[[0, 2]] != np.asarray(greedy.tokens)[[0, 2]]).any(axis=1).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_the_tokens_that_are_kept_are_those_of_sorted_logits(scale, shift):
    samplings = [Sampling(t, k, p) for t in (0.5, 3.0) for k in (0, 1, 40) for p in (0.2, 0.9, 1.0)]
    rng = np.random.default_rng(0)
    logits = (shift + scale * rng.normal(size=(len(samplings), 1000))).astype(np.float32)
    logits[:, :3] = -np.inf
    filtered = np.asarray(draws(range(len(logits)), samplings).filtered(jnp.asarray(logits)))
    for kept, row, sampling in zip(filtered, logits, samplings, strict=True):
        shifted = row.astype(np.float64) - row.max()
        expected = distribution(shifted, sampling)
        least = row[expected > 0].min()  # ties with the last one are kept
        differs = (kept > -np.inf) ^ (row >= least)
        # Rounding may move the end of the kept tokens by some of those that are as likely.
        assert distribution(shifted, Sampling(sampling.temperature))[differs].sum() < 1e-4
        expected_logits = (row / sampling.temperature)[kept > -np.inf]
        np.testing.assert_allclose(kept[kept > -np.inf], expected_logits, rtol=1e-6)


@pytest.mark.parametrize(
    "sampling",
    [
        *(Sampling(top_p=p) for p in (1e-37, 1e-38, 1e-40, 1e-45, 1e-300, 5e-324)),
        *(Sampling(temperature=t) for t in (1e-29, 1e-37, 1e-38, 1e-40, 1e-45, 1e-300, 5e-324)),
        Sampling(1e-45, 2, 1e-45),
    ],
)
def test_numbers_that_float32_lacks_choose_the_likeliest_token(sampling):
    """Devices take those below its normal numbers for 0, and logits / 1e-38 are infinite."""
    logits = jnp.array([[40.0, 50.0, 49.9, -1e10], [1.0, 3.0, 2.0, -jnp.inf]], jnp.float32)
    rows = draws([0, 1], [sampling, sampling])
    assert rows.choose(logits, jnp.int32(0)).tolist() == [1, 1]
    kept = np.asarray(rows.filtered(logits))
    assert not np.isnan(kept).any() and np.argmax(kept, axis=1).tolist() == [1, 1]
    if sampling.top_p < 1:
        assert (kept > -np.inf).sum(axis=1).tolist() == [1, 1]


def test_ties_with_the_last_token_that_is_kept_are_kept():
    logits = jnp.array([[0.0, 1.0, 1.0, -0.0, 1.0, -1.0], [0.0, -0.0, -1.0, -2.0, -3.0, -4.0]])
    kept = draws([0, 1], [Sampling(top_k=2), Sampling(top_k=1)]).filtered(logits) > -jnp.inf
    assert np.asarray(kept).tolist() == [[0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]]


def check_counts(drawn: np.ndarray, expected: np.ndarray) -> None:
    counts = np.bincount(drawn, minlength=V)
    possible = expected > 0
    assert not counts[~possible].any()
    if possible.sum() > 1:
        assert stats.chisquare(counts[possible], expected[possible] * len(drawn)).pvalue > 1e-3


def test_a_wrong_distribution_is_seen():
    drawn = np.random.default_rng(0).choice(V, 4_000, p=distribution(TABLES[0, 0, 0], Sampling()))
    with pytest.raises(AssertionError):
        check_counts(drawn, distribution(TABLES[0, 0, 0], Sampling(temperature=1.2)))


def test_a_sample_does_not_depend_on_the_other_rows():
    samplings = [Sampling(top_k=2), None, Sampling()]
    together = decode(6, draws=draws([4, 5, 6], samplings))
    alone = decode(6, TABLES[[2, 2, 2]], draws=draws([6, 6, 6], [Sampling()] * 3))
    for tokens in alone.tokens:
        np.testing.assert_array_equal(tokens, together.tokens[2])


def test_keys_are_those_of_each_row_s_seed_and_number():
    keys = jax.random.key_data(decoding.keys_of(np.array([3, 3, 4], np.uint32), [0, 1, 0]))
    for key, seed, number in zip(keys, (3, 3, 4), (0, 1, 0), strict=True):
        expected = jax.random.fold_in(jax.random.key(seed), number)
        np.testing.assert_array_equal(key, jax.random.key_data(expected))
    np.testing.assert_array_equal(keys[:2], jax.random.key_data(decoding.keys_of(3, [0, 1])))


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", 0.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0)],
)
def test_settings_out_of_range_are_refused(setting, value):
    with pytest.raises(ValueError, match=setting):
        Sampling(**{setting: value})

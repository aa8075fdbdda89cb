"""T5's pre-training objectives on token ids: span corruption and prefix language modelling.

Raffel et al., 2020 (arXiv 1910.10683), sections 3.1.4 and 3.2. Each is a SeqIO preprocessor of
examples {"targets": ids [N] int32} that gives "inputs" and "targets", without end tokens.
"""

import itertools
from collections.abc import Callable, Mapping

from prompt_tuning.data.quiet import seqio, tf
from prompt_tuning.data.tasks import TfExample
from prompt_tuning.errors import UserError

DENSITY = 0.15
MEAN_SPAN = 3.0
DOCUMENTS = 128  # texts joined before they are cut into pieces of one length

Objective = Callable[..., tf.data.Dataset]


def span_corruption(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
) -> tf.data.Dataset:
    """Replaces random spans, 15 % of the tokens, by one sentinel each.

    The targets are the sentinels, each followed by its span. Texts are joined and cut so that the
    inputs have full length.

    Raises:
      UserError: If the targets have no room for the spans, or the vocabulary too few sentinels.
    """
    length = piece_length(sequence_length["inputs"])
    noise, spans = counts(length)
    if sequence_length["targets"] < noise + spans + 1:
        raise UserError(
            f"TASK_FEATURE_LENGTHS = {dict(sequence_length)}: span corruption needs "
            f"targets of {noise + spans + 1} or more for these inputs"
        )
    vocabulary = output_features["targets"].vocabulary
    if vocabulary.extra_ids < spans:
        raise UserError(
            f"TASK_FEATURE_LENGTHS = {dict(sequence_length)}: span corruption needs "
            f"{spans} sentinels for these inputs, and the vocabulary has {vocabulary.extra_ids}"
        )

    sizes = tf.constant([counts(n) for n in range(1, length + 1)])  # the last piece is shorter

    @seqio.map_over_dataset(num_seeds=1)
    def corrupted(example: TfExample, seed: tf.Tensor) -> TfExample:
        tokens = example["targets"]
        noise, spans = tf.unstack(sizes[tf.size(tokens) - 1])
        mask = noise_mask(tf.size(tokens), noise, spans, seed)
        return corrupt(tokens, mask, vocabulary.vocab_size - 1)

    texts = dataset.map(lambda example: example["targets"]).ragged_batch(DOCUMENTS)
    return corrupted(texts.flat_map(lambda joined: _cut(joined.flat_values, length)))


def prefix_lm(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
) -> tf.data.Dataset:
    """Cuts pieces of texts, at most as long as the inputs, in two at a random place.

    The second part fits the targets.
    """
    del output_features
    longest, room = sequence_length["inputs"] - 1, sequence_length["targets"] - 1

    @seqio.map_over_dataset(num_seeds=1)
    def cut(example: TfExample, seed: tf.Tensor) -> TfExample:
        tokens = example["targets"]
        size = tf.size(tokens)
        first = tf.maximum(1, size - room)
        place = tf.random.stateless_uniform([], seed, first, size, tf.int32)
        return {"inputs": tokens[:place], "targets": tokens[place:]}

    pieces = dataset.flat_map(lambda example: _cut(example["targets"], longest))
    return cut(pieces.filter(lambda example: tf.size(example["targets"]) > 1))


def counts(length: int) -> tuple[int, int]:
    """Numbers of noise tokens and of spans in a piece of `length` tokens."""
    noise = min(max(round(length * DENSITY), 1), max(length - 1, 1))
    return noise, max(round(noise / MEAN_SPAN), 1)


def piece_length(inputs: int) -> int:
    """Length of the longest piece whose corrupted form and end token fit in `inputs` tokens."""

    def corrupted(length: int) -> int:
        noise, spans = counts(length)
        return length - noise + spans + 1

    return next(n for n in itertools.count(1) if corrupted(n + 1) > inputs)


def noise_mask(
    length: int | tf.Tensor, noise: int | tf.Tensor, spans: int | tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    """Draws a noise mask [length] bool: `spans` random spans, none of them at the start."""
    seeds = tf.unstack(tf.random.split(seed))
    kept, lost = _segments(length - noise, spans, seeds[0]), _segments(noise, spans, seeds[1])
    lengths = tf.reshape(tf.stack([kept, lost], axis=1), [-1])
    return tf.repeat(tf.range(2 * spans) % 2 == 1, lengths)


def corrupt(tokens: tf.Tensor, noise: tf.Tensor, first_sentinel: int) -> TfExample:
    """Replaces each span of noise by a sentinel in the inputs, and moves it to the targets.

    Args:
      tokens: Ids of the piece, [N] int32.
      noise: Noise mask, [N] bool.
      first_sentinel: Id of the first sentinel; each next one is one less.
    """
    starts = noise & ~tf.concat([[False], noise[:-1]], axis=0)
    sentinels = first_sentinel + 1 - tf.cumsum(tf.cast(starts, tokens.dtype))
    pairs = tf.stack([sentinels, tokens], axis=1)
    return {
        "inputs": pairs[tf.stack([starts, ~noise], axis=1)],
        "targets": pairs[tf.stack([starts, noise], axis=1)],
    }


def _segments(items: tf.Tensor, count: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws `count` random lengths that sum to `items`, none of them 0 if `items` >= `count`."""
    places = seqio.stateless_shuffle(tf.range(1, tf.maximum(items, 1)), seed)[: count - 1]
    ends = tf.concat([tf.sort(places), [items]], axis=0)
    return ends - tf.concat([[0], ends[:-1]], axis=0)


def _cut(tokens: tf.Tensor, length: int) -> tf.data.Dataset:
    """Dataset of the tokens in pieces of at most `length`."""
    return tf.data.Dataset.from_tensor_slices({"targets": tokens}).batch(length)

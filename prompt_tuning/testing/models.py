"""Tiny models with random weights, and batches for them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from prompt_tuning import families, sharding
from prompt_tuning.families import init_shapes
from prompt_tuning.gemma.config import StackConfig, T5GemmaConfig
from prompt_tuning.methods import Method, ModelTuning
from prompt_tuning.model.params import ParamSplit
from prompt_tuning.model.tuned import TunedModel
from prompt_tuning.t5.config import T5Config
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.paths import flatten, unflatten


class Shaped(Protocol):
    """What `random_leaves` reads of a leaf: an array or a `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def tiny_config(**changes: Any) -> T5Config:
    """A backbone of 64 tokens, width 16, two heads, and two encoder layers and one decoder layer.

    Tests that agree on one shape share what they compile. `changes` replaces fields of `T5Config`.
    """
    return dataclasses.replace(T5Config(64, 16, 2, 8, 32, 2, 1), **changes)


def tiny_gemma(**changes: Any) -> T5GemmaConfig:
    """A T5Gemma of 64 tokens and two layers in each stack; `changes` replaces fields.

    The stacks differ in width, heads share keys, and every other layer has a window of 4.
    """
    config = T5GemmaConfig(
        64,
        StackConfig(16, 2, 32, 4, 2, 8, query_scalar=8, window=4),
        StackConfig(12, 2, 24, 4, 2, 6, query_scalar=6, window=4),
    )
    return dataclasses.replace(config, **changes)


def random_leaves(shapes: Mapping[str, Shaped], seed: int = 0) -> dict[str, np.ndarray]:
    """Float32 values for leaves by path, of a size at which activations stay near 1.

    Kernels [in, ..., out] are normal with variance 1 / in, embeddings normal, scales near 1. A
    leaf's values depend on its shape and on its place among the sorted paths.
    """
    rng = np.random.default_rng(seed)
    leaves = {}
    for path in sorted(shapes):
        shape = shapes[path].shape
        noise = rng.normal(size=shape)
        if path.endswith("scale"):
            noise = 1 + 0.1 * noise
        elif "embedding" not in path and shape:
            noise = noise * shape[0] ** -0.5
        leaves[path] = np.asarray(noise, np.float32)
    return leaves


def tiny_model(
    method: Method | None = None,
    config: Config | None = None,
    *,
    seed: int = 0,
    layout: sharding.Layout | None = None,
) -> TunedModel:
    """A model whose leaves are all random, those of the method too, so that each of them acts.

    Args:
      method: Tuning method; None for model tuning, the plain backbone.
      config: Shape of the backbone; None for `tiny_config()`.
      seed: Seed of the leaves; backbone leaves are the same for every method.
      layout: Placement on devices; None for the first device alone.
    """
    method, config = method or ModelTuning(), config or tiny_config()
    layout = layout or sharding.layout(devices=jax.devices()[:1])
    split = ParamSplit.of(config, method)
    leaves = random_leaves({path: split.shapes[path] for path in split.backbone}, seed)
    leaves |= random_leaves({path: split.shapes[path] for path in split.added}, seed + 1)
    places = flatten(sharding.shardings_of(init_shapes(config, method), layout))
    params = {path: jax.device_put(leaf, places[path]) for path, leaf in leaves.items()}
    return TunedModel(
        families.model(config, method), split, *split.split(unflatten(params)), layout
    )


def padded_tokens(shape: tuple[int, int], vocab_size: int = 64, seed: int = 0) -> np.ndarray:
    """Rows of ids from 3 up, [B, T] int32, each of 2 to T real tokens, then zeros."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, vocab_size, shape, np.int32)
    lengths = rng.integers(2, shape[1] + 1, (shape[0], 1))
    return np.where(np.arange(shape[1]) < lengths, ids, 0).astype(np.int32)


def random_batch(
    seed: int = 0,
    *,
    batch: int = 8,
    inputs: int = 7,
    targets: int = 4,
    vocab_size: int = 64,
) -> dict[str, np.ndarray]:
    """A training batch: encoder tokens [batch, inputs], decoder tokens [batch, targets]."""
    target_tokens = padded_tokens((batch, targets), vocab_size, seed + 1)
    return {
        "encoder_input_tokens": padded_tokens((batch, inputs), vocab_size, seed),
        "decoder_target_tokens": target_tokens,
        "decoder_input_tokens": np.pad(target_tokens, ((0, 0), (1, 0)))[:, :-1],
    }

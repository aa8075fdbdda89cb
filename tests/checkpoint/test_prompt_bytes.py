"""Prompts from the bytes of one file, as they come over a network."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load, save

from prompt_tuning.checkpoint import prompts
from prompt_tuning.errors import CheckpointError

PROMPT = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_a_prompt_an_ensemble_and_their_metadata_are_read_as_written():
    for written in ([PROMPT], [PROMPT, PROMPT[:1] + 1]):
        content = prompts.to_bytes(written, {"labels": '["a", "b"]'})
        read, metadata = prompts.from_bytes(content, "reviews")
        assert metadata == {"labels": '["a", "b"]'} and len(read) == len(written)
        for ours, theirs in zip(read, written, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_the_same_prompts_and_texts_are_the_same_bytes():
    texts = {name: name.upper() for name in ("labels", "card0", "card1", "note", "é")}
    made = {prompts.to_bytes([PROMPT, PROMPT + 1], dict(order)) for order in (
        list(texts.items()), list(texts.items())[::-1],
    ) for _ in range(8)}  # fmt: skip
    assert len(made) == 1
    assert load(made.pop())["prompt1"].tolist() == (PROMPT + 1).tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x93NUMPY\x01\x00", "reviews: is a .npy file; send a .safetensors file"),
        (b"", "reviews: not a prompt"),
        (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "reviews: not a prompt"),
        (prompts.to_bytes([PROMPT], {})[:-1], "reviews: not a prompt"),
        (save({"prompt": PROMPT, "prompt0": PROMPT}), "reviews: expected one tensor"),
        (save({"prompt1": PROMPT}), "reviews: expected one tensor"),
        (save({"prompt": PROMPT[0]}), "reviews: a prompt is a matrix"),
        (save({"prompt": PROMPT.astype(np.int32)}), "reviews: a prompt is a matrix"),
        (save({"prompt": PROMPT[:0]}), "reviews: a prompt must have a vector"),
        (save({"prompt": PROMPT * np.nan}), "reviews: the prompt contains values"),
    ],
)
def test_what_is_not_a_prompt_is_refused(content, message):
    with pytest.raises(CheckpointError, match=message):
        prompts.from_bytes(content, "reviews")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16, jnp.bfloat16])
def test_a_prompt_may_have_any_dtype_of_floats(dtype):
    assert prompts.fault_of(PROMPT.astype(dtype), 3) is None
    for wrong in (PROMPT.astype(np.int8), PROMPT.astype(np.complex64), PROMPT.astype("V4")):
        assert prompts.fault_of(wrong, 3).endswith("; give it as float32")


@pytest.mark.parametrize(
    ("copy", "are_same"),
    [
        (lambda prompt: prompt, True),
        (lambda prompt: prompt.astype(np.float16), True),
        (lambda prompt: prompt.astype(ml_dtypes.bfloat16), True),
        (lambda prompt: prompt * 1.01, False),
        (lambda prompt: prompt[:-1], False),
        (lambda prompt: -prompt, False),
    ],
)
def test_a_rounded_copy_is_the_same_prompt(copy, are_same):
    prompt = np.random.default_rng(0).normal(size=(20, 16)).astype(np.float32)
    assert prompts.are_same(prompt, copy(prompt)) == are_same

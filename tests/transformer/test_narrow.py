"""Products in bfloat16 with float32 sums, forward and backward."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.transformer import layers, narrow


def rounded(x: jax.Array) -> np.ndarray:
    return np.asarray(x.astype(jnp.bfloat16).astype(jnp.float32), np.float64)


def test_product_of_rounded_operands():
    x, kernel = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((5, 7, 64), (64, 9)))
    )
    y = narrow.matmul(x, kernel)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(y, x @ kernel, atol=0.1)  # 64 terms, each off by 2^-8


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients(transposed):
    x, kernel, weights = (
        jax.random.normal(jax.random.key(i), s)
        for i, s in enumerate(((5, 7, 64), (64, 9), (5, 7, 9)))
    )
    given = kernel.T if transposed else kernel
    loss = lambda x, given: (narrow.matmul(x, given, transposed) * weights).sum()  # noqa: E731
    by_x, by_kernel = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, given)
    by_kernel = by_kernel.T if transposed else by_kernel
    of_y = rounded(weights)
    np.testing.assert_allclose(by_x, of_y @ rounded(kernel).T, rtol=1e-4, atol=1e-4)
    expected = np.einsum("abi,abo->io", rounded(x), of_y)
    np.testing.assert_allclose(by_kernel, expected, rtol=1e-4, atol=1e-3)


def test_gradient_of_an_output_table():
    """XLA's CPUs have no product for the gradient of `narrow.matmul(x, table.T)` in these sizes."""
    x, table = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate(((2, 4, 16), (256, 16)))
    )

    def loss(products: str, table: jax.Array) -> jax.Array:
        y = layers.matmul(x, table, jnp.dtype("float32"), products, transposed=True)
        return jax.nn.logsumexp(y, axis=-1).sum()

    actual, wide = (
        jax.jit(jax.grad(loss, 1), static_argnums=0)(p, table) for p in ("bfloat16", "float32")
    )
    np.testing.assert_allclose(actual, wide, atol=0.05)


@pytest.mark.parametrize(
    ("transposed", "indices", "shape"),
    [(True, "bhqn,bhmn->bhqm", (2, 3, 7, 8)), (False, "bhqn,bhnm->bhqm", (2, 3, 8, 7))],
)
def test_products_of_attention(transposed, indices, shape):
    x, y, weights = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate(((2, 3, 5, 8), shape, (2, 3, 5, 7)))
    )
    actual, gradients = jax.vjp(lambda x, y: narrow.per_head(x, y, transposed), x, y)
    expected, wide = jax.vjp(
        lambda x, y: jnp.einsum(indices, x, y, precision="highest"), *map(rounded32, (x, y))
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    for narrowed, whole in zip(gradients(weights), wide(rounded32(weights)), strict=True):
        np.testing.assert_allclose(narrowed, whole, rtol=1e-5, atol=1e-5)


def rounded32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def dtypes_of(dtype: str, setting: str) -> set[str]:
    """Operands of the product of a layer, forward and backward, as it is compiled."""
    x, kernel = jnp.ones((2, 4), dtype), jnp.ones((4, 3), jnp.float32)

    def total(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y = layers.matmul(x, kernel, jnp.dtype(dtype), setting)
        assert y.dtype == dtype
        return y.sum()

    lowered = jax.jit(jax.grad(total, argnums=(0, 1))).lower(x, kernel).as_text()
    products = re.findall(r"dot_general .* : \((.*)\) ->", lowered)
    return {kind for types in products for kind in re.findall(r"tensor<\d+x\d+x(\w+)>", types)}


@pytest.mark.parametrize(
    ("dtype", "setting", "operands"),
    [
        ("float32", "float32", {"f32"}),
        ("float32", "bfloat16", {"bf16"}),
        ("bfloat16", "float32", {"bf16"}),
        ("bfloat16", "bfloat16", {"bf16"}),
        ("float16", "bfloat16", {"f16"}),
    ],
)
def test_operands_of_a_layers_product(dtype, setting, operands):
    assert dtypes_of(dtype, setting) == operands


@pytest.mark.parametrize(
    ("flags", "variable", "expected"),
    [
        ("flags : fpu avx512_bf16 sse", None, True),
        ("flags : fpu amx_bf16", None, True),
        ("Features : fp asimd bf16", None, True),
        ("flags : fpu avx2", None, False),
        ("model name : bf16 edition", None, False),
        ("flags : fpu avx512_bf16", "float32", False),
        ("flags : fpu avx2", "bfloat16", True),
    ],
)
def test_auto(monkeypatch, flags, variable, expected):
    monkeypatch.setattr(narrow.Path, "read_text", lambda _: f"processor : 0\n{flags}\n")
    monkeypatch.delenv(narrow.VARIABLE)
    narrow.cpu_has_bfloat16.cache_clear()
    if variable:
        monkeypatch.setenv(narrow.VARIABLE, variable)
    assert narrow.rounds("auto") is expected
    assert (narrow.rounds("float32"), narrow.rounds("bfloat16")) == (False, True)
    narrow.cpu_has_bfloat16.cache_clear()


def test_a_variable_of_another_value_is_an_error(monkeypatch):
    monkeypatch.setenv(narrow.VARIABLE, "bf16")
    with pytest.raises(UserError, match=r"PROMPT_TUNING_PRODUCTS = 'bf16': .* bfloat16"):
        narrow.rounds("auto")


def test_most_likely_is_the_first_of_the_largest():
    logits = np.random.default_rng(0).integers(-3, 3, (50, 4, 9)).astype(np.float32)
    np.testing.assert_array_equal(layers.most_likely(jnp.asarray(logits)), logits.argmax(-1))

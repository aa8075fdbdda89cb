"""Products in bfloat16 with float32 sums, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np

from prompt_tuning.t5 import layers, narrow


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


def test_gradients():
    x, kernel, weights = (
        jax.random.normal(jax.random.key(i), s)
        for i, s in enumerate(((5, 7, 64), (64, 9), (5, 7, 9)))
    )
    by_x, by_kernel = jax.grad(
        lambda x, kernel: (narrow.matmul(x, kernel) * weights).sum(), argnums=(0, 1)
    )(x, kernel)
    of_y = rounded(weights)
    np.testing.assert_allclose(by_x, of_y @ rounded(kernel).T, rtol=1e-4, atol=1e-4)
    expected = np.einsum("abi,abo->io", rounded(x), of_y)
    np.testing.assert_allclose(by_kernel, expected, rtol=1e-4, atol=1e-3)


def products(dtype: str = "float32") -> str:
    x, kernel = jnp.ones((2, 4), dtype), jnp.ones((4, 3), jnp.float32)
    return str(jax.make_jaxpr(lambda x, k: layers.matmul(x, k, jnp.dtype(dtype)))(x, kernel))


def test_layers_are_narrow_only_where_it_is_asked_for():
    before = products()
    with narrow.narrow_products():
        inside, bfloat16 = products(), products("bfloat16")
        with narrow.narrow_products(False):
            assert products() == before
    assert "bf16" not in before and products() == before
    assert "bf16" in inside
    assert "custom_vjp" not in bfloat16  # is narrow already

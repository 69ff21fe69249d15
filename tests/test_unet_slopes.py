"""Slopes of our own against XLA's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niseg_gpu.unet import slopes
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.layers import Run, convolve, convolve_upsampled, pool, upsample
from niseg_gpu.unet.losses import bce
from niseg_gpu.unet.model import apply_network, init_weights

SIDE = st.integers(1, 9)


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


@settings(max_examples=12)
@given(
    shape=st.tuples(st.integers(1, 3), SIDE, SIDE, st.integers(1, 4)),
    features=st.integers(1, 4),
    padding=st.tuples(*2 * [st.sampled_from([(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)])]),
    rows=st.integers(1, 3),
)
def test_the_slope_of_a_kernel(shape: tuple, features: int, padding: tuple, rows: int) -> None:
    size = tuple(1 + sum(pair) for pair in padding)
    x, slope, kernel = draw(*shape), draw(*shape[:3], features), draw(*size, shape[3], features)

    def plain(kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=slopes.NAMES)

    expected = jax.linear_transpose(plain, kernel)(slope)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            slopes, "STRIP_BYTES", rows * 4 * shape[0] * shape[2] * size[0] * size[1] * min(shape[3], features)
        )
        found = slopes.slope_of_kernel(x, slope, size=size, padding=padding)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=5)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 5), SIDE, SIDE, st.integers(1, 4)),
    features=st.integers(1, 4),
    padding=st.tuples(*3 * [st.sampled_from([(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)])]),
    rows=st.integers(1, 3),
)
def test_the_slope_of_a_kernel_for_volumes(shape: tuple, features: int, padding: tuple, rows: int) -> None:
    size = tuple(1 + sum(pair) for pair in padding)
    x, slope, kernel = draw(*shape), draw(*shape[:4], features), draw(*size, shape[4], features)

    def plain(kernel: jax.Array) -> jax.Array:
        names = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), padding, dimension_numbers=names)

    expected = jax.linear_transpose(plain, kernel)(slope)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slopes, "PLANE_BYTES", rows * 4 * shape[3] * size[1] * size[2] * min(shape[4], features))
        found = slopes.slope_of_volume_kernel(x, slope, size=size, padding=padding)
        patch.setattr(slopes, "SMALL_PLANE", 0)
        whole = jax.vjp(lambda k: slopes.convolve_volumes(x, k, padding, None), kernel)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole[0], plain(kernel), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole[1](slope)[0], expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(
    sides=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    channels=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 5)),
    padding=st.sampled_from([(), (0, 1), (1, 0), (1, 1)]),
)
def test_few_pixels_are_convolved_as_many_are(sides: list, channels: tuple, padding: tuple) -> None:
    n, inputs, features = channels
    size = 1 + sum(padding) if padding else 3
    x, kernel = draw(n, *sides, inputs), draw(*(size,) * len(sides), inputs, features)
    how = {"padding": (padding,) * len(sides)} if padding else {}
    found, expected = (convolve(x, kernel, Run(few_pixels=few), **how) for few in (2 * 4**3, 0))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_coarse_features_of_any_number_are_convolved_as_upsampled_ones(dims: int) -> None:
    x, kernel = draw(1, *(3, 2, 4)[:dims], 3), draw(*(3,) * dims, 3, 2)
    expected = convolve(upsample(x), kernel, Run())
    for run in (Run(), Run(few_pixels=64), Run(few_pixels=2, own_slopes=True, planes=True), Run(phases=False)):
        found = convolve_upsampled(x, kernel, run)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        slope, plain = (
            jax.grad(lambda k, f=f: (f(k) ** 2).sum())(kernel)
            for f in (lambda k, run=run: convolve_upsampled(x, k, run), lambda k: convolve(upsample(x), k, Run()))
        )
        np.testing.assert_allclose(slope, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_of_equal_values_the_first_gets_the_slope_of_a_pooling(dims: int) -> None:
    x = np.random.default_rng(0).integers(0, 3, (2, *(4, 6, 8)[:dims], 3)).astype(np.float32)  # many are equal
    weights = draw(*pool(x, Run()).shape)
    found, expected = (
        jax.grad(lambda x, run=run: (pool(x, run) * weights).sum())(x) for run in (Run(own_slopes=True), Run())
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dims, side", [(2, 80), (3, 36)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_learns_the_same(dims: int, side: int, dtype: str) -> None:
    """Its images are larger than those for which XLA's own slopes are taken."""
    config = UNetConfig(spatial_dims=dims, base_depth=2, levels=2, block="residual")
    params, state = init_weights(config)
    images = draw(1, *(side,) * (dims - 1), 4 * side if dims == 2 else side, 1)
    labels = jnp.asarray(images[..., 0] > 1)

    def slope(run: Run) -> dict:
        return jax.jit(
            jax.grad(lambda p: bce(apply_network(config, p, state, images, run=run, training=True)[0], labels))
        )(params)

    found, expected = slope(Run(dtype, planes=True, own_slopes=True)), slope(Run(dtype, planes=True))
    near = {"float32": 1e-4, "bfloat16": 5e-2}[dtype]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == jnp.float32 and abs(one - other).max() <= near * abs(other).max() + 1e-6

"""The network: the lecture's layers, every block in both dimensions, and how far a pixel truly reaches."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from niseg_gpu.unet.config import UNetConfig, spot_config
from niseg_gpu.unet.layers import Run, convolve, convolve_upsampled, pool, upsample
from niseg_gpu.unet.model import apply_network, count_parameters, init_weights

PLAIN = Run(phases=False)
OWN = Run(planes=True, own_slopes=True)
VARIANTS = {
    "residual": {"block": "residual", "norm": "batch", "out_classes": 3},
    "recurrent": {"block": "recurrent-residual", "attention": True},
    "layer": {"norm": "layer", "base_depth": 8},
    "volume": {"spatial_dims": 3, "attention": True, "in_channels": 2},
}


def small(variant: str, **more: int) -> UNetConfig:
    return UNetConfig(**{"base_depth": 3, "levels": 2, **VARIANTS[variant], **more})


def draw_images(config: UNetConfig, *sides: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(2, *sides, config.in_channels)).astype(np.float32)


def apply(config: UNetConfig, weights: tuple, images: np.ndarray, run: Run = PLAIN) -> np.ndarray:
    return np.asarray(jax.jit(lambda w, x: apply_network(config, *w, x, run=run)[0])(weights, images))


def test_the_spot_network_is_that_of_the_lecture() -> None:
    counts = count_parameters(spot_config())
    assert list(counts.values()) == [240, 5208, 10416, 20784, 41568, 83040, 62256, 20784, 15576, 5208, 25]
    assert sum(counts.values()) == 265_105
    assert sum(count_parameters(spot_config(base_depth=12)).values()) < 265_105 / 3


def test_the_spot_network_written_out() -> None:
    """The lecture's network in plain words: pairs of convolutions, pooling, upsampling, concatenation."""
    config = spot_config(base_depth=2)
    params, state = init_weights(config, seed=3)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params)

    def pair(x: jax.Array, layer: dict) -> jax.Array:
        for name in ("first", "second"):
            conv = layer[name]["conv"]
            x = jax.lax.conv_general_dilated(
                x, conv["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jnp.maximum(x + conv["bias"], 0)
        return x

    x = draw_images(config, 16, 24)
    fine = pair(x, params["downs"][0])
    middle = pair(fine.reshape(2, 8, 2, 12, 2, 2).max((2, 4)), params["downs"][1])
    coarse = pair(middle.reshape(2, 4, 2, 6, 2, 4).max((2, 4)), params["bottom"])
    up = coarse.repeat(2, 1).repeat(2, 2)
    up = pair(jnp.concatenate([up, middle], -1), params["ups"][1])
    up = pair(jnp.concatenate([up.repeat(2, 1).repeat(2, 2), fine], -1), params["ups"][0])
    expected = jnp.einsum("nyxc,ck->nyxk", up, params["head"]["kernel"][0, 0]) + params["head"]["bias"]
    for run in (PLAIN, Run(strip_rows=4)):
        np.testing.assert_allclose(apply(config, (params, state), x, run), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_way_to_compute_gives_the_same(variant: str) -> None:
    config = small(variant)
    weights = init_weights(config, seed=1)
    images = draw_images(config, *((32, 8, 8) if config.spatial_dims == 3 else (64, 16)))
    expected = apply(config, weights, images)
    assert expected.shape == (*images.shape[:-1], config.out_classes) and expected.std() > 0
    found = apply(config, weights, images, Run(strip_rows=6, planes=True))
    # without a norm, what is applied again and again grows, and rounding with it
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * max(1, abs(expected).max()))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [1, 3])
def test_convolving_without_upsampling_first(dims: int, size: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *(5, 3, 4)[:dims], 2)).astype(np.float32)
    kernel = rng.normal(size=(*(size,) * dims, 2, 3)).astype(np.float32)
    expected = convolve(upsample(x), kernel, PLAIN)
    for run in (PLAIN, Run(), Run(planes=True)):
        np.testing.assert_allclose(convolve_upsampled(jnp.asarray(x), kernel, run), expected, rtol=1e-5, atol=1e-5)


def test_pooling_and_upsampling_undo_each_other() -> None:
    x = np.random.default_rng(0).normal(size=(1, 4, 6, 2, 3)).astype(np.float32)
    for run in (PLAIN, OWN):
        np.testing.assert_array_equal(pool(upsample(x), run), x)


@pytest.mark.parametrize(
    "config",
    [
        UNetConfig(base_depth=1, levels=3),
        UNetConfig(base_depth=1, levels=2, block="residual", attention=True),
        UNetConfig(base_depth=1, levels=2, block="recurrent-residual"),
        UNetConfig(base_depth=1, levels=2, spatial_dims=3),
    ],
    ids=lambda c: f"{c.spatial_dims}-{c.levels}-{c.block}",
)
def test_a_pixel_reaches_as_far_as_the_configuration_says(config: UNetConfig) -> None:
    """With positive weights every path counts: light one row, and see where it is seen."""
    params, state = init_weights(config)
    params = jax.tree.map(np.abs, params)
    side = 2 * config.halo + 4 * config.grid
    run = jax.jit(partial(apply_network, config, params, state))
    dark = np.zeros((1, side, *(4 * config.grid,) * (config.spatial_dims - 1), 1), np.float32)
    before = np.asarray(run(dark)[0])
    farthest = 0
    for row in range(side // 2, side // 2 + config.grid):
        changed = dark.copy()
        changed[0, row] = 1
        rows = np.flatnonzero((np.asarray(run(changed)[0]) != before).reshape(side, -1).any(1))
        assert row - rows[0] <= config.reach and rows[-1] - row <= config.reach
        farthest = max(farthest, row - rows[0], rows[-1] - row)
    # what comes through the longest chain of convolutions may be lost in rounding
    assert config.reach - (config.block == "recurrent-residual") <= farthest <= config.reach


def test_weights_are_drawn_alike_again_and_otherwise_with_another_seed() -> None:
    config = small("residual")
    first, again, other = (init_weights(config, seed=seed)[0] for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True))
    assert not np.array_equal(first["head"]["kernel"], other["head"]["kernel"])


def test_a_relu_for_a_probability_starts_with_the_weights_of_the_lecture() -> None:
    kernel = init_weights(spot_config(output="relu"))[0]["bottom"]["second"]["conv"]["kernel"]
    most = np.sqrt(6 / (9 * (96 + 96)))  # Keras's glorot_uniform
    assert 0.999 * most < abs(kernel).max() <= most
    assert kernel.std() == pytest.approx(most / np.sqrt(3), rel=0.01)


def test_training_slopes_are_finite_and_statistics_run() -> None:
    config = small("residual", base_depth=2)
    params, state = init_weights(config)
    images = draw_images(config, 8, 8) + 3

    @jax.jit
    def step(params: dict, state: dict) -> tuple:
        def loss(params: dict) -> tuple:
            logits, after = apply_network(config, params, state, images, run=Run(dtype="bfloat16"), training=True)
            return (logits**2).mean(), after

        return jax.grad(loss, has_aux=True)(params)

    slopes, after = step(params, state)
    leaves = jax.tree.leaves(slopes)
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in leaves)
    assert np.mean([bool((leaf != 0).any()) for leaf in leaves]) > 0.9
    mean = after["downs"][0]["first"]["norm"]["mean"]
    assert mean.shape == (2,) and (mean != 0).all()
    assert (state["downs"][0]["first"]["norm"]["mean"] == 0).all()

"""Losses against their formulas, written out in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.unet.losses import LOSSES, make_loss, median_frequency_weights

RNG = np.random.default_rng(0)
ONE = RNG.normal(0, 2, (2, 5, 4, 1)).astype(np.float32)
MASK = (RNG.random((2, 5, 4)) < 0.3).astype(np.uint8)
THREE = RNG.normal(0, 2, (2, 5, 4, 3)).astype(np.float32)
LABELS = RNG.integers(0, 3, (2, 5, 4)).astype(np.uint8)
P = 1 / (1 + np.exp(-ONE[..., 0].astype(float)))
Q = np.exp(THREE.astype(float)) / np.exp(THREE.astype(float)).sum(-1, keepdims=True)
TRUE_Q = np.take_along_axis(Q, LABELS[..., None].astype(int), -1)[..., 0]
ENTROPY = -np.where(MASK, np.log(P), np.log(1 - P))


def soft_tversky(alpha: float, beta: float, smooth: float) -> float:
    both, false, missed = (P * MASK).sum(), (P * (1 - MASK)).sum(), ((1 - P) * MASK).sum()
    return 1 - (both + smooth) / (both + alpha * false + beta * missed + smooth)


@pytest.mark.parametrize(
    "name, parameters, expected",
    [
        ("bce", {}, ENTROPY.mean()),
        ("bce", {"class_weights": (1, 5)}, (ENTROPY * np.where(MASK, 5, 1)).mean()),
        ("focal", {"gamma": 2.0}, (ENTROPY * (1 - np.exp(-ENTROPY)) ** 2).mean()),
        ("focal", {"gamma": 0.0}, ENTROPY.mean()),
        ("dice", {"smooth": 1.0}, 1 - (2 * (P * MASK).sum() + 1) / (P.sum() + MASK.sum() + 1)),
        ("tversky", {"alpha": 0.2, "beta": 0.8, "smooth": 0.5}, soft_tversky(0.2, 0.8, 0.5)),
        (
            "dice_bce",
            {"dice_share": 0.25},
            0.25 * (1 - (2 * (P * MASK).sum() + 1) / (P.sum() + MASK.sum() + 1)) + 0.75 * ENTROPY.mean(),
        ),
    ],
)
def test_spots(name: str, parameters: dict, expected: float) -> None:
    assert float(make_loss(name, **parameters)(ONE, MASK)) == pytest.approx(expected, rel=1e-5)
    assert float(make_loss(name, **parameters)(ONE, MASK * 255)) == pytest.approx(expected, rel=1e-5)


def test_classes() -> None:
    assert float(make_loss("bce")(THREE, LABELS)) == pytest.approx(-np.log(TRUE_Q).mean(), rel=1e-5)
    weights = np.array([1, 2, 7.0])
    expected = -(np.log(TRUE_Q) * weights[LABELS]).mean()
    assert float(make_loss("bce", class_weights=weights)(THREE, LABELS)) == pytest.approx(expected, rel=1e-5)
    index = [(2 * (Q[..., k] * (LABELS == k)).sum() + 1) / (Q[..., k].sum() + (LABELS == k).sum() + 1) for k in (1, 2)]
    assert float(make_loss("dice")(THREE, LABELS)) == pytest.approx(1 - np.mean(index), rel=1e-5)


def test_a_probability_from_a_relu_has_no_slope_at_0() -> None:
    loss = make_loss("relu_bce")
    p = np.clip(ONE[..., 0], np.float32(1e-7), np.float32(1 - 1e-7)).astype(float)
    expected = -np.where(MASK, np.log(p), np.log1p(-p)).mean()
    assert float(loss(ONE, MASK)) == pytest.approx(expected, rel=1e-3)
    assert not np.asarray(jax.grad(lambda x: loss(x, MASK))(-abs(ONE))).any()
    assert np.asarray(jax.grad(lambda x: make_loss("bce")(x, MASK))(-abs(ONE))).all()


@pytest.mark.parametrize("name", LOSSES)
def test_pixels_left_out_count_for_nothing(name: str) -> None:
    valid = np.ones(MASK.shape, np.float32)
    valid[:, 3:] = 0
    spoilt = ONE.copy()
    spoilt[:, 3:] = 9
    loss = make_loss(name)
    assert float(loss(spoilt, MASK, valid)) == pytest.approx(float(loss(ONE[:, :3], MASK[:, :3])), rel=1e-5)
    assert float(loss(ONE, MASK, np.ones_like(valid))) == pytest.approx(float(loss(ONE, MASK)), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("height", [-60.0, 60.0])
def test_slopes_stay_finite_where_the_network_is_sure(name: str, height: float) -> None:
    logits = jnp.full((1, 4, 4, 1), height)
    for mask in (np.zeros((1, 4, 4)), np.ones((1, 4, 4))):
        value, slope = jax.value_and_grad(lambda x, mask=mask: make_loss(name)(x, mask))(logits)
        assert np.isfinite(value) and np.isfinite(slope).all()


def test_median_frequency_weights() -> None:
    assert median_frequency_weights([98, 2]) == (50 / 98, 25)
    assert median_frequency_weights([80, 10, 5]) == (1 / 8, 1, 2)
    with pytest.raises(UserError, match="class 1 has no training pixel"):
        median_frequency_weights([10, 0])


def test_unknown_losses_and_parameters_are_refused() -> None:
    with pytest.raises(UserError, match="no loss 'dicee'; did you mean 'dice'"):
        make_loss("dicee")
    with pytest.raises(UserError, match="loss focal has no parameter 'gama'; did you mean 'gamma'"):
        make_loss("focal", gama=1)
    with pytest.raises(UserError, match="relu_bce has no parameter 'smooth'; it has none"):
        make_loss("relu_bce", smooth=1)
    with pytest.raises(UserError, match="class_weights has 3 entries; needed: 2"):
        make_loss("bce", class_weights=(1, 2, 3))(ONE, MASK)

"""Features against their formulas in scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import correlate1d, median_filter, uniform_filter

from niseg_gpu.errors import UserError
from niseg_gpu.knn_features import FEATURES, compute_features, halo_of_features, running_median

EXPECTED = {
    "value": lambda f: f,
    "residual": lambda f: f - median_filter(f, 3, mode="nearest"),
    "abs_residual": lambda f: np.abs(f - median_filter(f, 3, mode="nearest")),
    "residual5": lambda f: f - median_filter(f, 5, mode="nearest"),
    "poisson_residual": lambda f: (f - (m := median_filter(f, 5, mode="nearest"))) / np.sqrt(np.maximum(m, 1)),
    "local_mean": lambda f: uniform_filter(f, 3, mode="nearest"),
    "gradient": lambda f: np.hypot(*(correlate1d(f, [-0.5, 0, 0.5], axis=a, mode="nearest") for a in (0, 1))),
}


def test_every_feature_has_a_formula() -> None:
    assert set(EXPECTED) == set(FEATURES)


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int16]),
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=9),
        elements=st.integers(0, 127),
    )
)
def test_features_are_those_of_each_frame(image) -> None:
    found = compute_features(image, list(FEATURES))
    assert found.dtype == np.float32 and found.shape == (*image.shape, len(FEATURES))
    frames = image.reshape(-1, *image.shape[-2:]).astype(float)
    for i, name in enumerate(FEATURES):
        expected = np.stack([EXPECTED[name](frame) for frame in frames])
        np.testing.assert_allclose(found[..., i].reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FEATURES)
def test_the_halo_is_as_wide_as_it_must_be(name: str) -> None:
    image = np.random.default_rng(0).normal(size=(15, 15)).astype(np.float32)
    whole = compute_features(image, [name])
    halo = halo_of_features([name])
    cut = compute_features(image[4 - halo : 11 + halo, 4 - halo : 11 + halo], [name])
    np.testing.assert_array_equal(cut[halo : halo + 7, halo : halo + 7], whole[4:11, 4:11])
    if halo:
        tight = compute_features(image[4:11, 4:11], [name])
        assert (tight != whole[4:11, 4:11]).any()


def test_unsigned_values_do_not_wrap() -> None:
    image = np.full((5, 5), 40, np.uint8)
    image[2, 2] = 3
    assert compute_features(image, ["residual"])[2, 2, 0] == -37


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_counting_noise_of_no_counts_is_one(dtype: type) -> None:
    """Below a count of 1 the root of the median says nothing, or does not exist."""
    for level in (0, 100) if dtype is np.uint16 else (-300, 0, 100):
        image = np.full((2, 9, 9), level, dtype)
        image[1, 4, 4] += 50
        found = compute_features(image, ["poisson_residual"])[..., 0]
        assert found.dtype == np.float32
        assert found[1, 4, 4] == 50 / np.sqrt(max(level, 1)) and np.count_nonzero(found) == 1


def test_nan_is_no_neighbour_and_inf_no_feature() -> None:
    image = np.arange(81, dtype=np.float32).reshape(9, 9) + 100
    image[4, 4] = np.nan
    names = ["residual", "abs_residual", "residual5", "poisson_residual"]
    found = compute_features(image, names)
    np.testing.assert_array_equal(np.isnan(found).any(-1), np.isnan(image))
    window = image[2:5, 2:5]
    assert found[3, 3, 0] == image[3, 3] - np.median(window[~np.isnan(window)])
    image[:5] = np.inf
    assert not np.isfinite(compute_features(image, names)[:3]).any()


def test_a_median_is_computed_once_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from niseg_gpu.backend import Cpu

    sizes, real = [], Cpu.median
    monkeypatch.setattr(Cpu, "median", lambda self, image, *, size: sizes.append(size) or real(self, image, size=size))
    image = np.zeros((2, 6, 6), np.float32)
    median = running_median(image)
    compute_features(image, ["residual", "abs_residual", "residual5", "value"], median=median)
    median(3)
    assert sizes == [(1, 3, 3), (1, 5, 5)]


@pytest.mark.parametrize(
    "names, message",
    [
        (["abs_residuals"], "no feature 'abs_residuals'; did you mean 'abs_residual'"),
        (["colour"], "no feature 'colour'; .*value"),
        ([], "allowed: one or more of value"),
        (["value", "value"], "each once"),
    ],
)
def test_wrong_names_are_told(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compute_features(np.zeros((3, 3)), names)


@pytest.mark.gpu
def test_both_devices_give_the_same_features(backend) -> None:
    image = np.random.default_rng(2).poisson(50, (2, 20, 30)).astype(np.uint16)
    found = backend.to_host(compute_features(backend.from_host(image), list(FEATURES)))
    np.testing.assert_allclose(found, compute_features(image, list(FEATURES)), rtol=1e-6)

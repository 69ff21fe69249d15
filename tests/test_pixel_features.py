"""Features beyond the spectrum: places, surroundings, slopes; missing values; weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.errors import UserError
from niseg_gpu.pixel_features import NAMES, compute_pixel_features, split_weights, standardize


def features_of(backend, image: np.ndarray, *names: str, **options: float) -> np.ndarray:
    return backend.to_host(compute_pixel_features(backend.from_host(image), names, **options))


def test_places_are_pixel_numbers(backend) -> None:
    x, y = features_of(backend, np.zeros((3, 4), np.float32), "x", "y")
    assert x.reshape(3, 4)[1].tolist() == [0, 1, 2, 3]
    assert y.reshape(3, 4)[:, 2].tolist() == [0, 1, 2]
    z = features_of(backend, np.zeros((2, 3, 4), np.float32), "z")[0]
    assert z.reshape(2, 3, 4)[:, 1, 1].tolist() == [0, 1]


def test_sobel_is_the_slope_of_a_ramp(backend) -> None:
    y, x = np.mgrid[:12, :9].astype(np.float32)
    along_x, along_y = features_of(backend, 3 * x - 0.5 * y, "sobel_x", "sobel_y").reshape(2, 12, 9)
    assert np.allclose(along_x[1:-1, 1:-1], 3, atol=1e-5)
    assert np.allclose(along_y[1:-1, 1:-1], -0.5, atol=1e-5)


def test_smoothing_keeps_a_constant_and_lowers_noise(backend) -> None:
    noise = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    smooth = features_of(backend, noise, "smooth", smooth_sigma_px=2.0)[0]
    assert smooth.std() == pytest.approx(1 / (2 * np.sqrt(np.pi) * 2), rel=0.25)  # of white noise under a Gaussian
    assert np.allclose(features_of(backend, np.full((5, 5), 7, np.float32), "smooth"), 7)


def test_a_missing_pixel_takes_after_its_surroundings(backend) -> None:
    image = np.full((9, 9), 5, np.float32)
    image[4, 4] = np.nan
    found = features_of(backend, image, "smooth", "sobel_x", "sobel_y")
    assert np.allclose(found[0], 5, atol=1e-5) and np.allclose(found[1:], 0, atol=1e-5)


def test_standardized_columns_weigh_what_was_asked(backend) -> None:
    columns = np.random.default_rng(2).normal(100, [[3], [0.01], [0]], size=(3, 500)).astype(np.float32)
    valid = np.ones(500, bool)
    valid[:50] = False
    scaled = backend.to_host(standardize(backend.from_host(columns), [1.0, 0.5, 2.0], valid=backend.from_host(valid)))
    assert np.allclose(scaled[:, valid].std(axis=1), [1, 0.5, 0], atol=1e-3)
    assert np.allclose(scaled[:, valid].mean(axis=1), 0, atol=1e-4)


@given(st.tuples(st.integers(1, 7), st.integers(1, 7)), st.floats(0.3, 5))
def test_every_shape_gives_finite_features(shape: tuple[int, int], sigma: float) -> None:
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    names = [name for name in NAMES if name != "z"]
    found = compute_pixel_features(image, names, smooth_sigma_px=sigma)
    assert found.shape == (len(names), image.size) and np.isfinite(found).all()


def test_names_that_do_not_exist_are_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'sobel_x'"):
        compute_pixel_features(np.zeros((2, 2), np.float32), ["sobelx"])
    with pytest.raises(UserError, match="one image"):
        compute_pixel_features(np.zeros((2, 2), np.float32), ["z"])


def test_the_spectrum_weighs_one_unless_told() -> None:
    assert split_weights({"x": 0.5}) == (1.0, {"x": 0.5})
    assert split_weights({"spectrum": 0, "x": 0.5, "y": 0}) == (0.0, {"x": 0.5})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float64"])
def test_counts_have_the_features_of_the_same_values_in_floats(backend, dtype: str) -> None:
    image = np.random.default_rng(0).integers(0, 127, (9, 12)).astype(dtype)
    names = ["smooth", "sobel_x", "sobel_y", "y"]
    counts, floats = (
        backend.to_host(compute_pixel_features(backend.from_host(values), names))
        for values in (image, image.astype(np.float32))
    )
    assert counts.dtype == np.float32 and counts[1].min() < 0
    np.testing.assert_array_equal(counts, floats)

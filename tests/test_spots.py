"""Spot cleaning on either device against SciPy and against differences taken in 64 bit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import median_filter

from niseg_gpu.backend import CPU, Gpu, why_no_gpu, working_on
from niseg_gpu.errors import UserError
from niseg_gpu.findings import collect
from niseg_gpu.spots import check_remove_spots, halo_remove_spots, remove_spots

KINDS = ("bright", "dark", "both")


def expect(frames, *, size, threshold, kind):
    """The definition, with integers too wide to wrap."""
    median = median_filter(frames, size=(1,) * (frames.ndim - 2) + (size, size), mode="nearest")
    wide = frames.dtype if frames.dtype.kind == "f" else np.int64
    above = frames.astype(wide) - median.astype(wide)
    limit = wide.type(threshold) if frames.dtype.kind == "f" else threshold
    spots = {"bright": above > limit, "dark": -above > limit, "both": abs(above) > limit}[kind]
    return np.where(spots, median, frames), spots


@pytest.fixture(params=["cpu", *(pytest.param(f"gpu, {k}", marks=pytest.mark.gpu) for k in ("library", "own"))])
def backend(request: pytest.FixtureRequest):
    """Each twin in turn, the GPU's with the library's median and with our own kernel."""
    device, _, kernels = request.param.partition(", ")
    if device == "cpu":
        yield CPU
        return
    missing = why_no_gpu()
    if missing:
        pytest.skip(f"no GPU can be used: {missing}")
    twin = Gpu(kernels)
    with working_on(twin):
        yield twin


def run(backend, frames, **settings):
    cleaned, spots = remove_spots(backend.from_host(frames), **settings)
    return backend.to_host(cleaned), backend.to_host(spots)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(23, 41), (3, 17, 12)])
def test_equals_definition(backend, shape, dtype, size, kind):
    frames = np.random.default_rng(5).poisson(30, shape).astype(dtype)
    frames.reshape(-1)[::17] = 90
    frames.reshape(-1)[::23] = 1
    settings = {"size": size, "threshold": 12.0, "kind": kind}
    cleaned, spots = run(backend, frames, **settings)
    want, want_spots = expect(frames, **settings)
    assert cleaned.dtype == frames.dtype
    assert 0 < spots.sum() < spots.size / 2
    np.testing.assert_array_equal(cleaned, want)
    np.testing.assert_array_equal(spots, want_spots)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_ties_are_no_spots(backend, dtype):
    frames = np.full((7, 40), 10, dtype)
    frames[3, 5], frames[3, 15], frames[3, 25], frames[3, 35] = 15, 16, 5, 4
    _, spots = run(backend, frames, threshold=5)
    assert np.argwhere(spots).tolist() == [[3, 15], [3, 35]]
    _, spots = run(backend, frames, threshold=4.5, kind="bright")
    assert np.argwhere(spots).tolist() == [[3, 5], [3, 15]]
    _, spots = run(backend, frames, threshold=4.5, kind="dark")
    assert np.argwhere(spots).tolist() == [[3, 25], [3, 35]]


@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8", "int16", "int32"])
def test_no_difference_wraps(backend, dtype, kind, size):
    limits = np.iinfo(dtype)
    frames = np.full((9, 40), limits.min, dtype)
    frames[:, 20:] = limits.max
    frames[4, 6], frames[4, 33] = limits.max, limits.min
    settings = {"size": size, "threshold": float(limits.max) - float(limits.min) - 1, "kind": kind}
    cleaned, spots = run(backend, frames, **settings)
    want, want_spots = expect(frames, **settings)
    assert want_spots.sum() == {"bright": 1, "dark": 1, "both": 2}[kind]
    np.testing.assert_array_equal(spots, want_spots)
    np.testing.assert_array_equal(cleaned, want)


def test_frames_are_cleaned_each_by_itself(backend):
    frames = np.random.default_rng(1).poisson(50, (4, 20, 30)).astype(np.uint16)
    cleaned, spots = run(backend, frames, threshold=10)
    for frame, one, mask in zip(frames, cleaned, spots, strict=True):
        want, want_mask = run(backend, frame, threshold=10)
        np.testing.assert_array_equal(one, want)
        np.testing.assert_array_equal(mask, want_mask)


def test_input_is_not_changed_and_spots_are_counted(backend):
    frames = np.random.default_rng(1).poisson(50, (4, 20, 30)).astype(np.uint16)
    kept = frames.copy()
    block = backend.from_host(frames)
    with collect() as found:
        _, spots = remove_spots(block, threshold=10)
    np.testing.assert_array_equal(backend.to_host(block), kept)
    assert int(found["spots replaced"]) == int(spots.sum()) > 0


def test_even_size_is_refused_and_halo_is_half_the_window():
    with pytest.raises(UserError, match="size 4; allowed: odd"):
        check_remove_spots(None, size=4, threshold=1.0)
    assert [halo_remove_spots(size=n) for n in (3, 5, 7)] == [(0, 1), (0, 2), (0, 3)]

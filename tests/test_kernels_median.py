"""The running median and the fused cleaning against SciPy and plain NumPy."""

from __future__ import annotations

import threading

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from niseg_gpu.backend import CPU
from niseg_gpu.kernels.median import DTYPES, SIZES, STRIP, clean_frames, covers, median_frames
from niseg_gpu.kernels.spots_xp import clean_spots_xp

sizes = st.sampled_from(SIZES)
dtypes = st.sampled_from(sorted(DTYPES, key=str))
shapes = npst.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=9) | st.tuples(
    st.integers(1, 12), st.integers(20, 150)
)


def median_by_scipy(frames, *, size):
    return median_filter(frames, size=(1,) * (frames.ndim - 2) + (size, size), mode="nearest")


def clean_by_numpy(frames, *, size, **settings):
    def median(image, *, size):
        return median_filter(image, size=size, mode="nearest")

    return clean_spots_xp(frames, xp=np, median=median, size=(1,) * (frames.ndim - 2) + (size, size), **settings)


def draw(seed: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Values with many ties, or over the whole range of the dtype."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        return (rng.integers(-4, 5, shape) if seed % 2 else rng.normal(0, 10.0 ** (seed % 30), shape)).astype(dtype)
    limits = np.iinfo(dtype)
    few = rng.integers(0, 6, shape).astype(dtype)
    ends = rng.choice(np.array([limits.min, limits.max, 0], dtype), shape)
    return (few, ends, rng.integers(limits.min, limits.max, shape, dtype, endpoint=True))[seed % 3]


@settings(max_examples=250, deadline=None)
@given(shape=shapes, dtype=dtypes, size=sizes, seed=st.integers(0, 10**6))
def test_median_equals_scipy(shape, dtype, size, seed):
    frames = draw(seed, shape, dtype)
    got = median_frames(frames, size=size)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, median_by_scipy(frames, size=size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("width", [STRIP - 1, STRIP, STRIP + 1, STRIP + 2, 2 * STRIP + 45])
def test_strips_join(width, size):
    frames = draw(2, (2, 7, width), np.dtype("uint16"))
    np.testing.assert_array_equal(median_frames(frames, size=size), median_by_scipy(frames, size=size))


@pytest.mark.parametrize("size", SIZES)
def test_any_strides(size):
    frames = draw(2, (8, 9, 40), np.dtype("uint16"))
    for view in (frames[::2, ::-1, 1::3], frames.T, np.asfortranarray(frames), np.broadcast_to(frames[0], (3, 9, 40))):
        np.testing.assert_array_equal(median_frames(view, size=size), median_by_scipy(view, size=size))
        assert view.flags.writeable == (view.base is not frames or view.shape[0] != 3)
    assert median_frames(frames[:0], size=size).shape == (0, 9, 40)


@settings(max_examples=250, deadline=None)
@given(
    shape=shapes,
    dtype=dtypes,
    size=sizes,
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["bright", "dark", "both"]),
    threshold=st.sampled_from([0.0, 1.0, 1.5, 2.0, 127.0, 128.0, 255.0, 32767.5, 65535.0, 2.0**32, 1e39, float("inf")])
    | st.floats(0, 1e6),
)
def test_clean_equals_numpy(shape, dtype, size, seed, kind, threshold):
    frames = draw(seed, shape, dtype)
    with np.errstate(over="ignore"):  # a threshold beyond float32
        want = clean_by_numpy(frames, size=size, threshold=threshold, kind=kind)
    got = clean_frames(frames, size=size, threshold=threshold, kind=kind)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", SIZES)
def test_threshold_in_float32(size):
    """0.1 is no float32: the comparison rounds the threshold, as NumPy's does."""
    frames = np.zeros((5, 40), np.float32)
    frames[2, 3::4] = np.float32(0.1)
    assert not clean_frames(frames, size=size, threshold=0.1, kind="both")[1].any()
    assert clean_frames(frames, size=size, threshold=0.0999999, kind="both")[1].sum() == 10


@pytest.mark.parametrize("size", SIZES)
def test_nan_is_no_spot_and_stays(size):
    frames = draw(1, (20, 70), np.dtype("float32"))
    hole = np.random.default_rng(3).random(frames.shape) < 0.3
    frames[hole] = np.nan
    frames[:9, 60:] = np.nan
    cleaned, spots = clean_frames(frames, size=size, threshold=1.0, kind="both")
    assert not spots[hole].any()
    assert np.isnan(cleaned[hole]).all()
    assert np.isnan(median_frames(frames, size=size)[:7, 63:]).all()


def test_infinite_values():
    frames = np.full((6, 40), np.inf, np.float32)
    frames[:, 20:] = 1
    frames[3, 30] = np.inf
    cleaned, spots = clean_frames(frames, size=3, threshold=5.0, kind="both")
    assert np.argwhere(spots).tolist() == [[3, 30]]
    assert cleaned[3, 30] == 1


def test_threads_at_once_give_the_same():
    frames = draw(2, (12, 64, 100), np.dtype("uint16"))
    want = median_by_scipy(frames, size=3)
    parts = [None] * 4

    def work(k):
        parts[k] = median_frames(frames[3 * k : 3 * k + 3], size=3)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.concatenate(parts), want)


@pytest.mark.parametrize(
    ("dtype", "size", "covered"),
    [
        ("uint16", (3, 3), True),
        ("float32", (1, 5, 5), True),
        ("float32", (3, 3, 3), False),
        ("uint16", (3, 5), False),
        ("uint16", (7, 7), False),
        ("float64", (3, 3), False),
        (">u2", (3, 3), False),
    ],
)
def test_twin_takes_scipy_where_no_kernel_is(dtype, size, covered):
    assert covers(dtype, size) is covered
    frames = np.random.default_rng(0).integers(0, 99, (4, 9, 11)[-len(size) :]).astype(dtype)
    got = CPU.median(frames, size=size)
    np.testing.assert_array_equal(got, median_filter(frames, size=size, mode="nearest"))

"""The running median and the fused cleaning against SciPy and plain NumPy."""

from __future__ import annotations

import subprocess
import sys
import threading

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from niseg_gpu.backend import CPU
from niseg_gpu.kernels import compiled, median_rows
from niseg_gpu.kernels import median_volume as volumes
from niseg_gpu.kernels.median import (
    CPU_SIZES,
    DTYPES,
    ROWS,
    STRIP_BYTES,
    clean_and_count,
    clean_frames,
    covers,
    covers_on_cpu,
    make_rule,
    median_frames,
)
from niseg_gpu.kernels.median_volume import covers_volume, median_volume
from niseg_gpu.kernels.spots_xp import clean_spots_xp

sizes = st.sampled_from(CPU_SIZES)
dtypes = st.sampled_from(sorted(DTYPES, key=str))
shapes = npst.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=9) | st.tuples(
    st.integers(1, 2 * ROWS + 3), st.integers(20, 150)
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


@pytest.mark.parametrize("size", CPU_SIZES)
@pytest.mark.parametrize("more", [-1, 0, 1, 2, 45])
@pytest.mark.parametrize("strips", [1, 2])
def test_strips_join(strips, more, size):
    strip = STRIP_BYTES // 2 if size == 3 else median_rows.STRIP
    frames = draw(2, (2, ROWS + 1, strips * strip + more), np.dtype("uint16"))
    np.testing.assert_array_equal(median_frames(frames, size=size), median_by_scipy(frames, size=size))


@settings(max_examples=60, deadline=None)
@given(shape=npst.array_shapes(min_dims=3, max_dims=3, max_side=9), dtype=dtypes, seed=st.integers(0, 10**6))
def test_median_of_volumes_equals_scipy(shape, dtype, seed):
    volume = draw(seed, shape, dtype)
    got = median_volume(volume)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, median_filter(volume, 3, mode="nearest"))


@pytest.mark.parametrize("width", [volumes.STRIP - 1, volumes.STRIP + 1, 2 * volumes.STRIP + 5])
def test_strips_of_volumes_join(width):
    volume = draw(2, (3, 3, width), np.dtype("uint16"))
    np.testing.assert_array_equal(median_volume(volume), median_filter(volume, 3, mode="nearest"))


@pytest.mark.parametrize("size", CPU_SIZES)
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


@settings(max_examples=100, deadline=None)
@given(
    shape=shapes,
    dtype=dtypes,
    size=sizes,
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["bright", "dark", "both"]),
    unit=st.sampled_from(["counts", "poisson"]),
)
def test_spots_are_counted_row_by_row(shape, dtype, size, seed, kind, unit):
    frames = np.random.default_rng(seed).poisson(90, shape).astype(dtype)
    rule = make_rule(dtype, threshold=1.3 if unit == "poisson" else 12.0, kind=kind, unit=unit)
    cleaned, spots, counts, has_nan = clean_and_count(frames, size=size, rule=rule)
    middle = median_by_scipy(frames, size=size)
    limit = np.float32(1.3) * np.sqrt(np.maximum(middle.astype(np.float32), 1)) if unit == "poisson" else 12.0
    above = frames.astype(float) - middle
    want = {"bright": above > limit, "dark": -above > limit, "both": abs(above) > limit}[kind]
    np.testing.assert_array_equal(spots, want)
    np.testing.assert_array_equal(cleaned, np.where(want, middle, frames))
    np.testing.assert_array_equal(counts, want.sum(axis=-1))
    assert not has_nan


@pytest.mark.parametrize("size", CPU_SIZES)
@pytest.mark.parametrize("place", [(0, 0), (0, 69), (19, 0), (19, 69), (7, 30), (0, 1), (19, 68)])
def test_nan_is_seen_anywhere(size, place):
    frames = np.ones((20, 70), np.float32)
    rule = make_rule(frames.dtype, threshold=1.0, kind="both")
    assert not clean_and_count(frames, size=size, rule=rule)[-1]
    frames[place] = np.nan
    assert clean_and_count(frames, size=size, rule=rule)[-1]


@pytest.mark.parametrize("size", CPU_SIZES)
def test_spots_may_become_nan_in_the_same_pass(size):
    frames = np.ones((9, 70), np.float32)
    frames[4, ::9] = 50
    rule = make_rule(frames.dtype, threshold=1.0, kind="both", blank=True)
    cleaned, spots, counts, _ = clean_and_count(frames, size=size, rule=rule)
    np.testing.assert_array_equal(spots, frames == 50)
    np.testing.assert_array_equal(np.isnan(cleaned), spots)
    assert (cleaned[~spots] == 1).all() and counts[4] == 8


@pytest.mark.parametrize("kernel", [median_rows.filter5, volumes._filter27])
def test_the_cache_sees_changes_in_any_kernel_file(kernel, monkeypatch, tmp_path):
    """Its key holds the text of all of them; numba's own looks at the one that holds the kernel."""
    keys = []
    for text in ("", "# another"):
        (tmp_path / "networks.py").write_text(text)
        monkeypatch.setattr(compiled, "__file__", str(tmp_path / "compiled.py"))
        compiled.hash_sources.cache_clear()
        keys.append(kernel._cache._index_key((), kernel.targetctx.codegen()))
    compiled.hash_sources.cache_clear()
    assert keys[0] != keys[1]


@pytest.mark.parametrize("size", CPU_SIZES)
def test_threshold_in_float32(size):
    """0.1 is no float32: the comparison rounds the threshold, as NumPy's does."""
    frames = np.zeros((5, 40), np.float32)
    frames[2, 3::4] = np.float32(0.1)
    assert not clean_frames(frames, size=size, threshold=0.1, kind="both")[1].any()
    assert clean_frames(frames, size=size, threshold=0.0999999, kind="both")[1].sum() == 10


@pytest.mark.parametrize("size", CPU_SIZES)
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


BESIDE_FORBIDDEN_PAGES = """
import ctypes, mmap
import numpy as np
from niseg_gpu.kernels.median import clean_frames, median_frames
from niseg_gpu.kernels.median_volume import median_volume

page, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
rng = np.random.default_rng(0)
for shape in ((1, 1), (1, 70), (9, 33), (17, 64), (2, 8, 45)):
    for dtype in ("uint8", "uint16", "float32"):
        values = rng.integers(0, 99, shape).astype(dtype)
        pages = -(-values.nbytes // page)
        room = mmap.mmap(-1, (pages + 2) * page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(room))
        for forbidden in (start, start + (pages + 1) * page):
            assert libc.mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0) == 0
        for offset in (page, (pages + 1) * page - values.nbytes):
            frames = np.frombuffer(room, dtype, values.size, offset).reshape(shape)
            frames[...] = values
            for size in (3, 5, 7):
                np.testing.assert_array_equal(median_frames(frames, size=size), median_frames(values, size=size))
                cleaned, _ = clean_frames(frames, size=size, threshold=20, kind="both")
            if len(shape) == 3:
                median_volume(frames)
        libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t((pages + 2) * page), 3)
print("all inside")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forbids pages by Linux's call")
def test_nothing_beside_the_frames_is_read():
    """Vectors must end where the array does: the pages around it are forbidden, and a touch ends the process."""
    done = subprocess.run([sys.executable, "-c", BESIDE_FORBIDDEN_PAGES], capture_output=True, text=True, check=False)
    assert done.stdout == "all inside\n", (done.returncode, done.stderr)


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
    assert covers_on_cpu(dtype, size) is (covered or size[-1] == 7)
    assert covers_volume(dtype, size) is (size == (3, 3, 3))
    frames = np.random.default_rng(0).integers(0, 99, (4, 9, 11)[-len(size) :]).astype(dtype)
    got = CPU.median(frames, size=size)
    np.testing.assert_array_equal(got, median_filter(frames, size=size, mode="nearest"))

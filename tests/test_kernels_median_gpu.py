"""The GPU's own medians and cleaning in numba's simulator, against SciPy's median and the definition of a spot."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import cycle, islice, product
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import median_filter

from niseg_gpu.kernels.median import DTYPES

CHECKS = ("frames", "volumes", "grid", "strides", "limits", "counts", "stored", "twin", "threads")
WINDOWS = ((3, 3), (5, 5), (7, 7), (3, 3, 3))
KINDS = ("bright", "dark", "both")
STORED = ((">i2", "uint16"), (">u2", "uint16"), (">i2", "int16"))  # FITS with and without BZERO, and TIFF


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_simulator(check: str) -> None:
    """In a process of its own: numba reads at its import whether to simulate."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(root), "PYTHONWARNINGS": ""}
    child = subprocess.run(
        [sys.executable, __file__, check], cwd=root, env=environment, capture_output=True, text=True, timeout=120
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout.split() == ["compared", check]


def expect(frames: np.ndarray, *, window: tuple[int, ...], threshold: float, kind: str) -> tuple[np.ndarray, ...]:
    """Medians, cleaned frames and spots, by the definition, with integers too wide to wrap."""
    size = (1,) * (frames.ndim - len(window)) + window
    median = median_filter(frames, size=size, mode="nearest")
    wide = frames.dtype if frames.dtype.kind == "f" else np.int64
    with np.errstate(invalid="ignore", over="ignore"):
        above = frames.astype(wide) - median.astype(wide)
        limit = frames.dtype.type(threshold) if frames.dtype.kind == "f" else threshold
        spots = {"bright": above > limit, "dark": -above > limit, "both": abs(above) > limit}[kind]
    return median, np.where(spots, median, frames), spots


def compare(frames: np.ndarray, *, xp=np, to_device=np.asarray, to_host=np.asarray, medians: bool = True, **settings):
    """Clean frames and take their medians, on a device or in the simulator; return the expected spots."""
    from niseg_gpu.kernels.median_gpu import clean_gpu, median_gpu

    case = f"{frames.dtype} {frames.shape} {settings}"
    count, block = xp.zeros(2, dtype="uint64"), to_device(frames)
    count[0] = 7
    cleaned, spots = map(to_host, clean_gpu(block, xp=xp, count=count, **settings))
    want_median, want, want_spots = expect(frames, **settings)
    assert cleaned.dtype == want.dtype and spots.dtype == np.bool_, case
    np.testing.assert_array_equal(cleaned, want, err_msg=case)
    np.testing.assert_array_equal(spots, want_spots, err_msg=case)
    assert to_host(count).tolist() == [7 + want_spots.sum(), 0], case
    if medians:
        found = to_host(median_gpu(block, window=settings["window"], xp=xp))
        np.testing.assert_array_equal(found, want_median, err_msg=case)
    np.testing.assert_array_equal(to_host(block), frames, err_msg=case)
    return want_spots


def draw(seed: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Many ties, or the ends of the range, or all of it."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        values = (rng.integers(-4, 5, shape), rng.normal(0, 1e30, shape), rng.choice([0, 1, np.inf, -np.inf], shape))
        return values[seed % 3].astype(dtype)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    few, ends = rng.integers(0, 6, shape).astype(dtype), rng.choice(np.array([low, high, 0], dtype), shape)
    return (few, ends, rng.integers(low, high, shape, dtype, endpoint=True))[seed % 3]


def use_small_blocks() -> None:
    """Small arrays then reach columns inside and at the border, whole strips and the rest, one pass and several."""
    from niseg_gpu.kernels import median_cuda

    median_cuda.THREADS, median_cuda.ROWS = 3, 8


def each_packing():
    """One value a register, then two."""
    from niseg_gpu.kernels import median_gpu

    for paired in (False, True):
        median_gpu._has_pairs = lambda paired=paired: paired
        yield paired


def run_through(windows, shapes, *, per_dtype: int) -> None:
    """Every window and dtype, in each packing, on some of the shapes, in turn, with a threshold and a kind in turn."""
    use_small_blocks()
    turn, some = 0, cycle(shapes)
    for paired, window, dtype in product(each_packing(), windows, sorted(DTYPES, key=str)):
        if paired and dtype.itemsize > 2:
            continue
        for shape in islice(some, per_dtype):
            turn += 1
            even = (*shape[:-1], shape[-1] + shape[-1] % 2) if paired else shape
            threshold, kind = (0.0, 2.0, 1.5, 200.0)[turn % 4], KINDS[turn % 3]
            compare(draw(turn, even, dtype), window=window, threshold=threshold, kind=kind, medians=turn % 3 == 0)


def check_frames() -> None:
    shapes = [(1, 1), (9, 17), (1, 9), (17, 13), (9, 1), (2, 2), (2, 10, 19), (3, 4), (8, 21)]
    run_through([w for w in WINDOWS if len(w) == 2], shapes, per_dtype=2)


def check_volumes() -> None:
    shapes = [(1, 1, 1), (3, 5, 7), (2, 9, 13), (1, 3, 4), (5, 1, 9), (4, 6, 1), (2, 2, 2)]
    run_through([(3, 3, 3)], shapes, per_dtype=3)


def check_grid() -> None:
    """More frames and strips than blocks: each block takes several."""
    from niseg_gpu.kernels import median_cuda, median_gpu

    use_small_blocks()
    median_gpu.MOST_BLOCKS = 1
    for _, window in product(each_packing(), ((3, 3), (7, 7), (3, 3, 3))):
        compare(draw(0, (3, 11, 8), np.dtype("uint16")), window=window, threshold=1.0, kind="both", medians=False)
    median_cuda.THREADS, median_cuda.ROWS = 32, 32  # as they are
    median_gpu._kernel.cache_clear()
    compare(draw(0, (3, 200), np.dtype("uint16")), window=(3, 3), threshold=1.0, kind="both", medians=False)


def check_strides() -> None:
    """Views, empty arrays, and values that begin in the middle of a word."""
    from niseg_gpu.kernels.median_gpu import clean_gpu, median_gpu

    use_small_blocks()
    frames = draw(0, (4, 9, 12), np.dtype("uint16"))
    shifted = np.empty(frames.size + 1, np.uint16)[1:].reshape(frames.shape)
    shifted[...] = frames
    views = (frames[::2, ::-1, 1::3], frames.T, np.broadcast_to(frames[0], (3, 9, 12)), shifted)
    for paired in each_packing():
        for view in views if paired else views[:1]:
            compare(view, window=(3, 3), threshold=1.0, kind="both", medians=False)
    assert median_gpu(frames[:0], window=(5, 5), xp=np).shape == (0, 9, 12)
    settings = {"window": (3, 3, 3), "threshold": 1.0, "kind": "both", "xp": np}
    assert clean_gpu(frames[:, :0], **settings)[1].shape == (4, 0, 12)


def check_limits() -> None:
    """Differences that no signed type holds, and thresholds beyond the dtype."""
    use_small_blocks()
    for paired in each_packing():
        for dtype, kind in product(("uint8", "int16") if paired else ("uint8", "int16", "int32"), KINDS):
            low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
            frames = np.full((5, 14), low, dtype)
            frames[:, 7:] = high
            frames[2, 3], frames[2, 11] = high, low
            for threshold in (float(high) - float(low) - 1, float(high) - float(low), 2.0**40):
                compare(frames, window=(3, 3), threshold=threshold, kind=kind, medians=False)
    frames = draw(0, (6, 11), np.dtype("float32"))
    for threshold in (0.1, 1e39, float("inf")):
        compare(frames, window=(3, 3), threshold=threshold, kind="both")


def check_counts() -> None:
    """Spots are counted in a block's own frames and rows, NaN everywhere; who does not ask for a count gets none."""
    from niseg_gpu.kernels.median_gpu import clean_gpu

    use_small_blocks()
    settings = {"threshold": 1.0, "kind": "both", "xp": np}
    own = slice(1, 3), slice(2, 9)
    for _, dtype, window in product(each_packing(), ("uint16", "float32"), ((3, 3), (3, 3, 3))):
        frames, count = draw(0, (4, 10, 8), np.dtype(dtype)), np.zeros(2, np.uint64)
        spots = clean_gpu(frames, window=window, count=count, own=own, **settings)[1]
        assert count.tolist() == [spots[own].sum(), 0] and 0 < spots[own].sum() < spots.sum()
    frames[0, 0, 0] = frames[3, 9, 5] = frames[2, 4, 4] = np.nan
    clean_gpu(frames, window=(3, 3), count=count, **settings)
    assert count[1] == 3
    clean_gpu(frames, window=(3, 3), **settings)
    assert count[1] == 3


def check_stored() -> None:
    """Words with their bytes the other way round, as files hold them."""
    use_small_blocks()
    for paired, (stored, dtype), window in product(each_packing(), STORED, WINDOWS):
        compare_stored(stored, dtype, shape=(2, 5, 8 if paired else 7), window=window)


def compare_stored(stored: str, dtype: str, *, shape, window, xp=np, to_device=np.asarray, to_host=np.asarray) -> None:
    from niseg_gpu.kernels.median_gpu import clean_gpu

    values = draw(2, shape, np.dtype(dtype))
    inside = values if np.dtype(stored).kind == np.dtype(dtype).kind else (values ^ 0x8000).view(np.int16)
    words, settings = inside.astype(stored).view(np.uint16), {"window": window, "threshold": 9000.0, "kind": "both"}
    cleaned, spots = map(to_host, clean_gpu(to_device(words), xp=xp, stored=(stored, dtype), **settings))
    _, want, want_spots = expect(values, **settings)
    assert cleaned.dtype == dtype and want_spots.any()
    np.testing.assert_array_equal(cleaned, want)
    np.testing.assert_array_equal(spots, want_spots)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", sorted(map(str, DTYPES)))
@pytest.mark.parametrize("shape", [(3, 101, 777), (4, 70, 640)])
def test_on_a_gpu(backend, shape: tuple[int, ...], dtype: str, window: tuple[int, ...]) -> None:
    """Several blocks along each axis and a rest; odd and even widths, for one and two values a register."""
    frames, device = draw(2, shape, np.dtype(dtype)), {"to_device": backend.from_host, "to_host": backend.to_host}
    compare(frames, window=window, threshold=40.0, kind="both", xp=backend.xp, **device)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("stored, dtype", STORED)
@pytest.mark.parametrize("width", [640, 777])
def test_stored_words_on_a_gpu(backend, width: int, stored: str, dtype: str, window: tuple[int, ...]) -> None:
    device = {"to_device": backend.from_host, "to_host": backend.to_host}
    compare_stored(stored, dtype, shape=(3, 70, width), window=window, xp=backend.xp, **device)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("shape", [(5, 70, 640), (5, 70, 641)])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_counts_on_a_gpu(backend, dtype: str, shape: tuple[int, ...]) -> None:
    from niseg_gpu.kernels.median_gpu import clean_gpu

    frames, own, xp = draw(0, shape, np.dtype(dtype)), (slice(1, 4), slice(3, 66)), backend.xp
    for window in WINDOWS:
        settings = {"window": window, "threshold": 1.0, "kind": "both"}
        count = xp.zeros(2, dtype="uint64")
        clean_gpu(backend.from_host(frames), count=count, own=own, xp=xp, **settings)
        assert backend.to_host(count).tolist() == [expect(frames, **settings)[2][own].sum(), 0]
    if dtype == "float32":
        frames[0, 0, 0] = frames[4, 69, 639] = np.nan
        clean_gpu(backend.from_host(frames), count=count, xp=xp, **settings)
        assert backend.to_host(count)[1] == 2


def check_twin() -> None:
    """The twin takes the kernels when told to, and cuCIM when not."""
    from niseg_gpu.backend import Gpu

    use_small_blocks()
    frames, twin = draw(0, (2, 9, 12), np.dtype("uint16")), Gpu("own")

    def median(image, size, mode):
        raise AssertionError("cuCIM was asked")

    vars(twin).update(xp=np, _median=median)
    for window in ((1, 5, 5), (3, 3, 3)):
        settings = {"threshold": 1.0, "kind": "dark"}
        done = twin.clean_spots(frames, size=window, own=(slice(1, 2), slice(2, 7), slice(0, 12)), **settings)
        _, cleaned, spots = expect(frames, window=window, **settings)
        np.testing.assert_array_equal(done.image, cleaned)
        np.testing.assert_array_equal(done.spots, spots)
        assert done.number == spots[1:2, 2:7].sum() and not done.has_nan
    assert twin.clean_spots(frames, size=(1, 3, 3), own=(slice(0, 2),) * 3, **settings).number == (
        expect(frames, window=(3, 3), **settings)[2][:2, :2, :2].sum()
    )
    dirty = np.where(np.arange(12) == 5, np.nan, frames).astype(np.float32)
    assert twin.clean_spots(dirty, size=(1, 3, 3), **settings).has_nan
    np.testing.assert_array_equal(twin.median(frames, size=(1, 7, 7)), expect(frames, window=(7, 7), **settings)[0])
    other = Gpu("library")
    vars(other).update(xp=np, _median=median)
    with pytest.raises(AssertionError, match="cuCIM was asked"):
        other.median(frames, size=(1, 3, 3))


def check_threads() -> None:
    """Threads that begin together, as those of a pipeline do, build a kernel once and get the same from it."""
    import threading
    import time
    from concurrent.futures import ThreadPoolExecutor

    from niseg_gpu.kernels import median_cuda
    from niseg_gpu.kernels.median_gpu import clean_gpu

    use_small_blocks()
    built, real, together = [], median_cuda.build, threading.Barrier(4)

    def build(*case, **settings):
        built.append(case)
        time.sleep(0.1)  # to compile takes seconds
        return real(*case, **settings)

    median_cuda.build = build
    frames, settings = draw(0, (2, 9, 12), np.dtype("uint16")), {"window": (3, 3), "threshold": 1.0, "kind": "both"}

    def clean(_):
        together.wait()
        return clean_gpu(frames, xp=np, **settings)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(clean, range(4)))
    assert len(built) == 1, built
    for cleaned, spots in found:
        np.testing.assert_array_equal(cleaned, expect(frames, **settings)[1])
        np.testing.assert_array_equal(spots, expect(frames, **settings)[2])


def test_it_says_what_it_cannot_take() -> None:
    code = (
        "from niseg_gpu.kernels.median_gpu import why_not\n"
        "print(why_not((4, 9, 9), 'uint16', (1, 3, 3)), why_not((9, 9), 'float64', (3, 3)),"
        " why_not((9, 9), 'uint16', (9, 9)), why_not((4, 9, 9), 'uint16', (5, 5, 5)),"
        " why_not((4, 4, 9, 9), 'uint16', (1, 3, 3, 3)), why_not((65536, 65536), 'uint8', (3, 3)), sep='|')"
    )
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert child.stdout.strip().split("|") == [
        "",
        "it has no 3 x 3 of float64",
        "it has no 9 x 9 of uint16",
        "it has no 5 x 5 x 5 of uint16",
        "it has no 1 x 3 x 3 x 3 of uint16",
        "frames of 65536 x 65536 are too large for its indices",
    ]


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("error")
    # differences wrap on purpose, in the unsigned type; the one of two infinities is no number and no spot
    warnings.filterwarnings("ignore", ".*(overflow|invalid value) encountered in scalar subtract", RuntimeWarning)
    globals()[f"check_{sys.argv[1]}"]()
    print("compared", sys.argv[1])

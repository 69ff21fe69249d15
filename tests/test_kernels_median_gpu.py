"""The GPU's own median and cleaning in numba's simulator, against the CPU's kernels, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from niseg_gpu.backend import CPU
from niseg_gpu.kernels.median import DTYPES, SIZES

CHECKS = ("results", "grid", "strides", "limits", "twin")


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


def compare(frames: np.ndarray, *, size: int, threshold: float, kind: str) -> None:
    from niseg_gpu.kernels.median import clean_frames, median_frames
    from niseg_gpu.kernels.median_gpu import clean_frames_gpu, median_frames_gpu

    total = np.full(1, 7, np.uint64)
    settings = {"size": size, "threshold": threshold, "kind": kind}
    case = f"{frames.dtype} {frames.shape} {settings}"
    kept = frames.copy()
    cleaned, spots = clean_frames_gpu(frames, xp=np, total=total, **settings)
    want, want_spots = clean_frames(frames, **settings)
    assert cleaned.dtype == want.dtype and spots.dtype == np.bool_, case
    assert cleaned.tobytes() == want.tobytes(), case
    assert spots.tobytes() == want_spots.tobytes(), case
    assert total[0] == 7 + want_spots.sum(), case
    medians = median_frames_gpu(frames, size=size, xp=np)
    assert medians.tobytes() == median_frames(frames, size=size).tobytes(), case
    assert frames.tobytes() == kept.tobytes(), case


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
    """One column a register, then two where the dtype allows."""
    from niseg_gpu.kernels import median_gpu

    for paired in (False, True):
        median_gpu._goes_in_pairs = lambda dtype, paired=paired: paired and dtype.itemsize <= 2
        yield paired


def check_results() -> None:
    use_small_blocks()
    shapes = [(1, 1), (1, 9), (9, 1), (2, 2), (3, 4), (8, 6), (9, 17), (17, 7), (2, 10, 19)]
    dtypes = sorted((np.dtype(d) for d in DTYPES), key=str)
    kinds = ("bright", "dark", "both")
    for paired in each_packing():
        for seed, (dtype, size, shape) in enumerate(product(dtypes, SIZES, shapes)):
            if dtype.itemsize <= 2 or not paired:
                threshold = (0.0, 2.0, 1.5, 200.0)[seed % 4]
                compare(draw(seed, shape, dtype), size=size, threshold=threshold, kind=kinds[seed % 3])


def check_grid() -> None:
    """More frames and strips than blocks: each block takes several."""
    from niseg_gpu.kernels import median_cuda, median_gpu

    use_small_blocks()
    median_gpu.MOST_BLOCKS = 2
    for _, size in product(each_packing(), SIZES):
        compare(draw(0, (3, 19, 8), np.dtype("uint16")), size=size, threshold=1.0, kind="both")
    median_cuda.THREADS, median_cuda.ROWS = 128, 32  # as they are; two columns a register
    median_gpu._kernel.cache_clear()
    compare(draw(0, (3, 519), np.dtype("uint16")), size=3, threshold=1.0, kind="both")


def check_strides() -> None:
    from niseg_gpu.kernels.median_gpu import clean_frames_gpu, median_frames_gpu

    use_small_blocks()
    frames = draw(0, (4, 9, 12), np.dtype("uint16"))
    for _ in each_packing():
        for view in (frames[::2, ::-1, 1::3], frames.T, np.broadcast_to(frames[0], (3, 9, 12))):
            compare(view, size=3, threshold=1.0, kind="both")
    assert median_frames_gpu(frames[:0], size=5, xp=np).shape == (0, 9, 12)
    assert clean_frames_gpu(frames[:, :0], size=5, threshold=1.0, kind="both", xp=np)[1].shape == (4, 0, 12)


def check_limits() -> None:
    """Differences that no signed type holds, and thresholds beyond the dtype."""
    use_small_blocks()
    for _ in each_packing():
        for dtype, kind in product(("uint8", "int16", "int32"), ("bright", "dark", "both")):
            low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
            frames = np.full((6, 15), low, dtype)
            frames[:, 8:] = high
            frames[3, 3], frames[3, 12] = high, low
            for threshold in (float(high) - float(low) - 1, float(high) - float(low), 2.0**40, float("inf")):
                compare(frames, size=3, threshold=threshold, kind=kind)
    frames = draw(0, (6, 11), np.dtype("float32"))
    for threshold in (0.1, 1e39, float("inf")):
        compare(frames, size=3, threshold=threshold, kind="both")


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", sorted(map(str, DTYPES)))
def test_on_a_gpu(backend, dtype: str, size: int) -> None:
    """The kernel, the library and the CPU's kernel; several blocks along each axis, and a rest."""
    from niseg_gpu.kernels.median_gpu import clean_frames_gpu, median_frames_gpu

    frames, xp = draw(2, (3, 101, 777), np.dtype(dtype)), backend.xp
    settings = {"size": size, "threshold": 40.0, "kind": "both"}
    want, want_spots = CPU.clean_spots(frames, **settings)
    block, total = backend.from_host(frames), xp.zeros(1, dtype="uint64")
    cleaned, spots = clean_frames_gpu(block, xp=xp, total=total, **settings)
    np.testing.assert_array_equal(backend.to_host(cleaned), want)
    np.testing.assert_array_equal(backend.to_host(spots), want_spots)
    assert int(total[0]) == want_spots.sum()
    medians = backend.to_host(median_frames_gpu(block, size=size, xp=xp))
    np.testing.assert_array_equal(medians, backend.to_host(backend.median(block, size=(1, size, size))))
    np.testing.assert_array_equal(medians, CPU.median(frames, size=(1, size, size)))


def check_twin() -> None:
    """The twin takes the kernel when told to, and cuCIM when not."""
    from niseg_gpu.backend import CPU, Gpu

    use_small_blocks()
    frames = draw(0, (2, 9, 12), np.dtype("uint16"))
    twin = Gpu()

    def median(image, size, mode):
        raise AssertionError("cuCIM was asked")

    vars(twin).update(kernels="own", xp=np, _median=median)
    settings = {"size": 5, "threshold": 1.0, "kind": "dark"}
    for ours, theirs in zip(twin.clean_spots(frames, **settings), CPU.clean_spots(frames, **settings), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(twin.median(frames, size=(1, 3, 3)), CPU.median(frames, size=(1, 3, 3)))
    twin.kernels = "library"
    with pytest.raises(AssertionError, match="cuCIM was asked"):
        twin.median(frames, size=(1, 3, 3))


def test_it_says_what_it_cannot_take() -> None:
    code = (
        "from niseg_gpu.kernels.median_gpu import why_not\n"
        "print(why_not((4, 9, 9), 'uint16', (1, 3, 3)), why_not((9, 9), 'float64', (3, 3)),"
        " why_not((9, 9), 'uint16', (7, 7)), why_not((65536, 65536), 'uint8', (3, 3)), sep='|')"
    )
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert child.stdout.strip().split("|") == [
        "",
        "it has no 3 x 3 of float64",
        "it has no 7 x 7 of uint16",
        "frames of 65536 x 65536 are too large for its indices",
    ]


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("error")
    # differences wrap on purpose, in the unsigned type; the one of two infinities is no number and no spot
    warnings.filterwarnings("ignore", ".*(overflow|invalid value) encountered in scalar subtract", RuntimeWarning)
    globals()[f"check_{sys.argv[1]}"]()
    print("compared", sys.argv[1])

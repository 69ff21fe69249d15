"""The GPU's own pass of k-means in numba's simulator, against the CPU's, bit for bit, and against float64."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from niseg_gpu.backend import CPU
from niseg_gpu.errors import UserError
from niseg_gpu.kernels.exact import choose_quantum

CHECKS = ("fused", "shares", "rows", "twice", "limits", "twin")
ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("check", CHECKS)
def test_in_the_simulator(check: str) -> None:
    """In a process of its own: numba reads at its import whether to simulate."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
    child = subprocess.run(
        [sys.executable, __file__, check], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert child.returncode == 0, child.stderr[-3000:]
    assert child.stdout.split() == ["compared", check]


def draw(seed: int, n: int, features: int, k: int, dtype: str, *, pad: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Pixels around k spectra, in rows as the twin makes them or close together, and a start among them."""
    from niseg_gpu.kernels.lloyd_gpu import pad_row

    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    spectra = rng.integers(-90 if kind.kind == "i" else 0, 100, (k, features)) + rng.integers(0, 2, features) * 60
    values = np.clip(spectra[np.arange(n) % k] + rng.normal(0, 3, (n, features)), -120 if kind.kind == "i" else 0, 250)
    length = pad_row(features, kind) if pad else features
    memory = np.zeros(n * length + 16, kind)
    first = -memory.ctypes.data % 16 // kind.itemsize
    pixels = memory[first : first + n * length].reshape(n, length)[:, :features]
    pixels[...] = values.astype(kind)
    return pixels, pixels[:k].astype(np.float32)


def compare(pixels: np.ndarray, start: np.ndarray, *, whole: bool = False, left_out: int = 7) -> None:
    from niseg_gpu.kernels.lloyd import assign_and_sum_cpu
    from niseg_gpu.kernels.lloyd_gpu import assign_and_sum_gpu

    n, k = len(pixels), len(start)
    with np.errstate(invalid="ignore"):
        mean = np.nan_to_num(np.nanmean(pixels.astype(np.float64), axis=0)).astype(np.float32)
    if whole:
        mean = np.rint(mean)
    how = {"centroids": start - mean, "mean": mean, "quantum": choose_quantum(300, n)}
    expected, found = np.full(n, k + 1, np.int32), np.full(n, k + 1, np.int32)
    expected[::left_out] = found[::left_out] = -1
    found[1::3] = expected[1::3] = 0
    want = assign_and_sum_cpu(pixels, **how, labels=expected)
    got = assign_and_sum_gpu(pixels, **how, labels=found, xp=np)
    case = f"{pixels.dtype} {pixels.shape} k {k} whole {whole}"
    np.testing.assert_array_equal(found, expected, err_msg=case)
    assert got.sums.dtype == np.float64 and got.sums.tobytes() == np.ascontiguousarray(want.sums).tobytes(), case
    np.testing.assert_array_equal(got.sizes, want.sizes, err_msg=case)
    assert got.moved == want.moved, case
    inside = found >= 0
    away = pixels[inside].astype(np.float64)[:, None] - start.astype(np.float64)
    np.testing.assert_array_equal(found[inside], (away**2).sum(axis=2).argmin(axis=1), err_msg=case)
    for label in range(k):
        exact = (pixels[found == label].astype(np.float64) - mean).sum(axis=0)
        np.testing.assert_allclose(got.sums[label], exact, rtol=1e-6, atol=1e-5 * n, err_msg=case)


def use_small_blocks(threads: int = 8, *, shared: int = 1 << 20, least: int = 1) -> None:
    """Small data then make several tiles, blocks and shares of the features."""
    from niseg_gpu.kernels import lloyd_gpu, lloyd_tile

    lloyd_tile.THREADS, lloyd_tile.COLUMNS = threads, threads // 4
    lloyd_gpu.SIMULATED, lloyd_gpu.LEAST_GROUPS, lloyd_gpu.RUN = (2, shared), least, 8
    for cached in (lloyd_gpu._device, lloyd_gpu._kernel, lloyd_gpu.make_plan):
        cached.cache_clear()


def check_fused() -> None:
    """All dtypes, one pixel a thread's own: no shares. Several tiles to a block, and a rest."""
    use_small_blocks()
    for seed, dtype in enumerate(("float32", "uint16", "int16", "uint8")):
        for whole in (False, True)[: 1 + (dtype != "float32")]:
            compare(*draw(seed, 50, 17 if dtype == "uint8" else 9, 3, dtype, pad=seed % 2 == 1), whole=whole)


def check_shares() -> None:
    """Threads that share the features of a pixel, 16 bytes at once or one by one."""
    from niseg_gpu.kernels.lloyd_gpu import Plan, make_plan

    for seed, (dtype, shared, groups) in enumerate((("float32", 6000, 4), ("uint16", 4000, 4), ("int16", 4000, 4))):
        use_small_blocks(16, shared=shared, least=1)
        for pad in (True, False):
            pixels, start = draw(seed, 25, 37, 4, dtype, pad=pad)
            length = pixels.strides[0] // pixels.itemsize
            plan: Plan = make_plan(37, length, pixels.dtype, k=4, wide=pad, whole=False, shared=shared)
            assert plan.fused and plan.case.groups <= groups, plan
            compare(pixels, start, whole=seed > 0)


def check_rows() -> None:
    """Rows of any length, step and beginning; left-out pixels full of NaN beside others; fewer pixels than a tile."""
    from niseg_gpu.kernels import lloyd_gpu

    use_small_blocks()
    real, begins = lloyd_gpu._pass_once, []

    def pass_once(plan, pixels, *others):
        begins.append(pixels[0].ctypes.data % 16)  # the device copies 16 bytes from multiples of 16 bytes only
        return real(plan, pixels, *others)

    lloyd_gpu._pass_once = pass_once
    for features in (1, 2, 4, 5, 16):
        compare(*draw(features, 33, features, 2, "float32", pad=features == 16))
    pixels, start = draw(0, 40, 6, 2, "float32", pad=False)
    for view in (pixels[::3], pixels[:, ::-1], np.asfortranarray(pixels), pixels[1:]):
        compare(view, np.ascontiguousarray(view[[0, 1]]))
    pixels, start = draw(1, 21, 21, 2, "float32")
    pixels[::7] = np.nan
    compare(pixels, start[[1, 1]] + np.float32([[0], [90]]))
    pixels, start = draw(1, 21, 21, 2, "float32", pad=False)
    pixels[::7] = np.nan
    compare(pixels, start[[1, 1]] + np.float32([[0], [90]]))
    compare(*draw(2, 1, 9, 1, "uint16"), left_out=2)
    equal = np.zeros((3, 8), np.float32)
    compare(draw(3, 24, 8, 2, "float32")[0], equal)  # ties: the first wins
    pixels, start = draw(4, 30, 37, 2, "uint8", pad=False)
    for first in range(4):
        compare(pixels[first:], start, whole=True)
    assert begins and not any(begins), begins


def check_twice() -> None:
    """Clusters and features too many for registers: labels first, sums in a second reading."""
    from niseg_gpu.kernels import lloyd_gpu

    use_small_blocks(8)
    lloyd_gpu.MOST_TOTALS = 0
    for seed, (dtype, pad) in enumerate((("float32", True), ("float32", False), ("uint16", True), ("uint8", False))):
        compare(*draw(seed, 24, 37, 3, dtype, pad=pad), whole=seed >= 2)
    lloyd_gpu.MOST_TOTALS = 128
    lloyd_gpu.make_plan.cache_clear()
    compare(*draw(5, 24, 9, 18, "float32"))  # two clusters more than there are, infinitely far
    compare(*draw(6, 24, 21, 2, "int16"), left_out=1000, whole=True)


def check_limits() -> None:
    """The largest whole numbers, and so many of them that one block's register could not hold their sum."""
    from niseg_gpu.kernels import lloyd_gpu

    use_small_blocks()
    lloyd_gpu.MOST_ADDED = 16  # pixels of a block
    for dtype, values in (("uint16", (0, 65_535)), ("int16", (-32_768, 32_767))):
        pixels = np.empty((50, 3), dtype)
        pixels[::2], pixels[1::2] = values
        compare(pixels, pixels[:2].astype(np.float32), whole=True)
    plan = lloyd_gpu.make_plan(661, 664, np.dtype("uint16"), k=10, wide=True, whole=True, shared=232_448)
    assert plan.rows * (lloyd_gpu.MOST_ADDED // plan.rows) * 65_535 < 2**32
    assert lloyd_gpu.pad_row(661, np.float32) == 668 and lloyd_gpu.pad_row(661, np.uint16) == 664
    assert lloyd_gpu.pad_row(1, np.uint16) == 1
    assert lloyd_gpu.why_not((5, 9), np.dtype("float64"), 3) == "it has none for float64 pixels"
    assert lloyd_gpu.why_not((5, 9), np.dtype("uint8"), 65) == "it has none for 65 clusters, 64 at most"
    assert not lloyd_gpu.why_not((5, 4096), np.dtype("uint16"), 64)
    empty = lloyd_gpu.assign_and_sum_gpu(
        pixels[:0], centroids=np.zeros((2, 3), np.float32), mean=np.zeros(3, np.float32), quantum=1.0,
        labels=np.zeros(0, np.int32), xp=np,
    )  # fmt: skip
    assert empty.sums.shape == (2, 3) and not empty.sizes.any() and empty.moved == 0


def check_twin() -> None:
    """The twin takes the kernel when told to, and array calls for what it can't take."""
    from niseg_gpu.backend import Gpu

    use_small_blocks()
    twin = Gpu("own")
    vars(twin).update(xp=np)
    rows = twin.empty_rows(40, 37, np.uint16)
    assert rows.shape == (40, 37) and rows.strides == (80, 2)
    rows[...] = draw(0, 40, 37, 3, "uint16")[0]
    for pixels in (rows, rows.astype(np.float64)):
        how = {"centroids": rows[:3] - np.float32(5), "mean": np.full(37, 5, np.float32), "quantum": 2.0**-30}
        labels = np.zeros((2, 40), np.int32)
        ours, theirs = (b.assign_and_sum(pixels, **how, labels=row) for b, row in zip((twin, CPU), labels, strict=True))
        np.testing.assert_array_equal(labels[0], labels[1])
        np.testing.assert_array_equal(ours.sums, theirs.sums)
    turned = twin.as_rows(np.asarray(rows.T.reshape(37, 5, 8)), axis=0)
    np.testing.assert_array_equal(turned, rows)
    assert turned.strides == (80, 2)
    assert np.shares_memory(twin.as_rows(rows, axis=1), rows), "what is in rows already is not copied"
    close, short = draw(1, 40, 37, 3, "uint16", pad=False)[0], draw(1, 40, 24, 3, "uint16", pad=False)[0]
    vars(twin).update(count_memory=lambda: 2 * 40 * 80)
    copied = twin.as_rows(close, axis=1)
    assert copied.strides == (80, 2) and copied.tobytes() == close.tobytes()
    assert np.shares_memory(twin.as_rows(short, axis=1), short), "of few bytes they are read as fast"
    wide = draw(1, 20, 64, 3, "uint16", pad=False)[0]
    assert np.shares_memory(twin.as_rows(wide, axis=1), wide)
    assert twin.as_rows(wide[:, 1:], axis=1).strides == (144, 2), "each row begins beside a multiple of 16 bytes"
    vars(twin).update(count_memory=lambda: 2 * 40 * 80 - 2)
    assert np.shares_memory(twin.as_rows(close, axis=1), close), "no room for a copy"
    from niseg_gpu.kmeans.arrays import _hold_parts
    from niseg_gpu.kmeans.table import PixelTable, count_row_bytes

    assert count_row_bytes(twin, 25, np.uint16) == 80
    halves, kept = [(slice(0, 20),), (slice(20, 40),)], {"keep_bytes": 40 * 50, "hold_bytes": 20 * 80}
    points = _hold_parts(np.zeros((40, 25), np.uint16), 1, halves, backend=twin, workers=1, **kept)
    assert [(part.keep, part.hold) for part in points.parts.values()] == [(True, False), (False, True)]
    vars(twin).update(count_memory=lambda: 40 * 80)
    table = PixelTable(twin, shape=(37, 5, 8), features=True, dtype=np.uint16)
    assert table.rows.strides[0] == count_row_bytes(twin, 37, np.uint16) == 80
    assert count_row_bytes(CPU, 37, np.uint16) == 74
    vars(twin).update(count_memory=lambda: 40 * 80 - 1)
    with pytest.raises(UserError, match="gathers all spectra in memory"):
        PixelTable(twin, shape=(37, 5, 8), features=True, dtype=np.uint16)


COMPILED = {  # kernel: dtype, clusters, wide, whole, groups, each
    "fuse-float32": ("fuse", "float32", 10, True, False, 16, 3),
    "fuse-uint16": ("fuse", "uint16", 10, True, True, 32, 3),
    "fuse-most-registers": ("fuse", "float32", 16, True, False, 8, 4),
    "assign-uint16": ("assign", "uint16", 64, True, True, 256, 1),
    "sum_runs-float32": ("sum_runs", "float32", 64, False, False, 256, 1),
}


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_for_an_h100(name: str) -> None:
    """To PTX, in a process of its own: what is to be in registers is nowhere else, and copies go past them."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
    child = subprocess.run(
        [sys.executable, __file__, "compile", name], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if child.returncode == 77:
        pytest.skip(child.stdout.strip())
    assert child.returncode == 0, child.stderr[-3000:]
    ptx = child.stdout
    assert ".target sm_90" in ptx
    assert ".local" not in ptx and "call" not in re.sub(r"//.*", "", ptx)
    if not name.startswith("sum_runs"):
        assert "cp.async.cg.shared.global" in ptx and "ld.shared.v4.f32" in ptx
        assert ptx.count("fma.rn.f32") >= 80


def test_small_grids_are_no_fault_of_the_users() -> None:
    """Each pass ends with a few blocks that add up what the others found; numba would warn of each."""
    code = (
        "from numba.cuda import dispatcher\nimport niseg_gpu.kernels.lloyd_gpu\n"
        "print(dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS)"
    )
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": ""}
    child = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert child.stdout.strip() == "0", child.stderr[-2000:]


def compile_kernel(name: str) -> int:
    from types import SimpleNamespace

    from numba import cuda
    from numba import types as t
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import nvvm

    try:
        nvvm.NVVM()
    except Exception as error:
        print(f"no compiler for GPUs here: {error}".replace("\n", " "))
        return 77
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))
    from niseg_gpu.kernels.lloyd_cuda import build

    kernel, dtype, clusters, wide, whole, groups, each = COMPILED[name]
    f32, f64, i32, i64 = (t.Array(kind, 1, "C") for kind in (t.float32, t.float64, t.int32, t.int64))
    pixels, places, n = t.Array(getattr(t, dtype), 1, "C"), t.UniTuple(t.int64, 6), t.int64
    arguments = {
        "fuse": (pixels, n, n, n, n, f32, f32, f32, t.float64, i32, places, f64),
        "assign": (pixels, n, n, n, n, f32, f32, f32, i32, places, f64),
        "sum_runs": (pixels, n, n, f32, t.float64, i64, i64, n, f64),
    }[kernel]
    settings = {"clusters": clusters, "wide": wide, "whole": whole, "groups": groups, "each": each}
    ptx, _ = cuda.compile_ptx(build(kernel, dtype=np.dtype(dtype), **settings), t.void(*arguments), cc=(9, 0))
    print(ptx)
    return 0


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize(("features", "k"), [(661, 10), (661, 4), (40, 16), (1000, 64), (4096, 10), (3, 5)])
@pytest.mark.parametrize("dtype", ["float32", "uint16", "int16", "uint8"])
def test_on_a_gpu(backend, dtype: str, features: int, k: int) -> None:
    """The kernels against the CPU's, in padded rows and close ones, with more tiles than blocks."""
    from niseg_gpu.kernels.lloyd_gpu import assign_and_sum_gpu

    xp = backend.xp
    for pad in (True, False):
        pixels, start = draw(features, 40_000 if features < 1000 else 3_000, features, k, dtype, pad=pad)
        mean = np.rint(pixels.mean(axis=0)).astype(np.float32)
        for shift in (0, 0.25):
            how = {"centroids": start - mean - np.float32(shift), "mean": mean + np.float32(shift)}
            expected = np.full(len(pixels), k, np.int32)
            expected[::9] = -1
            labels = xp.asarray(expected)
            want = CPU.assign_and_sum(pixels, **how, quantum=2.0**-20, labels=expected)
            rows = xp.asarray(np.asarray(pixels.base))[:, :features] if pad else xp.asarray(pixels)
            got = assign_and_sum_gpu(rows, **how, quantum=2.0**-20, labels=labels, xp=xp)
            np.testing.assert_array_equal(backend.to_host(labels), expected)
            np.testing.assert_array_equal(got.sums, want.sums)
            np.testing.assert_array_equal(got.sizes, want.sizes)
            assert got.moved == want.moved


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("first", [1, 2, 8])
def test_slices_on_a_gpu(backend, first: int) -> None:
    """Pixels of somebody's larger array, which begin anywhere in memory."""
    from niseg_gpu.kernels.lloyd_gpu import assign_and_sum_gpu

    pixels, start = draw(first, 5_000, 661, 10, "uint16", pad=False)
    expected, mean = np.full(len(pixels) - first, 10, np.int32), np.zeros(661, np.float32)
    labels, how = backend.xp.asarray(expected), {"centroids": start, "mean": mean, "quantum": 2.0**-20}
    want = CPU.assign_and_sum(pixels[first:], **how, labels=expected)
    got = assign_and_sum_gpu(backend.xp.asarray(pixels)[first:], **how, labels=labels, xp=backend.xp)
    np.testing.assert_array_equal(backend.to_host(labels), expected)
    np.testing.assert_array_equal(got.sums, want.sums)


if __name__ == "__main__":
    import warnings

    warnings.filterwarnings("error")
    # threads beyond the last feature add up what nobody looks at
    warnings.filterwarnings("ignore", ".*encountered in (scalar add|scalar subtract|cast|add)", RuntimeWarning)
    warnings.filterwarnings("ignore", "The 'generic' unit for NumPy", DeprecationWarning)  # numba-cuda on NumPy 2.5
    if sys.argv[1] == "compile":
        sys.exit(compile_kernel(sys.argv[2]))
    globals()[f"check_{sys.argv[1]}"]()
    print("compared", sys.argv[1])

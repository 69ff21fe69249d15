"""The GPU's twin, on a device or with NumPy in CuPy's place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import median_filter

from niseg_gpu.backend import CPU, Gpu
from niseg_gpu.backend.gpu import CUML_KEEPS, _say_other_is_taken


def test_what_our_kernel_lacks_goes_to_the_library_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    twin, frames = Gpu("own"), np.random.default_rng(0).integers(0, 9, (3, 8, 8)).astype(float)
    vars(twin).update(xp=np, _median=median_filter)
    _say_other_is_taken.cache_clear()
    settings = {"size": (1, 3, 3), "threshold": 2.0, "kind": "both"}
    with caplog.at_level("WARNING", logger="niseg_gpu"):
        for _ in range(2):
            for ours, theirs in zip(
                twin.clean_spots(frames, **settings), CPU.clean_spots(frames, **settings), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)
    assert [r.getMessage() for r in caplog.records] == [
        "kernels is own, but not for this median: it has no 1 x 3 x 3 of float64; cuCIM's is taken"
    ]


@pytest.mark.parametrize("dtype", [">u2", ">i2", ">i4", ">f4", ">f8", ">u8", "<i2", "u1"])
def test_any_byte_order_comes_in(dtype: str) -> None:
    """On the GPU the bytes travel as they are; NumPy stands in for CuPy."""
    values = np.random.default_rng(1).integers(0, 120, (2, 5, 3)).astype(dtype)
    values[0, 0, :2] = [-3 if values.dtype.kind != "u" else 3, 100]
    twin, given = Gpu(), []
    vars(twin).update(xp=type("Cupy", (), {"asarray": lambda a: given.append(a) or np.array(a)}))
    for block in (values, values[:, ::2], values[:0]):
        for device in (CPU, twin):
            kept, here = block.copy(), device.from_host(block)
            assert here.dtype == block.dtype.newbyteorder("=") and here.dtype.isnative
            np.testing.assert_array_equal(here, kept)
            np.testing.assert_array_equal(block, kept)
    assert all(a.dtype.isnative and a.itemsize == values.itemsize for a in given)


CUPY = """
class Device: attributes = {"MemoryPoolsSupported": 1}
allocators = ["the pool's"]
set_allocator, get_allocator = allocators.append, lambda: allocators[-1]
"""
RMM = """
class CudaMemoryResource: pass
class CudaAsyncMemoryResource:
    def __init__(self, release_threshold=2**64 - 1): self.release_threshold = release_threshold
resources = [CudaMemoryResource()]
set_current_device_resource, get_current_device_resource = resources.append, lambda: resources[-1]
"""
CUML = """
import cupy.cuda, rmm
cupy.cuda.set_allocator("asks the driver each time")
KMeans = NearestNeighbors = object
"""


@pytest.mark.parametrize("chosen", [False, True])
def test_cuml_leaves_cupy_its_pool(tmp_path: Path, chosen: bool) -> None:
    """Three packages that stand in for the real ones, in a process of its own."""
    for name, text in (("cupy/cuda", CUPY), ("rmm/mr", RMM), ("cuml/cluster", ""), ("cuml/neighbors", "")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text(text or "from cuml import KMeans, NearestNeighbors")
    for name, text in (("cupy", "import cupy.cuda"), ("rmm", "import rmm.mr"), ("cuml", CUML)):
        (tmp_path / name / "__init__.py").write_text(text)
    code = (
        "import cupy.cuda, rmm.mr; from niseg_gpu.backend import Gpu\n"
        f"if {chosen}: rmm.mr.set_current_device_resource(7)\n"
        "twin = Gpu(); twin._kmeans, twin._neighbors\n"
        "resource = rmm.mr.get_current_device_resource()\n"
        "print(cupy.cuda.get_allocator(), getattr(resource, 'release_threshold', resource), sep=', ')"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    child = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    resource = 7 if chosen else CUML_KEEPS  # what is over goes back, for CuPy and JAX
    assert child.stdout.strip() == f"the pool's, {resource}", child.stderr[-2000:]


def test_jax_gets_what_begins_where_xla_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame within a stack may begin anywhere; XLA refuses what does not begin at a multiple of 16 bytes."""

    class Block:
        def __init__(self, ptr: int) -> None:
            self.data = SimpleNamespace(ptr=ptr)

        def copy(self) -> Block:
            return Block(0x200)

    jax = SimpleNamespace(dlpack=SimpleNamespace(from_dlpack=lambda block: block.data.ptr))
    monkeypatch.setattr("niseg_gpu.xla.start_jax", lambda cpu: jax)
    twin = Gpu()
    vars(twin).update(xp=SimpleNamespace(ascontiguousarray=lambda block: block), jax_device=object())
    assert [twin.to_jax(Block(ptr)) for ptr in (0x400, 0x402, 0x404, 0x410)] == [0x400, 0x200, 0x200, 0x200]


def test_what_comes_from_jax_is_cupys_own_before_jax_may_have_its_memory_back() -> None:
    log = []

    class Theirs:
        def copy(self) -> str:
            log.append("copy")
            return "ours"

        def __del__(self) -> None:
            log.append("given back")

    stream = SimpleNamespace(synchronize=lambda: log.append("wait"))
    twin = Gpu()
    vars(twin).update(
        xp=SimpleNamespace(from_dlpack=lambda array: array, cuda=SimpleNamespace(get_current_stream=lambda: stream))
    )
    theirs = [Theirs()]
    assert twin.from_jax(theirs.pop()) == "ours"
    assert log == ["copy", "wait", "given back"]


@pytest.mark.gpu
def test_frames_go_to_jax_from_any_place(backend) -> None:
    frames = np.random.default_rng(1).integers(0, 30000, (3, 7, 9)).astype(np.uint16)
    there = backend.from_host(frames)
    for first in range(3):
        found = backend.from_jax(backend.to_jax(there[first:]) * 2)
        np.testing.assert_array_equal(backend.to_host(found), frames[first:] * 2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [">u2", ">i2", ">i4", ">f4", ">f8"])
def test_any_byte_order_comes_to_the_device(backend, dtype: str) -> None:
    values = np.random.default_rng(1).integers(0, 30000, (3, 50, 41)).astype(dtype)
    np.testing.assert_array_equal(backend.to_host(backend.from_host(values)), values)


@pytest.mark.gpu
def test_the_gpu_describes_itself(backend) -> None:
    assert backend.describe()

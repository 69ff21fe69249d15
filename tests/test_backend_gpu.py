"""The GPU's twin, on a device or with NumPy in CuPy's place."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import median_filter

from niseg_gpu.backend import CPU, Gpu
from niseg_gpu.backend.gpu import _say_other_is_taken


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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [">u2", ">i2", ">i4", ">f4", ">f8"])
def test_any_byte_order_comes_to_the_device(backend, dtype: str) -> None:
    values = np.random.default_rng(1).integers(0, 30000, (3, 50, 41)).astype(dtype)
    np.testing.assert_array_equal(backend.to_host(backend.from_host(values)), values)


@pytest.mark.gpu
def test_the_gpu_describes_itself(backend) -> None:
    assert backend.describe()

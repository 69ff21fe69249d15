"""Medians and the cleaning of spots on a GPU, data lying there: our own kernels, the libraries', and a plain copy.

Seconds are those between two events around several calls in a row. ``of_copy`` sets the bytes that must be moved at
least (frames read once, results and mask written once) over the seconds against what the device's copy of the same
frames moves, measured in the same run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from niseg_gpu.backend import Gpu, why_no_gpu
from niseg_gpu.kernels.spots_xp import clean_spots_xp

from . import ours
from .clock import DEVICES, Ran, measure_calls

FRAMES = {"small": (4, 120, 256), "full": (32, 2048, 2048)}
VOLUME = {"small": (5, 60, 128), "full": (128, 1024, 1024)}
THRESHOLD = 60
CALLS = 10  # between two events: what one takes to start is done while another runs


class _OnDevice:
    """Frames of counts with a spot in a hundred, on the GPU."""

    param_names = ("size", "dtype", "window")
    reference = "time_cucim"
    equal = "identical to cuCIM's, the copy to its source"
    included = "in the GPU's memory; no transfer, no compiling; events around 10 calls"
    warm_up = True
    devices, on_host = ("gpu",), ("cpu",)
    copies = ("copy",)
    peers = {"cupyx": "cupyx", "httomolibgpu": "httomolibgpu"}
    why_not = staticmethod(why_no_gpu)

    def prepare(self, shape: tuple[int, ...], dtype: str, window: tuple[int, ...]) -> None:
        rng, self.gpu = np.random.default_rng(11), Gpu()
        self.host = rng.poisson(400, shape).astype(dtype)
        self.host[rng.random(shape) < 0.01] += 300
        if self.host.dtype.kind == "f":
            self.host += rng.random(shape, np.float32)
        self.frames, self.window = self.gpu.from_host(self.host), window
        self.shape, self.dtype, self.nbytes = self.host.shape, self.host.dtype, self.host.nbytes
        self.copy_rate = 0.0
        ran = self.time_copy()
        self.copy_rate = 2 * self.nbytes / ran.seconds

    def run(self, work: Callable[[], Any], *, moved: int) -> Ran:
        """Time a call on the device; `moved` are the bytes that it has to move."""
        ran = measure_calls(work, device=DEVICES["gpu"], calls=CALLS)
        of_copy = round(moved / ran.seconds / self.copy_rate, 3) if self.copy_rate else 1.0
        arrays = ran.output if isinstance(ran.output, tuple) else (ran.output,)
        details = {"moved_bytes": moved, "of_copy": of_copy}
        return replace(ran, output=[self.gpu.to_host(a) for a in arrays], details=details)

    def time_copy(self, *_: Any) -> Ran:
        return self.run(self.frames.copy, moved=2 * self.nbytes)

    def median_of_cucim(self, image: Any, *, size: tuple[int, ...]) -> Any:
        return self.gpu.median(image, size=size)  # this twin takes the library's

    def median_of_cupyx(self, image: Any, *, size: tuple[int, ...]) -> Any:
        return importlib.import_module("cupyx.scipy.ndimage").median_filter(image, size=size, mode="nearest")

    def sides(self) -> tuple[int, ...]:
        """The window per axis."""
        return (1,) * (len(self.shape) - len(self.window)) + self.window

    def assert_equal(self, found: list[np.ndarray], expected: list[np.ndarray]) -> None:
        """A copy has one array like the expected, but holds the frames; what gives no mask is compared without."""
        if len(found) == 1 and found[0].tobytes() == self.host.tobytes():
            return
        for ours_, theirs in zip(found, expected, strict=False):
            np.testing.assert_array_equal(ours_, theirs)


class _Medians(_OnDevice):
    """The bare medians."""

    def least(self, side: str) -> dict[str, float]:
        return {"memory": 2 * self.nbytes}

    def time_cucim(self, *_: Any) -> Ran:
        return self.run(lambda: self.median_of_cucim(self.frames, size=self.sides()), moved=2 * self.nbytes)

    def time_cupyx(self, *_: Any) -> Ran:
        return self.run(lambda: self.median_of_cupyx(self.frames, size=self.sides()), moved=2 * self.nbytes)

    def time_own(self, *_: Any) -> Ran:
        from niseg_gpu.kernels.median_gpu import median_gpu

        work = lambda: median_gpu(self.frames, window=self.window, xp=self.gpu.xp)  # noqa: E731
        return self.run(work, moved=2 * self.nbytes)


class _Cleaning(_OnDevice):
    """Medians, thresholds, replacement and mask."""

    def moved(self) -> int:
        return 2 * self.nbytes + self.host.size

    def least(self, side: str) -> dict[str, float]:
        return {"memory": 2 * self.nbytes if side == "copy" else self.moved()}

    def clean_with(self, median: Callable[..., Any]) -> Ran:
        settings = {"xp": self.gpu.xp, "median": median, "size": self.sides(), "threshold": THRESHOLD, "kind": "both"}
        return self.run(lambda: clean_spots_xp(self.frames, **settings), moved=self.moved())

    def time_cucim(self, *_: Any) -> Ran:
        return self.clean_with(self.median_of_cucim)

    def time_cupyx(self, *_: Any) -> Ran:
        return self.clean_with(self.median_of_cupyx)

    def time_own(self, *_: Any) -> Ran:
        from niseg_gpu.kernels.median_gpu import clean_gpu

        count = self.gpu.xp.zeros(2, dtype=np.uint64)
        settings = {"window": self.window, "threshold": THRESHOLD, "kind": "both", "count": count}
        return self.run(lambda: clean_gpu(self.frames, xp=self.gpu.xp, **settings), moved=self.moved())

    def time_cpu(self, *_: Any) -> list[np.ndarray]:
        """The same step on all cores of the CPU, memory to memory."""
        step = {"size": self.window[0], "threshold": THRESHOLD}
        step["neighbourhood"] = "volume" if len(self.window) == 3 else "frame"
        return ours.apply_step(self.host, {"remove_spots": step}, device="cpu")


class MedianOfFrames(_Medians):
    params = (["small", "full"], ["uint16", "float32"], [3, 5, 7])

    def setup(self, size: str, dtype: str, window: int) -> None:
        self.prepare(FRAMES[size], dtype, (window, window))


class CleanFrames(_Cleaning):
    params = (["small", "full"], ["uint16", "float32"], [3, 5, 7])

    def setup(self, size: str, dtype: str, window: int) -> None:
        self.prepare(FRAMES[size], dtype, (window, window))


class MedianOfVolume(_Medians):
    params = (["small", "full"], ["uint16", "float32"], [3])

    def setup(self, size: str, dtype: str, window: int) -> None:
        self.prepare(VOLUME[size], dtype, (window,) * 3)


class CleanVolume(_Cleaning):
    params = (["small", "full"], ["uint16", "float32"], [3])
    equal = "identical to cuCIM's (httomolibgpu gives no mask), the copy to its source"

    def setup(self, size: str, dtype: str, window: int) -> None:
        self.prepare(VOLUME[size], dtype, (window,) * 3)

    def time_httomolibgpu(self, *_: Any) -> Ran:
        """It replaces from a difference of `dif` on, we above: counts differ by whole ones."""
        from httomolibgpu.misc.corr import remove_outlier

        dif = THRESHOLD + 0.5 if self.host.dtype.kind != "f" else float(np.nextafter(np.float32(THRESHOLD), 1e9))
        return self.run(lambda: remove_outlier(self.frames, kernel_size=3, dif=dif), moved=2 * self.nbytes)


class FromRawBytes:
    """Unsigned counts as FITS files hold them, in the host's memory: where are their bytes best turned round?"""

    params = (["small", "full"],)
    param_names = ("size",)
    reference = "time_on_the_host"
    equal = "identical"
    included = "from the host's pageable memory to cleaned frames on the GPU; no disk, no way back"
    warm_up = True
    devices = ("gpu",)
    why_not = staticmethod(why_no_gpu)

    def setup(self, size: str) -> None:
        self.gpu, rng = Gpu(), np.random.default_rng(11)
        counts = rng.poisson(400, FRAMES[size]).astype(np.uint16)
        counts[rng.random(counts.shape) < 0.01] += 300
        self.stored = (counts ^ 0x8000).view(np.int16).astype(">i2")
        self.shape, self.dtype, self.nbytes = counts.shape, self.stored.dtype, counts.nbytes

    def clean(self, frames: Any, **more: Any) -> tuple[Any, ...]:
        from niseg_gpu.kernels.median_gpu import clean_gpu

        return clean_gpu(frames, window=(3, 3), threshold=THRESHOLD, kind="both", xp=self.gpu.xp, **more)

    def time_on_the_host(self, *_: Any) -> tuple[Any, ...]:
        native = self.stored.view(">u2").astype(np.uint16)
        native ^= 0x8000
        return self.clean(self.gpu.from_host(native))

    def time_on_the_device(self, *_: Any) -> tuple[Any, ...]:
        words = self.gpu.from_host(self.stored.view(">u2"))
        words ^= 0x8000
        return self.clean(words)

    def time_within_the_kernel(self, *_: Any) -> tuple[Any, ...]:
        return self.clean(self.gpu.from_host(self.stored.view(np.uint16)), stored=(">i2", "uint16"))

    def least(self, side: str) -> dict[str, float]:
        return {"bus": self.nbytes}

    def assert_equal(self, found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
        for ours_, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(self.gpu.to_host(ours_), self.gpu.to_host(theirs))

"""The one clock of the measurements: it waits for the device, and sees which device worked.

A GPU is told what to do and works on by itself. A clock that is read without waiting for it shows the telling only, so
`measure_work` waits before both readings, and `find_fault` refuses

- a row of the GPU whose seconds were taken by another clock,
- one after which the device went on working, on whatever stream,
- one that ran on the CPU: its output does not lie on the GPU, and no room for as much was asked for there,
- and a row of the CPU that ran on the GPU.

What the CPU worked out and sent there is found by `held`, whose `Hold` begins and ends with what is measured here.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from niseg_gpu.backend import GPU

from . import held

LATE_SHARE, LATE_S = 0.05, 1e-3  # of the seconds, and at least, that a wait may take when nothing is under way


@dataclass(frozen=True)
class Ran:
    """A run that was timed.

    Attributes
    ----------
    output : object
    seconds : float
    details : mapping
        What else goes into the row, such as ``peak_memory_gb``; of the last run.
    others : float
        CPU seconds of other processes meanwhile; NaN where unknown.
    waited : bool
        Whether the device was waited for before the clock was read: by this module, or by the end of a process.
    ran_on : {"cpu", "gpu", ""}
        The device that was seen to work; empty where nobody looked.
    late_s : float
        Seconds that the device went on working after the side had given its result.
    """

    output: Any
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    others: float = math.nan
    waited: bool = False
    ran_on: str = ""
    late_s: float = 0.0


class Asked:
    """Bytes asked for on the GPU."""

    nbytes = 0


class Host:
    """The CPU: what it was told is done when the call returns."""

    name = "cpu"
    hold: Any = None  # what holds the device up while something is measured, the next time that it is

    def wait(self) -> None:
        """Nothing is under way."""

    def why_not_held(self, seconds: float) -> str:
        """Why nothing that takes so many seconds can be held up, or nothing."""
        return "the cpu is not held up"

    def count_held(self) -> int:
        """Bytes of a GPU's memory that somebody holds."""
        return 0

    @contextmanager
    def watch(self) -> Iterator[Asked]:
        """Count the bytes that CuPy is asked for on the GPU meanwhile, by any thread, if it is loaded at all."""
        asked, cupy = Asked(), sys.modules.get("cupy")
        if cupy is None:
            yield asked
            return
        allocate = cupy.cuda.get_allocator()

        def count(nbytes: int) -> Any:
            asked.nbytes += nbytes
            return allocate(nbytes)

        cupy.cuda.set_allocator(count)
        try:
            yield asked
        finally:
            cupy.cuda.set_allocator(allocate)


class Cuda(Host):
    """The GPU that CuPy uses."""

    name = "gpu"

    def wait(self) -> None:
        """Wait for all streams, those of other libraries too."""
        GPU.xp.cuda.Device().synchronize()

    def why_not_held(self, seconds: float) -> str:
        return held.why_not(seconds)

    def hold_up(self, seconds: float) -> held.Hold:
        """Hold up what is measured next, and takes so many seconds."""
        self.hold = held.Hold(seconds)
        return self.hold

    def count_held(self) -> int:
        free, total = GPU.xp.cuda.runtime.memGetInfo()
        return total - free


DEVICES: dict[str, Any] = {"cpu": Host(), "gpu": Cuda()}


def measure_work(work: Callable[[], Any], *, device: Any) -> Ran:
    """Run something and wait until the device is done; what it gives should be what the device made.

    Where it gives a `Ran`, it took the time itself; how long the device went on after that is then added to it.
    """
    device.wait()
    with device.watch() as asked, holding(device) as wait:
        start = time.perf_counter()
        output = work()
        given = time.perf_counter()
        wait(output)
        done = time.perf_counter()
    if isinstance(output, Ran):
        return replace(output, late_s=done - given)
    return Ran(output, done - start, waited=True, ran_on=find_device(output, asked))


@contextmanager
def holding(device: Any, *, times: int = 1) -> Iterator[Callable[[Any], None]]:
    """Hold the device up inside, once, where that was asked for; gives what waits for the work, told what that gave."""
    hold, device.hold = device.hold, None
    if hold is None:
        yield lambda output: device.wait()
        return
    hold.begin(times=times)
    try:
        yield hold.wait
    finally:
        hold.end()


def measure_calls(work: Callable[[], Any], *, device: Any, calls: int) -> Ran:
    """Seconds a call between two events around several in a row, so that the host's part of one hides behind others."""
    cuda = GPU.xp.cuda
    work()
    device.wait()
    with device.watch() as asked, holding(device, times=calls):
        start, end = cuda.Event(), cuda.Event()
        start.record()
        for _ in range(calls):
            output = work()
        end.record()
        end.synchronize()
    seconds = cuda.get_elapsed_time(start, end) / 1000 / calls
    return Ran(output, seconds, waited=True, ran_on=find_device(output, asked))


def find_device(output: Any, asked: Asked) -> str:
    """Where something was worked out, by where it lies, or by the room that was asked for meanwhile."""
    arrays = list(_arrays(output))
    if any(hasattr(array, "__cuda_array_interface__") for array in arrays):  # CuPy, numba, PyTorch and JAX have it
        return "gpu"
    return "gpu" if asked.nbytes and asked.nbytes >= sum(array.nbytes for array in arrays) else "cpu"


def _arrays(output: Any) -> Iterator[Any]:
    if isinstance(output, Mapping):
        yield from _arrays(tuple(output.values()))
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _arrays(part)
    elif hasattr(output, "nbytes"):
        yield output


def is_late(ran: Ran) -> bool:
    """Whether the device went on for longer, after the side had given its result, than a wait for nothing takes."""
    return ran.late_s > max(LATE_SHARE * ran.seconds, LATE_S)


def find_fault(ran: Ran, *, device: Any) -> str:
    """Say why the seconds of a run mean nothing, or nothing; `device` is the one that the row names."""
    late = f"{ran.late_s:.2g} s before the gpu was done" if is_late(ran) else ""
    if device.name == "gpu" and not ran.waited:  # a busy host makes it look late where it isn't: this comes first
        return f"the clock was read without waiting for the gpu {late}".rstrip()
    if device.name == "gpu" and late:
        return f"the clock was read {late}"
    if ran.ran_on and ran.ran_on != device.name:
        return f"a row of the {device.name}, but it ran on the {ran.ran_on}"
    if device.name == "gpu" and not ran.ran_on:
        return "a row of the gpu, but nobody saw what it ran on"
    return ""

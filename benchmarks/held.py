"""Whether the multiprocessors of a GPU did the work of a row: it is done once more while all of them are held.

An output that lies on the GPU need not have been made there. A side that works on the CPU and sends what it found has
asked for room there too, and its clock has waited. So each row of the GPU is run once more, after its times were taken,
beside a kernel that has room for no other: it holds every multiprocessor for longer than the row takes. Copies over the
bus go on meanwhile, kernels can't. `Hold.find_fault` refuses

- a side that is done before that kernel is: none of its own can have run,
- one that is done so soon after it that the device can't have moved a tenth of the bytes that the work moves at least.

Where the data come from does not matter: all kernels of a side that reads files or crosses the bus run afterwards too,
however little of its time they take. Not seen is

- what a CPU made where a kernel on the GPU moves as many bytes afterwards: one that converts a whole image, say;
- that of a side whose bytes take less than a millisecond, or which has no count of them, where it runs any kernel;
- that of a side which waits for the whole device, as ``torch.cuda.synchronize`` does, by itself;
- what runs in a process of its own, whose kernels take turns with this one's: see `own_process` in `rows`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from niseg_gpu.backend import GPU

THREADS = 512  # of a block: every multiprocessor there is has room for a multiple of that, and no less
START_S = 0.01  # until all blocks are where they stay
LONGER = 1.5  # times as long as the row
MOST_S = 60.0  # longer rows are not looked at
LEAST_S, SHARE = 1e-3, 0.1  # of the time that the bytes take: from when on, and how much of it must be seen
LATE_S = 1e-3  # that a wait for nothing may take
SOURCE = r"""
extern "C" __global__ void __launch_bounds__(512) hold(unsigned long long nanoseconds) {
    unsigned long long start, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
    do {
#if __CUDA_ARCH__ >= 700
        __nanosleep(1000);
#endif
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - start < nanoseconds);
}
"""


class Hold:
    """Holds the multiprocessors while something is measured, once.

    Parameters
    ----------
    seconds : float
        That the work takes.

    Attributes
    ----------
    begun : bool
        Whether something was measured since.
    early : bool
        Whether that was done before the multiprocessors were free again, and left nothing to do.
    after_s : float
        Seconds from then on until it was done.
    times : int
        How often the work was done meanwhile.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.begun, self.early, self.after_s, self.times = seconds, False, False, 0.0, 1

    def begin(self, *, times: int) -> None:
        """Hold them for as long as the work takes `times`, and some more; nothing may be under way."""
        cuda, self.times, self.begun = GPU.xp.cuda, times, True
        device = cuda.Device().attributes
        blocks = device["MultiProcessorCount"] * (device["MaxThreadsPerMultiProcessor"] // THREADS)
        self.stream = cuda.Stream(non_blocking=True)
        self.over, self.done = cuda.Event(), cuda.Event()
        with self.stream:
            lasting = np.uint64(1e9 * (LONGER * times * self.seconds + 2 * START_S))
            GPU.xp.RawKernel(SOURCE, "hold")((blocks,), (THREADS,), (lasting,))
            self.over.record()
        time.sleep(START_S)

    def wait(self, output: Any = None) -> None:
        """Wait for the work, and not for what holds it up; JAX, which has streams of its own, by what the work gave."""
        for part in _leaves(output):
            if hasattr(part, "block_until_ready"):
                part.block_until_ready()
        GPU.xp.cuda.get_current_stream().synchronize()

    def end(self) -> None:
        """Find out when the work, which was waited for, was done; then wait for everything."""
        cuda = GPU.xp.cuda
        self.done.record()
        self.done.synchronize()
        early = not self.over.done
        self.over.synchronize()
        start = time.perf_counter()
        cuda.Device().synchronize()
        left = time.perf_counter() - start  # on another stream, for which nobody has waited
        self.early = early and left < LATE_S
        self.after_s = left if early else max(left, cuda.get_elapsed_time(self.over, self.done) / 1000)

    def find_fault(self, *, least_s: float) -> str:
        """Say why what was measured can't have been worked out on the GPU, or nothing.

        Parameters
        ----------
        least_s : float
            Seconds that the device takes to move what the work moves at least; 0 where nobody knows.
        """
        if self.early:
            return "it was done while another kernel held every multiprocessor of the gpu: it ran on the cpu"
        least_s *= self.times
        if least_s >= LEAST_S and self.after_s < SHARE * least_s:
            return (
                f"held up, the gpu worked for {self.after_s:.2g} s; to move the bytes alone takes it {least_s:.2g} s: "
                "most of it ran on the cpu"
            )
        return ""


def _leaves(output: Any) -> Iterator[Any]:
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        for part in output:
            yield from _leaves(part)
    else:
        yield output


def why_not(seconds: float) -> str:
    """Why nothing of so many seconds can be held up here, or nothing."""
    if seconds * LONGER > MOST_S:
        return f"it takes longer than {MOST_S / LONGER:.0f} s"
    if GPU.xp.cuda.Device().attributes["KernelExecTimeout"]:
        return "the driver ends kernels that take long, as this GPU draws a screen"
    return ""

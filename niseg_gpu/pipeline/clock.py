"""Seconds, bytes and findings of a run, added up over all threads."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class Clock:
    """Adds up what ran: seconds and bytes by name, and tallies of findings by step.

    Seconds of steps that run in several threads at once are the sum over the threads. In another process a clock starts
    anew: what is counted there stays there.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.bytes: dict[str, int] = {}
        self._found: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Clock, ()

    def add(self, name: str, seconds: float, nbytes: int) -> None:
        """Add a piece of work."""
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            self.bytes[name] = self.bytes.get(name, 0) + int(nbytes)

    def as_mapping(self) -> dict[str, tuple[float, int]]:
        """Seconds and bytes by name."""
        with self._lock:
            return {name: (seconds, self.bytes[name]) for name, seconds in self.seconds.items()}

    @contextmanager
    def timing(self, name: str, nbytes: int) -> Iterator[None]:
        """Time a block of code."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start, nbytes)

    def add_findings(self, step: str, tally: Mapping[str, Any]) -> None:
        """Add what a step counted in one block; what it never met is left out."""
        with self._lock:
            for what, number in tally.items():
                if int(number):
                    self._found[step, what] = self._found.get((step, what), 0) + int(number)

    def number(self, step: str, what: str) -> int:
        """How often a step counted something."""
        return self._found.get((step, what), 0)

    def findings(self) -> list[str]:
        """What was counted, a line each."""
        return [f"{step}: {number} {what}" for (step, what), number in self._found.items()]


class Clocked:
    """A lazily read array whose reads are timed under ``read``."""

    def __init__(self, array: Any, clock: Clock) -> None:
        self._array, self._clock = array, clock
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, len(array.shape)

    def __getitem__(self, key: Any) -> Any:
        start = time.perf_counter()
        block = self._array[key]
        self._clock.add("read", time.perf_counter() - start, block.nbytes)
        return block


def measure_peak_memory() -> int:
    """Most memory this process has held so far, in bytes.

    Linux lets a started program inherit ``ru_maxrss`` from the process that started it, a notebook's gigabytes for
    instance; its own peak stands in ``/proc``.
    """
    if sys.platform == "linux":
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if sys.platform != "darwin" else 1)

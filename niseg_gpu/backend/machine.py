"""The host: its processor, its cores, and the threads of libraries on it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def limit_threads(workers: int) -> Iterator[None]:
    """Keep the libraries under scikit-learn to `workers` threads inside the block."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=workers):
        yield


def count_cores() -> int:
    """Cores this process may use (a batch system's allotment, not the machine's)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name as the kernel tells it."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

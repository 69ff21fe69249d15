"""The host: its processor, its cores, and the threads of libraries on it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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


def count_memory_limit() -> int:
    """Bytes of memory that this process may use: the machine's, or less where a batch system or container says so."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        with open("/proc/self/cgroup") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return limits[0]
    for number, names, path in groups:
        if number == "0":
            base, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in names.split(","):
            base, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        place = base / path.lstrip("/")
        for folder in (place, *place.parents):  # each of the groups around it may be limited too
            if folder.is_relative_to(base):
                with suppress(OSError, ValueError):  # no such file, or "max"
                    limits.append(int((folder / name).read_text()))
    return min(limits)

"""What the machine allows, measured: copying, matrix products, reading files, the bus; and a row's share of it.

A benchmark's ``least(side)`` says what its work asks for at least:

``memory``, ``memory, one thread``
    Bytes read from and written to the memory of the device that the row names.
``operations``
    Additions and multiplications in float32, as far as they can be counted.
``cache``, ``disk``, ``bus``
    Bytes of files that lie in the page cache, or on the disk only; bytes from the host's memory to the GPU's.

Each over its measured rate gives seconds; the longest are the row's limit, for all of them may go on at once (the
roofline model, doi:10.1145/1498765.1498785). Where data fit the processor's caches, a row can be faster than that.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.backend import GPU, count_cores, cpu_model
from niseg_gpu.errors import UserError

from .clock import DEVICES, measure_work

NBYTES = 2**28  # of what is copied or read: more than the caches hold
SIDE = {"cpu": 2048, "gpu": 8192}  # of the matrices
REPEATS = 5
PIECE = 2**22
NAMES = {
    "memory": "copy",
    "memory, one thread": "copy by one thread",
    "operations": "matrix product",
    "cache": "page cache",
    "disk": "disk",
    "bus": "bus",
}
UNITS = {name: "GFLOP/s" if name == "operations" else "GB/s" for name in NAMES}


def measure_limits(folder: Path, devices: Sequence[str], *, nbytes: int = NBYTES) -> dict[str, Any]:
    """Measure what each device allows.

    Parameters
    ----------
    folder : path
        Where the data of the measurements lie; it must exist.
    devices : sequence of {"cpu", "gpu"}
    nbytes : int
        Of what is copied and read.

    Returns
    -------
    dict
        For each device and the host the rates by the names above, in 10⁹ bytes or operations a second; None where it
        can't be measured. ``note`` says what is special about them.
    """
    limits: dict[str, Any] = {"cpu": measure_host(nbytes), "note": ""}
    limits["cpu"]["disk"], limits["cpu"]["cache"], limits["note"] = measure_files(folder, nbytes)
    if "gpu" in devices:
        limits["gpu"] = measure_gpu(nbytes)
    return limits


def measure_host(nbytes: int = NBYTES, *, side: int = SIDE["cpu"]) -> dict[str, float | None]:
    """Rates of copying within the host's memory, bytes read and written, and of a float32 matrix product."""
    source, target = np.ones(nbytes // 8), np.zeros(nbytes // 8)
    edges = np.linspace(0, source.size, count_cores() + 1).astype(int)
    parts = [slice(*ends) for ends in zip(edges[:-1], edges[1:], strict=True)]
    matrix = np.random.default_rng(0).random((side, side), np.float32)
    with ThreadPoolExecutor(count_cores()) as pool:

        def copy() -> None:
            list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))

        one_thread = _take_least(lambda: np.copyto(target, source))
        return {
            "memory": 2 * source.nbytes / min(_take_least(copy), one_thread) / 1e9,
            "memory, one thread": 2 * source.nbytes / one_thread / 1e9,
            "operations": 2 * side**3 / _take_least(lambda: matrix @ matrix) / 1e9,
        }


def measure_gpu(nbytes: int = NBYTES, *, side: int = SIDE["gpu"]) -> dict[str, float | None]:
    """The same within the GPU, and the rate of the bus from page-locked memory."""
    xp = GPU.xp
    block = xp.zeros((nbytes // 8, 2), dtype=np.float32)
    held = GPU.pin_rows(block)
    product = min(_take_least(work, device="gpu") for work in _products(xp.ones((side, side), dtype=np.float32)))
    return {
        "memory": 2 * block.nbytes / _take_least(block.copy, device="gpu") / 1e9,
        "operations": 2 * side**3 / product / 1e9,
        "bus": block.nbytes / _take_least(lambda: list(GPU.bring([(0, held)])), device="gpu") / 1e9,
    }


def _products(matrix: Any) -> list[Callable[[], Any]]:
    """CuPy's product of a matrix, and JAX's where it sees the GPU: they may round the factors differently."""
    from niseg_gpu.xla import start_jax

    try:
        there = GPU.to_jax(matrix)
    except UserError:
        return [lambda: matrix @ matrix]
    multiply = start_jax(cpu_model()).jit(lambda a: a @ a)
    return [lambda: matrix @ matrix, lambda: multiply(there).block_until_ready()]


def _take_least(work: Callable[[], Any], *, device: str = "cpu") -> float:
    """Seconds of the fastest of a few runs after a first."""
    work()
    return min(measure_work(work, device=DEVICES[device]).seconds for _ in range(REPEATS))


def measure_files(folder: Path, nbytes: int = NBYTES) -> tuple[float | None, float, str]:
    """Rates of reading a file on all cores, from the disk and from the page cache, and a word about the first.

    The system is asked to forget the file's pages; whether it did is seen by what the process fetched from the disk.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix="limit-") as file:
        for _ in range(max(1, nbytes // PIECE)):
            file.write(os.urandom(PIECE))  # no disk can shorten these
        size = file.tell()
        drop_pages(file.fileno())
        fetched, cold = count_fetched(), _read(file.fileno(), size)
        fetched = count_fetched() - fetched
        warm = min(_read(file.fileno(), size) for _ in range(REPEATS))
    if fetched >= 0.9 * size:
        return size / cold / 1e9, size / warm / 1e9, "disk: the page cache was emptied of the file before it was read"
    why = "the pages of a file cannot be dropped from the cache here" if fetched == fetched else "nobody counts it here"
    return None, size / warm / 1e9, f"disk: not measured, {why}"


def drop_files(files: Iterable[Path]) -> None:
    """Have the system forget the pages of files, as far as it can."""
    for path in files:
        with open(path, "rb") as file:
            drop_pages(file.fileno())


def drop_pages(file: int) -> None:
    """Ask the system to write a file's pages to the disk and to forget them; one that can't do so keeps them."""
    os.fsync(file)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def _read(file: int, size: int) -> float:
    """Seconds that all cores take to read a file."""
    pieces = iter(range(0, size, PIECE))

    def read_some(_: int) -> None:
        room = bytearray(PIECE)
        for first in pieces:  # shared: whoever is ready takes the next
            os.preadv(file, [room], first)

    with ThreadPoolExecutor(count_cores()) as pool:
        start = time.perf_counter()
        list(pool.map(read_some, range(count_cores())))
        return time.perf_counter() - start


def count_fetched() -> float:
    """Bytes that this process has fetched from disks; NaN where the system does not count them."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return math.nan
    return float(next(line.partition(":")[2] for line in lines if line.startswith("read_bytes")))


def share_of_limit(least: dict[str, float], limits: dict[str, Any], *, device: str, seconds: float) -> dict[str, Any]:
    """What a row says of its limit: ``limited_by``, ``limit_s`` and ``of_limit``; nothing where a rate is missing."""
    rates = {**{name: limits["cpu"].get(name) for name in ("cache", "disk")}, **limits.get(device, {})}
    if not least or any(rates.get(name) is None for name in least):
        return {}
    needed = {name: amount / rates[name] / 1e9 for name, amount in least.items()}
    name = max(needed, key=needed.__getitem__)
    return {"limited_by": NAMES[name], "limit_s": needed[name], "of_limit": needed[name] / seconds}


def take_seconds(least: dict[str, float], limits: dict[str, Any] | None, *, name: str, device: str) -> float:
    """Seconds that one of the things asked of the machine takes there at least; 0 where that is unknown."""
    rate = ((limits or {}).get(device) or {}).get(name)
    return least.get(name, 0) / rate / 1e9 if rate else 0.0


def format_limits(limits: dict[str, Any]) -> str:
    """One line of them."""
    found = [
        f"{device}: "
        + ", ".join(f"{NAMES[name]} {rate:.3g} {UNITS[name]}" for name, rate in limits[device].items() if rate)
        for device in ("cpu", "gpu")
        if device in limits
    ]
    return f"Limits measured beside: {'; '.join(found)}; {limits['note']}."

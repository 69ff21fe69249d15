"""The system fetches what is announced, and only what there is room for."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from pathlib import Path

import numpy as np
import pytest

from niseg_gpu.backend import CPU
from niseg_gpu.io import ahead
from niseg_gpu.io.ahead import read_ahead


def count_cached(path: Path) -> int:
    """Pages of a file that lie in the page cache."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        view = np.frombuffer(mapped, np.uint8)
        status = libc.mincore(view.ctypes.data, size, found.ctypes.data)
        del view
    assert status == 0, os.strerror(ctypes.get_errno())
    return int((found & 1).sum())


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"frame_{i}.raw" for i in range(5)]
    for path in paths:
        path.write_bytes(os.urandom(2**18))
    return paths


def drop(paths: list[Path]) -> None:
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told what will be read")
def test_what_is_announced_is_fetched(files: list[Path]) -> None:
    drop(files)
    before = sum(map(count_cached, files))
    assert read_ahead(map(str, files)) == 5 * 2**18
    last = time.monotonic() + 20
    while sum(map(count_cached, files)) < 5 * 2**18 // mmap.PAGESIZE:
        assert time.monotonic() < last, f"{before} pages before, {sum(map(count_cached, files))} after"
        time.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be told what will be read")
def test_nothing_is_announced_where_it_would_fill_the_memory(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(files)
    if sum(map(count_cached, files)):
        pytest.skip("this file system keeps files in memory only")
    monkeypatch.setattr(ahead, "SHARE", (5 * 2**18 - 1) / CPU.count_memory())
    assert read_ahead(map(str, files)) == 0
    time.sleep(0.2)
    assert sum(map(count_cached, files)) == 0


def test_what_is_no_file_is_left_to_the_reader(files: list[Path], tmp_path: Path) -> None:
    names = [str(tmp_path), str(tmp_path / "missing.fits"), str(files[0])]
    assert read_ahead(names) in (0, 2**18)
    assert read_ahead([]) == 0

"""Freed memory that stays with the process: counted by the page faults of asking for it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from niseg_gpu.cli import build_parser
from niseg_gpu.pages import _find_glibc, keep_pages

SIZE, TIMES = 48 * 2**20, 8
# a process of its own, whose setting is nobody else's; blocks of more than glibc takes from its heap by itself
SCRIPT = """
import ctypes, resource, sys, threading
from niseg_gpu.pages import keep_pages

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]


def use(times, size={size}):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        room = libc.malloc(size)
        ctypes.memset(room, 1, size)
        libc.free(room)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()


def measure(found):
    found["outside"] = use({times})
    with keep_pages():
        use(1)
        found["inside"] = use({times})
        found["held"] = held()
    found["after"] = held()


found = {{}}
if sys.argv[1] == "thread":
    thread = threading.Thread(target=measure, args=(found,))
    thread.start()
    thread.join()
else:
    measure(found)
print(found)
"""
needs_glibc = pytest.mark.skipif(_find_glibc() is None, reason="the C library is not glibc, or it was set up already")


@needs_glibc
@pytest.mark.parametrize("where", ["main", "thread"])
def test_what_is_freed_is_used_again_and_given_back_at_the_end(where):
    script = SCRIPT.format(size=SIZE, times=TIMES)
    done = subprocess.run([sys.executable, "-c", script, where], capture_output=True, text=True, check=True)
    found = eval(done.stdout)
    assert found["inside"] < found["outside"] / 4
    if where == "main":  # glibc gives back the heaps of other threads when something in them is freed next
        assert found["held"] - found["after"] > SIZE / 2


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_what_the_user_set_up_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "glibc.malloc.trim_threshold=1")
    assert _find_glibc() is None
    with keep_pages():
        pass


def test_other_c_libraries_are_left_alone(monkeypatch):
    for value in ("", None, "musl 1.2"):
        monkeypatch.setattr(os, "confstr", lambda name, value=value: value)
        assert _find_glibc() is None

    def unknown(name):
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown)
    assert _find_glibc() is None


@needs_glibc
def test_a_failure_inside_gives_back_too(tmp_path: Path):
    script = SCRIPT.format(size=SIZE, times=TIMES).split("found = {}")[0] + (
        "\ntry:\n    with keep_pages():\n        use(2)\n        raise RuntimeError\nexcept RuntimeError:\n    pass\n"
        "print(use(4))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 4  # faults in each of them, if only one a huge page


@needs_glibc
@pytest.mark.parametrize("shared", [True, False])
def test_threads_share_a_store_where_told_to(shared):
    script = (
        "import ctypes, threading\nfrom niseg_gpu.pages import give_back, share_store\n"
        f"if {shared}:\n    share_store()\n"
        "libc = ctypes.CDLL(None)\nlibc.malloc.restype = ctypes.c_void_p\n"
        "threads = [threading.Thread(target=libc.malloc, args=(5000,)) for _ in range(4)]\n"
        "[t.start() for t in threads]\n[t.join() for t in threads]\ngive_back()\n"
        "libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, 'stdout'))\nlibc.fflush(None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout.count("<heap nr=") == 1) == shared


def test_only_commands_that_work_in_blocks_share_one():
    parse = build_parser().parse_args
    for words in (["run", "p.yaml"], ["plan", "p.yaml"], ["demo"], ["normalize", "in", "out.npy"]):
        assert parse(words).works_in_blocks
    for words in (["bench"], ["unet", "info", "model"], ["info"]):
        assert not hasattr(parse(words), "works_in_blocks")

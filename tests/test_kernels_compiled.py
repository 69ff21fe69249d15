"""Kernels on disk: used again by the next process, compiled anew when any file of kernels has changed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from niseg_gpu.kernels import compiled as module
from niseg_gpu.kernels.compiled import compiled, hash_sources, read_flat

KERNELS = Path(module.__file__).parent

PROGRAM = """
from niseg_gpu.kernels import compiled, sums
import numpy as np
compiled.hash_sources = lambda: {text!r}
sums.sum_by_label_cpu(np.ones((3, 2)), np.zeros(3, np.int64), n_labels=1)
print(sum(sums._sum_rows.stats.cache_hits.values()), sum(sums._sum_rows.stats.cache_misses.values()))
"""


def test_a_changed_file_is_seen_in_all_kernels(tmp_path) -> None:
    def run(text: str) -> list[str]:
        variables = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", PROGRAM.format(text=text)]
        return subprocess.check_output(command, env=variables, text=True, cwd=KERNELS.parents[1]).split()

    assert run("old") == ["0", "1"]
    assert run("old") == ["1", "0"]
    assert run("new") == ["0", "1"]


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
def test_what_a_crash_left_half_written_is_compiled_anew(tmp_path, ending: str) -> None:
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PROGRAM.format(text="any")]

    def run() -> list[str]:
        return subprocess.check_output(command, env=variables, text=True, cwd=KERNELS.parents[1]).split()

    for left in (0, 20):
        run()
        for path in tmp_path.rglob(f"*{ending}"):
            path.write_bytes(path.read_bytes()[:left])
        assert run() == ["0", "1"]
        assert run() == ["1", "0"], "and kept again"


def test_where_no_folder_may_be_written_to_kernels_are_not_kept(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(module.FunctionCache._impl_class, "_locator_classes", [])
    module._tell_uncached.cache_clear()

    @compiled
    def double(a):  # type: ignore[no-untyped-def]
        return 2 * a

    assert double(4) == 8
    assert "kernels are compiled anew in each process, for neither" in caplog.text


def test_a_full_disk_costs_the_cache_only(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.FunctionCache, "save_overload", full)

    @compiled
    def triple(a):  # type: ignore[no-untyped-def]
        return 3 * a

    assert triple(4) == 12


def test_no_kernel_is_kept_by_its_own_file_alone() -> None:
    assert not [path.name for path in KERNELS.parent.rglob("*.py") if "cache=True" in path.read_text()]
    assert len(hash_sources()) == 64


def test_options_reach_the_compiler() -> None:
    @compiled(error_model="numpy")
    def divide(a, b):  # type: ignore[no-untyped-def]
        return a / b

    assert np.isinf(divide(1.0, 0.0))


def test_values_in_a_row_are_not_written_to() -> None:
    array = np.arange(6.0).reshape(2, 3)
    flat = read_flat(array.T)
    assert flat.tolist() == [0, 3, 1, 4, 2, 5] and not flat.flags.writeable and array.flags.writeable

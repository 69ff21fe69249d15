"""Peak memory of a side: of the work alone, in a process of its own, by the method that asv looks at too."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

from benchmarks import clock, machine, memory, rows, runner, table
from benchmarks.bench_end_to_end import Labels, run_here
from benchmarks.memory import measure_peak, with_memory

on_linux = pytest.mark.skipif(not memory.CLEAR.exists(), reason="only Linux tells the peak memory of a part")


@pytest.fixture(autouse=True)
def bench_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NISEG_BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("NISEG_BENCH_DEVICE", "cpu")
    return tmp_path


HOLDER = """
import numpy as np
from benchmarks.memory import with_memory

@with_memory("half", "whole")
class Holder:
    params, param_names, reference, compiles = (["small", "full"],), ["size"], "time_half", {compiles}

    def setup(self, size):
        self.data = np.ones(25_000_000 if size == "full" else 1)  # 200 MB that are no part of the work
        self.first = not hasattr(np, "called")

    def time_half(self, size):
        if not hasattr(np, "called"):
            np.called = np.ones(75_000_000)  # 600 MB that a library takes once, at the first call
        return np.ones(self.data.size // 2)

    def time_whole(self, size):
        return np.ones(self.data.size)
"""


@on_linux
@pytest.mark.parametrize("compiles", [False, True])
def test_the_work_alone_is_told(tmp_path: Path, monkeypatch, compiles: bool) -> None:
    """Neither what this process holds, nor what was set up, nor what the first call of a library takes."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys, types\n"
        "def find(names):\n"
        "    import holder\n"
        "    return [holder.Holder]\n"
        "sys.modules['benchmarks.runner'] = types.SimpleNamespace(find_benchmarks=find)\n"
    )
    (tmp_path / "holder.py").write_text(HOLDER.replace("{compiles}", str(compiles)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    held = np.ones(2**27)  # 1 GB: what a process has at its peak is told of those that it starts, too
    peaks = [measure_peak("any.Holder", side, ["full"])["peak_memory_gb"] for side in ("half", "whole")]
    assert 0.099 < peaks[0] < 0.115 and 0.199 < peaks[1] < 0.215 and held.nbytes > 10**9


@on_linux
def test_rows_of_full_size_tell_it(monkeypatch) -> None:
    asked = []

    @with_memory("ours")
    class Two:
        params, param_names, reference = (["small", "full"],), ["size"], "time_peer"
        equal = included = "nothing"
        warm_up = True

        def setup(self, size):
            self.shape, self.dtype, self.nbytes = (8,), np.dtype(np.int64), 64

        def time_peer(self, size):
            return np.arange(8)

        def time_ours(self, size):
            return np.arange(8)

        def time_wrong(self, size):
            return np.arange(9)

        def assert_equal(self, found, expected):
            np.testing.assert_array_equal(found, expected)

    def measure(name, side, values):
        asked.append((name, side, values))
        return {"peak_memory_gb": 0.5}

    monkeypatch.setattr(rows, "measure_peak", measure)
    for size in ("small", "full"):
        found = {row["side"]: row for row in rows.run_benchmark(Two, size=size, seconds=0)}
        told = {side for side, row in found.items() if "peak_memory_gb" in row}
        assert told == ({"ours"} if size == "full" else set())
    assert asked == [(rows.name_benchmark(Two), "ours", ("full",))]
    monkeypatch.setattr(rows, "measure_peak", lambda *_: (_ for _ in ()).throw(RuntimeError("ours was killed")))
    found = {row["side"]: row for row in rows.run_benchmark(Two, size="full", seconds=0)}
    assert found["ours"]["memory_unknown"] == "RuntimeError: ours was killed" and "seconds" in found["ours"]


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:16:21 UTC 2025",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x@y)  Sun Jul 27",
    ],
)
def test_the_driver_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "version").write_text(f"{line}\nGCC version:  gcc version 12.2.0\n")
    assert machine.read_driver(tmp_path / "version") == "580.65.06"
    assert machine.read_driver(tmp_path / "none") is None


def test_memory_of_both_devices_is_shown() -> None:
    assert table._tell_memory({}) == ""
    assert table._tell_memory({"peak_memory_gb": 0.25}) == "0.25 GB"
    both = {"peak_memory_gb": 0.25, "peak_device_memory_gb": 3.0}
    assert table._tell_memory(both) == "0.25 GB, 3 GB of the gpu's"


def test_what_a_gpus_memory_holds_is_what_is_not_free(monkeypatch) -> None:
    from types import SimpleNamespace

    runtime = SimpleNamespace(memGetInfo=lambda: (3, 10))
    monkeypatch.setitem(vars(clock.GPU), "xp", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert clock.DEVICES["gpu"].count_held() == 7 and clock.DEVICES["cpu"].count_held() == 0


WANTED = {"read.Read", "spots.Spots", "spots.Volume", "spots.Projections", "knn.Predict", "kmeans.Fit"}
WANTED |= {"kmeans.Stream", "unet.SpotPrediction", "unet.SpotTraining", "unet.Prediction", "unet.Training"}
WANTED |= {"end_to_end.Labels", "kmeans_gpu.Stream"}


@pytest.mark.parametrize("path", sorted(Path(memory.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_asv_takes_no_helper_for_a_measurement(path: Path) -> None:
    """It looks through all modules, for functions too."""
    names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert not [name for name in names if name.startswith(("time_", "timeraw_", "mem_", "peakmem_", "track_"))]


def test_memory_is_looked_at_where_it_matters() -> None:
    """As asv finds it: functions whose names begin with peakmem, each with a time of the same side."""
    kinds = {rows.name_benchmark(kind): kind for kind in runner.find_benchmarks([])}
    for name, kind in kinds.items():
        functions = {n for n, _ in inspect.getmembers(kind, inspect.isfunction)}
        sides = {n.removeprefix("peakmem_") for n in functions if n.startswith("peakmem_")}
        assert {f"time_{side}" for side in sides} <= functions
        if name in WANTED:
            assert any(side in ("ours", "streamed") for side in sides), name
            assert kind.reference.removeprefix("time_") in sides, name


@on_linux
@pytest.mark.parametrize(
    "name, side, values",
    [("kmeans.Fit", "ours_frames", ["small", "65536 x 661, k 10"]), ("kmeans.Stream", "streamed", ["small"])],
)
def test_a_real_one_runs_in_its_process(name: str, side: str, values: list[str]) -> None:
    assert 0 <= measure_peak(name, side, values)["peak_memory_gb"] < 1


def test_one_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError, match="(?s)nobody ended with status 1: .*no attribute 'peakmem_nobody'"):
        measure_peak("kmeans.Stream", "nobody", ["small"])


def test_whole_jobs_run_here_for_asv(bench_data: Path, tmp_path: Path) -> None:
    benchmark = Labels()
    benchmark.setup("small")
    benchmark.peakmem_plain("small")
    benchmark.peakmem_ours("small")
    (tmp_path / "fails.py").write_text("raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="ended with status 3"):
        run_here([tmp_path / "fails.py"])

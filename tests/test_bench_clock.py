"""Times that mean nothing get no row: each fault is planted on a stand-in for a GPU, and must be seen.

The stand-in works as a GPU does: it is told what to do, returns at once, and does it while somebody waits for it.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import clock, rows, runner
from niseg_gpu import cli

WORK_S = 0.02


class OnDevice:
    """An array that lies on the stand-in, as other libraries can tell."""

    __cuda_array_interface__ = {}
    nbytes = 64

    def __init__(self, queue):
        self.queue = queue

    def to_host(self):
        self.queue.wait()
        return np.arange(8)


class LazyGpu:
    """Counts who waits for it, and how long it worked."""

    name, hold = "gpu", None

    def why_not_held(self, seconds):
        return "it works only while somebody waits for it"

    def __init__(self):
        self.to_do, self.waits, self.asked = 0.0, 0, clock.Asked()

    def start(self):
        """Tell it to work; return what the result will be."""
        self.to_do += WORK_S
        self.asked.nbytes += OnDevice.nbytes
        return OnDevice(self)

    def wait(self):
        self.waits += 1
        time.sleep(self.to_do)
        self.to_do = 0.0

    @contextmanager
    def watch(self):
        self.asked = clock.Asked()
        yield self.asked


@pytest.fixture
def gpu(monkeypatch):
    """The stand-in, in the place of the GPU."""
    lazy = LazyGpu()
    monkeypatch.setitem(clock.DEVICES, "gpu", lazy)
    return lazy


class Sides:
    """Honest sides, and one for every way to a false time."""

    params = (["small"],)
    param_names = ["size"]
    reference = "time_reference"
    equal = "identical"
    included = "nothing"
    warm_up = True
    devices = ("cpu", "gpu")
    on_host = ("reference",)

    def setup(self, size):
        self.gpu = clock.DEVICES["gpu"]
        self.shape, self.dtype, self.nbytes = (8,), np.dtype(np.int64), 64

    def time_reference(self, size):
        return np.arange(8)

    def time_stays_there(self, size):
        return self.gpu.start()

    def time_comes_back(self, size):
        return self.gpu.start().to_host()

    def time_own_clock(self, size):
        ran = clock.measure_work(self.gpu.start, device=self.gpu)
        return rows.replace(ran, output=ran.output.to_host())

    def time_on_the_cpu(self, size):
        return np.arange(8)

    def time_own_clock_on_the_cpu(self, size):
        return clock.measure_work(lambda: np.arange(8), device=self.gpu)

    def time_not_waited(self, size):
        start = time.perf_counter()
        there = self.gpu.start()
        seconds = time.perf_counter() - start
        return clock.Ran(there.to_host(), seconds)  # the wait comes after the clock was read

    def time_left_at_work(self, size):
        start = time.perf_counter()
        there = self.gpu.start()
        return clock.Ran(there, time.perf_counter() - start)

    def assert_equal(self, found, expected):
        np.testing.assert_array_equal(found.to_host() if isinstance(found, OnDevice) else found, expected)


FAULTS = {
    "on_the_cpu": "a row of the gpu, but it ran on the cpu",
    "own_clock_on_the_cpu": "a row of the gpu, but it ran on the cpu",
    "not_waited": "the clock was read without waiting for the gpu",
    "left_at_work": "s before the gpu was done",
}


def test_false_times_of_a_gpu_are_seen(gpu, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(runner, "find_benchmarks", lambda names: [Sides])
    monkeypatch.setattr(runner, "why_no_gpu", lambda: "")
    monkeypatch.setattr(runner, "measure_limits", lambda folder, devices: {"cpu": {}, "note": "none"})
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "--device", "gpu", "--seconds", "0", "--json", str(tmp_path / "rows.json")])
    assert ended.value.code == 1
    text = capsys.readouterr().out
    for side, fault in FAULTS.items():
        (line,) = (line for line in text.splitlines() if f"| {side} |" in line)
        assert "failed: FalseTime" in line and fault in line, line
    found = {row["side"]: row for row in rows.run_benchmark(Sides, size="small", seconds=0, devices=["gpu"])}
    assert {side for side, row in found.items() if "failed" in row} == set(FAULTS)
    for side in ("stays_there", "comes_back", "own_clock"):
        assert found[side]["device"] == "gpu" and found[side]["seconds"]["min"] >= WORK_S
    assert found["reference"]["device"] == "cpu"


def test_a_row_of_the_cpu_must_not_have_run_on_a_gpu(gpu):
    rows_by_side = {row["side"]: row for row in rows.run_benchmark(Sides, size="small", seconds=0)}
    assert "a row of the cpu, but it ran on the gpu" in rows_by_side["stays_there"]["failed"]


def test_a_fault_in_a_later_run_is_seen_too(gpu):
    class Later(Sides):
        runs = 0

        def time_stays_there(self, size):
            Later.runs += 1
            return self.gpu.start() if Later.runs < 3 else np.arange(8)

    found = {row["side"]: row for row in rows.run_benchmark(Later, size="small", seconds=1, devices=["gpu"])}
    assert Later.runs == 3 and "ran on the cpu" in found["stays_there"]["failed"]


def test_the_clock_waits_before_each_reading(gpu):
    gpu.start()  # what others left must not count
    ran = clock.measure_work(gpu.start, device=gpu)
    assert gpu.waits == 2 and WORK_S <= ran.seconds < 1.9 * WORK_S
    assert ran.waited and ran.ran_on == "gpu"


def test_a_clock_that_forgets_to_wait_is_found_out(gpu, monkeypatch):
    """Even one that says that it has waited, for the runner waits after it."""

    class Hasty(Sides):
        def time_own_clock(self, size):
            return clock.Ran(self.gpu.start(), 1e-6, waited=True, ran_on="gpu")

    found = {row["side"]: row for row in rows.run_benchmark(Hasty, size="small", seconds=0, devices=["gpu"])}
    assert "s before the gpu was done" in found["own_clock"]["failed"]


class Thread:
    """A stream that works in a thread of its own, as a GPU does, whoever waits for it."""

    def __init__(self):
        self.pool, self.told = ThreadPoolExecutor(1), []

    def tell(self, work):
        self.told.append(self.pool.submit(work))
        return self.told[-1]

    def synchronize(self):
        wait(self.told)


class Marker:
    """An event: the time at which the stream came to it."""

    def __init__(self, stream):
        self.stream = stream

    def record(self):
        self.reached = self.stream.tell(time.perf_counter)

    def synchronize(self):
        self.reached.result()


@pytest.fixture
def working(monkeypatch):
    """The clock's own GPU, with a stream that really works meanwhile in CuPy's place."""
    stream, allocators = Thread(), [len]
    cuda = SimpleNamespace(
        Device=lambda: stream,
        Event=lambda: Marker(stream),
        get_elapsed_time=lambda start, end: 1000 * (end.reached.result() - start.reached.result()),
        get_allocator=lambda: allocators[-1],
        set_allocator=allocators.append,
    )
    monkeypatch.setitem(vars(clock.GPU), "xp", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    yield stream
    stream.pool.shutdown()


def test_the_clock_of_the_gpu_waits_for_work_that_goes_on_by_itself(working):
    def work():
        working.tell(lambda: time.sleep(WORK_S))
        return OnDevice(working)

    gpu = clock.DEVICES["gpu"]
    before = working.tell(lambda: time.sleep(5 * WORK_S) or time.perf_counter())  # of somebody else
    ran = clock.measure_work(work, device=gpu)
    assert WORK_S <= ran.seconds <= time.perf_counter() - before.result() and ran.waited and ran.ran_on == "gpu"
    begin = time.perf_counter()
    ran = clock.measure_calls(work, device=gpu, calls=3)
    assert WORK_S <= ran.seconds <= (time.perf_counter() - begin) / 3 and ran.waited and ran.ran_on == "gpu"


def test_a_clock_read_while_the_gpu_goes_on_by_itself_is_caught(working):
    """By the runner, whether the side says that it has waited or not; the work ends in its own time."""

    def hasty(**claims):
        start = time.perf_counter()
        working.tell(lambda: time.sleep(WORK_S))
        return clock.Ran(OnDevice(working), time.perf_counter() - start, **claims)

    class Hasty(Sides):
        def setup(self, size):
            self.shape, self.dtype, self.nbytes = (8,), np.dtype(np.int64), 64

        def assert_equal(self, found, expected):
            pass

        def time_left_at_work(self, size):
            return hasty()

        def time_says_it_waited(self, size):
            return hasty(waited=True, ran_on="gpu")

        def time_waits_too_late(self, size):
            ran = hasty()
            working.synchronize()
            return ran

        def time_on_the_cpu(self, size):
            time.sleep(WORK_S)  # it is slow, and the GPU is idle
            return np.arange(8)

        time_stays_there = time_comes_back = time_own_clock = None
        time_own_clock_on_the_cpu = time_not_waited = None

    found = {row["side"]: row.get("failed") for row in rows.run_benchmark(Hasty, size="small", seconds=0,
                                                                         devices=["gpu"])}  # fmt: skip
    for side in ("left_at_work", "says_it_waited"):
        assert "s before the gpu was done" in found[side]
    assert "the clock was read without waiting for the gpu" in found["waits_too_late"]
    assert "a row of the gpu, but it ran on the cpu" in found["on_the_cpu"]
    assert found["reference"] is None


def test_what_cupy_is_asked_for_is_counted_and_its_allocator_put_back(monkeypatch):
    chosen = []
    cuda = SimpleNamespace(
        get_allocator=lambda: chosen[-1] if chosen else len, set_allocator=lambda allocate: chosen.append(allocate)
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    chosen.append(abs)
    with clock.DEVICES["cpu"].watch() as asked:
        assert [cuda.get_allocator()(n) for n in (3, 4)] == [3, 4]
    assert asked.nbytes == 7 and chosen[-1] is abs
    room = np.zeros(7, np.uint8)
    assert clock.find_device({"image": [room]}, asked) == "gpu"
    assert clock.find_device((room, room), asked) == "cpu"  # room for half of it
    assert clock.find_device(None, clock.Asked()) == "cpu"


def test_a_host_that_was_busy_for_a_moment_is_no_fault(gpu, monkeypatch):
    """A wait for nothing that takes long once; one that does each time is one for work."""

    class Own(Sides):
        def time_own_clock(self, size):
            return rows.replace(clock.measure_work(self.gpu.start, device=self.gpu), seconds=WORK_S)

    lates = [clock.LATE_S + 1, 0.0]
    real = rows.measure_work
    monkeypatch.setattr(rows, "measure_work", lambda work, device: rows.replace(real(work, device=device),
                                                                            late_s=lates.pop(0)))  # fmt: skip
    benchmark = Own()
    benchmark.setup("small")
    assert rows._run(rows.Side(benchmark.time_own_clock, gpu), ("small",)).seconds == WORK_S and not lates
    lates += [clock.LATE_S + 1] * 3
    with pytest.raises(rows.FalseTime, match="before the gpu was done"):
        rows._run(rows.Side(benchmark.time_own_clock, gpu), ("small",))
    assert not lates


def test_another_device_than_asked_for_in_a_process_of_its_own_is_seen(monkeypatch, tmp_path):
    """A run that fell back on the CPU says so in run.json, and its row fails."""
    import zarr

    from benchmarks import bench_end_to_end

    def fall_back(program, *arguments):
        pipeline = json.loads(Path(arguments[1]).read_text())
        assert pipeline["compute"]["device"] == "gpu"
        out = Path(pipeline["output"]["path"])
        group = zarr.create_group(out / "result.zarr")
        for name in bench_end_to_end.RESULTS:
            group.create_array(name, data=np.zeros(1))
        (out / "run.json").write_text(json.dumps({"device": {"name": "cpu"}, "steps": []}))
        return {"seconds": 1.0, "peak_bytes": 1, "cpu_seconds": 1.0, "fetched_bytes": 0}

    monkeypatch.setattr(bench_end_to_end, "launch", fall_back)
    monkeypatch.setenv("NISEG_BENCH_DATA", str(tmp_path))
    monkeypatch.setenv("NISEG_BENCH_DEVICE", "gpu")
    benchmark = bench_end_to_end.Labels()
    benchmark.setup("small")
    with pytest.raises(rows.FalseTime, match="a row of the gpu, but it ran on the cpu"):
        rows._run(rows.Side(benchmark.time_ours, LazyGpu()), ("small",))
    assert rows._run(rows.Side(benchmark.time_ours, clock.DEVICES["cpu"]), ("small",)).seconds == 1


def test_only_what_was_asked_for_is_measured():
    class WithPeers(Sides):
        peers = {"peer": "numpy", "absent": "no_such_module"}
        on_host = ("reference", "peer")
        time_peer = time_absent = Sides.time_reference

    def sides(device, *, peers):
        return set(rows._sides(WithPeers(), device, peers=peers)) & {"reference", "stays_there", "peer", "absent"}

    assert sides("cpu", peers=True) == {"reference", "stays_there", "peer"}
    assert sides("cpu", peers=False) == sides("gpu", peers=True) == {"reference", "stays_there"}
    absent = list(rows._absent_peers(WithPeers, ("small",)))
    assert [row["skipped"] for row in absent] == ["no_such_module is not installed"]


def test_a_device_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(runner, "why_no_gpu", lambda: "it is out for lunch")
    for device, complaint in {
        "gpu": "niseg-gpu: --device gpu: no GPU can be used: it is out for lunch; say --device cpu",
        "cpu,gpu": "--device cpu,gpu: no GPU can be used",
        "tpu": "there is no device 'tpu'; allowed: cpu, gpu or cpu,gpu",
    }.items():
        with pytest.raises(SystemExit) as ended:
            cli.main(["bench", "read", "--device", device])
        error = capsys.readouterr().err
        assert ended.value.code == 2 and complaint in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", "kmeans_gpu", "--device", "cpu"])
    assert ended.value.code == 2 and "nothing of kmeans_gpu runs on --device cpu" in capsys.readouterr().err

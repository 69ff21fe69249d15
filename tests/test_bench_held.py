"""A row of the GPU whose work a CPU did is refused, however it is dressed up; one whose device hardly works is not.

The faults are planted on a model of a GPU with a clock of its own: streams, a bus that copies while kernels run, and
multiprocessors that one kernel has at a time. It holds for what it knows of CUDA; the last test is for a real one.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import clock, held, rows

LIMITS = {"cpu": {}, "gpu": {"memory": 1000.0}}
CPU_S, KERNEL_S, COPY_S = 0.02, 0.004, 0.001


class Stream:
    """What it was told is done in order, at `ready` all of it."""

    def __init__(self, machine):
        self.machine, self.ready = machine, 0.0

    def copy(self, seconds):
        self.ready = max(self.ready, self.machine.now) + seconds

    def kernel(self, seconds):
        """As it occupies the multiprocessors, another one waits."""
        self.ready = self.machine.free = max(self.ready, self.machine.now, self.machine.free) + seconds

    def synchronize(self):
        self.machine.now = max(self.machine.now, self.ready)

    def __enter__(self):
        self.machine.current.append(self)

    def __exit__(self, *_):
        self.machine.current.pop()


class Event:
    def __init__(self, machine):
        self.machine = machine

    def record(self):
        self.time = max(self.machine.now, self.machine.current[-1].ready)

    def synchronize(self):
        self.machine.now = max(self.machine.now, self.time)

    @property
    def done(self):
        return self.machine.now >= self.time


class Machine:
    """A host and a GPU, in place of CuPy and of the clock."""

    attributes = {"MultiProcessorCount": 132, "MaxThreadsPerMultiProcessor": 2048, "KernelExecTimeout": 0}

    def __init__(self):
        self.now = self.free = 0.0
        self.streams, self.current, self.asked = [], [], 0
        self.current.append(self.new_stream())
        self.holds, self.allocators = [], [len]

    def new_stream(self, non_blocking=False):
        self.streams.append(Stream(self))
        return self.streams[-1]

    def work(self, seconds):
        """On the CPU."""
        self.now += seconds

    def synchronize(self):
        for stream in self.streams:
            stream.synchronize()

    def RawKernel(self, source, name):
        def launch(grid, block, arguments):
            assert grid[0] * block[0] == 132 * 2048 and f" {name}(" in source, "room for others"
            assert all(stream.ready <= self.now for stream in self.streams), "something is under way"
            assert type(arguments[0]) is np.uint64, "the kernel takes 64 bit"
            self.holds.append(1e-9 * int(arguments[0]))
            self.current[-1].kernel(self.holds[-1])

        return launch

    @property
    def cuda(self):
        return SimpleNamespace(
            Device=lambda: self,
            Stream=self.new_stream,
            Event=lambda: Event(self),
            get_current_stream=lambda: self.current[-1],
            get_elapsed_time=lambda start, end: 1000 * (end.time - start.time),
            get_allocator=lambda: self.allocators[-1],
            set_allocator=self.allocators.append,
        )


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setitem(vars(clock.GPU), "xp", SimpleNamespace(cuda=machine.cuda, RawKernel=machine.RawKernel))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=machine.cuda))
    there = SimpleNamespace(perf_counter=lambda: machine.now, sleep=machine.work)
    for module in (clock, held, rows):
        monkeypatch.setattr(module, "time", there)
    return machine


class OnDevice:
    """An array that lies on the GPU, as other libraries can tell."""

    __cuda_array_interface__ = {}
    nbytes = 8


class Sides:
    params = (["small"],)
    param_names = ["size"]
    reference = "time_reference"
    equal = "identical"
    included = "nothing"
    warm_up = True
    devices, on_host = ("gpu",), ("reference",)
    machine = None
    copies = ("copies",)
    moved = 1e9  # bytes, in a thousandth of a second

    def setup(self, size):
        self.shape, self.dtype, self.nbytes = (8,), np.dtype(np.int64), 64

    def least(self, side):
        return {"memory": self.moved}

    def assert_equal(self, found, expected):
        pass

    def time_reference(self, size):
        self.machine.work(CPU_S)
        return np.arange(8)

    @property
    def null(self):
        return self.machine.current[0]

    def launch(self, seconds=KERNEL_S):
        self.machine.work(1e-5)
        self.null.kernel(seconds)
        return OnDevice()

    def send(self):
        self.machine.work(CPU_S)
        self.null.copy(COPY_S)
        return OnDevice()


class Honest(Sides):
    def time_stays(self, size):
        return self.launch()

    def time_comes_back(self, size):
        self.launch()
        self.null.copy(COPY_S)
        self.null.synchronize()
        return self.launch()

    def time_own_clock(self, size):
        self.launch()  # a preparation, on which nothing of it rests
        ran = clock.measure_work(self.launch, device=clock.DEVICES["gpu"])
        self.launch()  # to read what was found
        self.null.synchronize()
        return ran

    def time_calls(self, size):
        return clock.measure_calls(self.launch, device=clock.DEVICES["gpu"], calls=10)

    def time_another_stream(self, size):
        """As a library has one; it returns before that is done."""
        stream = self.machine.new_stream()
        self.machine.work(1e-5)
        stream.kernel(KERNEL_S)
        return OnDevice()

    def time_as_jax(self, size):
        """On a stream of its own too, for a moment only; who waits, waits for what it gave."""
        stream, there = self.machine.new_stream(), OnDevice()
        self.machine.work(1e-5)
        stream.kernel(1.1e-4)
        there.block_until_ready = stream.synchronize
        return {"found": [there]}

    def time_copies(self, size):
        self.machine.work(1e-5)
        self.null.copy(KERNEL_S)
        return OnDevice()


class Streaming(Sides):
    """The disk and the bus take a hundred times as long as the kernels; of the bytes, few are moved by these."""

    moved = 2e7

    def time_streams(self, size):
        for _ in range(10):
            self.machine.work(10 * CPU_S)  # read
            self.null.copy(COPY_S)
            self.null.kernel(1e-4)
            self.null.synchronize()
        return OnDevice()

    def time_reads_ahead(self, size):
        bus = self.machine.new_stream()
        for _ in range(10):
            self.machine.work(CPU_S)
            bus.copy(COPY_S)
            self.null.ready = max(self.null.ready, bus.ready)  # an event
            self.null.kernel(1e-4)
        return OnDevice()


class Liars(Sides):
    def time_sends(self, size):
        return self.send()

    def time_own_clock(self, size):
        self.launch()
        ran = clock.measure_work(self.send, device=clock.DEVICES["gpu"])
        self.launch()  # to read what was found
        self.null.synchronize()
        return ran

    def time_calls(self, size):
        return clock.measure_calls(self.send, device=clock.DEVICES["gpu"], calls=10)

    def time_converts(self, size):
        self.send()
        return self.launch(1e-5)


def run(kind, machine, *, limits=LIMITS, seconds=0.0):
    class Kind(kind):
        pass

    Kind.machine = machine
    found = rows.run_benchmark(Kind, size="small", seconds=seconds, devices=["gpu"], limits=limits)
    return {row["side"]: row for row in found}


@pytest.mark.parametrize("kind", [Honest, Streaming])
def test_honest_rows_pass(kind, machine):
    found = run(kind, machine)
    assert not [row["failed"] for row in found.values() if "failed" in row]
    assert found.keys() - {"reference", "copies"} == {side for side, row in found.items() if "after_hold_s" in row}
    assert all(row["after_hold_s"] > 0 for row in found.values() if "after_hold_s" in row)
    assert clock.DEVICES["gpu"].hold is None


def test_what_a_cpu_did_is_refused(machine):
    found = run(Liars, machine)
    for side in ("sends", "own_clock", "calls"):
        assert "while another kernel held every multiprocessor of the gpu" in found[side]["failed"], side
    assert (
        "held up, the gpu worked for 1e-05 s; to move the bytes alone takes it 0.001 s" in found["converts"]["failed"]
    )
    assert "failed" not in found["reference"]


def test_without_a_count_of_bytes_a_kernel_is_believed(machine):
    found = run(Liars, machine, limits=None)
    assert {side for side, row in found.items() if "failed" in row} == {"sends", "own_clock", "calls"}


def test_a_side_is_held_up_for_longer_than_it_takes(machine):
    run(Liars, machine, seconds=1.0)
    assert machine.holds and min(machine.holds) > CPU_S + COPY_S
    assert max(machine.holds) > 10 * (CPU_S + COPY_S)  # that of ten calls in a row


def test_what_can_not_be_held_up_says_so(machine, monkeypatch):
    class Slow(Sides):
        def time_slow(self, size):
            return self.launch(held.MOST_S)

    assert "takes longer than 40 s" in run(Slow, machine)["slow"]["not_held_up"]
    monkeypatch.setattr(Machine, "attributes", {**Machine.attributes, "KernelExecTimeout": 1})
    assert "draws a screen" in run(Honest, machine)["stays"]["not_held_up"]
    assert not machine.holds

    class Elsewhere(Liars):
        own_process = True

    found = run(Elsewhere, machine)
    assert not machine.holds and not any("failed" in row for row in found.values())


def test_a_side_that_fails_while_it_is_held_up_fails(machine):
    class Fragile(Sides):
        def time_breaks(self, size):
            if clock.DEVICES["gpu"].hold is None and self.machine.holds:
                raise RuntimeError("out of patience")
            return self.launch()

    found = run(Fragile, machine)
    assert "out of patience" in found["breaks"]["failed"] and clock.DEVICES["gpu"].hold is None


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_on_a_gpu(backend):
    """The kernel leaves no room for others, for as long as it should, and copies go on."""
    xp, host = backend.xp, np.random.default_rng(0).random((512, 4096), np.float32)
    there, gpu = backend.from_host(host), clock.DEVICES["gpu"]

    def faults(work, *, least_s=0.0):
        seconds = clock.measure_work(work, device=gpu).seconds
        hold = gpu.hold_up(seconds)
        clock.measure_work(work, device=gpu)
        assert hold.begun and gpu.hold is None
        return hold.find_fault(least_s=least_s)

    for _ in range(2):  # the first time finds no memory and no kernels
        assert not faults(lambda: there * 2)
        assert not faults(lambda: backend.to_host(there * 2))
        assert not faults(lambda: backend.from_host(host) * 2)
        sent = faults(lambda: backend.from_host(np.sort(host, axis=1)))
        converted = faults(lambda: backend.from_host(np.sort(host, axis=1)).astype(xp.float64), least_s=1.0)
    assert "held every multiprocessor" in sent and "most of it ran on the cpu" in converted

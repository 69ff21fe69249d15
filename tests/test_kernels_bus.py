"""Blocks on their way to a device, and k-means on more data than it has room for; the device is a stand-in."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import dask.array as da
import numpy as np
import pytest

from niseg_gpu.backend import Cpu
from niseg_gpu.kernels.bus import ROOMS, Bus, bring, pin
from niseg_gpu.kmeans import arrays
from niseg_gpu.kmeans.estimator import KMeans


class SlowBus:
    """A bus on which a block comes no sooner than it is waited for, and leaves nothing of what was there before."""

    def __init__(self) -> None:
        self.rooms: list[np.ndarray | None] = [None] * ROOMS
        self.on_the_way: list[np.ndarray | None] = [None] * ROOMS
        self.busy = [False] * ROOMS
        self.log: list[tuple[str, int]] = []

    def start(self, room: int, block: np.ndarray) -> np.ndarray:
        assert not self.busy[room], "the room is still in use"
        self.log.append(("start", room))
        self.rooms[room] = np.full_like(block, 111)
        self.on_the_way[room], self.busy[room] = block, True
        return self.rooms[room]

    def arrive(self, room: int) -> None:
        self.log.append(("arrive", room))
        self.rooms[room][...] = self.on_the_way[room]

    def leave(self, room: int) -> None:
        self.log.append(("leave", room))
        self.rooms[room][...] = 99
        self.busy[room] = False


@pytest.mark.parametrize("n", range(6))
def test_blocks_come_in_order_with_the_next_on_its_way(n: int) -> None:
    bus = SlowBus()
    blocks = [(f"block {i}", np.full(3 + i, i)) for i in range(n)]
    for i, (name, block) in enumerate(bring(blocks, bus=bus)):
        assert name == f"block {i}" and block.tolist() == [i] * (3 + i)
        started = sum(event == "start" for event, _ in bus.log)
        assert started == min(i + ROOMS, n), "the next is to be on its way, and no more than that"
    assert Counter(bus.log) == Counter((event, i % ROOMS) for event in ("start", "arrive", "leave") for i in range(n))
    if n == 3:
        assert [f"{event} {room}" for event, room in bus.log] == [
            "start 0", "start 1", "arrive 0", "leave 0", "start 0", "arrive 1", "leave 1", "arrive 0", "leave 0",
        ]  # fmt: skip


def test_who_stops_early_waits_for_what_is_on_its_way() -> None:
    """The rooms go back to the pool, and a copy that comes later would write into somebody else's memory."""
    bus, blocks = SlowBus(), [(i, np.full(3, i)) for i in range(4)]
    arriving = bring(blocks, bus=bus)
    next(arriving)
    arriving.close()
    assert [room for event, room in bus.log if event == "arrive"] == [0, 1]


class Streams:
    """What a bus asks of CuPy: each stream notes what it is told."""

    def __init__(self) -> None:
        self.log: list[str] = []
        made = []

        def stream(name: str) -> SimpleNamespace:
            return SimpleNamespace(
                name=name, wait_event=lambda event: self.log.append(f"{name} waits for {event.told}")
            )

        def event(disable_timing: bool) -> SimpleNamespace:
            it = SimpleNamespace(told="nothing")
            it.record = lambda stream: setattr(it, "told", stream.name)
            made.append(it)
            return it

        main = stream("kernels")
        self.cuda = SimpleNamespace(
            Stream=lambda non_blocking: stream("copies"), Event=event, get_current_stream=lambda: main
        )

    def empty(self, nbytes: int, dtype: type) -> np.ndarray:
        class Room(np.ndarray):
            def set(room, block, stream):
                self.log.append(f"{stream.name} copies")
                room[...] = block

        return np.empty(nbytes, dtype).view(Room)


def test_the_first_copies_wait_for_kernels_that_use_the_memory_still() -> None:
    streams = Streams()
    bus = Bus(24, xp=streams)
    assert [there.tolist() for _, there in bring([(0, np.arange(3)), (1, np.arange(3))], bus=bus)] == [[0, 1, 2]] * 2
    assert streams.log == ["copies waits for kernels", "copies copies"] * 2 + ["kernels waits for copies"] * 2


def test_pinning_reads_nothing_behind_the_last_row() -> None:
    """The last columns of an array end where its memory does."""
    whole, asked = np.arange(20, dtype=np.uint16).reshape(4, 5), []

    class There(np.ndarray):
        def get(self, out):
            asked.append(self.size)
            out[...] = self

    def as_strided(rows, shape, strides):
        return np.lib.stride_tricks.as_strided(rows, shape, strides).view(There)

    memory = SimpleNamespace(PinnedMemory=bytearray, PinnedMemoryPointer=lambda memory, offset: memory)
    xp = SimpleNamespace(lib=SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=as_strided)), cuda=memory)
    pinned = pin(whole[:, 2:], xp=xp)
    np.testing.assert_array_equal(pinned[:, :3], whole[:, 2:])
    assert pinned.shape == (4, 5) and asked == [whole.size - 2]


class SmallGpu(Cpu):
    """Works like the CPU, but one thing at a time and in a memory of its own."""

    threads, keeps_rows, has_bus = 1, True, True

    def __init__(self) -> None:
        super().__init__()
        vars(self).update(read=0, pinned=0, crossed=[])

    def as_rows(self, block: np.ndarray, *, axis: int) -> np.ndarray:
        vars(self)["read"] += block.nbytes
        return np.ascontiguousarray(super().as_rows(block, axis=axis))

    def pin_rows(self, rows: np.ndarray) -> np.ndarray:
        vars(self)["pinned"] += rows.nbytes
        return rows.copy()

    def bring(self, blocks):
        blocks = list(blocks)
        self.crossed.append(sum(block.nbytes for _, block in blocks))
        return bring(blocks, bus=SlowBus())


@pytest.fixture
def small_gpu(monkeypatch: pytest.MonkeyPatch) -> SmallGpu:
    device = SmallGpu()
    monkeypatch.setattr(arrays, "choose_backend", lambda array, **chosen: device)
    monkeypatch.setattr(arrays, "PART_BYTES", 2**15)
    monkeypatch.setattr("niseg_gpu.kmeans.points.LEAST_PART_BYTES", 2**12)
    return device


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("host_share", [1.0, 0.0])
def test_what_a_device_has_no_room_for_crosses_the_bus(small_gpu, monkeypatch, dtype: str, host_share: float) -> None:
    rng = np.random.default_rng(4)
    spectra = rng.integers(0, 900, (5, 40))
    data = (spectra[rng.integers(0, 5, (48, 64))] + rng.integers(0, 60, (48, 64, 40))).astype(dtype)
    lazy = da.from_array(data, chunks=(16, 16, 40))
    monkeypatch.setattr(arrays, "HOST_SHARE", host_share)
    settings = {"n_clusters": 5, "init": data[0, :5].astype(np.float32), "max_iter": 6, "tol": 0}
    resident = KMeans(**settings).fit(data)
    budget = 8 * data[..., 0].size + 3 * data.nbytes // 4
    found = KMeans(**settings, memory_budget=budget, device="gpu").fit(lazy)
    np.testing.assert_array_equal(found.labels_, resident.labels_)
    np.testing.assert_array_equal(found.cluster_centers_, resident.cluster_centers_)
    assert (found.inertia_, found.n_iter_) == (resident.inertia_, resident.n_iter_)
    if host_share:
        assert small_gpu.read == data.nbytes, "each block is read once"
        assert 0 < small_gpu.pinned < data.nbytes
        assert len(small_gpu.crossed) >= found.n_iter_ and set(small_gpu.crossed) == {small_gpu.pinned}
    else:
        assert small_gpu.pinned == 0 and not small_gpu.crossed and small_gpu.read > 2 * data.nbytes


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("kernels", ["own", "library"])
def test_on_a_gpu(backend, kernels: str) -> None:
    """Page-locked copies on a stream of their own, kernels on another: the same to the last bit, many times over."""
    backend = replace(backend, kernels=kernels)
    xp, rng = backend.xp, np.random.default_rng(1)
    blocks = [(i, rng.integers(0, 4000, (20_000 + i, 333)).astype(np.uint16)) for i in range(5)]
    pinned = [(i, backend.pin_rows(backend.as_rows(block, axis=1))) for i, block in blocks]
    for _ in range(10):
        for i, there in backend.bring(pinned):
            np.testing.assert_array_equal(backend.to_host(xp.sum(there[:, :333], axis=0)), blocks[i][1].sum(axis=0))

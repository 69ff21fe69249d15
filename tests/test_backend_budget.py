"""One store of memory for arrays and networks: CuPy's pool and JAX's as models that keep what they once took."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from niseg_gpu import xla
from niseg_gpu.backend import CPU, Gpu, count_memory_limit
from niseg_gpu.backend.budget import Budget
from niseg_gpu.pipeline import info
from niseg_gpu.unet.config import spot_config
from niseg_gpu.unet.folder import UNetModel
from niseg_gpu.unet.model import init_weights
from niseg_gpu.unet.normalise import Normalisation
from niseg_gpu.unet.predict import plan_memory, predict_unet

GB = 10**9


class Pool:
    """Takes from the store what it lacks, and keeps it."""

    def __init__(self, store: Store) -> None:
        self.store, self.held, self.used = store, 0, 0

    def take(self, nbytes: int) -> None:
        self.used += nbytes
        missing = max(0, self.used - self.held)
        assert missing <= self.store.free, "out of memory"
        self.held += missing

    def let_go(self, nbytes: int) -> None:
        self.used -= nbytes

    def total_bytes(self) -> int:
        return self.held

    def free_bytes(self) -> int:
        return self.held - self.used

    def free_all_blocks(self) -> None:
        self.held = self.used


class Store:
    """A GPU's memory, with what CuPy and JAX tell of it."""

    local_hardware_id = 0

    def __init__(self, total: int, *, most: int) -> None:
        self.total, self.most = total, most
        self.arrays, self.networks = Pool(self), Pool(self)
        runtime = SimpleNamespace(memGetInfo=lambda: (self.free, self.total))
        self.cuda = SimpleNamespace(runtime=runtime, Device=lambda: SimpleNamespace(id=0))

    @property
    def free(self) -> int:
        return self.total - self.arrays.held - self.networks.held

    def get_default_memory_pool(self) -> Pool:
        return self.arrays

    def memory_stats(self) -> dict[str, int]:
        networks = self.networks
        return {"bytes_in_use": networks.used, "pool_bytes": networks.held, "bytes_limit": self.most}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> tuple[Gpu, Store]:
    """A GPU of 16 GB, of which JAX may hold 12."""
    monkeypatch.setattr(xla, "_found", {})
    twin, store = Gpu(), Store(16 * GB, most=12 * GB)
    jax = SimpleNamespace(devices=lambda kind: [store])
    monkeypatch.setattr(xla, "start_jax", lambda cpu: jax)
    vars(twin).update(xp=store)
    return twin, store


def test_arrays_and_networks_do_not_starve_each_other(device) -> None:
    """Blocks of a pipeline, cleaned by one library and segmented by the other, again and again."""
    twin, store = device
    for block in range(4):
        store.arrays.take(4 * GB)  # as much as networks leave
        store.arrays.let_go(3 * GB)  # what was cleaned is left, and the pool keeps the rest
        assert twin.free_bytes() == 12 * GB, f"block {block} is to find as much as the first"
        needed = (2, 12, 9, 12)[block] * GB
        twin.make_room(needed)
        store.networks.take(needed)
        store.networks.let_go(needed)
        assert twin.count_memory() == 16 * GB - store.networks.held
        store.arrays.let_go(GB)


def test_what_is_in_use_is_nobodys_to_have(device) -> None:
    twin, store = device
    store.arrays.take(9 * GB)
    store.networks.take(2 * GB)
    assert twin.free_bytes() == 5 * GB and twin.count_memory() == 14 * GB
    store.networks.take(3 * GB)
    store.networks.let_go(4 * GB)
    assert twin.free_bytes() == 6 * GB, "what JAX keeps it can use again"
    store.arrays.let_go(9 * GB)
    assert twin.free_bytes() == 11 * GB, "but never more than it may"


def test_room_is_made_only_where_it_is_needed(device) -> None:
    twin, store = device
    store.arrays.take(6 * GB)
    store.arrays.let_go(5 * GB)
    twin.free_bytes()
    twin.make_room(10 * GB)
    assert store.arrays.held == 6 * GB
    twin.make_room(10 * GB + 1)
    assert store.arrays.held == GB


@pytest.mark.parametrize(
    "stats, held, idle, most",
    [
        ({"bytes_in_use": 3, "pool_bytes": 8, "bytes_limit": 70}, 8, 5, 70),
        ({"bytes_in_use": 3, "pool_bytes": -1, "peak_bytes_in_use": 7, "bytes_limit": 70}, 3, 0, 70),
        ({"bytes_in_use": 3, "peak_bytes_in_use": 7, "bytes_limit": 70}, 7, 4, 70),
        (None, 0, 0, 75),
    ],
)
def test_what_jax_tells_of_its_memory(monkeypatch, stats, held: int, idle: int, most: int) -> None:
    """Releases and allocators differ in what they tell; one that keeps nothing tells nothing."""
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(xla, "_found", {1: SimpleNamespace(memory_stats=lambda: stats)})
    assert xla.read_pool(1, total=100) == (held, idle, most)
    assert xla.read_pool(0, total=100) == (0, 0, 75), "JAX was not started there"


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_the_share_is_the_users(device, monkeypatch, name: str) -> None:
    monkeypatch.setenv(name, "0.25")
    memory = info._describe_memory(device[0])
    assert memory["networks_most"] == 4 * GB and not memory["networks_take_all_at_once"]
    assert info._format_memory(memory) == (
        "14.9 of the GPU's 14.9 GiB are free; arrays (CuPy) and networks (JAX) share them, "
        "networks take 3.7 GiB at most, as they need it"
    )
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    assert info._format_memory(info._describe_memory(device[0])).endswith("networks take 3.7 GiB at their start")


def test_the_host_has_one_store_too() -> None:
    budget = CPU.read_budget()
    assert 0 < budget.free <= budget.total and 0 < CPU.count_memory() <= budget.total
    assert 0 < CPU.free_bytes() <= budget.total


def test_a_limit_that_is_passed_leaves_nothing() -> None:
    assert Budget(10, 1, 0, 0, networks=9, networks_idle=0, networks_most=7).for_networks == 0


def test_a_prediction_makes_room_for_what_it_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, image, config = [], np.zeros((60, 60), np.float32), spot_config(base_depth=2)
    model = UNetModel(config, *init_weights(config), Normalisation(means=(0.0,), scales=(1.0,)))
    monkeypatch.setattr(type(CPU), "make_room", lambda self, nbytes: asked.append(nbytes))
    predict_unet(image, model)
    assert asked == [plan_memory(image, model).total]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_on_a_gpu(backend) -> None:
    """What CuPy has let go is counted, given back when asked for, and what JAX holds is seen."""
    block = backend.xp.zeros(2**26, dtype=np.uint8)
    before = backend.read_budget()
    assert before.total > 0 and before.arrays - before.arrays_idle >= block.nbytes
    del block
    assert backend.read_budget().arrays_idle >= 2**26
    backend.make_room(before.total)
    assert backend.read_budget().arrays_idle < 2**26
    there = backend.to_jax(backend.xp.ones(2**20, dtype=np.float32)) + 1
    there.block_until_ready()
    budget = backend.read_budget()
    assert budget.networks >= there.nbytes and budget.networks <= budget.networks_most <= budget.total
    assert 0 < backend.free_bytes() <= budget.total and 0 < backend.count_memory() <= budget.total


def test_a_limit_of_the_process_counts_as_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch system ends what takes more, such as half of a node's memory for what a GPU has no room for."""
    assert 0 < count_memory_limit() == CPU.count_memory() <= CPU.read_budget().total
    monkeypatch.setattr("niseg_gpu.backend.cpu.count_memory_limit", lambda: 64 * GB)
    assert CPU.count_memory() == 64 * GB

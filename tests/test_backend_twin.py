"""The twins: the same members, and a choice of kernels that never changes and travels."""

from __future__ import annotations

import pickle
import threading

from niseg_gpu.backend import CPU, GPU, Cpu, Gpu


def members(twin: type) -> set[str]:
    return {name for name in vars(twin) if not name.startswith("_")}


def test_twins_have_the_same_members() -> None:
    assert members(Cpu) == members(Gpu)
    assert set(CPU.uses) == set(GPU.uses)


def test_what_was_imported_does_not_travel() -> None:
    twin = Gpu("own")
    vars(twin).update(xp=threading.Lock())
    assert vars(pickle.loads(pickle.dumps(twin))) == {"kernels": "own"}

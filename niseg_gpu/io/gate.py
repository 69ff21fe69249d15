"""Keeping late threads out of what is being taken away."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np


class Gate:
    """Passes blocks on to a target until it is shut; after that no thread still writes into what is taken away."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self._open()

    def _open(self) -> None:
        self._shut = False
        self._writing = 0
        self._changed = threading.Condition()

    def __dask_tokenize__(self) -> str:
        return uuid.uuid4().hex  # else Dask pickles and hashes the target to name the task, all that it holds

    def __getstate__(self) -> dict[str, Any]:
        return {"target": self.target}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.target = state["target"]
        self._open()

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        with self._changed:
            if self._shut:
                return
            self._writing += 1
        try:
            self.target[key] = values
        finally:
            with self._changed:
                self._writing -= 1
                self._changed.notify_all()

    def shut(self) -> None:
        with self._changed:
            self._shut = True
            self._changed.wait_for(lambda: self._writing == 0)


@contextmanager
def gated(targets: Sequence[Any]) -> Iterator[list[Gate]]:
    """Give a gate for each target; when the block ends, however it does, they are shut and nothing is being written."""
    gates = [Gate(target) for target in targets]
    try:
        yield gates
    finally:
        for gate in gates:
            gate.shut()

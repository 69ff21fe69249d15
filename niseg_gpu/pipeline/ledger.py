"""What the blocks of a run leave behind, block by block, so that a run can go on where it was cut."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from niseg_gpu.chunks import Region
from niseg_gpu.pipeline.checkpoint import Checkpoint
from niseg_gpu.pipeline.clock import Clock
from niseg_gpu.pipeline.planes import PlaneSamples

SAVE_EVERY_S = 30  # what a killed run loses at most, but for the blocks it was in


@dataclass
class _Entry:
    """What one block has left so far."""

    findings: list[tuple[str, dict[str, int]]] = field(default_factory=list)
    samples: list[tuple[int, list[np.ndarray]]] = field(default_factory=list)
    sums: list[tuple[str, Region, np.ndarray]] = field(default_factory=list)
    writes: int = 0


class Ledger:
    """Adds up findings, samples for the report and sums over frames, of blocks that are done as a whole.

    Blocks finish in any order, and no result depends on it.

    Parameters
    ----------
    backend : Cpu or Gpu
    clock : Clock
        Gets the findings.
    checkpoint : Checkpoint, optional
        Where the state is saved, every half minute and at the end.

    Attributes
    ----------
    samples : PlaneSamples
    regions : list of Region
        The blocks.
    axis : int
        That they are cut along, counted from the last.
    done : set of int
        Numbers of the blocks that have reached all targets, and whose findings and sums are in.
    kept : int
        How many of them the checkpoint knows.
    resumed_after : list of int
        How many were done each time the run went on.
    """

    def __init__(self, backend: Any, clock: Clock, *, checkpoint: Checkpoint | None = None) -> None:
        self.backend, self.clock, self.checkpoint = backend, clock, checkpoint
        self.samples = PlaneSamples(backend)
        self.regions: list[Region] = []
        self.axis, self.done, self.kept = -2, set[int](), 0
        self.resumed_after: list[int] = []
        self._sums: dict[str, np.ndarray] = {}
        self._earlier_s = 0.0
        self._targets = 0
        self._numbers: dict[int, int] = {}
        self._entries: dict[int, _Entry] = {}
        self._findings: dict[tuple[str, str], int] = {}
        self._begun = self._saved = time.perf_counter()
        self._lock = threading.Lock()

    @property
    def parts(self) -> int | None:
        """In how many blocks the run to go on with was to be cut at least; None where there is none."""
        return self.checkpoint.about["parts"] if self.checkpoint and self.checkpoint.about else None

    @property
    def seconds(self) -> float:
        """Since the run began, the time between an end and a new beginning left out."""
        return self._earlier_s + time.perf_counter() - self._begun

    @property
    def left(self) -> list[slice]:
        """What is not done, along `axis`: each stretch of blocks side by side."""
        stretches: list[slice] = []
        for number, region in enumerate(self.regions):
            if number in self.done:
                continue
            here = region[self.axis]
            if stretches and stretches[-1].stop == here.start:
                here = slice(stretches.pop().start, here.stop)
            stretches.append(here)
        return stretches

    def prepare(
        self,
        stages: Sequence[Any],
        infos: Sequence[Any],
        regions: Sequence[Region],
        *,
        axis: int,
        parts: int,
        halo: int,
    ) -> None:
        """Learn how the stack is cut; `infos` tell of the stack before each stage.

        Parameters
        ----------
        regions : sequence of Region
            Along `axis`, which is counted from the last, in at least `parts`; each reads `halo` frames more.

        Raises
        ------
        UserError
            The run to go on with was cut otherwise.
        """
        self.regions, self.axis = list(regions), axis
        self._numbers = {region[axis].start: i for i, region in enumerate(regions)}
        self.samples.prepare(stages, infos)
        if self.checkpoint is not None:
            self.checkpoint.describe(parts=parts, axis=axis, halo=halo, starts=list(self._numbers))

    def load(self) -> None:
        """Take over what the run to go on with had added up, where there is one; `prepare` comes before."""
        found = self.checkpoint.load() if self.checkpoint is not None else None
        if found is None:
            return
        about, arrays = found
        self.done, self._earlier_s = set(about["done"]), about["seconds"]
        self.kept, self.resumed_after = len(self.done), [*about["resumed_after"], len(self.done)]
        for step, what, number in about["findings"]:
            self._findings[step, what] = number
            self.clock.add_findings(step, {what: number})
        for name, (seconds, nbytes) in about["clock"].items():
            self.clock.add(name, seconds, nbytes)
        for name, values in arrays.items():
            kind, _, key = name.partition(".")
            if kind == "sum":
                self._sums[key] = values
            else:
                self.samples.extend(int(key), [values])

    def count_writes(self, n_targets: int) -> None:
        """Say how many targets each block is written to before it is done."""
        self._targets = n_targets

    def open_sum(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        """Begin a sum of images, of integers or float64, unless it goes on."""
        names = (name, f"{name}.rest") if np.dtype(dtype).kind == "f" else (name,)
        for each in names:
            self._sums.setdefault(each, np.zeros(shape, dtype))

    def read_sum(self, name: str) -> np.ndarray:
        """The sum so far."""
        total, rest = self._sums[name], self._sums.get(f"{name}.rest")
        if rest is None:
            return total
        return total + np.where(np.isfinite(total), rest, 0)

    def add_findings(self, own: Region, step: str, tally: Mapping[str, Any]) -> None:
        """Note what a step counted in the block `own`."""
        counted = {what: int(number) for what, number in tally.items()}
        with self._lock:
            self._entry(own).findings.append((step, counted))

    def add_samples(self, own: Region, stage: int, parts: list[np.ndarray]) -> None:
        """Note what was sampled of the block `own` on its way to a stage."""
        with self._lock:
            self._entry(own).samples.append((stage, parts))

    def add_to_sum(self, name: str, region: Region, part: np.ndarray) -> None:
        """Note what a block adds to a sum, at the last two axes of `region`."""
        with self._lock:
            self._entry(region).sums.append((name, region[-2:], part))

    def note_write(self, region: Region) -> None:
        """Note that a block has reached one of its targets; with the last of them it is done."""
        with self._lock:
            number, entry = self._number(region), self._entry(region)
            entry.writes += 1
            if entry.writes == self._targets:
                self._take_in(self._entries.pop(number))
                self.done.add(number)
            if self.checkpoint is not None and time.perf_counter() - self._saved >= SAVE_EVERY_S:
                self._save()

    def keep(self) -> bool:
        """Save the last state, where the run has lasted long enough; whether there is one to go on with."""
        with self._lock:
            if self.checkpoint is None or not self.done:
                return False
            if self.seconds >= SAVE_EVERY_S:
                with suppress(OSError):  # the one before stays
                    self._save()
            return self.checkpoint.exists()

    def _number(self, region: Region) -> int:
        return self._numbers[region[self.axis].start]

    def _entry(self, region: Region) -> _Entry:
        return self._entries.setdefault(self._number(region), _Entry())

    def _take_in(self, entry: _Entry) -> None:
        for step, tally in entry.findings:
            self.clock.add_findings(step, tally)
            for what, number in tally.items():
                if number:
                    self._findings[step, what] = self._findings.get((step, what), 0) + number
        for stage, parts in entry.samples:
            self.samples.extend(stage, parts)
        for name, region, part in entry.sums:
            total, rest = self._sums[name], self._sums.get(f"{name}.rest")
            if len(self.regions) == 1 or self.axis == -2:  # the only part of these pixels
                total[region] = part
            elif rest is None:
                total[region] += part.astype(total.dtype, copy=False)
            else:
                self.backend.add_exactly(total, rest, part)

    def _save(self) -> None:
        assert self.checkpoint is not None
        sampled = {f"sample.{stage}": parts for stage, parts in self.samples.gather().items()}
        self.checkpoint.save(
            {**{f"sum.{name}": total for name, total in self._sums.items()}, **sampled},
            done=sorted(self.done),
            seconds=self.seconds,
            resumed_after=self.resumed_after,
            findings=[(step, what, number) for (step, what), number in self._findings.items()],
            clock=self.clock.as_mapping(),
        )
        self.kept, self._saved = len(self.done), time.perf_counter()

"""What a run will need, as data: blocks, memory of host and GPU, room on disk, time; and what of it does not fit.

The memory comes from shapes, dtypes and the table of steps (see `niseg_gpu.pipeline.memory`), the time from a trial of
a few blocks (see `niseg_gpu.pipeline.trial`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from niseg_gpu.pipeline.memory import find_peak


@dataclass(frozen=True)
class StepPlan:
    """A step: the stack after it, what it reaches, and what it costs.

    Attributes
    ----------
    name : str
        Of the step, or ``input``.
    dims : tuple of str
    shape : tuple of int
    dtype, quantity : str
    halo : (int, int)
        Frames and pixels that a block sees beyond its border for this step.
    block_bytes : int
        Most that one block holds during the step, with what was read for it.
    seconds : float or None
        About, over all blocks and workers; of k-means at most. None where the trial did not get there.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    quantity: str
    halo: tuple[int, int] = (0, 0)
    block_bytes: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class BlockPlan:
    """How the stack is cut: so many blocks, the largest of `shape`, read with its border as `shape_read`."""

    number: int
    shape: tuple[int, ...]
    shape_read: tuple[int, ...]
    workers: int


@dataclass(frozen=True)
class Room:
    """Memory in bytes: by phase what it is for, the peak, and what there is.

    Attributes
    ----------
    phases : dict of str to dict of str to int
        ``blocks``, ``last step``, ``report``: the parts of each.
    peak : int
        Of the phase that needs most.
    total, free : int
        Of the machine, or the GPU.
    """

    phases: dict[str, dict[str, int]]
    peak: int
    total: int
    free: int


@dataclass(frozen=True)
class Disk:
    """Room for the results in bytes.

    Attributes
    ----------
    arrays : dict of str to int
        Before compression, which no array comes out larger of.
    most : int
        All of them with report and pictures.
    expected : int
        As well as the trial's blocks were compressed.
    free : int
        Where the results go.
    """

    arrays: dict[str, int]
    most: int
    expected: int
    free: int


@dataclass(frozen=True)
class Seconds:
    """Time in s, about; a start of some seconds and the report come to it.

    Attributes
    ----------
    before : float
        What must be known of the whole input first: doses, averaged frames.
    blocks : float
        All that is done block by block, and of that `writing`.
    last_start, last_iteration : float
        Of the step that ends the pipeline.
    iterations : int
        At most.
    """

    before: float
    blocks: float
    writing: float = 0.0
    last_start: float = 0.0
    last_iteration: float = 0.0
    iterations: int = 0

    @property
    def least(self) -> float:
        """With one iteration."""
        return self.before + self.blocks + self.last_start + self.last_iteration * min(self.iterations, 1)

    @property
    def most(self) -> float:
        return self.before + self.blocks + self.last_start + self.last_iteration * self.iterations


@dataclass(frozen=True)
class Plan:
    """All that `plan_pipeline` finds out.

    `problems` is empty where the run fits; `unknown` says what memory there is no figure for.
    """

    input_bytes: int
    steps: tuple[StepPlan, ...]
    blocks: BlockPlan
    device: str
    reason: str
    host: Room
    gpu: Room | None
    disk: Disk
    seconds: Seconds
    problems: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    def as_mapping(self) -> dict[str, Any]:
        """Everything by name, ready for JSON."""
        return {**asdict(self), "seconds": {**asdict(self.seconds), "most": self.seconds.most}}


def find_problems(host: Room, gpu: Room | None, disk: Disk, *, workers: int, mapped: int = 0) -> list[str]:
    """What does not fit, and what to do about it, a sentence each."""
    found = []
    for where, room, spare in (("host", host, mapped), ("GPU", gpu, 0)):
        if room is None or room.peak - spare <= room.total:
            continue
        parts = room.phases[find_peak(room.phases)[0]]
        largest = max(parts, key=parts.__getitem__)
        found.append(
            f"the {where} needs {room.peak / 1e9:.3g} GB of memory, most of it for the {largest}, and has "
            f"{room.total / 1e9:.3g} GB; {_advise(room, parts, workers=workers, spare=spare)}"
        )
    if disk.expected > disk.free:
        found.append(
            f"about {disk.expected / 1e9:.3g} GB of results are expected where {disk.free / 1e9:.3g} GB are free; "
            "write elsewhere (--out), or keep fewer (--set 'output.arrays=[labels, spectra]')"
        )
    return found


def _advise(room: Room, parts: dict[str, int], *, workers: int, spare: int) -> str:
    blocks = parts.get("blocks in flight", 0)
    others = room.peak - spare - blocks
    if blocks and others < room.total:
        fit = int((room.total - others) / (blocks / workers))
        if fit >= 1:
            return f"take fewer workers (--set compute.workers={fit})"
    if parts.get("table of spectra", 0) > blocks:
        return "rebin, select or crop"
    return "give smaller frames, or take steps that look at fewer pixels and frames around each"

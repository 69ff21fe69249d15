"""From steps to blocks: the one place where methods meet Dask.

Steps that work block by block are fused: a block is read once, goes through all of them on its device, and
comes back once, with a border as wide as all their halos together, cut off at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.chunks import BLOCK_BYTES
from niseg_gpu.pipeline.blocks import PARTS, BlockRun, cut_blocks, halo_of, pictured_stage
from niseg_gpu.pipeline.clock import Clock
from niseg_gpu.pipeline.parse import Step
from niseg_gpu.pipeline.steps import OPS, Op
from niseg_gpu.stack import StackInfo, dtype_for_steps

if TYPE_CHECKING:
    import xarray as xr

    from niseg_gpu.pipeline.ledger import Ledger


@dataclass(frozen=True)
class Stage:
    """A step with its state, ready to be applied to blocks, and the stack after it."""

    name: str
    op: Op
    state: Mapping[str, Any]
    info: StackInfo


@dataclass(frozen=True)
class Reference:
    """An open beam or dark current with the steps that lie before `normalize`.

    As part of a step's state it is read and worked on block by block, beside the sample's block.

    Attributes
    ----------
    info : StackInfo
        After the stages.
    raw : xarray.DataArray
        As read.
    stages : sequence of Stage
    left_out : sequence of Step
        Steps before `normalize` that it lacks the axes for.
    """

    info: StackInfo
    raw: xr.DataArray
    stages: Sequence[Stage]
    left_out: Sequence[Step]
    _data: Callable[[], xr.DataArray]

    @property
    def data(self) -> xr.DataArray:
        """After the stages, lazy, on the host."""
        return self._data()

    def average(self) -> xr.DataArray:
        """The mean of the frames in float32, in memory; added up frame by frame, so that no cut can be seen in it."""
        frames = self.data
        if frames.ndim == 2:
            return frames.astype(np.float32).compute()
        from dask import delayed

        total: Any = None
        for block in frames.data.rechunk({1: -1, 2: -1}).to_delayed().ravel():
            total = delayed(_add_frames, pure=False)(block, total)
        mean = (total.compute() / len(frames)).astype(np.float32)
        return frames[0].drop_vars(frames.dims[0], errors="ignore").copy(data=mean)


@dataclass(frozen=True)
class Before:
    """What a step's `fit` and `check` may look at: the stack as it reaches the step.

    Attributes
    ----------
    info : StackInfo
    open_beam, dark : Reference or None
        After the steps before, as far as they have the axes.
    """

    info: StackInfo
    open_beam: Reference | None
    dark: Reference | None
    _data: Callable[[], xr.DataArray]

    @property
    def data(self) -> xr.DataArray:
        """The stack after the steps before, lazy, on the host."""
        return self._data()


@dataclass(frozen=True)
class Applied:
    """What the block-wise steps give.

    Attributes
    ----------
    image : xarray.DataArray
        Lazy; its blocks lie on the device of the engine's backend.
    masks : dict of str to xarray.DataArray
        ``spots``, and ``spots_2``, ... where spots are removed more than once.
    mean_image : xarray.DataArray or None
        Mean over the first axis before the spectra are scaled; None where the mean of `image` tells as much.
    """

    image: xr.DataArray
    masks: dict[str, xr.DataArray]
    mean_image: xr.DataArray | None = None


@dataclass(frozen=True)
class Engine:
    """Applies steps to stacks on one device.

    Attributes
    ----------
    backend : Cpu or Gpu
    clock : Clock
    bad_values : {"error", "keep"}
        What to do about NaN, Inf, negative counts and saturated values in the input.
    workers : int
        Threads that will share the blocks.
    block_bytes : int
        Size of a block in float32.
    """

    backend: Any
    clock: Clock = field(default_factory=Clock)
    bad_values: str = "error"
    workers: int = 1
    block_bytes: int = BLOCK_BYTES

    def apply(
        self,
        stack: xr.DataArray,
        steps: Sequence[Step],
        *,
        whole: frozenset[str] = frozenset(),
        ledger: Ledger | None = None,
        **references: xr.DataArray | None,
    ) -> Applied:
        """Apply block-wise steps, lazily; only what a `fit` needs (a dose, averaged frames) is computed at once.

        Parameters
        ----------
        stack : xarray.DataArray
        steps : sequence of Step
        whole : frozenset of str
            Axes that a block of the result may not split, besides those the steps ask for.
        ledger : Ledger, optional
            Filled as the blocks are computed; of a run to go on with, it says how it was cut.
        **references : xarray.DataArray or None
            ``open_beam`` and ``dark``.
        """
        stages = self.fit(stack, steps, reading=True, **references)
        return self.map_stages(stack, stages, whole=whole, ledger=ledger)

    def fit(
        self,
        stack: xr.DataArray,
        steps: Sequence[Step],
        *,
        reading: bool,
        open_beam: xr.DataArray | None = None,
        dark: xr.DataArray | None = None,
    ) -> list[Stage]:
        """Check and fit each step on the stack as it reaches it; without `reading`, no data are read."""
        info, stages = StackInfo.for_steps(stack), []
        for i, step in enumerate(steps):
            op, done = OPS[step.name], list(stages)
            before = Before(
                info,
                self.refer(open_beam, steps[:i], reading=reading),
                self.refer(dark, steps[:i], reading=reading),
                lambda done=done: self.to_host(self.map_stages(stack, done).image),
            )
            state = dict(step.parameters)
            if op.check is not None:
                op.check(before, **state)
            if op.fit is not None and op.apply is not None and (reading or op.check is None):
                state = op.fit(before, **state)
            info = op.describe(info, **state)
            stages.append(Stage(step.name, op, state, info))
            info = info.with_(dtype=dtype_for_steps(info.dtype))
        return stages

    def refer(self, stack: xr.DataArray | None, steps: Sequence[Step], *, reading: bool) -> Reference | None:
        """A reference after the steps that make sense for it: those whose axes it has; it is never normalized."""
        if stack is None:
            return None
        given, steps = steps, [s for s in steps if s.name != "normalize" and OPS[s.name].whole <= set(stack.dims)]
        if "tof" not in stack.dims:
            steps = [s for s in steps if s.name != "assign_wavelength"]
        stages = self.fit(stack, steps, reading=reading)
        info, left_out = stages[-1].info if stages else StackInfo.for_steps(stack), [s for s in given if s not in steps]
        return Reference(info, stack, stages, left_out, lambda: self.to_host(self.map_stages(stack, stages).image))

    def to_host(self, stack: xr.DataArray) -> xr.DataArray:
        """Bring a lazy stack's blocks to the host."""
        meta = np.empty((0,) * stack.ndim, stack.dtype)
        return stack.copy(data=stack.data.map_blocks(self.backend.to_host, dtype=stack.dtype, meta=meta))

    def map_stages(
        self,
        stack: xr.DataArray,
        stages: Sequence[Stage],
        *,
        whole: frozenset[str] = frozenset(),
        ledger: Ledger | None = None,
    ) -> Applied:
        """Apply stages that are ready, lazily, fused into one task a block."""
        import dask.array as da
        from dask import delayed

        parts = (ledger.parts if ledger is not None else None) or PARTS * self.workers
        regions = cut_blocks(stack, stages, whole=whole, parts=parts, block_bytes=self.block_bytes)
        axis = 0 if len(regions) > 1 and regions[0][0] != regions[1][0] else stack.ndim - 2
        if ledger is not None:
            before = [StackInfo.for_steps(stack), *(stage.info for stage in stages)]
            ledger.prepare(stages, before, regions, axis=axis - stack.ndim, parts=parts, halo=halo_of(stages)[0])
        run = BlockRun(self.backend, self.clock, stack, stages, bad_values=self.bad_values, ledger=ledger)
        outputs = _outputs(stack, stages)
        pieces: list[list[Any]] = [[] for _ in outputs]
        for region in regions:
            task = delayed(run.at(region), pure=False)(*run.arguments(region))
            for k, (_, info, dtype) in enumerate(outputs):
                shape = list(info.shape)
                shape[axis - stack.ndim] = region[axis].stop - region[axis].start
                pieces[k].append(da.from_delayed(task[k], shape=tuple(shape), dtype=dtype))
        arrays = {
            name: info.wrap(da.concatenate(piece, axis=axis - stack.ndim), name=name)
            for (name, info, _), piece in zip(outputs, pieces, strict=True)
        }
        return Applied(arrays.pop("image"), mean_image=arrays.pop("mean_image", None), masks=arrays)


def _add_frames(frames: np.ndarray, total: np.ndarray | None) -> np.ndarray:
    """Add frames to a sum in float64, in which whole counts are exact."""
    total = np.zeros(frames.shape[1:]) if total is None else total.copy()
    for frame in frames:
        total += frame
    return total


def _outputs(stack: xr.DataArray, stages: Sequence[Stage]) -> list[tuple[str, StackInfo, np.dtype]]:
    """Name, axes and dtype of what a block's task returns: the image, the masks, the mean image where one is taken."""
    infos = [StackInfo.for_steps(stack), *(stage.info for stage in stages)]
    masked = [stage.info for stage in stages if stage.op.mask]
    names = ["spots", *(f"spots_{n}" for n in range(2, len(masked) + 1))]
    outputs = [("image", infos[-1], infos[-1].dtype)]
    outputs += [(name, info, np.dtype(bool)) for name, info in zip(names, masked, strict=False)]
    before = pictured_stage(stages)
    if before is not None:
        info = infos[before]
        flat = StackInfo(info.dims[1:], info.shape[1:], np.dtype(np.float32), {}, {"quantity": info.quantity})
        outputs.append(("mean_image", flat, flat.dtype))
    return outputs

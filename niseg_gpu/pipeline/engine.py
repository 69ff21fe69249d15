"""From steps to blocks: the one place where methods meet Dask.

Steps that work block by block are fused: a block is read once, goes through all of them on its device, and
comes back once, with a border as wide as all their halos together, cut off at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu import findings
from niseg_gpu.chunks import Region, cut_regions, widen
from niseg_gpu.pipeline.clock import Clock
from niseg_gpu.pipeline.parse import Step
from niseg_gpu.pipeline.steps import OPS, Op
from niseg_gpu.pipeline.values import ValueCheck
from niseg_gpu.stack import StackInfo

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Before:
    """What a step's `fit` and `check` may look at: the stack as it reaches the step.

    Attributes
    ----------
    info : StackInfo
    open_beam, dark : xarray.DataArray or None
        The references after the steps before, as far as they have the axes; lazy.
    """

    info: StackInfo
    open_beam: xr.DataArray | None
    dark: xr.DataArray | None
    _data: Callable[[], xr.DataArray]

    @property
    def data(self) -> xr.DataArray:
        """The stack after the steps before, lazy."""
        return self._data()


@dataclass(frozen=True)
class Stage:
    """A step with its state, ready to be applied to blocks, and the stack after it."""

    name: str
    op: Op
    state: Mapping[str, Any]
    info: StackInfo


@dataclass(frozen=True)
class Applied:
    """What the block-wise steps give.

    Attributes
    ----------
    image : xarray.DataArray
        Lazy; its blocks lie on the device of the engine's backend.
    masks : dict of str to xarray.DataArray
        ``spots``, and ``spots_2``, ... where spots are removed more than once.
    """

    image: xr.DataArray
    masks: dict[str, xr.DataArray]


@dataclass(frozen=True)
class Engine:
    """Applies steps to stacks on one device.

    Attributes
    ----------
    backend : Cpu or Gpu
    clock : Clock
    bad_values : {"error", "keep"}
        What to do about NaN, Inf, negative counts and saturated values in the input.
    block_bytes : int, optional
        Size of a block in float32.
    """

    backend: Any
    clock: Clock = field(default_factory=Clock)
    bad_values: str = "error"
    block_bytes: int | None = None

    def apply(self, stack: xr.DataArray, steps: Sequence[Step], **references: xr.DataArray | None) -> Applied:
        """Apply block-wise steps, lazily; only what a `fit` needs (a dose, averaged frames) is computed at once.

        Parameters
        ----------
        stack : xarray.DataArray
        steps : sequence of Step
        **references : xarray.DataArray or None
            ``open_beam`` and ``dark``.
        """
        return self._map(stack, self.fit(stack, steps, reading=True, **references))

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
        info, stages = StackInfo.of(stack), []
        for i, step in enumerate(steps):
            op, done = OPS[step.name], list(stages)
            before = Before(
                info,
                self._reference(open_beam, steps[:i], reading=reading),
                self._reference(dark, steps[:i], reading=reading),
                lambda done=done: self.to_host(self._map(stack, done).image),
            )
            state = dict(step.parameters)
            if op.check is not None:
                op.check(before, **state)
            if op.fit is not None and op.apply is not None and (reading or op.check is None):
                state = op.fit(before, **state)
            info = op.describe(info, **state)
            stages.append(Stage(step.name, op, state, info))
        return stages

    def _reference(self, stack: xr.DataArray | None, steps: Sequence[Step], *, reading: bool) -> xr.DataArray | None:
        """A reference after the steps that make sense for it: those whose axes it has; it is never normalized."""
        if stack is None:
            return None
        steps = [s for s in steps if s.name != "normalize" and OPS[s.name].whole <= set(stack.dims)]
        if "tof" not in stack.dims:
            steps = [s for s in steps if s.name != "assign_wavelength"]
        stages = self.fit(stack, steps, reading=reading)
        if reading:
            return self.to_host(self._map(stack, stages).image)
        info = stages[-1].info if stages else StackInfo.of(stack)
        return info.wrap(np.broadcast_to(np.zeros((), info.dtype), info.shape))

    def to_host(self, stack: xr.DataArray) -> xr.DataArray:
        """Bring a lazy stack's blocks to the host."""
        meta = np.empty((0,) * stack.ndim, stack.dtype)
        return stack.copy(data=stack.data.map_blocks(self.backend.to_host, dtype=stack.dtype, meta=meta))

    def _map(self, stack: xr.DataArray, stages: Sequence[Stage]) -> Applied:
        """Fuse the stages into one task a block."""
        import dask.array as da
        from dask import delayed

        whole = frozenset().union(*(stage.op.whole for stage in stages))
        halo = sum(stage.op.halo(**stage.state) for stage in stages)
        size = {} if self.block_bytes is None else {"block_bytes": self.block_bytes}
        regions = cut_regions(stack.dims, stack.shape, whole=whole, halo=halo, **size)
        axis = 0 if len(regions) > 1 and regions[0][0] != regions[1][0] else stack.ndim - 2
        outputs = _outputs(stack, stages)
        data = stack.data if hasattr(stack.data, "dask") else da.from_array(stack.data, chunks=-1, name=False)
        run = delayed(_BlockRun(self, stack, stages), pure=False)
        pieces: list[list[Any]] = [[] for _ in outputs]
        for region in regions:
            wide, inner = widen(region, stack.shape, halo=halo)
            spatial = [_at(value, stage.info.dims, wide) for stage in stages for value in _spatial(stage).values()]
            task = run(data[wide], _Opaque(wide), _Opaque(inner), *spatial)
            for k, (_, info, dtype) in enumerate(outputs):
                shape = list(info.shape)
                shape[axis] = region[axis].stop - region[axis].start
                pieces[k].append(da.from_delayed(task[k], shape=tuple(shape), dtype=dtype))
        image, *masks = (
            info.wrap(da.concatenate(piece, axis=axis), name=name)
            for (name, info, _), piece in zip(outputs, pieces, strict=True)
        )
        return Applied(image, {str(mask.name): mask for mask in masks})


class _Opaque:
    """Keeps Dask from looking for graphs inside a value."""

    def __init__(self, value: Any) -> None:
        self.value = value


class _BlockRun:
    """Takes one block through all stages."""

    def __init__(self, engine: Engine, stack: xr.DataArray, stages: Sequence[Stage]) -> None:
        self.backend, self.clock = engine.backend, engine.clock
        self.check = ValueCheck(stack.attrs.get("files", ()), bad_values=engine.bad_values)
        self.what = stack.attrs.get("role", "input")
        self.steps = []
        for stage in stages:
            plain = {k: v for k, v in stage.state.items() if k not in _spatial(stage)}
            self.steps.append((stage.name, stage.op, plain, list(_spatial(stage))))

    def __call__(self, block: np.ndarray, wide: _Opaque, inner: _Opaque, *spatial: Any) -> tuple[Any, ...]:
        backend, left, masks = self.backend, list(spatial), []
        with findings.collect(inner.value) as tally:
            self.check(block, wide.value)
        self.clock.add_findings(self.what, tally)
        with self.clock.timing("to device", block.nbytes):
            block = backend.from_host(block)
            left = [backend.from_host(np.asarray(value)) for value in left]
            backend.synchronize()
        for name, op, plain, names in self.steps:
            arrays = {key: left.pop(0) for key in names}
            with findings.collect(inner.value) as tally, self.clock.timing(name, block.nbytes):
                block = op.apply(block, **plain, **arrays)
                if op.mask:
                    block, mask = block
                    masks.append(mask)
                backend.synchronize()
            self.clock.add_findings(name, tally)
        return tuple(array[(..., *inner.value)] for array in (block, *masks))


def _outputs(stack: xr.DataArray, stages: Sequence[Stage]) -> list[tuple[str, StackInfo, np.dtype]]:
    """Name, axes and dtype of what a block's task returns: the image, then the masks."""
    last = stages[-1].info if stages else StackInfo.of(stack)
    masked = [stage.info for stage in stages if stage.op.mask]
    names = ["spots", *(f"spots_{n}" for n in range(2, len(masked) + 1))]
    return [("image", last, last.dtype), *((n, i, np.dtype(bool)) for n, i in zip(names, masked, strict=False))]


def _spatial(stage: Stage) -> dict[str, Any]:
    """The parts of a state that have axes, to be cut as the block is cut."""
    return {name: value for name, value in stage.state.items() if hasattr(value, "dims")}


def _at(value: xr.DataArray, dims: Sequence[str], region: Region) -> Any:
    """Cut a state array to the block's region, by the axes they share.

    Blocks of rows hold the whole first axis, whatever its length has become: its slice then cuts nothing off.
    """
    return value.isel({dim: s for dim, s in zip(dims, region, strict=True) if dim in value.dims}).data

"""One block's way through the steps: read, checked, brought to the device, worked on, cut to its own part."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu import findings
from niseg_gpu.backend import working_on
from niseg_gpu.chunks import BLOCK_BYTES, Region, cut_regions, locate, widen
from niseg_gpu.pipeline.clock import Clock
from niseg_gpu.pipeline.values import ValueCheck
from niseg_gpu.stack import dtype_for_steps

if TYPE_CHECKING:
    import xarray as xr

    from niseg_gpu.pipeline.ledger import Ledger


PARTS = 4  # blocks for each worker at least, so that none waits long for the last


def halo_of(stages: Sequence[Any]) -> tuple[int, int]:
    """What a block must see beyond its border to come through all stages: along the first axis, and in y and x.

    Rounded up to the grid, so that a block with its halo starts on it too.
    """
    halos = [stage.op.halo(**stage.state) for stage in stages]
    pairs = [halo if isinstance(halo, tuple) else (0, halo) for halo in halos]
    sums = (sum(first for first, _ in pairs), sum(pixels for _, pixels in pairs))
    first, pixels = (math.ceil(n / step) * step for n, step in zip(sums, grid_of(stages), strict=True))
    return first, pixels


def grid_of(stages: Sequence[Any]) -> tuple[int, int]:
    """What blocks must start at multiples of: along the first axis, and in y and x."""
    pairs = [stage.op.grid(**stage.state) for stage in stages]
    return math.lcm(*(first for first, _ in pairs)), math.lcm(*(pixels for _, pixels in pairs))


def cut_blocks(
    stack: Any, stages: Sequence[Any], *, whole: frozenset[str], parts: int, block_bytes: int = BLOCK_BYTES
) -> list[Region]:
    """Cut a stack (anything with dims and shape) into the blocks that go through all stages.

    Parameters
    ----------
    stack : xarray.DataArray or StackInfo
    stages : sequence of Stage
    whole : frozenset of str
        Axes that a block may not split, besides those the stages ask for.
    parts : int
        Blocks at least, where the halo allows it.
    block_bytes : int
        Of a block in float32.
    """
    frames, halo = halo_of(stages)
    return cut_regions(
        tuple(map(str, stack.dims)),
        stack.shape,
        whole=whole.union(*(stage.op.whole for stage in stages)),
        halo=halo,
        frames=frames,
        grid=grid_of(stages),
        parts=parts,
        block_bytes=block_bytes,
    )


def pictured_stage(stages: Sequence[Any]) -> int | None:
    """How many stages come before the first that scales every spectrum by itself, where one does.

    After it the mean over the spectra shows nothing; the mean image is taken before.
    """
    scaled = [i for i, stage in enumerate(stages) if stage.info.quantity == "scaled"]
    return scaled[0] if scaled else None


def lie_beside(region: Region, shape: tuple[int, ...], *, of: tuple[int, ...]) -> Region:
    """Where the block of a reference of shape `of` lies beside one at `region` of a stack of `shape`.

    The same rows, columns and, where they are cut, bins.
    """
    whole = region[0] == slice(0, shape[0])
    return (slice(0, of[0]) if whole else region[0], *region[1:])


class BlockRun:
    """Takes blocks of one stack through its stages.

    A state's parts are told apart by what they are: arrays with axes are cut to the block, a reference (it has
    stages of its own) is read and taken through them at the block's place, everything else goes to the step as it is.

    Parameters
    ----------
    backend : Cpu or Gpu
    clock : Clock
    stack : xarray.DataArray
    stages : sequence of Stage
    bad_values : {"error", "keep"}
    ledger : Ledger, optional
        Given what is found in each block, instead of the clock, and a sample of what comes to the stages that look for
        spots.
    """

    def __init__(
        self,
        backend: Any,
        clock: Clock,
        stack: xr.DataArray,
        stages: Sequence[Any],
        *,
        bad_values: str,
        ledger: Ledger | None = None,
    ) -> None:
        self.backend, self.clock, self.stack, self.stages = backend, clock, stack, stages
        self.halo, self.ledger = halo_of(stages), ledger
        self.pictured = pictured_stage(stages)
        role = stack.attrs.get("role", "sample")
        self.of = "" if role == "sample" else f"{role.replace('_', ' ')}: "
        self.check = ValueCheck(stack.attrs.get("files", ()), bad_values=bad_values)
        self.references = {
            (i, name): BlockRun(backend, clock, value.raw, value.stages, bad_values=bad_values, ledger=ledger)
            for i, stage in enumerate(stages)
            for name, value in stage.state.items()
            if hasattr(value, "stages")
        }

    def arguments(self, region: Region) -> list[Any]:
        """What Dask must bring for `region`: this stack's block, then those of its references."""
        wide = widen(region, self.stack.shape, halo=self.halo)
        found = [_block(self.stack.data, wide)]
        for run in self.references.values():
            found += run.arguments(lie_beside(wide, self.stack.shape, of=run.stack.shape))
        return found

    def at(self, region: Region) -> Callable[..., tuple[Any, ...]]:
        """The function of one block's task: the image at `region`, the masks, the mean image where one is taken."""
        return partial(self._work, region)

    def _work(self, region: Region, *blocks: np.ndarray) -> tuple[Any, ...]:
        with working_on(self.backend):
            return tuple(self._take(region, list(blocks), own=region))

    def _take(self, region: Region, left: list[np.ndarray], *, own: Region) -> list[Any]:
        """Take the next block of `left` through the stages; of what is found, `own` is counted."""
        wide = widen(region, self.stack.shape, halo=self.halo)
        counted, block = locate(own, within=wide), left.pop(0)
        aside = {
            key: run._take(lie_beside(wide, self.stack.shape, of=run.stack.shape), left, own=own)[0]
            for key, run in self.references.items()
        }
        with findings.collect(counted) as tally:
            self.check(block, wide)
        block = block.astype(dtype_for_steps(block.dtype), copy=False)
        self._note(own, "input", tally)
        with self.clock.timing("to device", block.nbytes):
            block = self.backend.from_host(block)
            self.backend.synchronize()
        masks, pictures = [], []
        if self.pictured == 0:
            pictures.append(self.backend.xp.mean(block, axis=0, dtype=self.backend.xp.float32))
        for i, stage in enumerate(self.stages):
            block = block.astype(dtype_for_steps(block.dtype), copy=False)
            self._sample(own, i, block, inner=counted[-block.ndim :])
            state = {name: aside.get((i, name), self._local(value, wide, stage)) for name, value in stage.state.items()}
            with findings.collect(counted) as tally, self.clock.timing(stage.name, block.nbytes):
                block = stage.op.apply(block, **state)
                if stage.op.mask:
                    block, mask = block
                    masks.append(mask)
                self.backend.synchronize()
            self._note(own, stage.name, tally)
            if self.pictured == i + 1:
                pictures.append(self.backend.xp.mean(block, axis=0, dtype=self.backend.xp.float32))
        inner = locate(region, within=wide)
        return [array[inner[-array.ndim :]] for array in (block, *masks, *pictures)]

    def _note(self, own: Region, step: str, tally: Mapping[str, Any]) -> None:
        if self.ledger is None:
            self.clock.add_findings(f"{self.of}{step}", tally)
        else:
            self.ledger.add_findings(own, f"{self.of}{step}", tally)

    def _sample(self, own: Region, stage: int, block: Any, *, inner: tuple[slice, ...]) -> None:
        if self.ledger is None or self.of or stage not in self.ledger.samples.steps:
            return
        with self.clock.timing("sample for the report", 0):
            self.ledger.add_samples(own, stage, self.ledger.samples.take(stage, block, own, inner=inner))

    def _local(self, value: Any, wide: Region, stage: Any) -> Any:
        """Cut a state's array to the block, by the axes they share.

        Blocks of rows hold the whole first axis, whatever its length has become: its slice then cuts nothing off.
        """
        if not hasattr(value, "dims"):
            return value
        cut = {dim: s for dim, s in zip(stage.info.dims, wide, strict=True) if dim in value.dims}
        return self.backend.from_host(value.isel(cut).values)


def _block(data: Any, region: Region) -> Any:
    """A Delayed of one block.

    An array that is a single chunk just read is cut at once, so that a block reads its own part and no more;
    of any other the pieces keep their names, so that neighbours share them and nothing is computed twice.
    """
    import dask.array as da

    if not hasattr(data, "dask"):
        data = da.from_array(data, chunks=-1, name=False)
    just_read = data.npartitions == 1 and len(data.dask.layers) <= 2
    return data[region].rechunk(-1).to_delayed(optimize_graph=just_read).item()

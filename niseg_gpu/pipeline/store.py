"""Computing every block once, and writing it wherever it is wanted: arrays on disk, the table of spectra, sums."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.backend import CPU
from niseg_gpu.io.gate import gated
from niseg_gpu.kmeans.step import is_table_large, open_table
from niseg_gpu.kmeans.table import PixelTable
from niseg_gpu.pipeline.checkpoint import BrokenRun
from niseg_gpu.pipeline.engine import Applied
from niseg_gpu.pipeline.ledger import Ledger
from niseg_gpu.pipeline.progress import show_progress
from niseg_gpu.pipeline.sinks import FetchTarget, HostTarget, NotedTarget, ProgressTarget, SumTarget
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.spots import MANY_SPOTS

if TYPE_CHECKING:
    import xarray as xr

    from niseg_gpu.pipeline.run import Session

WALL = "all blocks, by the clock on the wall"


def store_blocks(
    session: Session, applied: Applied, group: Any, *, ledger: Ledger, quiet: bool, folder: Path | None = None
) -> tuple[PixelTable | None, dict[str, SumTarget]]:
    """Compute every block that the ledger does not know as done; return the table of spectra and the sums.

    A table that is large for the memory goes to a file in `folder`, where one is given.
    """
    backend, clock, kept = session.engine.backend, session.clock, session.pipeline.output.arrays
    image, masks, mean_image = applied.image, applied.masks, applied.mean_image
    pairs: list[tuple[xr.DataArray, Any]] = []
    table = None
    if session.last_step is not None:
        table, target = make_table(session, image, folder=folder)
        pairs.append((image, target))
    sums = {"image": _sum(image, "image", np.float64, session, ledger)}
    if "spots" in masks:
        sums["spots"] = _sum(masks["spots"], "spots", np.uint32, session, ledger)
        pairs.append((masks["spots"], sums["spots"]))
    if mean_image is not None:
        sums["mean_image"] = _sum(mean_image, "mean_image", np.float64, session, ledger)
        pairs.append((mean_image, sums["mean_image"]))
    for stack in (image, *masks.values()):
        if ("image" if stack is image else "spots") in kept:
            array = _open_array(group, stack, image)
            pairs.append((stack, HostTarget(array, backend=backend, clock=clock)))
            if stack is image and table is not None:
                _read_back(array, target, ledger=ledger, backend=backend)
    pairs.append((image, sums["image"]))
    with show_progress("blocks", total=image.size, quiet=quiet) as progress:
        left = sum(part.stop - part.start for part in ledger.left)
        progress(image.size // image.shape[ledger.axis] * (image.shape[ledger.axis] - left))
        pairs.append((image, ProgressTarget(progress)))  # last, so that the bar moves when a block is done with
        with clock.timing(WALL, session.inputs.nbytes):
            _store(pairs, ledger)
    return table, sums


def _store(pairs: Sequence[tuple[xr.DataArray, Any]], ledger: Ledger) -> None:
    """Compute what is left of all stacks at once, and write it."""
    import dask.array as da

    if not ledger.left:
        return
    ledger.count_writes(len(pairs))
    with gated([NotedTarget(target, ledger=ledger) for _, target in pairs]) as targets:
        if not ledger.done:
            da.store([stack.data for stack, _ in pairs], targets, lock=False)
            return
        sources, places, into = [], [], []
        for (stack, _), target in zip(pairs, targets, strict=True):
            for part in ledger.left:
                places.append(_at(part, ledger.axis, stack.ndim))
                sources.append(stack.data[places[-1]])
                into.append(target)
        da.store(sources, into, regions=places, lock=False)


def _at(place: slice, axis: int, ndim: int) -> tuple[slice, ...]:
    """An array's part at `place` along `axis`, which is counted from the last."""
    where = [slice(None)] * ndim
    where[axis] = place
    return tuple(where)


def _sum(stack: xr.DataArray, name: str, dtype: Any, session: Session, ledger: Ledger) -> SumTarget:
    return SumTarget(name, backend=session.engine.backend, ledger=ledger, shape=stack.shape, dtype=dtype)


def _open_array(group: Any, stack: xr.DataArray, image: xr.DataArray) -> Any:
    """Make the array that keeps a stack, or open that of the run to go on with."""
    from niseg_gpu.io.zarr import align_chunks, create_array

    name = str(stack.name)
    if name in group:
        return group[name]
    return create_array(
        group,
        name,
        shape=stack.shape,
        dtype=stack.dtype,
        dims=_mask_dims(stack, image),
        chunks=align_chunks(stack.chunks, itemsize=stack.dtype.itemsize),
        attrs=_describe(stack) if stack is image else {"quantity": "mask"},
    )


def _describe(image: xr.DataArray) -> dict[str, Any]:
    """What an image says of itself; not of which files it was made, which may be thousands and stand in the record."""
    kept = {name: value for name, value in image.attrs.items() if name != "files"}
    return {**kept, "units": image.attrs.get("quantity", "")}


def _read_back(array: Any, target: Any, *, ledger: Ledger, backend: Any) -> None:
    """Bring the blocks that are done from the disk to the table of spectra."""
    for number in sorted(ledger.done):
        where = _at(ledger.regions[number][ledger.axis], ledger.axis, array.ndim)
        try:
            with ledger.clock.timing("read", 0):
                block = array[where]
        except (OSError, RuntimeError, ValueError) as error:
            what = f"{array.store_path.store.root / array.path} of the unfinished run can't be read back"
            raise BrokenRun(f"{what} ({error}); begin anew with --overwrite") from error
        target[where] = backend.from_host(block)


def warn_of_many_spots(session: Session, number: int, *, of: int) -> None:
    """Say so where more than a tenth of all values were taken for spots: then whatever tells them is off."""
    if number > MANY_SPOTS * of:
        first = next(step.name for step in session.pipeline.steps if OPS[step.name].mask)
        cause = "the threshold is too low" if first == "remove_spots" else "the model suits other images"
        what = f"of {of} values ({100 * number // of} %) were taken for spots: {cause}"
        session.clock.add_findings("warning", {what: number})


def open_target(
    backend: Any, image: xr.DataArray, *, folder: Path | None, fetched: bool = False, **parameters: Any
) -> tuple[PixelTable, Any]:
    """Make a table for k-means with these parameters, and what the blocks are written to.

    It is the host's where it was asked to be, or where it is large and goes to a file in `folder`.
    """
    if folder is not None and not is_table_large(CPU if fetched else backend, image, **parameters):
        folder = None
    if folder is None and not fetched:
        table = open_table(backend, image, **parameters)
        return table, table
    table = open_table(CPU, image, folder=folder, **parameters)
    return table, FetchTarget(table, backend=backend)


def make_table(session: Session, image: xr.DataArray, *, folder: Path | None = None) -> tuple[PixelTable, Any]:
    """The same for the last step of a session; on the host where workers are to get it."""
    assert session.last_step is not None
    how = {"folder": folder, "fetched": session.client is not None}
    return open_target(session.engine.backend, image, **how, **session.last_step.parameters)


def store_table(session: Session, image: xr.DataArray, *, folder: Path, progress: Any) -> PixelTable:
    """Compute every block once and gather the spectra; nothing is kept on disk, but a large table while it is used."""
    import dask.array as da

    table, target = make_table(session, image, folder=folder)
    with gated([target, ProgressTarget(progress)]) as targets:
        da.store([image.data, image.data], targets, lock=False)
    return table


def _mask_dims(stack: xr.DataArray, image: xr.DataArray) -> tuple[str, ...]:
    """Axis names; a ToF axis of another length than the image's gets a name of its own."""
    return tuple(
        f"{dim}_{stack.name}" if image.sizes.get(dim) != size else dim
        for dim, size in zip(map(str, stack.dims), stack.shape, strict=True)
    )

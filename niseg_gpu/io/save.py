"""Save a stack in the format its file name asks for; it appears under that name only when whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.io.gate import gated
from niseg_gpu.io.paths import read_path
from niseg_gpu.io.staged import staged
from niseg_gpu.io.writers import create_hdf5, create_npy, create_tiff
from niseg_gpu.io.zarr import create_zarr

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

_BLOCK_BYTES = 16 * 2**20  # pieces in which values that are in memory already are written
_FORMATS: dict[str, Callable[..., tuple[Any, Any]]] = {
    ".zarr": create_zarr,
    ".tif": create_tiff,
    ".tiff": create_tiff,
    ".h5": create_hdf5,
    ".hdf5": create_hdf5,
    ".nxs": create_hdf5,
    ".npy": create_npy,
}


def save(
    stack: xr.DataArray, path: str | Path, *, overwrite: bool = False, provenance: Mapping[str, Any] | None = None
) -> Path:
    """Save a stack, computing and writing it block by block.

    Parameters
    ----------
    stack : xarray.DataArray
        Numbers or bool over Dask or NumPy, any shape that the format takes.
    path : str or Path
        ``.zarr``, ``.tif``/``.tiff``, ``.h5``/``.hdf5``/``.nxs`` or ``.npy``.
    overwrite : bool
        Replace what is there. The old one stays until the new one is whole, so `stack` may be read from it.
    provenance : mapping, optional
        How it was made; kept as JSON in all formats but ``.npy``, which holds values only.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    UserError
        If the ending is unknown, `path` exists, its folder is missing or not writable, the disk is full, or the
        format cannot hold the values unchanged.
    """
    path = read_path(path, who="save")
    if not hasattr(stack, "dims") or not hasattr(stack, "data"):
        raise UserError(
            f"save got a {type(stack).__name__}; needed: an xarray.DataArray, such as "
            'xarray.DataArray(values, dims=("y", "x"))'
        )
    save_together({path: stack}, overwrite=overwrite, provenance=provenance)
    return path


def save_together(
    stacks: Mapping[Path, xr.DataArray], *, overwrite: bool = False, provenance: Mapping[str, Any] | None = None
) -> None:
    """Save several stacks in one pass over their blocks, so that what they share is computed once; see `save`."""
    for path in stacks:
        check_target(path, overwrite=overwrite)
    check_apart(list(stacks))
    blocks = {path: _as_blocks(stack, path) for path, stack in stacks.items()}
    try:
        with ExitStack() as moves:
            targets = []
            for path, stack in stacks.items():
                create = _FORMATS[path.suffix.lower()]
                partial = moves.enter_context(staged(path, folder=path.suffix.lower() == ".zarr"))
                blocks[path], target = create(partial, stack, blocks[path], provenance=provenance)
                targets.append(target)
            _store(list(blocks.values()), targets)
            for path in stacks:
                check_target(path, overwrite=overwrite)
    except OSError as error:
        first = next(iter(stacks))
        if error.errno == errno.ENOMEM:
            raise
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"{first} can't be written: {error.strerror or error} ({error.filename or first})"
            ) from error
        free, need = shutil.disk_usage(first.parent).free / 1e9, sum(data.nbytes for data in blocks.values()) / 1e9
        raise UserError(
            f"{first}: no room: {need:.2f} GB to write, {free:.2f} GB free; free some or save elsewhere"
        ) from error


def _store(blocks: list[da.Array], targets: list[Any]) -> None:
    import dask.array as da

    with gated(targets) as gates:
        da.store(blocks, gates, lock=False)


def _as_blocks(stack: xr.DataArray, path: Path) -> da.Array:
    import dask.array as da

    data = stack.data
    if data.dtype.kind not in "biuf" or data.dtype.itemsize > 8:
        raise UserError(f"{path}: values of type {data.dtype}; allowed: real numbers and bool; convert with .astype")
    if data.ndim == 0 or not all(length >= 1 for length in data.shape):  # NaN, too, where Dask does not know
        raise UserError(f"{path}: shape {data.shape}; needed: 1 or more dimensions of known length, none of it 0")
    if not isinstance(data, da.Array):
        rows = max(1, _BLOCK_BYTES * data.shape[0] // max(1, data.nbytes))
        data = da.from_array(data, chunks=(min(rows, data.shape[0]), *data.shape[1:]), name=False)
    native = data.dtype.newbyteorder("=")
    return data if data.dtype == native else data.astype(native)


def check_apart(paths: Sequence[Path]) -> None:
    """Raise a UserError if two of `paths` are one place, or one lies in another: the second would replace the first."""
    places = [path.resolve() for path in paths]
    for i, place in enumerate(places):
        for j, other in enumerate(places):
            if i != j and place.is_relative_to(other):
                where = "twice" if place == other else f"inside {paths[j]}"
                raise UserError(f"{paths[i]} is to be written {where}; give each output a place of its own")


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise a UserError if `path` names no known format or can't be written."""
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"{path}: unknown ending {path.suffix!r}{suggest(path.suffix, _FORMATS)}")
    if not path.parent.is_dir():
        raise UserError(f"{path}: no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: folder {path.parent} is not writable; choose another")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(f"{path}: exists; choose another name, or replace it with overwrite (--overwrite)")
    is_store = any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zarray"))
    if path.is_dir() and not (path.suffix.lower() == ".zarr" and is_store):
        raise UserError(f"{path}: is a folder and no Zarr store, never overwritten; choose another name")

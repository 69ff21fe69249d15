"""One way in: whatever lies on disk becomes one ``xarray.DataArray`` over Dask."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.io.bad import BadFrame, Faults, check_choice, need_frames, tell_bad_frames, treat_bad_frames
from niseg_gpu.io.frames import FITS, TIFF, list_frames
from niseg_gpu.io.paths import read_path
from niseg_gpu.io.source import LazyArray, Source

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

AXES = ("tof", "angle", "z", "y", "x")
HDF5 = (".h5", ".hdf5", ".hdf", ".nxs", ".nx5")
CHUNK_BYTES = 16 * 2**20
MAX_DECODED = 32  # compressed frames in one task: few, for a slice of one decodes them all

DECODED = "decode-"  # what Dask's layers of frames that are decoded whole begin with

log = logging.getLogger(__name__)


def open_stack(
    path: str | Path,
    *,
    dims: Sequence[str] | None = None,
    unsigned: bool = False,
    tof: str = "auto",
    bad_frames: str = "error",
    chunks: tuple[int, ...] | None = None,
) -> xr.DataArray:
    """Open a stack lazily.

    Parameters
    ----------
    path : str or Path
        A folder or glob of FITS or TIFF frames, a multi-page TIFF, a FITS cube, ``.npy``, ``.npz``, a grey ``.png``,
        ``file.h5:/entry/data``, NXtomo, ``stack.zarr`` or ``result.zarr:name``.
    dims : sequence of str, optional
        Names of the axes as they lie in the file, of ``tof``, ``angle``, ``z``, ``y``, ``x``, where the file
        can't tell: ``(y, x, tof)`` cubes exist. The result is always ordered (…, y, x).
    unsigned : bool
        Read signed integer counts that wrapped to negative as the unsigned ones the detector meant.
    tof : {"auto", "spectra", "headers"}
        Whose ToF to believe: the ``Spectra`` file's or the FITS headers'.
    bad_frames : {"error", "skip", "interpolate"}
        What to do about frames of a folder or glob that are missing, truncated, unreadable or unlike the others: refuse
        them, leave them out with their coordinates, or take the mean of the nearest good frames before and after, of
        the same shutter window (the nearest one where there are none on one side). Compressed frames are then decoded
        once in opening. They are logged, and named in the attribute ``bad_frames``.
    chunks : tuple of int, optional
        Dask chunk shape in the order of the result; about 16 MiB of whole frames by default. Compressed frames are
        always read whole, 32 at most at a time.

    Returns
    -------
    xarray.DataArray
        Dims such as ``("tof", "y", "x")``, ``angle`` for frames without a time, ``z`` for pages that have no name,
        none for a lone frame; in the dtype of the file (native byte order); coordinates ``tof``
        and ``tof_width`` in s where known; attributes ``quantity``, ``files``, ``shutter_counts``,
        ``shutter_windows`` where known.

    Raises
    ------
    UserError
        Something the user must mend; it names the file.
    """
    source = open_source(path, unsigned=unsigned, tof=tof, bad_frames=bad_frames)
    need_frames(bad_frames, [source])
    for what, number in tell_bad_frames(source, choice=bad_frames).items():
        log.warning("%d %s", number, what)
    return as_stack(treat_bad_frames(source, choice=bad_frames), dims=dims, chunks=chunks)


def open_source(path: str | Path, *, unsigned: bool = False, tof: str = "auto", bad_frames: str = "error") -> Source:
    """Find the reader for `path` and let it look at the file; see `open_stack`.

    Bad frames are still in it: with ``skip`` and ``interpolate`` its ``faults`` say which, for `treat_bad_frames`.
    """
    check_choice(bad_frames)
    if tof not in ("auto", "spectra", "headers"):
        raise UserError(f"tof is {tof!r}; allowed: auto, spectra, headers")
    file, inner = split_inner(path)
    suffix = file.suffix.lower()
    if suffix == ".zarr":
        from niseg_gpu.io.zarr import open_zarr

        source = open_zarr(file, inner)
    elif suffix in (".npy", ".npz"):
        from niseg_gpu.io.npy import open_npy

        source = open_npy(Path(path))
    elif suffix == ".png":
        from niseg_gpu.io.png import open_png

        source = open_png(file)
    elif suffix in HDF5:
        from niseg_gpu.io.hdf5 import open_hdf5

        source = open_hdf5(file, inner)
    else:
        source = _open_frames(Path(path), tof=tof, bad_frames=bad_frames)
    if unsigned and np.dtype(source.array.dtype).kind == "i":
        return replace(source, array=_Reinterpreted(source.array))
    return source


def split_inner(path: str | Path) -> tuple[Path, str | None]:
    """Split ``file.h5:/entry/data`` into the file and the name inside it."""
    text = str(read_path(path, who="open_stack"))
    for suffix in (*HDF5, ".zarr", ".npz"):
        head, mark, inner = text.rpartition(f"{suffix}:")
        if mark:
            return Path(head + suffix), inner
    return Path(text), None


def _open_frames(path: Path, *, tof: str, bad_frames: str) -> Source:
    if not path.exists() and not any(c in str(path) for c in "*?["):
        raise UserError(f"{path} does not exist; name a folder, file or glob of frames, or a .npy, .h5 or .zarr file")
    frames = list_frames(path, fill_gaps=bad_frames != "error")
    kind = frames[0].suffix.lower()
    if kind in FITS:
        from niseg_gpu.io.fits import open_fits as open_kind
    elif kind in TIFF:
        from niseg_gpu.io.tiff import open_tiff as open_kind
    else:
        allowed = (*FITS, *TIFF, ".npy", ".npz", ".png", *HDF5, ".zarr")
        raise UserError(f"{frames[0]}: unknown format {kind!r}{suggest(kind, allowed)}")
    faults = Faults(note=bad_frames != "error" and len(frames) > 1)
    try:
        source = open_kind(frames, faults=faults)
    except BadFrame as fault:
        raise (fault if len(frames) > 1 else UserError(str(fault))) from None
    faults.check_number(path, len(frames))
    source = replace(source, faults={i: faults.found[i].fault for i in sorted(faults.found)})
    if len(frames) == 1:  # an image, or a stack that told itself what it is
        return source if source.dims or len(source.files) > 1 else replace(source, coords={})
    from niseg_gpu.io.sidecars import read_sidecars

    coords, attrs = read_sidecars(frames, source.coords.get("tof"), tof=tof, part=not path.is_dir())
    if not coords:
        return replace(source, dims=("angle", "y", "x"), coords={}, attrs={})
    header_width = source.coords.get("tof_width")
    if header_width is not None and tof != "spectra":
        header_width = np.where(np.isnan(header_width), coords["tof_width"], header_width)  # of bad frames
        if np.all(header_width > 0):
            coords["tof_width"] = header_width
    return replace(source, dims=("tof", "y", "x"), coords=coords, attrs=attrs)


class _Reinterpreted:
    """Signed integers read as unsigned ones of the same width."""

    def __init__(self, array: LazyArray) -> None:
        self.array, self.shape, self.ndim = array, array.shape, len(array.shape)
        self.dtype = np.dtype(f"u{array.dtype.itemsize}")
        self.kept = getattr(array, "kept", "")

    def take(self, frames: Sequence[int]) -> _Reinterpreted:
        return _Reinterpreted(self.array.take(frames))

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(self.array[key]).view(self.dtype)


def as_stack(
    source: Source, *, dims: Sequence[str] | None = None, chunks: tuple[int, ...] | None = None
) -> xr.DataArray:
    """Wrap what a reader found into a DataArray over Dask, ordered (…, y, x); see `open_stack`."""
    import dask.array as da
    import xarray as xr

    dims, single = _name_axes(source, dims)
    order = sorted(range(len(dims)), key=lambda i: AXES.index(dims[i]))
    array = _Indexed(source.array, order)
    if chunks is None:
        chunks = tuple(_default_chunks(array.shape, array.dtype.itemsize))
    if len(chunks) != array.ndim:
        raise UserError(f"chunks is {chunks}; needed: one length for each of {array.ndim} axes")
    if any(isinstance(n, int) and n < 1 and n != -1 for n in chunks):
        raise UserError(f"chunks is {chunks}; allowed: lengths from 1 on, or -1 for a whole axis")
    chunks = tuple(min(n, most) if isinstance(n, int) else n for n, most in zip(chunks, array.shape, strict=True))
    block = [source.block[i] for i in order] if len(source.block) == len(order) else [1] * len(order)
    if block[-2] == array.shape[-2] > 1:
        data = _whole_frames(array, block[0], chunks)
    else:
        data = da.from_array(array, chunks=chunks, name=False, lock=False, meta=_meta(array))
    names = tuple(dims[i] for i in order)
    if single:
        data, names = data[0], names[1:]
    attrs = {"quantity": "counts", **source.attrs, "files": list(source.files)}
    stack = xr.DataArray(data, dims=names, name="image", attrs=attrs)
    for name, values in source.coords.items():
        axis = "angle" if name == "angle" else "tof"
        if axis in stack.dims and len(values) == stack.sizes[axis]:
            unit = {"angle": "degree", "wavelength": "angstrom"}.get(name, "s")
            stack = stack.assign_coords({name: (axis, values, {"units": unit})})
    return stack


class _Indexed:
    """A lazy array with its axes in another order, for all that Dask asks for: slices, steps and whole numbers.

    What is asked for is read, and no other frame.
    """

    def __init__(self, array: LazyArray, order: Sequence[int]) -> None:
        self.array, self.order, self.ndim = array, tuple(order), len(order)
        self.shape, self.dtype = tuple(array.shape[i] for i in order), np.dtype(array.dtype)

    def __getitem__(self, key: tuple[slice | int, ...]) -> np.ndarray:
        inside = [range(0)] * self.ndim
        for axis, part in zip(self.order, key, strict=True):
            inside[axis] = range(self.array.shape[axis])[part if isinstance(part, slice) else slice(part, part + 1)]
        values = self._read(inside).transpose(self.order)
        return np.asarray(values[tuple(slice(None) if isinstance(part, slice) else 0 for part in key)], order="C")

    def _read(self, ranges: list[range]) -> np.ndarray:
        first, *rest = ranges
        if first.step != 1 and len(first) > 1:
            return np.concatenate([self._read([range(i, i + 1), *rest]) for i in first])
        lows = [min(r, default=0) for r in ranges]
        values = self.array[tuple(slice(low, max(r, default=-1) + 1) for low, r in zip(lows, ranges, strict=True))]
        return np.asarray(values)[tuple(slice(None, None, r.step) for r in ranges)]


def _meta(array: LazyArray) -> np.ndarray:
    return np.empty((0,) * len(array.shape), array.dtype)


def _whole_frames(array: LazyArray, block: int, chunks: tuple[int, ...]) -> da.Array:
    """Frames that must be decoded whole: one task a group of frames, so that slicing never decodes one twice.

    `block` frames are decoded in one go, so no group ends within a block.
    """
    import dask.array as da
    from dask.array.core import normalize_chunks

    thick = array.shape[0]
    if array.ndim > 2:
        fitting = CHUNK_BYTES // (math.prod(array.shape[1:]) * array.dtype.itemsize)
        thick = min(thick, MAX_DECODED, fitting, chunks[0] if chunks[0] > 0 else thick)
        thick = max(1, thick // block) * block
    whole = normalize_chunks((min(thick, array.shape[0]), *array.shape[1:]), array.shape, dtype=array.dtype)

    name = f"{DECODED}{uuid.uuid4().hex}"  # never the old values of a file written anew
    read = partial(_read_block, array)
    return da.map_blocks(read, chunks=whole, dtype=array.dtype, meta=_meta(array), name=name)


def count_decoded(stack: xr.DataArray, *, at_once: int, in_rows: bool) -> int:
    """Bytes of frames that are decoded whole and wait, besides what is cut from them, until all blocks have theirs.

    Parameters
    ----------
    stack : xarray.DataArray
    at_once : int
        Blocks that are worked on at once.
    in_rows : bool
        Whether blocks are rows of all frames, so that each needs some of all that is decoded.
    """
    data = stack.data
    if not any(name.startswith(DECODED) for name in getattr(getattr(data, "dask", None), "layers", ())):
        return 0
    if data.npartitions == 1:  # decoded for each block anew
        return at_once * stack.nbytes
    piece = math.prod(data.chunksize) * data.dtype.itemsize
    return stack.nbytes if in_rows else min(stack.nbytes, (at_once + 1) * piece)


def _read_block(array: LazyArray, block_info: Any = None) -> np.ndarray:
    return array[tuple(slice(a, b) for a, b in block_info[None]["array-location"])]


def _name_axes(source: Source, dims: Sequence[str] | None) -> tuple[tuple[str, ...], bool]:
    """The axes' names in file order, and whether the first is a lone frame's axis to be dropped."""
    ndim = len(source.array.shape)
    where = source.files[0]
    if dims is not None:
        dims = tuple(dims)
        for name in dims:
            if name not in AXES:
                raise UserError(f"dims names the axis {name!r}{suggest(name, AXES)}")
        if len(set(dims)) != len(dims) or not {"y", "x"} <= set(dims):
            raise UserError(f"dims is {dims}; each axis once, y and x among them")
        if dims == ("y", "x") and ndim == 3 and source.array.shape[0] == 1:
            return ("z", "y", "x"), True
        if len(dims) != ndim:
            raise UserError(f"dims names {len(dims)} axes {dims}, {where} has {ndim} {source.array.shape}")
        return dims, False
    if source.dims is not None:
        named = tuple(name if name in AXES else name.partition("_")[0] for name in source.dims)  # a run's tof_spots
        if not set(named) <= set(AXES) or len(set(named)) < len(named):
            raise UserError(
                f"{where}: the array's axes are {', '.join(source.dims)}; allowed: {', '.join(AXES)}, each once; name "
                "another array, or the axes with dims"
            )
        return named, False
    if ndim == 2:
        return ("y", "x"), False
    if ndim == 3:
        return ("z", "y", "x"), source.array.shape[0] == 1
    raise UserError(f"{where} has {ndim} axes {source.array.shape}; allowed: 2 or 3")


def _default_chunks(shape: Sequence[int], itemsize: int) -> list[int]:
    if len(shape) < 3:
        return list(shape)
    frame = int(np.prod(shape[1:])) * itemsize
    return [max(1, min(shape[0], CHUNK_BYTES // max(1, frame))), *shape[1:]]

"""One way in: whatever lies on disk becomes one ``xarray.DataArray`` over Dask."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.io.frames import FITS, TIFF, list_frames
from niseg_gpu.io.source import LazyArray, Source

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

AXES = ("tof", "angle", "z", "y", "x")
HDF5 = (".h5", ".hdf5", ".hdf", ".nxs", ".nx5")
CHUNK_BYTES = 64 * 2**20

log = logging.getLogger(__name__)


def open_stack(
    path: str | Path,
    *,
    dims: Sequence[str] | None = None,
    unsigned: bool = False,
    tof: str = "auto",
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
    chunks : tuple of int, optional
        Dask chunk shape in the order of the result; about 64 MiB of whole frames by default.

    Returns
    -------
    xarray.DataArray
        Dims such as ``("tof", "y", "x")``, in the dtype of the file (native byte order); coordinates ``tof``
        and ``tof_width`` in s where known; attributes ``quantity``, ``files``, ``shutter_counts``,
        ``shutter_windows`` where known.

    Raises
    ------
    UserError
        Something the user must mend; it names the file.
    """
    return as_stack(open_source(path, unsigned=unsigned, tof=tof), dims=dims, chunks=chunks)


def open_source(path: str | Path, *, unsigned: bool = False, tof: str = "auto") -> Source:
    """Find the reader for `path` and let it look at the file; see `open_stack`."""
    if tof not in ("auto", "spectra", "headers"):
        raise UserError(f"tof is {tof!r}; allowed: auto, spectra, headers")
    file, inner = split_inner(path)
    suffix = file.suffix.lower()
    if suffix == ".zarr":
        from niseg_gpu.io.zarr import open_zarr

        return open_zarr(file, inner)
    if suffix in (".npy", ".npz"):
        from niseg_gpu.io.npy import open_npy

        return _as_unsigned(open_npy(Path(path)), unsigned=unsigned)
    if suffix == ".png":
        from niseg_gpu.io.png import open_png

        return open_png(file)
    if suffix in HDF5:
        from niseg_gpu.io.hdf5 import open_hdf5

        return _as_unsigned(open_hdf5(file, inner), unsigned=unsigned)
    return _open_frames(Path(path), unsigned=unsigned, tof=tof)


def split_inner(path: str | Path) -> tuple[Path, str | None]:
    """Split ``file.h5:/entry/data`` into the file and the name inside it."""
    text = str(path)
    for suffix in (*HDF5, ".zarr", ".npz"):
        head, mark, inner = text.rpartition(f"{suffix}:")
        if mark:
            return Path(head + suffix), inner
    return Path(text), None


def _open_frames(path: Path, *, unsigned: bool, tof: str) -> Source:
    if not path.exists() and not any(c in str(path) for c in "*?["):
        raise UserError(f"{path} does not exist; name a folder, file or glob of frames, or a .npy, .h5 or .zarr file")
    frames = list_frames(path)
    kind = frames[0].suffix.lower()
    if kind in FITS:
        from niseg_gpu.io.fits import open_fits as open_kind
    elif kind in TIFF:
        from niseg_gpu.io.tiff import open_tiff as open_kind
    else:
        allowed = (*FITS, *TIFF, ".npy", ".npz", ".png", *HDF5, ".zarr")
        raise UserError(f"{frames[0]}: unknown format {kind!r}{suggest(kind, allowed)}")
    source = open_kind(frames, unsigned=unsigned)
    if source.dims is not None or len(source.files) != len(frames):  # it told itself what it is
        return source
    from niseg_gpu.io.sidecars import read_sidecars

    coords, attrs = read_sidecars(frames, source.coords.get("tof"), tof=tof)
    if not coords or (len(frames) == 1 and "shutter_windows" not in attrs):
        dims = ("angle", "y", "x") if len(frames) > 1 else None
        return Source(source.array, source.files, dims, source.block)
    header_width = source.coords.get("tof_width")
    if header_width is not None and len(header_width) == len(coords["tof"]):
        coords["tof_width"] = header_width
    return Source(source.array, source.files, ("tof", "y", "x"), source.block, coords, attrs)


class _Reinterpreted:
    """Signed integers read as unsigned ones of the same width."""

    def __init__(self, array) -> None:
        self.array, self.shape, self.ndim = array, array.shape, len(array.shape)
        self.dtype = np.dtype(f"u{array.dtype.itemsize}")

    def __getitem__(self, key) -> np.ndarray:
        return np.asarray(self.array[key]).view(self.dtype)


def _as_unsigned(source: Source, *, unsigned: bool) -> Source:
    if not unsigned or np.dtype(source.array.dtype).kind != "i":
        return source
    return Source(_Reinterpreted(source.array), source.files, source.dims, source.block, source.coords, source.attrs)


def as_stack(
    source: Source, *, dims: Sequence[str] | None = None, chunks: tuple[int, ...] | None = None
) -> xr.DataArray:
    """Wrap what a reader found into a DataArray over Dask, ordered (…, y, x); see `open_stack`."""
    import dask.array as da
    import xarray as xr

    dims, single = _name_axes(source, dims)
    order = sorted(range(len(dims)), key=lambda i: AXES.index(dims[i]))
    shape = source.array.shape
    if chunks is None:
        chunks = tuple(_default_chunks([shape[i] for i in order], source.array.dtype.itemsize))
    array = source.array if order == sorted(order) else _Reordered(source.array, order)
    if len(source.block) == len(shape) and source.block[-2] == shape[-2] and source.block[-2] > 1:
        data = _whole_frames(array, chunks)
    else:
        data = da.from_array(array, chunks=chunks, name=False, lock=False, meta=_meta(array))
    names = tuple(dims[i] for i in order)
    files = list(source.files)
    if single:
        data, names = data[0], names[1:]
    attrs = {"quantity": "counts", **source.attrs, "files": files}
    stack = xr.DataArray(data, dims=names, name="image", attrs=attrs)
    for name, values in source.coords.items():
        axis = "angle" if name == "angle" else "tof"
        if axis in stack.dims and len(values) == stack.sizes[axis]:
            unit = {"angle": "degree", "wavelength": "angstrom"}.get(name, "s")
            stack = stack.assign_coords({name: (axis, values, {"units": unit})})
    return stack


class _Reordered:
    """A lazy array with its axes in another order; what is asked for is read, and only that."""

    def __init__(self, array: LazyArray, order: list[int]) -> None:
        self.array, self.order, self.ndim = array, order, len(order)
        self.shape, self.dtype = tuple(array.shape[i] for i in order), array.dtype

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        inside: list[slice] = [slice(None)] * self.ndim
        for i, part in zip(self.order, key, strict=False):
            inside[i] = part
        return np.ascontiguousarray(np.asarray(self.array[tuple(inside)]).transpose(self.order))


def _meta(array: LazyArray) -> np.ndarray:
    return np.empty((0,) * len(array.shape), array.dtype)


def _whole_frames(array: LazyArray, chunks: tuple[int, ...]) -> da.Array:
    """Frames that must be decoded whole: one task a group of frames, so that slicing never decodes one twice."""
    import dask.array as da
    from dask.array.core import normalize_chunks

    thick = chunks[0] if 0 < chunks[0] < 32 else 32
    whole = normalize_chunks((min(thick, array.shape[0]), *array.shape[1:]), array.shape, dtype=array.dtype)

    def read(block_info: Any = None) -> np.ndarray:
        return array[tuple(slice(a, b) for a, b in block_info[None]["array-location"])]

    return da.map_blocks(read, chunks=whole, dtype=array.dtype, meta=_meta(array))


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
        return tuple(source.dims), False
    if ndim == 2:
        return ("y", "x"), False
    if ndim == 3:
        return ("z", "y", "x"), source.array.shape[0] == 1
    raise UserError(f"{where} has {ndim} axes {source.array.shape}; allowed: 2 or 3")


def _default_chunks(shape: list[int], itemsize: int) -> list[int]:
    if len(shape) < 3:
        return list(shape)
    frame = int(np.prod(shape[1:])) * itemsize
    return [max(1, min(shape[0], CHUNK_BYTES // max(1, frame))), *shape[1:]]

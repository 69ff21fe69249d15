"""Read Zarr arrays lazily, and create those that Dask writes block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.io.check import check_stack
from niseg_gpu.io.record import coord_values, describe_stack, to_json
from niseg_gpu.io.source import Source

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr
    import zarr

MAX_CHUNK_BYTES = 16 * 2**20
MIN_CHUNK_BYTES = 2**20
_COORDS = ("tof", "tof_width", "wavelength", "angle")
_DIMS_V2 = "_ARRAY_DIMENSIONS"  # where xarray notes the names of the axes in Zarr format 2


class ZarrArray:
    """A Zarr array that gives native-endian values and names its file when a chunk cannot be read."""

    def __init__(self, array: zarr.Array, where: str) -> None:
        self.array = array
        self.where = where
        self.shape = array.shape
        self.dtype = array.dtype.newbyteorder("=")

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        try:
            values = np.asarray(self.array[key])
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.where}: cannot be read ({error}); copy it again, or leave it out") from error
        return values.astype(self.dtype, copy=False)


def open_zarr(path: Path, name: str | None = None) -> Source:
    """Open one array of a Zarr store (format 2 or 3) without reading its values.

    Parameters
    ----------
    path : Path
        A folder holding an array or a group.
    name : str, optional
        The array in the group; without it the one named ``image``, else the only one of 2 or more dimensions.

    Returns
    -------
    Source
        ``dims`` from the names of its dimensions (format 3) or ``_ARRAY_DIMENSIONS`` (format 2); ``coords`` from the
        1-D arrays beside it that bear the name of an axis or of a coordinate; ``block`` is its chunk.

    Raises
    ------
    UserError
        If there is no Zarr store, no such array, several to choose from, or no real numbers in it.
    """
    node, group = _open_node(path), None
    if _is_group(node):
        group, name = _choose_array(node, name, path)
        node = group[name]
    elif name is not None:
        raise UserError(f"{path}: is itself an array, with none named {name!r} in it; leave the name out")
    where = f"{path}:{name}" if name else str(path)
    check_stack(where, shape=node.shape, dtype=node.dtype)
    dims = _dims_of(node)
    return Source(
        array=ZarrArray(node, where),
        files=(str(path),),
        dims=dims,
        block=node.chunks,
        coords=_coords_beside(node, group, dims),
        attrs={key: value for key, value in node.attrs.items() if key not in ("coordinates", _DIMS_V2)},
    )


def align_chunks(blocks: Sequence[Sequence[int]], *, itemsize: int) -> tuple[int, ...]:
    """Return the Zarr chunk that lets every Dask block be written by itself.

    Parameters
    ----------
    blocks : sequence of sequence of int
        Lengths of the Dask blocks along each axis (``array.chunks``).
    itemsize : int
        Bytes of one value.

    Returns
    -------
    tuple of int
        No chunk straddles two blocks; 16 MiB or less, cut along the first axes, so that frames stay whole.
    """
    # an axis of one block may be cut anywhere, any other only where all its blocks begin
    chunk = [math.gcd(*axis[:-1]) if len(axis) > 1 else axis[0] for axis in blocks]
    for axis, step in enumerate(chunk):
        most = max(1, MAX_CHUNK_BYTES * step // (itemsize * math.prod(chunk)))
        if step > most and len(blocks[axis]) == 1:
            chunk[axis] = math.ceil(step / math.ceil(step / most))
        elif step > most:
            chunk[axis] = max(n for n in range(1, most + 1) if step % n == 0)
    return tuple(chunk)


def create_array(
    group: zarr.Group,
    name: str,
    *,
    shape: Sequence[int],
    dtype: np.dtype | str,
    dims: Sequence[str],
    chunks: Sequence[int],
    attrs: Mapping[str, Any] | None = None,
) -> zarr.Array:
    """Create an array in a group, ready to be a target of ``dask.array.store(..., lock=False)``.

    Parameters
    ----------
    group : zarr.Group
        Of format 3, open for writing.
    name : str
        Name of the array; one that exists is an error of Zarr.
    shape, chunks : sequence of int
        Make `chunks` with `align_chunks`, so that no two tasks write to the same chunk.
    dtype : numpy.dtype
        Numbers, bool, or ``"string"``; stored little-endian.
    dims : sequence of str
        Names of the axes, as xarray reads them.
    attrs : mapping, optional
        Made into JSON types.

    Returns
    -------
    zarr.Array
        Chunks compress by Blosc (bit-shuffled LZ4), singly, to the same bytes each time. Chunks of zeros are written
        too, so that a chunk that is not there has not been written yet.
    """
    from zarr.codecs import BloscCodec

    if not isinstance(dtype, str):
        dtype = np.dtype(dtype).newbyteorder("=")
    return group.create_array(
        name,
        shape=tuple(shape),
        dtype=dtype,
        chunks=tuple(chunks),
        dimension_names=tuple(dims),
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
        attributes=to_json(attrs or {}),
        config={"write_empty_chunks": True},
    )


def create_coords(group: zarr.Group, stack: xr.DataArray) -> None:
    """Write the coordinates of a stack into a group, each as an array by its name; those there already are left."""
    for name, coord in stack.coords.items():
        if str(name) in group:
            continue
        values = coord_values(coord)
        dtype = "string" if values.dtype == object else values.dtype
        chunks = tuple(max(1, n) for n in values.shape)
        array = create_array(
            group, str(name), shape=values.shape, dtype=dtype, dims=coord.dims, chunks=chunks, attrs=coord.attrs
        )
        array[...] = values


def create_zarr(
    path: Path, stack: xr.DataArray, data: da.Array, *, provenance: Mapping[str, Any] | None
) -> tuple[da.Array, zarr.Array]:
    """Create a group that holds `stack` as xarray reads it; return the values to store and where to store them."""
    import zarr

    described = describe_stack(stack, provenance=provenance)
    group = zarr.create_group(
        str(path), zarr_format=3, attributes={key: described[key] for key in ("program", "version", "provenance")}
    )
    create_coords(group, stack)
    others = " ".join(name for name in described["coords"] if name not in described["dims"])
    data = _merge_small_blocks(data)
    target = create_array(
        group,
        described["name"],
        shape=data.shape,
        dtype=data.dtype,
        dims=described["dims"],
        chunks=align_chunks(data.chunks, itemsize=data.dtype.itemsize),
        attrs=described["attrs"] | ({"coordinates": others} if others else {}),
    )
    return data, target


def _merge_small_blocks(data: da.Array) -> da.Array:
    """Join blocks that would make chunks below 1 MiB: a file for each costs more than its bytes."""
    itemsize = data.dtype.itemsize
    if math.prod(align_chunks(data.chunks, itemsize=itemsize)) * itemsize >= MIN_CHUNK_BYTES:
        return data
    block = list(data.chunksize)
    for axis in reversed(range(data.ndim)):
        more = math.ceil(MIN_CHUNK_BYTES / (math.prod(block) * itemsize))
        block[axis] = min(data.shape[axis], block[axis] * more)
    return data.rechunk(tuple(block))


def _open_node(path: Path) -> zarr.Array | zarr.Group:
    import zarr

    if not path.is_dir():
        raise UserError(f"{path}: no such folder; check the path")
    try:
        return zarr.open(str(path), mode="r")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a Zarr array or group ({error}); check the path") from error


def _is_group(node: Any) -> bool:
    import zarr

    return isinstance(node, zarr.Group)


def _choose_array(group: zarr.Group, name: str | None, path: Path) -> tuple[zarr.Group, str]:
    """Return the group that holds the array, and the array's name in it."""
    if name is not None:
        parent, _, leaf = name.strip("/").rpartition("/")
        if (parent and (parent not in group or not _is_group(group[parent]))) or name.strip("/") not in group:
            raise UserError(f"{path}: holds no array {name!r}{suggest(name, list(group.array_keys()))}")
        node = group[name.strip("/")]
        if _is_group(node):
            return _choose_array(node, None, path / name.strip("/"))
        return (group[parent] if parent else group), leaf
    stacks = {key: array.shape for key, array in group.arrays() if array.ndim >= 2}
    if "image" in stacks or len(stacks) == 1:
        return group, "image" if "image" in stacks else next(iter(stacks))
    listed = ", ".join(f"{key} {shape}" for key, shape in sorted(stacks.items())) or "none"
    raise UserError(f"{path}: holds {len(stacks)} arrays ({listed}); name one: {path.name}:NAME")


def _dims_of(array: zarr.Array) -> tuple[str, ...] | None:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get(_DIMS_V2)
    return tuple(names) if names and None not in names and len(names) == array.ndim else None


def _coords_beside(array: zarr.Array, group: zarr.Group | None, dims: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    if group is None or dims is None:
        return {}
    lengths = dict(zip(dims, array.shape, strict=True))
    names = dict.fromkeys((*dims, *_COORDS, *str(array.attrs.get("coordinates", "")).split()))
    coords = {}
    for name in names:
        coord = group.get(name)
        if coord is None or _is_group(coord) or coord.ndim != 1 or coord.dtype.kind not in "biuf":
            continue
        along = _dims_of(coord)
        if along and lengths.get(along[0]) == coord.shape[0]:
            coords[name] = np.asarray(coord[:]).astype(coord.dtype.newbyteorder("="), copy=False)
    return coords

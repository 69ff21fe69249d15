"""Create ``.tif``, ``.h5`` and ``.npy`` files whose values are then filled in, block by block in any order.

In all three the values lie in one run of bytes: tasks write theirs through a memory map, at once, with no lock.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.hdf5 import RECORD
from niseg_gpu.io.record import coord_values, describe_stack

if TYPE_CHECKING:
    import dask.array as da
    import h5py
    import xarray as xr

CLASSIC_TIFF_BYTES = 2**32 - 2**25  # values above this need BigTIFF, the rest is for tags
_UNITS = {"tof": "s", "tof_width": "s", "wavelength": "angstrom", "angle": "degree"}


class FileTarget:
    """The values in a file, to be assigned to; each assignment maps the file anew, so that it can be pickled."""

    def __init__(self, path: Path, *, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> None:
        self.path = str(path)
        self.shape = shape
        self.dtype = dtype
        self.offset = offset
        with open(path, "r+b") as file:  # a full disk shall be an error here, not a bus error at some later page
            os.posix_fallocate(file.fileno(), 0, offset + dtype.itemsize * math.prod(shape))

    def __setitem__(self, key: tuple[slice, ...], values: np.ndarray) -> None:
        np.memmap(self.path, mode="r+", dtype=self.dtype, offset=self.offset, shape=self.shape)[key] = values


def create_npy(
    path: Path, stack: xr.DataArray, data: da.Array, *, provenance: Mapping[str, Any] | None
) -> tuple[da.Array, FileTarget]:
    """Create a ``.npy`` file; it has no place for axes, coordinates or provenance."""
    header = {"descr": np.lib.format.dtype_to_descr(data.dtype), "fortran_order": False, "shape": data.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        offset = file.tell()
    return data, FileTarget(path, shape=data.shape, dtype=data.dtype, offset=offset)


def create_tiff(
    path: Path, stack: xr.DataArray, data: da.Array, *, provenance: Mapping[str, Any] | None
) -> tuple[da.Array, FileTarget]:
    """Create a TIFF stack with ImageJ's tags; BigTIFF above 4 GB, which ImageJ opens through Bio-Formats.

    The last two axes are the images. bool becomes uint8 (0, 1); uint8, uint16 and float32 stay; other numbers become
    float32, and a value that float32 cannot hold is an error. What the stack says of itself is ImageJ's ``Info``, as
    JSON, and each image is labelled with its coordinates.
    """
    import tifffile

    if not 2 <= data.ndim <= 5:
        raise UserError(f"a stack of {data.ndim} dimensions; a TIFF stack takes 2 to 5; save it as .zarr or .h5")
    data = _for_imagej(data)
    described = describe_stack(stack, provenance=provenance)
    if wide := [name for name, coord in described["coords"].items() if len(coord["dims"]) > 1]:
        raise UserError(f"coordinate {wide[0]!r} has several dimensions; a TIFF takes none such; drop it or save .zarr")
    info = {"Info": json.dumps(described), "Labels": _image_labels(described, data.shape)}
    order = "<" if sys.byteorder == "little" else ">"
    scale, units = _imagej_scale(described)
    offset, _ = tifffile.imwrite(
        path,
        shape=data.shape,
        dtype=data.dtype,
        bigtiff=data.nbytes > CLASSIC_TIFF_BYTES,
        byteorder=order,
        photometric="minisblack",
        planarconfig=None,
        metadata=None,
        description=tifffile.imagej_description(data.shape, axes=_imagej_axes(described["dims"]), **units),
        extratags=tifffile.imagej_metadata_tag({key: value for key, value in info.items() if value}, order),
        software=f"{described['program']} {described['version']}",
        align=data.dtype.itemsize,
        returnoffset=True,
        **scale,
    )
    return data, FileTarget(path, shape=data.shape, dtype=data.dtype, offset=offset)


def create_hdf5(
    path: Path, stack: xr.DataArray, data: da.Array, *, provenance: Mapping[str, Any] | None
) -> tuple[da.Array, FileTarget]:
    """Create a NeXus file: the values in an NXdata group that viewers plot, how they were made in an NXprocess."""
    import h5py

    described = describe_stack(stack, provenance=provenance)
    with h5py.File(path, "w") as file:
        file.attrs.update(NX_class="NXroot", default="entry", creator=described["program"])
        entry = _add_group(file, "entry", "NXentry", default="data")
        group = _add_group(entry, "data", "NXdata")
        offset = _add_signal(group, described, data)
        _add_coords(group, described, stack)
        _add_process(entry, described)
        for coord in described["coords"].values():
            del coord["values"]  # they are datasets
        note = _add_group(entry, RECORD, "NXnote")
        note["type"], note["data"] = "application/json", json.dumps(described)
    return data, FileTarget(path, shape=data.shape, dtype=data.dtype, offset=offset)


def _for_imagej(data: da.Array) -> da.Array:
    if data.dtype.kind == "b":
        return data.astype("u1")
    if data.dtype in (np.uint8, np.uint16, np.float32):
        return data
    return data.map_blocks(_to_float32, dtype=np.float32)


def _to_float32(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # told below
        values = block.astype(np.float32)
    wide = np.float64 if block.dtype.itemsize <= 4 or block.dtype == np.float64 else np.longdouble  # holds both exactly
    same = (values.astype(wide) == block.astype(wide)) | ((block != block) & (values != values))
    if not same.all():
        value = block[~same].flat[0]
        raise UserError(
            f"a TIFF stack cannot hold the value {value!r} of type {block.dtype} (float32 would change it); "
            "convert with .astype first, or save as .zarr or .h5"
        )
    return values


def _imagej_axes(dims: list[str]) -> str:
    """Return ImageJ's letters for the axes, of which it has time (T), slice (Z) and channel (C), in that order."""
    stacked = len(dims) - 2
    return ("Z" if stacked == 1 and dims[0] == "z" else "TZC"[:stacked]) + "YX"


def _imagej_scale(described: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tags for the pixel size and the description's items, where the stack tells them."""
    tags: dict[str, Any] = {}
    items: dict[str, Any] = {}
    size = described["attrs"].get("pixel_size_um")
    if isinstance(size, int | float) and size > 0:
        tags = {"resolution": (1 / size, 1 / size), "resolutionunit": "NONE"}
        items = {"unit": "um"}
    if described["dims"][0] == "tof" and "tof" in described["coords"]:
        steps = np.diff(described["coords"]["tof"]["values"])
        if steps.size and np.allclose(steps, steps[0], rtol=1e-3) and steps[0] > 0:
            items["finterval"] = float(steps[0])  # s
    return tags, items


def _image_labels(described: dict[str, Any], shape: tuple[int, ...]) -> list[str]:
    """Return ``tof=0.0021 s`` or the like for each image, from the coordinates of the axes before the last two."""
    stacked = dict(zip(described["dims"][:-2], shape[:-2], strict=True))
    parts = []
    for dim, length in stacked.items():
        coord = described["coords"].get(dim)
        unit = (coord["attrs"].get("units") or _UNITS.get(dim, "")) if coord else ""
        values = coord["values"] if coord else range(length)
        texts = [f"{value:.6g}" if isinstance(value, int | float) else str(value) for value in values]
        parts.append([f"{dim}={text} {unit}".rstrip() for text in texts])
    known = any(dim in described["coords"] for dim in stacked)
    return [", ".join(label) for label in itertools.product(*parts)] if known else []


def _add_group(parent: h5py.Group, name: str, nx_class: str, **attrs: str) -> h5py.Group:
    group = parent.create_group(name)
    group.attrs.update(NX_class=nx_class, **attrs)
    return group


def _add_signal(group: h5py.Group, described: dict[str, Any], data: da.Array) -> int:
    """Create the dataset in one run of bytes, set aside at once but not filled, and return where it starts."""
    import h5py

    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.CONTIGUOUS)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    name, dims = described["name"], described["dims"]
    of_type, of_shape = h5py.h5t.py_create(data.dtype, logical=True), h5py.h5s.create_simple(data.shape)
    created = h5py.h5d.create(group.id, name.encode(), of_type, of_shape, layout)
    group[name].attrs.update(long_name=str(described["attrs"].get("quantity", name)), interpretation="image")
    if units := described["attrs"].get("units"):
        group[name].attrs["units"] = str(units)
    group.attrs["signal"] = name
    group.attrs["axes"] = [dim if dim in described["coords"] else "." for dim in dims]
    return created.get_offset()


def _add_coords(group: h5py.Group, described: dict[str, Any], stack: xr.DataArray) -> None:
    import h5py

    for name, coord in stack.coords.items():
        values = coord_values(coord)
        dtype = h5py.string_dtype() if values.dtype == object else values.dtype
        group.create_dataset(str(name), data=values, dtype=dtype)
        if unit := coord.attrs.get("units") or _UNITS.get(str(name)):
            group[str(name)].attrs["units"] = str(unit)
        if coord.dims:
            group.attrs[f"{name}_indices"] = [described["dims"].index(str(dim)) for dim in coord.dims]


def _add_process(entry: h5py.Group, described: dict[str, Any]) -> None:
    process = _add_group(entry, "process", "NXprocess")
    process["program"], process["version"] = described["program"], described["version"]
    process["date"] = str(described["provenance"].get("date") or datetime.now(UTC).isoformat(timespec="seconds"))
    parameters = _add_group(process, "parameters", "NXnote")
    parameters["type"], parameters["data"] = "application/json", json.dumps(described["provenance"])

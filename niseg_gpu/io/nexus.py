"""What the attributes of a NeXus file tell: its default plot, the names of the axes and their units.

M. Könnecke et al., J. Appl. Cryst. 48 (2015) 301, doi:10.1107/S1600576714027575.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.errors import UserError

if TYPE_CHECKING:
    import h5py

_AXES = {name: name for name in ("tof", "angle", "z", "y", "x")}
_AXES |= {"time_of_flight": "tof", "rotation_angle": "angle"}  # as NeXus has them
_TIME = {
    "s": 1.0,
    "second": 1.0,
    "ms": 1e-3,
    "millisecond": 1e-3,
    "us": 1e-6,
    "\u00b5s": 1e-6,
    "\u03bcs": 1e-6,
    "microsecond": 1e-6,
    "ns": 1e-9,
    "nanosecond": 1e-9,
}
_TURN = {"degree": 1.0, "deg": 1.0, "rad": 180 / np.pi, "radian": 180 / np.pi}
_UNITS = {"tof": _TIME, "angle": _TURN}


def text(value: Any) -> Any:
    """Return `value`, decoded if it is bytes: HDF5 has two kinds of text."""
    return value.decode() if isinstance(value, bytes) else value


def is_class(found: Any, nx_class: str) -> bool:
    """Return whether a group is of the NeXus class `nx_class`."""
    return text(found.attrs.get("NX_class")) == nx_class


def default_plot(group: h5py.Group) -> h5py.Dataset | None:
    """Follow the ``default`` attributes of NeXus down to the signal of an NXdata group, if that is an image or more."""
    for _ in range(10):  # deep enough for any file, and an end to those that point at themselves
        name = text(group.attrs.get("default"))
        if name and name in group:
            group = group[name]
    signal = text(group.attrs.get("signal")) if is_class(group, "NXdata") else None
    found = group.get(signal) if isinstance(signal, str) else None
    return found if getattr(found, "ndim", 0) >= 2 else None


def nxdata_axes(dataset: h5py.Dataset) -> tuple[tuple[str, ...] | None, dict[str, np.ndarray], dict[str, Any]]:
    """Return what the NXdata group around a signal says of its axes, as far as we know their names."""
    group = dataset.parent
    axes = [text(axis) for axis in np.atleast_1d(group.attrs.get("axes", []))] if is_class(group, "NXdata") else []
    dims = tuple(_AXES.get(axis) for axis in axes)
    if text(group.attrs.get("signal")) != dataset.name.rpartition("/")[2] or len(dims) != dataset.ndim or None in dims:
        return None, {}, {}
    coords: dict[str, np.ndarray] = {}
    for axis, dim, length in zip(axes, dims, dataset.shape, strict=True):
        if dim in _UNITS and axis in group:
            coords |= _axis_coords(dim, group[axis], length)
    return dims, coords, {}


def _axis_coords(dim: str, axis: h5py.Dataset, length: int) -> dict[str, np.ndarray]:
    values = np.atleast_1d(in_our_units(dim, axis))
    if dim == "tof" and values.shape == (length + 1,):  # edges of the bins
        return {"tof": values[:-1], "tof_width": np.diff(values)}
    return {dim: values} if values.shape == (length,) else {}


def in_our_units(dim: str, axis: h5py.Dataset) -> np.ndarray:
    """Return an axis in s (``tof``) or degrees (``angle``) as float64; a unit that is not known is a UserError."""
    known = _UNITS[dim]
    unit = str(text(axis.attrs.get("units", next(iter(known))))).strip()
    if (factor := known.get(unit, known.get(unit.lower().removesuffix("s")))) is None:
        where = f"{axis.file.filename}:{axis.name}"
        raise UserError(f"{where}: units {unit!r}; allowed: {', '.join(known)}; mend the units attribute")
    return np.asarray(axis[()], dtype="f8") * factor

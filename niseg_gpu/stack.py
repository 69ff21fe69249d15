"""What is known of a stack without its data: axes, coordinates, units, history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

UNITS = {"tof": "s", "tof_width": "s", "wavelength": "angstrom", "angle": "degree"}


@dataclass(frozen=True)
class NamesFile:
    """Marks a step's parameter that may name a file to read, by its ending; a relative one starts from the pipeline's.

    Attributes
    ----------
    suffix : str
        Empty where any text is the name of a file.
    """

    suffix: str


def dtype_for_steps(dtype: np.dtype) -> np.dtype:
    """The type that steps get for a file's: masks as numbers, half precision as float32, for none computes in it."""
    return {np.dtype(bool): np.dtype(np.uint8), np.dtype(np.float16): np.dtype(np.float32)}.get(
        dtype.newbyteorder("="), dtype
    )


@dataclass(frozen=True)
class StackInfo:
    """Axes, dtype, coordinates and attributes of a stack.

    Attributes
    ----------
    dims : tuple of str
        Axis names, slowest first.
    shape : tuple of int
    dtype : numpy.dtype
    coords : mapping of str to (N,) array
        Along the first axis: ``tof`` (s, start of the bin), ``tof_width`` (s), ``wavelength`` (Å), ``angle`` (degree).
    attrs : mapping
        ``quantity``, ``files``, ``shutter_windows``, ``shutter_counts``.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    coords: Mapping[str, np.ndarray] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, stack: xr.DataArray) -> StackInfo:
        first = stack.dims[0]
        coords = {str(k): v.values for k, v in stack.coords.items() if v.dims == (first,)}
        return cls(tuple(map(str, stack.dims)), stack.shape, stack.dtype, coords, dict(stack.attrs))

    @classmethod
    def for_steps(cls, stack: xr.DataArray) -> StackInfo:
        """As steps are given it: see `dtype_for_steps`."""
        info = cls.of(stack)
        return info.with_(dtype=dtype_for_steps(info.dtype))

    @property
    def quantity(self) -> str:
        return self.attrs.get("quantity", "counts")

    @property
    def sizes(self) -> dict[str, int]:
        return dict(zip(self.dims, self.shape, strict=True))

    def with_(self, **changes: Any) -> StackInfo:
        """Return a copy; ``attrs`` given here are merged into the old ones, None removes one."""
        if "attrs" in changes:
            merged = {**self.attrs, **changes["attrs"]}
            changes["attrs"] = {k: v for k, v in merged.items() if v is not None}
        return replace(self, **changes)

    def wrap(self, data: Any, *, name: str = "image") -> xr.DataArray:
        """Return `data` as a DataArray with these axes, coordinates and attributes."""
        import xarray as xr

        stack = xr.DataArray(data, dims=self.dims, name=name, attrs=dict(self.attrs))
        for coord, values in self.coords.items():
            attrs = {"units": UNITS[coord]} if coord in UNITS else {}
            stack = stack.assign_coords({coord: (self.dims[0], values, attrs)})
        return stack


def tell_source(attrs: Mapping[str, Any]) -> str:
    """Name a stack with these attributes by its first file."""
    files = attrs.get("files") or ["the stack"]
    return str(files[0])


def tell_bins_left_out(attrs: Mapping[str, Any]) -> str:
    """What ``bad_frames: skip`` has left out of a run, in words."""
    bins = attrs.get("bins_left_out") or []
    return ("the bins " if bins else "none") + ", ".join(map(str, bins[:5])) + (", ..." if len(bins) > 5 else "")

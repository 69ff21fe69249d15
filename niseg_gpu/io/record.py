"""What is written beside the values of a stack: its name, axes, coordinates, attributes and how it was made."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.errors import UserError

if TYPE_CHECKING:
    import xarray as xr

PROGRAM = __name__.partition(".")[0]
_NAME = re.compile(r"\w[\w.-]*")  # what every format takes as the name of an array
_TOKEN = re.compile(r"-[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$")  # ends a name that Dask made up


def describe_stack(stack: xr.DataArray, *, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return all that a stack says of itself save its values, as plain JSON types.

    Parameters
    ----------
    stack : xarray.DataArray
        Any shape; nothing of it is computed but its coordinates.
    provenance : mapping, optional
        How it was made: steps, parameters, inputs.

    Returns
    -------
    dict
        ``program``, ``version``, ``name``, ``dims``, ``coords`` (name to ``dims``, ``dtype``, ``attrs``, ``values``),
        ``attrs``, ``provenance``.

    Raises
    ------
    UserError
        If a name cannot be one of an array in a file.
    """
    name = _name_of(stack)
    for word in (name, *map(str, stack.coords)):
        if not _NAME.fullmatch(word):
            raise UserError(f"name {word!r} of the array or a coordinate; allowed: letters, digits, _ . -; rename it")
    return {
        "program": PROGRAM,
        "version": program_version(),
        "name": name,
        "dims": [str(dim) for dim in stack.dims],
        "coords": {str(key): _describe_coord(coord) for key, coord in stack.coords.items()},
        "attrs": to_json(stack.attrs),
        "provenance": to_json(provenance or {}),
    }


def program_version() -> str:
    """Return the version of this program; its root package is always loaded by the time a module of it runs."""
    return sys.modules[PROGRAM].__version__


def coord_values(coord: xr.DataArray) -> np.ndarray:
    """Return the values of a coordinate as native numbers, or as an object array of str where they are no numbers."""
    values = np.asarray(coord.values)
    if values.dtype.kind in "biuf":
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    return values.astype(str).astype(object)


def to_json(value: Any) -> Any:
    """Return `value` as plain JSON types; what has none (a path, a date) becomes its text."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist()) if value.dtype.kind in "biufUO" else to_json(value.astype(str).tolist())
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _name_of(stack: xr.DataArray) -> str:
    """Return the name of a stack, ``image`` where it has none of its own: xarray takes on that of a Dask array."""
    unnamed = stack.name is None or stack.name in stack.coords or _TOKEN.search(str(stack.name))
    return "image" if unnamed else str(stack.name)


def _describe_coord(coord: xr.DataArray) -> dict[str, Any]:
    values = coord_values(coord)
    return {
        "dims": [str(dim) for dim in coord.dims],
        "dtype": "str" if values.dtype == object else values.dtype.name,
        "attrs": to_json(coord.attrs),
        "values": values.tolist(),
    }

"""What all comparisons share: pieces of whole frames, shapes, ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError

PIECE_PIXELS = 2**22  # 32 MB of the integers that counting needs


def divide(part: float, whole: float) -> float | None:
    """Return the ratio, None for a ratio to nothing."""
    return part / whole if whole else None


def map_pieces(function: Callable[..., Any], **stacks: Any) -> list[Any]:
    """Call `function` on pieces of whole frames of arrays of one shape, and return what it gives for each.

    Parameters
    ----------
    function : callable
        Takes the pieces, in the order of `stacks`; several threads may call it at once.
    **stacks : (..., Y, X) array
        NumPy, CuPy, Dask or xarray; the names are used in complaints.

    Raises
    ------
    UserError
        Shapes that differ or have fewer than two axes.
    """
    arrays = [_read_array(stack, name) for name, stack in stacks.items()]
    _check_order(stacks)
    check_shapes({name: array.shape for name, array in zip(stacks, arrays, strict=True)})
    shape = arrays[0].shape
    thick = max(1, PIECE_PIXELS // max(1, math.prod(shape[1:]))) if len(shape) > 2 else shape[0]
    if any(hasattr(array, "dask") for array in arrays):
        import dask
        import dask.array as da
        from dask.threaded import get  # its name would have Dask import all of distributed

        lazy = [da.asarray(array).rechunk((thick, *shape[1:])) for array in arrays]
        call = dask.delayed(function, pure=False)
        blocks = zip(*(array.to_delayed().ravel() for array in lazy), strict=True)
        return list(dask.compute(*(call(*pieces) for pieces in blocks), scheduler=get))
    return [function(*(array[i : i + thick] for array in arrays)) for i in range(0, shape[0], thick)]


def _read_array(stack: Any, name: str) -> Any:
    """The array under a stack; refuse what is none of real numbers."""
    array = stack.data if hasattr(stack, "dims") and hasattr(stack, "data") else stack
    if not hasattr(array, "shape") or not hasattr(array, "dtype"):
        raise UserError(
            f"{name} is a {type(stack).__name__}; needed: an array (..., Y, X), NumPy, CuPy, Dask or xarray"
        )
    if array.dtype.kind not in "biuf":
        raise UserError(f"{name} holds {array.dtype} values; allowed: real numbers")
    if np.ma.is_masked(array):
        raise UserError(f"{name} is a masked array; needed: one that hides nothing, its .filled()")
    return array


def _check_order(stacks: dict[str, Any]) -> None:
    """Refuse stacks whose axes have the same names in another order: their pixels are not those of each other."""
    named = {name: tuple(stack.dims) for name, stack in stacks.items() if hasattr(stack, "dims")}
    for name, dims in named.items():
        first, order = next(iter(named.items()))
        if dims != order and set(dims) == set(order):
            ours, theirs = (" x ".join(map(str, axes)) for axes in (order, dims))
            raise UserError(f"{first} has the axes {ours}, {name} {theirs}; needed: one order; transpose one of them")


def check_shapes(shapes: dict[str, Sequence[int]]) -> None:
    """Raise a UserError naming both unless all shapes are equal, of two axes or more and not empty."""
    (first, shape), *others = shapes.items()
    for name, other in others:
        if tuple(other) != tuple(shape):
            raise UserError(
                f"{first} is {_times(shape)}, {name} is {_times(other)}; both must have one shape: compare the same "
                "frames of the same run"
            )
    if len(shape) < 2 or 0 in shape:
        raise UserError(f"{first} is of shape {tuple(shape)}; needed: 2 or more axes, none of length 0")


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))

"""Windows with holes in them, NaN or dead pixels, and means around spots: one place at a time, in compiled code."""

from __future__ import annotations

import numpy as np

from niseg_gpu.kernels.compiled import compiled, inline, read_flat


@inline
def _is_hole(values, i, dead, pixel):
    return values[i] != values[i] or (dead.size > 0 and dead[pixel])


@inline
def _row_has_hole(values, i, n, dead, pixel):
    found, i, pixel = np.uint32(0), np.uint64(i), np.uint64(pixel)
    for x in range(np.uint64(n)):
        found = np.uint32(found + np.uint32(values[i + x] != values[i + x]))
    if dead.size:
        for x in range(np.uint64(n)):
            found = np.uint32(found + np.uint32(dead[pixel + x]))
    return found > 0


@compiled
def _mark(values, shape, dead, reach, near):
    """Mark every place whose window holds a hole; `reach` is half its sides."""
    depth, height, width = shape
    for z in range(depth):
        for y in range(height):
            row = (z * height + y) * width
            if not _row_has_hole(values, row, width, dead, y * width):
                continue
            for x in range(width):
                if _is_hole(values, row + x, dead, y * width + x):
                    for k in range(max(z - reach[0], 0), min(z + reach[0] + 1, depth)):
                        for j in range(max(y - reach[1], 0), min(y + reach[1] + 1, height)):
                            for i in range(max(x - reach[2], 0), min(x + reach[2] + 1, width)):
                                near[(k * height + j) * width + i] = True


@inline
def _sort(values, n):
    """Shell's sort of the first `n` values."""
    for gap in (132, 57, 23, 10, 4, 1):
        for i in range(gap, n):
            value, k = values[i], i
            while k >= gap and value < values[k - gap]:
                values[k] = values[k - gap]
                k -= gap
            values[k] = value


@compiled
def _take_medians(values, shape, dead, reach, places, empty, medians):
    """Medians of what the windows around places hold, the border repeated; of nothing, `empty` or the value itself."""
    depth, height, width = shape
    held = np.empty((2 * reach[0] + 1) * (2 * reach[1] + 1) * (2 * reach[2] + 1), values.dtype)
    for p in range(places.size):
        z, y, x = places[p] // (height * width), places[p] // width % height, places[p] % width
        n = 0
        for k in range(z - reach[0], z + reach[0] + 1):
            for j in range(y - reach[1], y + reach[1] + 1):
                pixels = min(max(j, 0), height - 1) * width
                row = min(max(k, 0), depth - 1) * height * width + pixels
                for i in range(x - reach[2], x + reach[2] + 1):
                    column = min(max(i, 0), width - 1)
                    if not _is_hole(values, row + column, dead, pixels + column):
                        held[n] = values[row + column]
                        n += 1
        _sort(held, n)
        if n == 0:
            medians[p] = empty[0] if empty.size else values[places[p]]
        elif n % 2:
            medians[p] = held[n // 2]
        elif empty.size:  # floats
            medians[p] = (held[n // 2 - 1] + held[n // 2]) / 2
        else:
            medians[p] = np.rint((np.float64(held[n // 2 - 1]) + np.float64(held[n // 2])) / 2)


@compiled
def _take_means(values, shape, dead, reach, spots, places, whole, out):
    """Put the mean of the values around it that are no spots into each place; where there is none, it stays."""
    depth, height, width = shape
    for p in range(places.size):
        z, y, x = places[p] // (height * width), places[p] // width % height, places[p] % width
        n, total = 0, 0.0
        for k in range(max(z - reach[0], 0), min(z + reach[0] + 1, depth)):
            for j in range(max(y - reach[1], 0), min(y + reach[1] + 1, height)):
                for i in range(max(x - reach[2], 0), min(x + reach[2] + 1, width)):
                    at = (k * height + j) * width + i
                    if not spots[at] and not _is_hole(values, at, dead, j * width + i):
                        total += values[at]
                        n += 1
        if n:
            out[places[p]] = np.rint(total / n) if whole else total / n


def find_near_holes(stack: np.ndarray, dead: np.ndarray | None, *, sides: tuple[int, int, int]) -> np.ndarray:
    """Find the places whose window holds NaN or a dead pixel.

    Parameters
    ----------
    stack : (Z, Y, X) ndarray
    dead : (Y, X) bool ndarray or None
    sides : (int, int, int)
        Of the window.

    Returns
    -------
    (n,) int64 ndarray
        Numbers of the places in the flattened stack.
    """
    near = np.zeros(stack.size, np.bool_)
    _mark(read_flat(stack), stack.shape, _flat_mask(dead), _reach(sides), near)
    return np.flatnonzero(near)


def take_medians(
    stack: np.ndarray, dead: np.ndarray | None, places: np.ndarray, *, sides: tuple[int, int, int]
) -> np.ndarray:
    """Return the median of the values in each place's window, (n,); of two in the middle their mean.

    A window without values gives NaN, or for integers the value that is there. Means of integers are rounded.
    """
    empty = np.full(int(stack.dtype.kind == "f"), np.nan if stack.dtype.kind == "f" else 0, stack.dtype)
    medians = np.empty(places.size, stack.dtype)
    _take_medians(read_flat(stack), stack.shape, _flat_mask(dead), _reach(sides), places, empty, medians)
    return medians


def put_means(
    out: np.ndarray,
    stack: np.ndarray,
    dead: np.ndarray | None,
    spots: np.ndarray,
    places: np.ndarray,
    *,
    sides: tuple[int, int, int],
) -> None:
    """Replace places in `out` by the mean of the values in their window that are neither spots nor missing, if any."""
    whole, flat = stack.dtype.kind != "f", out.reshape(-1)
    mask = _flat_mask(dead)
    _take_means(read_flat(stack), stack.shape, mask, _reach(sides), spots.reshape(-1), places, whole, flat)


def _flat_mask(dead: np.ndarray | None) -> np.ndarray:
    return np.empty(0, np.bool_) if dead is None else np.ascontiguousarray(dead, np.bool_).reshape(-1)


def _reach(sides: tuple[int, int, int]) -> tuple[int, int, int]:
    return sides[0] // 2, sides[1] // 2, sides[2] // 2

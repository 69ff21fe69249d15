"""Cleaning spots in whole-array calls, the same on either device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

NOISE_SIZE = 5  # pixels; side of the window over which the local noise is measured
MAD_TO_SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
PIECE = 1 << 18  # windows gathered at a time


def clean_spots_xp(
    image: Any, *, xp: Any, median: Callable[..., Any], size: tuple[int, ...], threshold: float, kind: str
) -> tuple[Any, Any]:
    """Replace what differs from the running median by more than `threshold`; see `niseg_gpu.spots.remove_spots`.

    Parameters
    ----------
    image : (..., Y, X) array
    xp : module
        Array namespace of `image`.
    median : callable
        ``(image, size=sides per axis) -> running median``.
    size : tuple of int
        Sides of the window along each axis.
    """
    middle = median(image, size=size)
    spots = _find(image, middle, threshold, kind, xp=xp)
    return xp.where(spots, middle, image), spots


def replace_spots_xp(
    image: Any,
    *,
    backend: Any,
    window: tuple[int, ...],
    threshold: float,
    kind: str,
    threshold_unit: str,
    replacement: str,
    max_area: int | None,
    dead: Any,
    own: tuple[slice, ...],
) -> tuple[Any, Any, Any]:
    """Replace spots; see `niseg_gpu.spots.remove_spots`.

    Parameters
    ----------
    image : (..., Y, X) array
    backend : Cpu or Gpu
        Its twin; it has the median, the labels and the plain case in one pass.
    window : tuple of int
        Sides of the window along each axis.
    dead : (Y, X) bool array or None
    own : tuple of slice
        Where spots are counted.

    Returns
    -------
    cleaned : (..., Y, X) array
    spots : (..., Y, X) bool array
    number : integer
        Spots within `own`.
    """
    xp = backend.xp
    if threshold_unit == "counts" and replacement == "median" and max_area is None and dead is None:
        done = backend.clean_spots(image, size=window, threshold=threshold, kind=kind, own=own)
        if not done.has_nan:
            return done.image, done.spots, done.number
    missing = find_missing(image, dead, xp=xp)
    median = median_of_values(image, window, missing, backend=backend)
    limit = threshold * _noise(image, median, threshold_unit, missing, backend=backend)
    spots = _find(image, median, limit, kind, xp=xp)
    if dead is not None:
        spots &= ~dead
    if max_area is not None:
        spots = _drop_large(spots, max_area, backend=backend)
    replaced = spots if dead is None else spots | dead
    cleaned = _replace(image, median, replaced, missing, window=window, replacement=replacement, xp=xp)
    return cleaned, spots, xp.sum(spots[own])


def count_own(spots: Any, own: tuple[slice, ...]) -> Any:
    """How many spots lie in the frames, rows and columns of `own`; all of them where it is empty."""
    return spots[(..., *own[-spots.ndim :])].sum()


def frames_and_rows(own: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    """The frames and rows of `own` where it holds all columns of an image of `shape`; None where it doesn't."""
    if not own:
        return ()
    own = (slice(None),) * (3 - len(own)) + tuple(own)
    if len(own) != 3 or len(shape) > 3 or own[2].indices(shape[-1]) != (0, shape[-1], 1):
        return None
    return own[:2] if len(shape) == 3 else (slice(None), own[1])


def find_missing(image: Any, dead: Any, *, xp: Any) -> Any:
    """Where there is no value: NaN, or a dead pixel; None where every pixel has one."""
    missing = None
    # Inf - Inf looks like NaN too: then the careful way is taken for nothing
    if image.dtype.kind == "f" and bool(xp.isnan(xp.sum(image))):
        missing = xp.isnan(image)
    if dead is not None:
        missing = xp.broadcast_to(dead, image.shape) if missing is None else missing | dead
    return missing


def median_of_values(image: Any, window: tuple[int, ...], missing: Any, *, backend: Any) -> Any:
    """Running median; where values are missing from a window, that of the others; of none, NaN or the value itself."""
    xp = backend.xp
    if missing is None:
        return backend.median(image, size=window)
    median = backend.median(xp.where(missing, xp.asarray(0, dtype=image.dtype), image), size=window)
    whole = image.dtype.kind != "f"
    for places in _in_pieces(_spread(missing, window)):
        values, inside = _windows_at(places, window, image, xp=xp)
        lost, _ = _windows_at(places, window, missing, xp=xp)
        values = xp.where(lost, xp.nan, xp.astype(values, xp.float64 if whole else image.dtype))
        some = ~xp.all(lost, axis=1)
        filled = xp.nanmedian(xp.where(some[:, None], values, xp.asarray(0, dtype=values.dtype)), axis=1)
        found = xp.where(some, xp.rint(filled), image[places]) if whole else xp.where(some, filled, xp.nan)
        median[places] = found.astype(image.dtype)
    return median


def _spread(mask: Any, window: tuple[int, ...]) -> Any:
    """Also mark every pixel whose window holds a marked one."""
    for axis, side in enumerate(window):
        grown = mask.copy()
        for step in range(1, min(side // 2, mask.shape[axis] - 1) + 1):
            ahead, behind = [slice(None)] * mask.ndim, [slice(None)] * mask.ndim
            ahead[axis], behind[axis] = slice(step, None), slice(None, -step)
            grown[tuple(ahead)] |= mask[tuple(behind)]
            grown[tuple(behind)] |= mask[tuple(ahead)]
        mask = grown
    return mask


def _noise(image: Any, median: Any, unit: str, missing: Any, *, backend: Any) -> Any:
    """What `threshold` is measured in: 1, or an array of float32."""
    xp = backend.xp
    if unit == "counts":
        return 1.0
    if unit == "poisson":
        return xp.sqrt(xp.maximum(xp.astype(median, xp.float32), xp.asarray(1, dtype=xp.float32)))
    distance = xp.abs(xp.astype(image, xp.float32) - xp.astype(median, xp.float32))
    window = (1,) * (image.ndim - 2) + (NOISE_SIZE, NOISE_SIZE)
    return as_sigma(median_of_values(distance, window, missing, backend=backend), image.dtype, xp=xp)


def as_sigma(deviation: Any, dtype: np.dtype, *, xp: Any) -> Any:
    """Turn the median of distances into the noise; whole numbers have half a count at least."""
    sigma = MAD_TO_SIGMA * deviation
    return sigma if dtype.kind == "f" else xp.maximum(sigma, xp.asarray(0.5, dtype=xp.float32))


def _find(image: Any, median: Any, limit: Any, kind: str, *, xp: Any) -> Any:
    gap = xp.maximum(image, median) - xp.minimum(image, median)
    if gap.dtype.kind == "i":  # half of the differences wrap in a signed type, none in the unsigned one
        gap = xp.astype(gap, np.dtype(f"u{gap.dtype.itemsize}"))
    if gap.dtype.kind == "u" and isinstance(limit, float) and limit >= 0:
        limit = math.floor(min(limit, np.iinfo(gap.dtype).max))  # CuPy would compare 8 bit with it in half precision
    spots = gap > limit
    if kind == "bright":
        spots &= image > median
    elif kind == "dark":
        spots &= image < median
    return spots


def _drop_large(spots: Any, max_area: int, *, backend: Any) -> Any:
    """Keep the connected spots of at most `max_area` pixels."""
    numbers, _ = backend.label(spots)
    areas = backend.xp.bincount(numbers.ravel())
    areas[0] = max_area + 1  # what is no spot
    return (areas <= max_area)[numbers]


def _replace(
    image: Any, median: Any, replaced: Any, missing: Any, *, window: tuple[int, ...], replacement: str, xp: Any
) -> Any:
    if replacement == "nan":
        return xp.where(replaced, xp.asarray(xp.nan, dtype=image.dtype), image)
    cleaned = xp.where(replaced, median, image)
    if replacement == "mean":
        bad = replaced if missing is None else replaced | missing
        for places in _in_pieces(replaced):
            values, inside = _windows_at(places, window, image, xp=xp)
            good = inside & ~_windows_at(places, window, bad, xp=xp)[0]
            number = xp.sum(good, axis=1)
            mean = xp.sum(xp.where(good, values, 0), axis=1, dtype=xp.float64) / xp.maximum(number, 1)
            mean = xp.rint(mean) if image.dtype.kind != "f" else mean
            cleaned[places] = xp.where(number > 0, mean, median[places]).astype(image.dtype)
    return cleaned


def _in_pieces(where: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the places that are marked, some at a time."""
    places = where.nonzero()
    for start in range(0, len(places[0]), PIECE):
        yield tuple(p[start : start + PIECE] for p in places)


def _windows_at(places: tuple[Any, ...], window: tuple[int, ...], image: Any, *, xp: Any) -> tuple[Any, Any]:
    """Values (places, window) around places, and which of them lie inside; those outside repeat the border."""
    steps = xp.asarray(list(np.ndindex(*window))) - xp.asarray([side // 2 for side in window])
    inside, index = True, []
    for axis, place in enumerate(places):
        at = place[:, None] + steps[None, :, axis]
        inside = inside & (at >= 0) & (at < image.shape[axis])
        index.append(xp.clip(at, 0, image.shape[axis] - 1))
    return image[tuple(index)], inside

"""Spots: single values far from their neighbours, from gammas, charged particles and dead pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.findings import count
from niseg_gpu.plane import Plane

NOISE_SIZE = 5  # pixels; side of the window over which the local noise is measured
MAD_TO_SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
PIECE = 1 << 18  # windows gathered at a time


def remove_spots(
    image: Any,
    *,
    size: Annotated[int, Ge(3)] = 3,
    threshold: Annotated[float, Ge(0)],
    kind: Literal["bright", "dark", "both"] = "both",
    threshold_unit: Literal["counts", "sigma", "poisson"] = "counts",
    replacement: Literal["median", "mean", "nan"] = "median",
    max_area: Annotated[int, Ge(1)] | None = None,
    neighbourhood: Literal["frame", "volume"] = "frame",
) -> tuple[Any, Any]:
    """Replace spots by what their surroundings say.

    A value f is a spot where it differs from the median of its `size` x `size` window by more than `threshold`:
    ``threshold < |f - median|`` for ``both``, ``f - median`` for ``bright``, ``median - f`` for ``dark``. Differences
    of integers are exact in any type. NaN is no value: it is left out of its neighbours' windows, is never a spot and
    stays.

    Parameters
    ----------
    image : (..., Y, X) array
        One frame, or frames one after another. The border value goes on outside.
    size : int
        Side of the window in pixels, odd.
    threshold : float
        Least difference from the median that makes a spot, in `threshold_unit`.
    kind : {"bright", "dark", "both"}
        Which spots to replace.
    threshold_unit : {"counts", "sigma", "poisson"}
        ``counts``: the units of the image. ``sigma``: the local noise, 1.4826 times the median of |f - median| over
        5 x 5 pixels (at least half a count for integers). ``poisson``: the square root of the median (at least 1).
    replacement : {"median", "mean", "nan"}
        ``mean`` is that of the window's values that are no spots; ``nan`` needs floats.
    max_area : int, optional
        Spots of more connected pixels than this (8-connected, in their frame) are structures, and left alone.
    neighbourhood : {"frame", "volume"}
        ``frame``: each frame is cleaned by itself. ``volume``: windows reach over `size` frames too.

    Returns
    -------
    cleaned : (..., Y, X) array
        In the dtype of `image`.
    spots : (..., Y, X) bool array
    """
    check_remove_spots(None, size=size, threshold=threshold)
    if replacement == "nan" and image.dtype.kind != "f":
        raise UserError(f"remove_spots: replacement nan needs floats, the image is {image.dtype}; use median or mean")
    backend = backend_of(image)
    window = _window(image, size, neighbourhood)
    plain = threshold_unit == "counts" and replacement == "median" and max_area is None and neighbourhood == "frame"
    if plain and not _has_nan(image):
        cleaned, spots = backend.clean_spots(image, size=size, threshold=float(threshold), kind=kind)
    else:
        median = _median_of_values(image, window)
        limit = threshold * _noise(image, median, threshold_unit)
        spots = _find(image, median, limit, kind)
        if max_area is not None:
            spots = _drop_large(spots, max_area)
        cleaned = _replace(image, median, spots, window=window, replacement=replacement)
    count("spots replaced", spots)
    return cleaned, spots


def check_remove_spots(before: Any, *, size: int = 3, threshold: float, replacement: str = "median", **_: Any) -> None:
    """Refuse parameters that make no sense, before any data are read."""
    if size % 2 == 0:
        raise UserError(f"remove_spots got size {size}; allowed: odd, 3 or more")
    if before is not None and replacement == "nan" and before.info.dtype.kind != "f":
        raise UserError(
            f"remove_spots: replacement nan needs floats, the stack is {before.info.dtype} here; use median or mean, "
            "or let normalize or overlap_correct come before"
        )


def halo_remove_spots(
    *,
    size: int = 3,
    threshold_unit: str = "counts",
    replacement: str = "median",
    max_area: int | None = None,
    neighbourhood: str = "frame",
    **_: Any,
) -> tuple[int, int]:
    """Frames and pixels of neighbourhood that a block needs.

    A component of more than `max_area` pixels shows at least that many within `max_area` pixels of any of its own.
    """
    halo = size // 2
    frames = size // 2 if neighbourhood == "volume" else 0
    if threshold_unit == "sigma":
        halo += NOISE_SIZE // 2
    if max_area is not None:
        halo += max_area
    if replacement == "mean":
        halo, frames = halo + size // 2, 2 * frames
    return frames, halo


def plane_remove_spots(
    *,
    size: int = 3,
    threshold: float,
    kind: str = "both",
    threshold_unit: str = "counts",
    neighbourhood: str = "frame",
    **_: Any,
) -> Plane | None:
    """The plane in which a spot is told; a threshold in units of the noise is no line in it.

    A sample of single frames knows nothing of a median over several.
    """
    if neighbourhood != "frame":
        return None

    def compute(frame: Any) -> Any:
        xp = backend_of(frame).xp
        median = _median_of_values(frame, _window(frame, size, "frame"))
        residual = xp.astype(frame, xp.float32) - xp.astype(median, xp.float32)
        return xp.stack([xp.astype(frame, xp.float32), residual if kind != "both" else abs(residual)], axis=-1)

    limit = (-threshold if kind == "dark" else threshold) if threshold_unit == "counts" else None
    return Plane(("value", "abs_residual" if kind == "both" else "residual"), compute, size // 2, size, limit)


def _window(image: Any, size: int, neighbourhood: str) -> tuple[int, ...]:
    """Sides of the window along each axis."""
    flat = image.ndim - 2 if neighbourhood == "frame" else 0
    return (1,) * flat + (size,) * (image.ndim - flat)


def _has_nan(image: Any) -> bool:
    if image.dtype.kind != "f":
        return False
    xp = backend_of(image).xp
    return bool(xp.isnan(xp.sum(image)))  # Inf - Inf looks like NaN too: then the careful way is taken for nothing


def _median_of_values(image: Any, window: tuple[int, ...]) -> Any:
    """Running median; where a window holds NaN, that of its other values (NaN where it has none)."""
    backend = backend_of(image)
    xp = backend.xp
    if not _has_nan(image):
        return backend.median(image, size=window)
    missing = xp.isnan(image)
    median = backend.median(xp.where(missing, xp.asarray(0, dtype=image.dtype), image), size=window)
    for places, values, _ in _windows(_spread(missing, window), window, image):
        some = ~xp.all(xp.isnan(values), axis=1)
        filled = xp.where(some[:, None], values, xp.asarray(0, dtype=image.dtype))
        median[places] = xp.where(some, xp.nanmedian(filled, axis=1), xp.nan)
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


def _noise(image: Any, median: Any, unit: str) -> Any:
    """What `threshold` is measured in: 1, or an array of float32."""
    xp = backend_of(image).xp
    if unit == "counts":
        return 1.0
    if unit == "poisson":
        return xp.sqrt(xp.maximum(xp.astype(median, xp.float32), xp.asarray(1, dtype=xp.float32)))
    distance = xp.abs(xp.astype(image, xp.float32) - xp.astype(median, xp.float32))
    sigma = MAD_TO_SIGMA * _median_of_values(distance, _window(image, NOISE_SIZE, "frame"))
    return sigma if image.dtype.kind == "f" else xp.maximum(sigma, xp.asarray(0.5, dtype=xp.float32))


def _find(image: Any, median: Any, limit: Any, kind: str) -> Any:
    xp = backend_of(image).xp
    gap = xp.maximum(image, median) - xp.minimum(image, median)
    if gap.dtype.kind == "i":  # half of the differences wrap in a signed type, none in the unsigned one
        gap = xp.astype(gap, np.dtype(f"u{gap.dtype.itemsize}"))
    spots = gap > limit
    if kind == "bright":
        spots = spots & (image > median)
    elif kind == "dark":
        spots = spots & (image < median)
    return spots


def _drop_large(spots: Any, max_area: int) -> Any:
    """Keep the connected spots of at most `max_area` pixels."""
    backend = backend_of(spots)
    numbers, _ = backend.label(spots)
    areas = backend.xp.bincount(numbers.ravel())
    areas[0] = max_area + 1  # what is no spot
    return (areas <= max_area)[numbers]


def _replace(image: Any, median: Any, spots: Any, *, window: tuple[int, ...], replacement: str) -> Any:
    xp = backend_of(image).xp
    if replacement == "nan":
        return xp.where(spots, xp.asarray(xp.nan, dtype=image.dtype), image)
    cleaned = xp.where(spots, median, image)
    if replacement == "mean":
        for places, values, inside in _windows(spots, window, image):
            _, taken, _ = _windows_at(places, window, spots)
            good = inside & ~taken & ~xp.isnan(values)
            number = xp.sum(good, axis=1)
            mean = xp.sum(xp.where(good, values, 0), axis=1, dtype=xp.float64) / xp.maximum(number, 1)
            mean = xp.rint(mean) if image.dtype.kind != "f" else mean
            cleaned[places] = xp.where(number > 0, mean, median[places]).astype(image.dtype)
    return cleaned


def _windows(where: Any, window: tuple[int, ...], image: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield (places, values of their windows, which of them lie inside the image), some places at a time."""
    places = where.nonzero()
    for start in range(0, len(places[0]), PIECE):
        yield _windows_at(tuple(p[start : start + PIECE] for p in places), window, image)


def _windows_at(places: tuple[Any, ...], window: tuple[int, ...], image: Any) -> tuple[Any, Any, Any]:
    """The same for given places; values are (places, window), those outside repeat the border."""
    xp = backend_of(image).xp
    steps = xp.asarray(list(np.ndindex(*window))) - xp.asarray([side // 2 for side in window])
    inside, index = True, []
    for axis, place in enumerate(places):
        at = place[:, None] + steps[None, :, axis]
        inside = inside & (at >= 0) & (at < image.shape[axis])
        index.append(xp.clip(at, 0, image.shape[axis] - 1))
    return places, image[tuple(index)], inside

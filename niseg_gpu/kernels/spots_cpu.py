"""Cleaning spots on the CPU with any options: in one pass where a kernel has the window, else in pieces in the cache.

Windows that hold NaN or dead pixels are few; they are looked at once more, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.kernels.compiled import compiled, read_flat
from niseg_gpu.kernels.holes import find_near_holes, put_means, take_medians
from niseg_gpu.kernels.median import clean_and_count, covers_on_cpu, median_frames
from niseg_gpu.kernels.spot_rules import Rule, clean_row, make_rule
from niseg_gpu.kernels.spots_xp import NOISE_SIZE, as_sigma

PIECE = 1 << 18  # values at a time, whole frames: they stay in the cache between the passes


class Options(NamedTuple):
    """What `niseg_gpu.spots.remove_spots` was told; `sides` are the window's, frames first, `dead` a mask or None."""

    sides: tuple[int, int, int]
    threshold: float
    kind: str
    threshold_unit: str
    replacement: str
    max_area: int | None
    dead: np.ndarray | None

    @property
    def blank(self) -> bool:
        return self.replacement == "nan"


def replace_spots_cpu(
    image: np.ndarray,
    *,
    median: Callable[..., np.ndarray],
    label: Callable[..., tuple[np.ndarray, int]],
    window: tuple[int, ...],
    own: tuple[slice, ...],
    **options: Any,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Replace spots; see `niseg_gpu.spots.remove_spots` and `niseg_gpu.kernels.spots_xp.replace_spots_xp`.

    Parameters
    ----------
    image : (..., Y, X) ndarray
        Of one of `niseg_gpu.kernels.median.DTYPES`.
    median, label : callable
        The twin's.
    window : tuple of int
        Sides per axis; longer than 1 along the last three axes at most.
    own : tuple of slice
        Where spots are counted.
    """
    sides = (1, 1, *window)[-3:]
    given = Options(sides, **options)
    stack, counts = np.ascontiguousarray(image).reshape(-1, *image.shape[-2:]), None
    if not stack.size:
        return image.copy(), np.zeros(image.shape, np.bool_), 0
    if sides[0] == 1 and given.threshold_unit != "sigma" and covers_on_cpu(stack.dtype, sides):
        cleaned, spots, counts = _clean_at_once(stack, given)
    else:
        cleaned, spots = np.empty_like(stack), np.empty(stack.shape, np.bool_)
        for piece in _cut(stack.shape, whole=sides[0] > 1):
            _clean_piece(stack[piece], given, median, cleaned[piece], spots[piece])
    if given.max_area is not None:
        counts = None
        _keep_small(stack, cleaned, spots, max_area=given.max_area, label=label)
    if given.replacement == "mean":
        replaced = spots if given.dead is None else spots | given.dead
        put_means(cleaned, stack, given.dead, spots, np.flatnonzero(replaced), sides=sides)
    shaped = spots.reshape(image.shape)
    return cleaned.reshape(image.shape), shaped, _count_own(shaped, counts, own)


def _clean_at_once(stack: np.ndarray, given: Options) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """One pass, and the places around holes again; the spots of each row, where there are no holes."""
    rule = make_rule(
        stack.dtype, threshold=given.threshold, kind=given.kind, unit=given.threshold_unit, blank=given.blank
    )
    cleaned, spots, counts, has_nan = clean_and_count(stack, size=given.sides[-1], rule=rule)
    if not has_nan and given.dead is None:
        return cleaned, spots, counts
    places = find_near_holes(stack, given.dead, sides=given.sides)
    medians = take_medians(stack, given.dead, places, sides=given.sides)
    values = stack.reshape(-1)[places]
    found, marked = _apply_rule(values, medians, rule)
    _replace_dead(found, marked, medians, places, given)
    cleaned.reshape(-1)[places], spots.reshape(-1)[places] = found, marked
    return cleaned, spots, None


def _clean_piece(
    stack: np.ndarray, given: Options, median: Callable[..., np.ndarray], out: np.ndarray, spots: np.ndarray
) -> None:
    """Medians, then what they say of each value."""
    has_nan = stack.dtype.kind == "f" and bool(np.isnan(stack.sum()))
    # a library's median may carry NaN farther than its window
    medians = median(np.where(np.isnan(stack), stack.dtype.type(0), stack) if has_nan else stack, size=given.sides)
    places = None
    if has_nan or given.dead is not None:
        places = find_near_holes(stack, given.dead, sides=given.sides)
        medians.reshape(-1)[places] = take_medians(stack, given.dead, places, sides=given.sides)
    if given.threshold_unit == "sigma":
        limits = given.threshold * _measure_noise(stack, medians, given)
        kinds = given.kind != "dark", given.kind != "bright"
        blank = np.full(int(given.blank), np.nan if given.blank else 0, stack.dtype)
        flat = (read_flat(stack), medians.reshape(-1), limits.reshape(-1))
        _clean_by_limits(*flat, *kinds, blank, out.reshape(-1), spots.reshape(-1))
    else:
        rule = make_rule(
            stack.dtype, threshold=given.threshold, kind=given.kind, unit=given.threshold_unit, blank=given.blank
        )
        _apply_rule(stack.reshape(-1), medians.reshape(-1), rule, out=out.reshape(-1), spots=spots.reshape(-1))
    if given.dead is not None:
        everywhere = np.arange(stack.size)
        _replace_dead(out.reshape(-1), spots.reshape(-1), medians.reshape(-1), everywhere, given)


def _measure_noise(stack: np.ndarray, medians: np.ndarray, given: Options) -> np.ndarray:
    """The local noise, float32; NaN where nothing tells it."""
    distance = np.abs(stack.astype(np.float32) - medians.astype(np.float32))
    deviation = median_frames(distance, size=NOISE_SIZE)
    if given.dead is not None or np.isnan(distance.sum()):
        sides = (1, NOISE_SIZE, NOISE_SIZE)
        places = find_near_holes(distance, given.dead, sides=sides)
        deviation.reshape(-1)[places] = take_medians(distance, given.dead, places, sides=sides)
    return as_sigma(deviation, stack.dtype, xp=np)


def _replace_dead(
    cleaned: np.ndarray, spots: np.ndarray, medians: np.ndarray, places: np.ndarray, given: Options
) -> None:
    """Dead pixels are no spots, but replaced; `places` are the numbers of the values in the stack."""
    if given.dead is not None:
        dead = given.dead.reshape(-1)[places % given.dead.size]
        cleaned[dead], spots[dead] = np.nan if given.blank else medians[dead], False


def _apply_rule(
    values: np.ndarray,
    medians: np.ndarray,
    rule: Rule,
    *,
    out: np.ndarray | None = None,
    spots: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    out = np.empty_like(values) if out is None else out
    spots = np.empty(values.shape, np.bool_) if spots is None else spots
    _clean_all(read_flat(values), medians, out, spots, np.zeros(2, np.uint32), *rule)
    return out, spots


@compiled
def _clean_all(values, medians, out, spots, counts, limits, noise, blank):
    clean_row(values, 0, medians, 0, values.size, out, spots, 0, counts, limits, noise, blank)


@compiled
def _clean_by_limits(values, medians, limits, bright, dark, blank, out, spots):
    """Clean values by a limit of each; of those `bright` and `dark`, or not."""
    for i in range(values.size):
        value, median = values[i], medians[i]
        gap = np.float64(value) - np.float64(median)
        spot = (bright and gap > limits[i]) or (dark and -gap > limits[i])
        out[i] = (blank[0] if blank.size else median) if spot else value
        spots[i] = spot


def _keep_small(
    stack: np.ndarray, cleaned: np.ndarray, spots: np.ndarray, *, max_area: int, label: Callable[..., Any]
) -> None:
    """Put back what belongs to connected spots of more than `max_area` pixels."""
    for piece in _cut(stack.shape, whole=False):
        numbers, _ = label(spots[piece])
        large = np.bincount(numbers.ravel()) > max_area
        large[0] = False
        if large.any():
            kept = large[numbers]
            cleaned[piece][kept], spots[piece][kept] = stack[piece][kept], False


def _cut(shape: tuple[int, ...], *, whole: bool) -> Iterator[slice]:
    """Cut a stack into groups of frames of about `PIECE` values."""
    step = shape[0] if whole else max(1, PIECE // (shape[1] * shape[2]))
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _count_own(spots: np.ndarray, counts: np.ndarray | None, own: tuple[slice, ...]) -> int:
    """Spots within `own`; from those of each row where they are known and `own` splits none."""
    columns = spots.shape[-1]
    if counts is not None and own[-1].indices(columns) == (0, columns, 1):
        return int(counts.reshape(spots.shape[:-1])[own[:-1]].sum())
    return int(np.count_nonzero(spots[own]))

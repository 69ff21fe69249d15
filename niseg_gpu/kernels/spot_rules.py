"""What makes a value a spot, for loops over a row in compiled code."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from niseg_gpu.kernels.compiled import inline


def is_far(value, median, bright, dark):
    """Whether a value lies farther above the median than `bright` or below it than `dark`.

    Both are of the type that holds every difference, see `limit_differences`.
    """


@overload(is_far)
def _is_far(value, median, bright, dark):
    if isinstance(value, types.Float):
        return lambda value, median, bright, dark: (value - median > bright) | (median - value > dark)
    unsigned = np.dtype(bright.name).type
    if value.bitwidth > 16:

        def wide(value, median, bright, dark):
            above = value > median
            high, low = (value, median) if above else (median, value)
            return unsigned(unsigned(high) - unsigned(low)) > (bright if above else dark)

        return wide
    # up to 16 bit there are subtractions that stop at 0; moved up by half their range, signed values keep their order
    move, zero = unsigned(1 << (value.bitwidth - 1) if value.signed else 0), unsigned(0)

    def narrow(value, median, bright, dark):
        value, median = unsigned(unsigned(value) ^ move), unsigned(unsigned(median) ^ move)
        above = unsigned(value - median) if value > median else zero
        below = unsigned(median - value) if median > value else zero
        above = unsigned(above - bright) if above > bright else zero
        below = unsigned(below - dark) if below > dark else zero
        return unsigned(above | below) != zero

    return narrow


def is_beyond(value, median, bright, dark):
    """The same with limits in float32; a difference is compared with them unrounded."""


@overload(is_beyond)
def _is_beyond(value, median, bright, dark):
    if isinstance(value, types.Float):
        return lambda value, median, bright, dark: (value - median > bright) | (median - value > dark)
    wide = np.float32 if value.bitwidth <= 16 else np.float64

    def exact(value, median, bright, dark):
        above = wide(wide(value) - wide(median))
        return (above > wide(bright)) | (-above > wide(dark))

    return exact


@inline
def _replace_far(values, i, medians, m, n, out, spots, limits, counts):
    number, bright, dark = counts.dtype.type, limits[0], limits[1]
    i, m, found, nan = np.uint64(i), np.uint64(m), number(0), number(0)
    for x in range(np.uint64(n)):
        value, median = values[i + x], medians[m + x]
        spot = is_far(value, median, bright, dark)
        out[i + x] = median if spot else value
        spots[i + x] = spot
        found = number(found + number(spot))
        nan = number(nan + number(value != value))
    return found, nan


@inline
def _replace_unlikely(values, i, medians, m, n, out, spots, noise, counts):
    """The same with limits that are `noise` times the square root of the median, or of 1 where it is less."""
    number, bright, dark, one = counts.dtype.type, noise[0], noise[1], np.float32(1)
    i, m, found, nan = np.uint64(i), np.uint64(m), number(0), number(0)
    for x in range(np.uint64(n)):
        value, median = values[i + x], medians[m + x]
        level = np.float32(median)
        root = np.sqrt(level if level > one else one)
        spot = is_beyond(value, median, np.float32(bright * root), np.float32(dark * root))
        out[i + x] = median if spot else value
        spots[i + x] = spot
        found = number(found + number(spot))
        nan = number(nan + number(value != value))
    return found, nan


@inline
def blank_spots(spots, i, n, out, blank):
    """Put `blank`, an array of one value, in the place of spots."""
    i, value = np.uint64(i), blank[0]
    for x in range(np.uint64(n)):
        out[i + x] = value if spots[i + x] else out[i + x]


@inline
def clean_row(values, i, medians, m, n, out, spots, k, counts, limits, noise, blank):
    """Clean row `k`: `n` values from `i`, whose medians lie from `m`. The last three arrays are those of a `Rule`.

    The first half of `counts` gets the spots of each row, the second the NaN.
    """
    if noise.size:
        found, nan = _replace_unlikely(values, i, medians, m, n, out, spots, noise, counts)
    else:
        found, nan = _replace_far(values, i, medians, m, n, out, spots, limits, counts)
    counts[k] += found
    counts[counts.size // 2 + k] += nan
    if blank.size:
        blank_spots(spots, i, n, out, blank)


class Rule(NamedTuple):
    """What makes a value a spot and what takes its place, as arrays for compiled code.

    Attributes
    ----------
    limits : (2,) array
        Greatest difference above and below the median that is no spot, in the type that holds every difference.
    noise : (2,) float32 array
        The same over the square root of the median, instead of `limits`; empty where these hold.
    blank : (1,) array
        In the dtype of the values, what takes the place of a spot; empty where the median does.
    """

    limits: np.ndarray
    noise: np.ndarray
    blank: np.ndarray


def make_rule(dtype: np.dtype, *, threshold: float, kind: str, unit: str = "counts", blank: bool = False) -> Rule:
    """Prepare a rule for values of `dtype`; `unit` is counts or poisson, and `blank` for floats alone."""
    noise = np.array([-1.0 if kind == "dark" else threshold, -1.0 if kind == "bright" else threshold])
    noise = np.where(noise < 0, np.inf, noise).astype(np.float32) if unit == "poisson" else noise[:0].astype(np.float32)
    return Rule(limit_differences(dtype, threshold, kind), noise, np.full(int(blank), np.nan if blank else 0, dtype))


def limit_differences(dtype: np.dtype, threshold: float, kind: str) -> np.ndarray:
    """Greatest difference above and below the median that is no spot, in the type that holds every difference."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # NumPy too compares with the threshold in the dtype of the image
            limit, never = dtype.type(threshold), np.inf
        differences = dtype
    else:
        differences = np.dtype(f"u{dtype.itemsize}")
        never = np.iinfo(differences).max
        limit = math.floor(min(threshold, never))
    return np.array([never if kind == "dark" else limit, never if kind == "bright" else limit], differences)

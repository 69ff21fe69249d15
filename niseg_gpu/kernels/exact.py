"""Sums over pixels that come out the same in any order: what is known of them without a compiler."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

BITS = 51  # of the largest sum in quanta


class Sums(NamedTuple):
    """What one pass gives beside the labels.

    Attributes
    ----------
    sums : (k, features) float64 array
        Of the pixels of each cluster, less the mean.
    sizes : (k,) int64 array
    moved : int
        Labels that changed.
    """

    sums: Any
    sizes: Any
    moved: int


def choose_quantum(largest: float, n: int) -> float:
    """Return the power of two to which values are rounded, so that `n` of them, none over `largest`, sum exactly.

    The rounding is below ``largest * n / 2**BITS``, by chance up or down: 2**-31 of the largest value for a million of
    them, 2**-21 for a thousand million, where float32 itself has 2**-24 of each value.
    """
    bits = math.frexp(max(float(largest), np.finfo(np.float32).tiny) * max(n, 1))[1]
    return math.ldexp(1.0, bits - BITS)

"""Pixels that a pass of k-means need not look at, since no other centroid can have come nearest; on the CPU.

After Hamerly (10.1137/1.9781611972801.12): of each pixel it is remembered how much nearer its own centroid was than any
other, and how far away. From where the centroids went it follows by how much that lead can have shrunk at most. While
it stays above all that float32 may have rounded, the pixel keeps its label and is not read.

What is bounded is the difference of squared distances, ``|x - b|^2 - |x - a|^2 = |b|^2 - |a|^2 - 2 x (b - a)``. If a
goes to ``a + d`` and b to ``b + e``, it changes by that of the squared norms less ``2 x (e - d)``. With x = a + r::

    x (e - d) = a (e - d) + r (e - d) <= a (e - d) + |r| |e - d|

The first term is known for each pair of clusters; the second grows with the noise of the pixel, not with its counts.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.kernels.tiles import FAST
from niseg_gpu.kernels.vectors import SIDE

ROUNDING = 2.0**-24  # of float32, relative
CANCELLED = 2.0**-40  # more than float64 can lose of the squared distance of two ways
MARGINS = 3  # float32 values a pixel
LEAST_SHARE = 20  # they must take no more than one part in so many of the pixels' memory
LEAD, REST, NORM = range(MARGINS)


def make_margins(pixels: np.ndarray, *, steps: tuple[int, int]) -> np.ndarray | None:
    """Return room for what is remembered, (3, n) float32; nothing where it isn't worth its memory or pixels lie apart.

    Parameters
    ----------
    pixels : (n, features) ndarray
    steps : tuple of int
        Along both axes, in values; see `niseg_gpu.kernels.tiles.flatten`.
    """
    n, features = pixels.shape
    if steps[1] != 1 or MARGINS * 4 * LEAST_SHARE > features * pixels.itemsize:
        return None
    return np.empty((MARGINS, n), np.float32)


class Shift(NamedTuple):
    """How far the centroids went.

    Attributes
    ----------
    known : (k, k) float64 array
        By how much the lead of cluster a over b changes for a pixel that is at its centroid.
    by_rest : (k, k) float64 array
        By how much it can shrink beyond, for each unit of the pixel's distance from there.
    own : (k,) float64 array
        The way of each centroid.
    """

    known: Any
    by_rest: Any
    own: Any


def measure_shift(before: np.ndarray, now: np.ndarray) -> Shift:
    """Compare centroids (k, features) with those that the labels were given by."""
    before, now = before.astype(np.float64), now.astype(np.float64)
    ways = now - before
    grown = np.sum(now**2, axis=1) - np.sum(before**2, axis=1)
    crossed = before @ ways.T  # of a's place and b's way
    known = grown[None, :] - grown[:, None] - 2 * (crossed - np.diagonal(crossed)[:, None])
    lengths = np.sum(ways**2, axis=1)
    both = lengths[:, None] + lengths
    apart = np.sqrt(np.maximum(both - 2 * ways @ ways.T, 0) + CANCELLED * both)
    return Shift(known, 2 * apart, np.sqrt(lengths))


class Doubt(NamedTuple):
    """What float32 may have rounded off a difference between two distances: `fixed` and `by_norm` for each of |x|.

    The sums of products run in eight lanes through the blocks of `width` features, then come `blocks` more.
    """

    fixed: float
    by_norm: float


def measure_doubt(centroids: np.ndarray, *, blocks: int, width: int) -> Doubt:
    """Bound the rounding of the difference of two scores ``|c|^2 - 2 x c`` over all centroids."""
    longest = math.sqrt(float(np.max(np.sum(centroids.astype(np.float64) ** 2, axis=1), initial=0.0)))
    each = (width / SIDE + blocks + 8) * ROUNDING * 1.01  # what is summed, and the few steps around it
    return Doubt(2 * each * longest**2, 4 * each * longest)


@compiled
def choose_pixels(labels, margins, known, by_rest, own, fixed, by_norm, wanted):  # type: ignore[no-untyped-def]
    """List the pixels whose nearest centroid may be another one; return their number. The others' margins move on."""
    count, k = 0, own.size
    for i in range(labels.size):
        a = labels[i]
        if a < 0:
            continue
        rest, least = np.float64(margins[REST, i]), np.inf
        for b in range(k):
            change = known[a, b] - by_rest[a, b] * rest
            if b != a and change < least:
                least = change
        lead = np.float64(margins[LEAD, i]) + least
        if lead > fixed + by_norm * margins[NORM, i]:
            # float32 may round up what must not grow, and down what must not shrink
            margins[LEAD, i] = lead - abs(lead) * 2.0**-23
            margins[REST, i] = (rest + own[a]) * (1 + 2.0**-22)
        else:
            wanted[count] = i
            count += 1
    return count


@compiled(fastmath=FAST)
def square_row(tile, r):  # type: ignore[no-untyped-def]
    """The squared length of a row, in float64."""
    total = 0.0
    for b in range(tile.shape[0]):
        row = tile[b, r]
        for f in range(row.size):
            total += np.float64(row[f]) * np.float64(row[f])
    return total


@compiled
def note_margin(margins, i, scores, nearest, fixed, by_norm):  # type: ignore[no-untyped-def]
    """Remember the lead of the nearest centroid and the distance from it; `scores` are the distances less |x|^2."""
    second = np.float32(np.inf)
    for c in range(scores.size):
        if c != nearest and scores[c] < second:
            second = scores[c]
    doubt, norm = fixed + by_norm * margins[NORM, i], np.float64(margins[NORM, i])
    lead = np.float64(second) - scores[nearest] - doubt
    margins[LEAD, i] = lead - abs(lead) * 2.0**-23
    margins[REST, i] = np.sqrt(max(norm * norm + scores[nearest] + doubt / 2, 0.0)) * (1 + 2.0**-22)

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
from niseg_gpu.kernels.spectra import find_least
from niseg_gpu.kernels.vectors import SIDE

ROUNDING = 2.0**-24  # of float32, relative
FEW = 8  # steps around a sum
CANCELLED = 2.0**-40  # more than float64 can lose of the squared distance of two ways
MARGINS = 2  # float32 values a pixel
LEAST_SHARE = 20  # they must take no more than one part in so many of the pixels' memory
LEAD, REST = range(MARGINS)
WORTH_SHARE = 0.85  # of what is looked at: with more it takes less time to look at all, and not to choose and note


def are_worth_it(pixel_bytes: int) -> bool:
    """Whether margins take little of the memory that pixels of so many bytes have."""
    return MARGINS * 4 * LEAST_SHARE <= pixel_bytes


class Watch:
    """When to note margins: not for a while where they let hardly anything be skipped, each time for longer."""

    def __init__(self) -> None:
        self.noted, self.idle, self.pause = False, 0, 0

    def judge(self, wanted_share: float) -> None:
        """Hear what part the margins of the last pass have left to be looked at."""
        if wanted_share <= WORTH_SHARE:
            self.pause = 0
        else:
            self.idle, self.pause = self.pause, max(1, 2 * self.pause)

    def notes(self) -> bool:
        """Return whether this pass is to note them; asked once a pass."""
        self.noted = self.idle == 0
        self.idle = max(0, self.idle - 1)
        return self.noted


class Shift(NamedTuple):
    """How far the centroids went.

    Attributes
    ----------
    lengths : (k,) float64 array
        Of the centroids, before.
    known : (k, room) float64 array
        By how much the lead of cluster a over b changes for a pixel that is at its centroid; infinite for a itself, and
        where no cluster is: `room` is a multiple of 8.
    by_rest : (k, room) float64 array
        By how much it can shrink beyond, for each unit of the pixel's distance from there.
    own : (k,) float64 array
        The way of each centroid.
    """

    lengths: Any
    known: Any
    by_rest: Any
    own: Any


def measure_shift(before: np.ndarray, now: np.ndarray) -> Shift:
    """Compare centroids (k, features) with those that the labels were given by."""
    k, room = len(before), -(-len(before) // SIDE) * SIDE
    before, now = before.astype(np.float64), now.astype(np.float64)
    ways = now - before
    squares, lengths = np.sum(before**2, axis=1), np.sum(ways**2, axis=1)
    grown = np.sum(now**2, axis=1) - squares
    crossed = _multiply_all(before, ways)  # of a's place and b's way
    known, by_rest = np.full((k, room), np.inf), np.zeros((k, room))
    known[:, :k] = grown[None, :] - grown[:, None] - 2 * (crossed - np.diagonal(crossed)[:, None])
    np.fill_diagonal(known, np.inf)
    both = lengths[:, None] + lengths
    by_rest[:, :k] = 2 * np.sqrt(np.maximum(both - 2 * _multiply_all(ways, ways), 0) + CANCELLED * both)
    return Shift(np.sqrt(squares), known, by_rest, np.sqrt(lengths))


def _multiply_all(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Products of all pairs of rows; by no BLAS, whose threads would wait for more, at full speed, where ours work."""
    return np.einsum("af,bf->ab", one, other)


class Doubt(NamedTuple):
    """What float32 may have rounded off a difference between two distances: `fixed` and `by_norm` for each of |x|.

    `by_square` is what it may have rounded off |x|^2, relative.
    """

    fixed: float
    by_norm: float
    by_square: float


def measure_doubt(centroids: np.ndarray, *, steps: int) -> Doubt:
    """Bound the rounding of the difference of two scores ``|c|^2 - 2 x c`` over all centroids.

    Parameters
    ----------
    centroids : (k, features) float32 ndarray
    steps : int
        Additions, one after another, that a product of a pixel with a centroid is made by, or its square.
    """
    longest = math.sqrt(float(np.max(np.sum(centroids.astype(np.float64) ** 2, axis=1), initial=0.0)))
    each = (steps + FEW) * ROUNDING * 1.01
    return Doubt(2 * each * longest**2, 4 * each * longest, each)


@compiled
def choose_pixels(labels, margins, lengths, known, by_rest, own, fixed, by_norm, wanted):  # type: ignore[no-untyped-def]
    """List the pixels whose nearest centroid may be another one; return their number. The others' margins move on.

    `lengths` are those of the centroids that the labels were given by.
    """
    count, room = 0, known.shape[1]
    for i in range(labels.size):
        a = labels[i]
        if a < 0:
            continue
        rest = np.float64(margins[REST, i])
        lead = np.float64(margins[LEAD, i]) + find_least(known, by_rest, a * room, room, rest)
        if lead > fixed + by_norm * (lengths[a] + rest):
            # float32 may round up what must not grow, and down what must not shrink
            margins[LEAD, i] = lead - abs(lead) * 2.0**-23
            margins[REST, i] = (rest + own[a]) * (1 + 2.0**-22)
        else:
            wanted[count] = i
            count += 1
    return count


@compiled
def list_groups(wanted, lead, size):  # type: ignore[no-untyped-def]
    """Put the groups of `size`, the first short of `lead`, in the place of sorted pixels; return their number."""
    count = 0
    for j in range(wanted.size):
        group = (wanted[j] + lead) // size
        if count == 0 or wanted[count - 1] != group:
            wanted[count] = group
            count += 1
    return count


@compiled
def note_margins(margins, numbers, start, rows, squares, scores, fixed, by_norm, by_square, notes):  # type: ignore[no-untyped-def]
    """Remember of some pixels the lead of the nearest centroid and the distance from it.

    `squares` are their |x|^2, `scores` the least and, in the second half, the next of their distances less that;
    `notes` is room for two float64 of each. Negative numbers are of no pixel.
    """
    for r in range(rows):
        square, least = np.float64(squares[r]) * (1 + by_square), np.float64(scores[r])
        doubt = fixed + by_norm * np.sqrt(square)
        lead, rest = scores[squares.size + r] - least - doubt, square + least + doubt / 2
        notes[0, r] = lead - abs(lead) * 2.0**-23
        notes[1, r] = np.sqrt(rest if rest > 0 else 0.0) * (1 + 2.0**-22)
    for r in range(rows):
        if numbers[start + r] >= 0:
            margins[LEAD, numbers[start + r]] = notes[0, r]
            margins[REST, numbers[start + r]] = notes[1, r]

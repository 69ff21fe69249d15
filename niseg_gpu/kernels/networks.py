"""Selection networks: sorting and medians of a few values by minima and maxima alone, so that they vectorise.

Each function takes and returns scalars and holds no branch; compiled into a loop over pixels, every line becomes one
or two vector instructions. Arguments of one list come sorted where the docstring says so.
"""

from __future__ import annotations

from niseg_gpu.kernels.compiled import inline


@inline
def lesser(a, b):
    return a if a < b else b


@inline
def greater(a, b):
    # not "a if a > b": so that lesser and greater return both values even where one is NaN
    return b if a < b else a


@inline
def exchange(a, b):
    """The two in order."""
    return lesser(a, b), greater(a, b)


@inline
def sort3(a, b, c):
    b, c = exchange(b, c)
    return lesser(a, b), greater(b, lesser(a, c)), greater(a, c)


@inline
def median3(a, b, c):
    low, high = exchange(a, b)
    return greater(low, lesser(high, c))


@inline
def median9(a0, a1, a2, b0, b1, b2, c0, c1, c2):
    """Median of three sorted triples: of the greatest minimum, the median of medians and the least maximum."""
    return median3(
        greater(greater(a0, b0), c0),
        median3(a1, b1, c1),
        lesser(lesser(a2, b2), c2),
    )


@inline
def sort5(a, b, c, d, e):
    a, b = exchange(a, b)
    d, e = exchange(d, e)
    c, e = exchange(c, e)
    c, d = exchange(c, d)
    b, e = exchange(b, e)
    a, d = exchange(a, d)
    a, c = exchange(a, c)
    b, d = exchange(b, d)
    b, c = exchange(b, c)
    return a, b, c, d, e


@inline
def merge5(a0, a1, a2, a3, a4, b0, b1, b2, b3, b4):
    """Merge two sorted fives into a sorted ten (Batcher's odd-even merge)."""
    a0, b0 = exchange(a0, b0)
    a4, b4 = exchange(a4, b4)
    a4, b0 = exchange(a4, b0)
    a2, b2 = exchange(a2, b2)
    a2, a4 = exchange(a2, a4)
    b0, b2 = exchange(b0, b2)
    a1, b1 = exchange(a1, b1)
    a3, b3 = exchange(a3, b3)
    a3, b1 = exchange(a3, b1)
    a1, a2 = exchange(a1, a2)
    a3, a4 = exchange(a3, a4)
    b1, b0 = exchange(b1, b0)
    b3, b2 = exchange(b3, b2)
    return a0, a1, a2, a3, a4, b1, b0, b3, b2, b4


@inline
def middle6(a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, b0, b1, b2, b3, b4, b5, b6, b7, b8, b9):
    """The 8th to 13th of two sorted tens, sorted: an odd-even merge without what these six don't need."""
    b0 = greater(a0, b0)
    a8 = lesser(a8, b8)
    a8, b0 = exchange(a8, b0)
    a4, b4 = exchange(a4, b4)
    a8 = greater(a4, a8)
    b4 = lesser(b4, b0)
    b2 = greater(a2, b2)
    a6 = lesser(a6, b6)
    a6, b2 = exchange(a6, b2)
    a8 = greater(a6, a8)
    b2, b4 = exchange(b2, b4)
    b1 = greater(a1, b1)
    a9 = lesser(a9, b9)
    a9, b1 = exchange(a9, b1)
    a5, b5 = exchange(a5, b5)
    a9 = greater(a5, a9)
    b5 = lesser(b5, b1)
    b3 = greater(a3, b3)
    a7 = lesser(a7, b7)
    a7, b3 = exchange(a7, b3)
    a7, a9 = exchange(a7, a9)
    b3 = lesser(b3, b5)
    a7, a8 = exchange(a7, a8)
    a9, b2 = exchange(a9, b2)
    b3, b4 = exchange(b3, b4)
    return a7, a8, a9, b2, b3, b4


@inline
def median11(a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4):
    """Median of a sorted six and a sorted five: the least, over all splits of six values, of the greatest taken."""
    low = lesser(lesser(greater(a0, b4), greater(a1, b3)), greater(a2, b2))
    return lesser(low, lesser(lesser(greater(a3, b1), greater(a4, b0)), a5))

"""How a thread of the GPU's running medians goes down its strip: where it begins, and its steps of two or four rows.

A state is what is carried from step to step: the number of spots found, where the next row to filter and the lowest
row loaded begin, values in the middle of their windows, and rows of windows, sorted, merged or just asked for. What
two windows share is merged once.

These functions are built anew for the device by `median_cuda`, which gives them what they don't find here: the
networks of `networks` and `merging`, `load` for values and `put` for results.
"""
# ruff: noqa: F821

from __future__ import annotations

import numpy as np


def clip(i, n):
    return min(max(i, 0), n - 1)


def below(row, shape):
    """Where the row below begins, counted from its frame's start, or the last row again: 32 bit, two instructions."""
    return min(np.int32(row + shape[1]), shape[2])


def load3(frames, at, x, width):
    return load(frames, at, x - 1, width), load(frames, at, x, width), load(frames, at, x + 1, width)


def load5(frames, at, x, width):
    left, middle, right = load3(frames, at, x, width)
    return load(frames, at, x - 2, width), left, middle, right, load(frames, at, x + 2, width)


def load7(frames, at, x, width):
    a, b, c, d, e = load5(frames, at, x, width)
    return load(frames, at, x - 3, width), a, b, c, d, e, load(frames, at, x + 3, width)


def start3(frames, first, x, shape):
    height, width, _ = shape
    a = load3(frames, clip(first - 1, height) * width, x, width)
    b = load3(frames, first * width, x, width)
    c = load3(frames, clip(first + 1, height) * width, x, width)
    ahead = np.int32(clip(first + 2, height) * width)
    d = load3(frames, ahead, x, width)
    return np.uint32(0), np.int32(first * width), ahead, b[1], sort3(*a), sort3(*b), c, d


def step3(state, frames, x, shape, target):
    """3 x 3 of two rows. Rows `a`, `b` are sorted; `c` and `d` below them were asked for one step ago."""
    found, row, ahead, upper, a, b, c, d = state
    width = shape[1]
    ahead = below(ahead, shape)
    e = load3(frames, ahead, x, width)
    ahead = below(ahead, shape)
    f = load3(frames, ahead, x, width)
    lower, next_upper = c[1], d[1]
    c, d = sort3(*c), sort3(*d)
    # the rows that both windows hold come first, so that they are merged once
    found += put(upper, median9(*b, *c, *a), row, x, shape, target)
    row = np.int32(row + width)
    found += put(lower, median9(*b, *c, *d), row, x, shape, target)
    return np.uint32(found), np.int32(row + width), ahead, next_upper, c, d, e, f


def start5(frames, first, x, shape):
    height, width, _ = shape
    a = load5(frames, clip(first - 2, height) * width, x, width)
    b = load5(frames, clip(first - 1, height) * width, x, width)
    c = load5(frames, first * width, x, width)
    d = load5(frames, clip(first + 1, height) * width, x, width)
    e = load5(frames, clip(first + 2, height) * width, x, width)
    ahead = np.int32(clip(first + 3, height) * width)
    f = load5(frames, ahead, x, width)
    upper, lower, c = c[2], d[2], sort5(*c)
    pair = merge5(*sort5(*b), *c)
    return np.uint32(0), np.int32(first * width), ahead, upper, lower, pair, sort5(*a), c, sort5(*d), e, f


def step5(state, frames, x, shape, target):
    """5 x 5 of two rows. `pair` is the sorted ten of the rows before and at the first; `e`, `f` are not sorted yet."""
    found, row, ahead, upper, lower, pair, a, c, d, e, f = state
    width = shape[1]
    ahead = below(ahead, shape)
    g = load5(frames, ahead, x, width)
    ahead = below(ahead, shape)
    h = load5(frames, ahead, x, width)
    next_upper, next_lower = e[2], f[2]
    e, f = sort5(*e), sort5(*f)
    next_pair = merge5(*d, *e)
    middle = middle6(*pair, *next_pair)
    found += put(upper, median11(*middle, *a), row, x, shape, target)
    row = np.int32(row + width)
    found += put(lower, median11(*middle, *f), row, x, shape, target)
    return np.uint32(found), np.int32(row + width), ahead, next_upper, next_lower, next_pair, c, e, f, g, h


def start7(frames, first, x, shape):
    height, width, _ = shape
    a = load7(frames, clip(first - 3, height) * width, x, width)
    b = load7(frames, clip(first - 2, height) * width, x, width)
    c = load7(frames, clip(first - 1, height) * width, x, width)
    d = load7(frames, first * width, x, width)
    e = load7(frames, clip(first + 1, height) * width, x, width)
    f = load7(frames, clip(first + 2, height) * width, x, width)
    ahead = np.int32(clip(first + 3, height) * width)
    g = load7(frames, ahead, x, width)
    centres = d[3], e[3], f[3]
    c, e = sort7(*c), sort7(*e)
    above, at = merge7(*sort7(*b), *c), merge7(*sort7(*d), *e)
    return np.uint32(0), np.int32(first * width), ahead, centres, sort7(*a), c, e, sort7(*f), above, at, g


def step7(state, frames, x, shape, target):
    """7 x 7 of four rows, 0 to 3. `above` and `at` are sorted rows -2, -1 and 0, 1; `r3` is not sorted yet."""
    found, row, ahead, centres, up3, up1, r1, r2, above, at, r3 = state
    width = shape[1]
    ahead = below(ahead, shape)
    r4 = load7(frames, ahead, x, width)
    ahead = below(ahead, shape)
    r5 = load7(frames, ahead, x, width)
    ahead = below(ahead, shape)
    r6 = load7(frames, ahead, x, width)
    ahead = below(ahead, shape)
    r7 = load7(frames, ahead, x, width)
    c0, c1, c2 = centres
    c3, centres = r3[3], (r4[3], r5[3], r6[3])
    r3, r4 = sort7(*r3), sort7(*r4)
    under = merge7(*r2, *r3)
    core = core22(*at, *under)
    middle = middle8(*core, *above)
    found += put(c0, median15(*middle, *up3), row, x, shape, target)
    row = np.int32(row + width)
    found += put(c1, median15(*middle, *r4), row, x, shape, target)
    row = np.int32(row + width)
    r5, r6 = sort7(*r5), sort7(*r6)
    at = merge7(*r4, *r5)
    middle = middle8(*core, *at)
    found += put(c2, median15(*middle, *up1), row, x, shape, target)
    row = np.int32(row + width)
    found += put(c3, median15(*middle, *r6), row, x, shape, target)
    return np.uint32(found), np.int32(row + width), ahead, centres, r1, r3, r5, r6, under, at, r7


def load27(frames, at, x, width):
    """Threes of a row in the two frames to filter, and in the frames before and after them."""
    a, b, c, d = frames
    return load3(a, at, x, width), load3(b, at, x, width), load3(c, at, x, width), load3(d, at, x, width)


def sort27(row):
    """The nine values of a row in the window of each of the two frames, sorted."""
    a, b, c, d = row
    both = merge3(*sort3(*b), *sort3(*c))
    return merge9(*both, *sort3(*a)), merge9(*both, *sort3(*d))


def start27(frames, first, x, shape):
    height, width, _ = shape
    a = load27(frames, clip(first - 1, height) * width, x, width)
    b = load27(frames, first * width, x, width)
    c = load27(frames, clip(first + 1, height) * width, x, width)
    ahead = np.int32(clip(first + 2, height) * width)
    d = load27(frames, ahead, x, width)
    return np.uint32(0), np.int32(first * width), ahead, (b[1][1], b[2][1]), sort27(a), sort27(b), c, d


def put27(values, nines, rows, x, shape, target):
    """Filter two rows of one frame, given the sorted nines of four."""
    a, b, c, d = nines
    middle = middle10(*b, *c)
    found = put(values[0], median19(*middle, *a), rows[0], x, shape, target)
    return np.uint32(found + put(values[1], median19(*middle, *d), rows[1], x, shape, target))


def step27(state, frames, x, shape, targets):
    """3 x 3 x 3 of two rows of two frames. Rows `a`, `b` are sorted; `c` and `d` were asked for one step ago."""
    found, row, ahead, upper, a, b, c, d = state
    width = shape[1]
    ahead = below(ahead, shape)
    e = load27(frames, ahead, x, width)
    ahead = below(ahead, shape)
    f = load27(frames, ahead, x, width)
    lower, next_upper = (c[1][1], c[2][1]), (d[1][1], d[2][1])
    c, d = sort27(c), sort27(d)
    next_row = np.int32(row + width)
    rows = row, next_row
    found += put27((upper[0], lower[0]), (a[0], b[0], c[0], d[0]), rows, x, shape, targets[0])
    found += put27((upper[1], lower[1]), (a[1], b[1], c[1], d[1]), rows, x, shape, targets[1])
    return np.uint32(found), np.int32(next_row + width), ahead, next_upper, c, d, e, f

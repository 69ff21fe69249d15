"""Running medians in windows of any odd sides on the CPU, in frames and in volumes, where no network is faster.

A tile with its border is sorted once; its values are then known by their ranks, and a window is a set of ranks: a bit
each. The window walks through the tile to and fro, a plane of values leaves and one enters at each step, and the median
is looked for from where it was. So the time grows with the window's side, not with its area.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from niseg_gpu.kernels.compiled import compiled, inline, read_flat
from niseg_gpu.kernels.median import DTYPES

TILE = 1 << 14  # values with the border: ranks, and the window's bits, stay in the nearest cache
MOST = 1 << 16  # ranks that 16 bits can tell apart
LEAST_SIDE = 8  # of a tile without its border, for the largest windows


@intrinsic
def _count_bits(typingctx, word):
    def generate(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


@intrinsic
def _find_lowest(typingctx, word):
    """The place of the lowest bit that is set."""

    def generate(context, builder, signature, args):
        from llvmlite import ir

        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@inline
def _sort(keys, order, spare_keys, spare_order, n, bits, digit):
    """Sort `n` keys of that many bits, equal ones as they lie, and their places with them; digit by digit."""
    counts = np.zeros(1 << digit, np.int32)
    mask = np.uint32((1 << digit) - 1)
    for shift in range(0, bits, digit):
        counts[:] = 0
        for i in range(n):
            counts[(keys[i] >> np.uint32(shift)) & mask] += 1
        if counts[(keys[0] >> np.uint32(shift)) & mask] == n:  # the same digit in all
            continue
        total = 0
        for value in range(counts.size):
            counts[value], total = total, total + counts[value]
        for i in range(n):
            value = (keys[i] >> np.uint32(shift)) & mask
            at = counts[value]
            counts[value] = at + 1
            spare_keys[at], spare_order[at] = keys[i], order[i]
        for i in range(n):
            keys[i], order[i] = spare_keys[i], spare_order[i]


@inline
def _turn(ranks, word, members, at, pitch_z, pitch_y, pitch_x, depth, height, width):
    """Turn the bits of depth x height x width ranks from `at` on; return how many more lie below the word `word`."""
    change = 0
    for z in range(depth):
        for y in range(height):
            i = np.uint64(at + z * pitch_z + y * pitch_y)
            for x in range(width):
                rank = np.uint64(ranks[i + np.uint64(x * pitch_x)])
                where = rank >> np.uint64(6)
                members[where] ^= np.uint64(1) << (rank & np.uint64(63))
                change += np.int64(where < np.uint64(word))
    return change


@inline
def _find(members, word, below, half):
    """Move on to the word that holds member number `half`; return it, the members below it, and that member's rank."""
    while below > half:
        word -= 1
        below -= np.int64(_count_bits(members[np.uint64(word)]))
    here = np.int64(_count_bits(members[np.uint64(word)]))
    while below + here <= half:
        below += here
        word += 1
        here = np.int64(_count_bits(members[np.uint64(word)]))
    bits = members[np.uint64(word)]
    for _ in range(half - below):
        bits &= bits - np.uint64(1)
    return word, below, (np.uint64(word) << np.uint64(6)) + _find_lowest(bits)


@compiled
def _filter_wide(flat, keys_of, sign, flip, bits, digit, depth, height, width, sides, tile, out):
    """Medians of a volume, tile by tile; `keys_of` views the values as unsigned integers of 32 bits or fewer."""
    sz, sy, sx = sides
    pz, py, px = sz // 2, sy // 2, sx // 2
    tz, ty, tx = tile
    most = (tz + sz - 1) * (ty + sy - 1) * (tx + sx - 1)
    keys, spare_keys = np.empty(most, np.uint32), np.empty(most, np.uint32)
    order, spare_order = np.empty(most, np.uint32), np.empty(most, np.uint32)
    ranks, values = np.empty(most, np.uint16), np.empty(most, flat.dtype)
    members = np.empty((most + 63) // 64, np.uint64)
    half = sz * sy * sx // 2
    for z0 in range(0, depth, tz):
        nz = min(tz, depth - z0)
        for y0 in range(0, height, ty):
            ny = min(ty, height - y0)
            for x0 in range(0, width, tx):
                nx = min(tx, width - x0)
                wz, wy, wx = nz + sz - 1, ny + sy - 1, nx + sx - 1
                n = 0
                for z in range(wz):
                    plane = min(max(z0 + z - pz, 0), depth - 1) * height
                    for y in range(wy):
                        row = (plane + min(max(y0 + y - py, 0), height - 1)) * width
                        for x in range(wx):
                            i = row + min(max(x0 + x - px, 0), width - 1)
                            key = np.uint32(keys_of[i])
                            keys[n] = (~key if flip and key & sign else key ^ sign) if sign else key
                            order[n] = n
                            values[n] = flat[i]
                            n += 1
                _sort(keys, order, spare_keys, spare_order, n, bits, digit)
                for rank in range(n):
                    ranks[order[rank]] = rank
                for z in range(nz):
                    members[:] = 0
                    corner = z * wy * wx
                    below = _turn(ranks, 0, members, corner, wy * wx, wx, 1, sz, sy, sx)
                    word = 0
                    for y in range(ny):
                        ahead = y % 2 == 0
                        row = ((z0 + z) * height + y0 + y) * width + x0
                        for step in range(nx):
                            x = step if ahead else nx - 1 - step
                            if step:
                                leaves, enters = (x - 1, x + sx - 1) if ahead else (x + sx, x)
                                i = corner + y * wx
                                below -= _turn(ranks, word, members, i + leaves, wy * wx, wx, 1, sz, sy, 1)
                                below += _turn(ranks, word, members, i + enters, wy * wx, wx, 1, sz, sy, 1)
                            elif y:
                                i = corner + x
                                below -= _turn(ranks, word, members, i + (y - 1) * wx, wy * wx, wx, 1, sz, 1, sx)
                                below += _turn(ranks, word, members, i + (y + sy - 1) * wx, wy * wx, wx, 1, sz, 1, sx)
                            word, below, rank = _find(members, word, below, half)
                            out[row + x] = values[order[rank]]


def covers_wide(dtype: Any, size: tuple[int, ...]) -> bool:
    """Whether `median_wide` has the dtype and the window, given per axis."""
    *leading, depth, height, width = (1, 1, *size)
    if np.dtype(dtype) not in DTYPES or any(n > 1 for n in leading) or any(n % 2 == 0 for n in size):
        return False
    return choose_tile((depth, height, width)) is not None


def choose_tile(sides: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Choose how many values a tile has along each axis without its border; None where no tile can be sorted so.

    As large as the nearest cache takes, or wide windows would sort their borders only: up to eight times more.
    """
    best, least = None, math.inf
    for side in range(LEAST_SIDE, 257, 8):
        tile = (side if sides[0] > 1 else 1, side, side)
        with_border = math.prod(n + s - 1 for n, s in zip(tile, sides, strict=True))
        if with_border > MOST:
            break
        # sorting, and what the nearest cache does not hold
        cost = with_border / math.prod(tile) * (1 if with_border <= TILE else 1.5)
        if cost < least:
            best, least = tile, cost
    return best


def median_wide(image: np.ndarray, *, size: tuple[int, ...]) -> np.ndarray:
    """Running median over a window of odd sides, the border value repeated outside.

    Equal to ``scipy.ndimage.median_filter(mode="nearest")``, but for the sign of a zero. A window that
    holds NaN gives one of its values or NaN, not said which.

    Parameters
    ----------
    image : (..., Z, Y, X) ndarray
        One of `niseg_gpu.kernels.median.DTYPES`.
    size : tuple of int
        Sides per axis, longer than 1 along the last three at most; see `covers_wide`.

    Returns
    -------
    (..., Z, Y, X) ndarray
        In the dtype of `image`.
    """
    sides = (1, 1, *size)[-3:]
    out = np.empty(image.shape, image.dtype)
    if not image.size:
        return out
    height, width = image.shape[-2:]
    if sides[0] == 1:
        stacks = image.reshape(1, -1, height, width)
    else:
        stacks = image.reshape(-1, *image.shape[-3:])
    results, tile, kind = out.reshape(stacks.shape), choose_tile(sides), image.dtype
    sign = np.uint32(0 if kind.kind == "u" else 1 << (8 * kind.itemsize - 1))
    bits, digit = 8 * kind.itemsize, 8 if kind.itemsize < 4 else 11
    for stack, result in zip(stacks, results, strict=True):
        flat = read_flat(stack)
        keys = flat.view(f"u{kind.itemsize}")
        _filter_wide(flat, keys, sign, kind.kind == "f", bits, digit, *stack.shape, sides, tile, result.reshape(-1))
    return out

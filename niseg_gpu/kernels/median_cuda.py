"""The kernel for running medians of 3 x 3 and 5 x 5 on a CUDA GPU, and for the cleaning of spots fused with them.

A thread goes down a column of a strip of rows, two rows at a time, and keeps the sorted rows in registers; what two
windows one above the other share is merged once. The next two rows are on their way while these are merged. From
compute capability 9.0 on, values of 8 and 16 bit go two to a register: a thread then takes two columns at once.

The networks are those of the CPU's kernels, built anew for the device around its own minimum and maximum.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import numpy as np
from numba import config, cuda, types
from numba.cuda.extending import intrinsic

from niseg_gpu.kernels import networks
from niseg_gpu.kernels.median import limit_differences
from niseg_gpu.kernels.networks import greater, lesser, median9, median11, merge5, middle6, sort3, sort5

THREADS = 128  # of a block, along x
ROWS = 32  # of a strip; 3 x 3 reads two more of its neighbours, 5 x 5 four

# Each kernel is built with settings of its own in the place of these.
CLEANS = True  # or gives the medians
COUNTS = True  # adds up the spots
COLUMNS = 1  # in a register
VALUE = DIFFERENCES = np.uint16  # dtype of the frames, and the one that holds every difference
SIGN = 0  # bit of the sign of 16-bit values
INSIDE = False  # whether every column met has its neighbours


def _lesser(a, b):
    return min(a, b)  # one instruction; a comparison and a choice would be two for floats


def _greater(a, b):
    return max(a, b)


def _load(frames, at, x, width):
    """The value at column `x` of a row, or the border's outside; of two columns, the second in the upper half."""
    # columns inside are all at fixed distances, so that one address serves the whole window
    one, two = (x, x + THREADS) if INSIDE else (_clip(x, width), _clip(x + THREADS, width))
    value = frames[np.uint64(at + one)]
    if COLUMNS == 1:
        return value
    return np.uint32(_unsigned(value) | _unsigned(frames[np.uint64(at + two)]) << np.uint32(16))


def _unsigned(value):
    """A value of 16 bit, signed ones moved up by half their range: they keep their order and distances."""
    return np.uint32(np.uint16(value)) ^ np.uint32(SIGN)


def _clip(i, n):
    return min(max(i, 0), n - 1)


def _load3(frames, at, x, width):
    return _load(frames, at, x - 1, width), _load(frames, at, x, width), _load(frames, at, x + 1, width)


def _load5(frames, at, x, width):
    left, middle, right = _load3(frames, at, x, width)
    return _load(frames, at, x - 2, width), left, middle, right, _load(frames, at, x + 2, width)


def _below(row, shape):
    """Where the row below begins, counted from its frame's start, or the last row again: 32 bit, two instructions."""
    return min(np.int32(row + shape[1]), shape[2])


def _put_value(value, median, i, target):
    """Write what becomes of a value; return how many spots that makes."""
    out, spots, bright, dark = target
    i = np.uint64(i)
    if not CLEANS:
        out[i] = median
        return np.uint32(0)
    gap = DIFFERENCES(DIFFERENCES(greater(value, median)) - DIFFERENCES(lesser(value, median)))
    spot = gap > (bright if value > median else dark)
    out[i] = median if spot else value
    spots[i] = spot
    return np.uint32(spot)


def _put_pair(values, medians, i, both, target):
    """The same for two columns, the second only where there are `both`."""
    out, spots, bright, dark = target
    low, high = np.uint32(0xFFFF), np.uint32(16)
    far = np.uint32(0xFFFFFFFF)
    if CLEANS:
        # neither half of a difference is negative, so that none borrows from the other
        above = np.uint32(greater(values, medians) - medians)
        below = np.uint32(medians - lesser(values, medians))
        far = np.uint32((greater(above, bright) ^ bright) | (greater(below, dark) ^ dark))
    one, two, i = far & low != 0, far > low, np.uint64(i)
    out[i] = VALUE(_unsigned((medians if one else values) & low))
    if CLEANS:
        spots[i] = one
    found = np.uint32(one)
    if both:
        i += np.uint64(THREADS)
        out[i] = VALUE(_unsigned((medians if two else values) >> high))
        if CLEANS:
            spots[i] = two
        found += np.uint32(two)
    return np.uint32(found)


def _put(values, medians, origin, row, x, shape, target):
    if row > shape[2]:
        return np.uint32(0)
    if COLUMNS == 1:
        return _put_value(values, medians, origin + row + x, target)
    return _put_pair(values, medians, origin + row + x, INSIDE or x + THREADS < shape[1], target)


def _start3(frames, origin, first, x, shape):
    """What `_step3` begins a strip with."""
    height, width, _ = shape
    a = _load3(frames, origin + _clip(first - 1, height) * width, x, width)
    b = _load3(frames, origin + first * width, x, width)
    c = _load3(frames, origin + _clip(first + 1, height) * width, x, width)
    ahead = np.int32(_clip(first + 2, height) * width)
    d = _load3(frames, origin + ahead, x, width)
    return np.uint32(0), np.int32(first * width), ahead, b[1], sort3(*a), sort3(*b), c, d


def _step3(state, frames, origin, x, shape, target):
    """3 x 3 of two rows. Rows `a`, `b` are sorted; `c` and `d` below them were asked for one step ago."""
    found, row, ahead, upper, a, b, c, d = state
    width = shape[1]
    ahead = _below(ahead, shape)
    e = _load3(frames, origin + ahead, x, width)
    ahead = _below(ahead, shape)
    f = _load3(frames, origin + ahead, x, width)
    lower, below = c[1], d[1]
    c, d = sort3(*c), sort3(*d)
    # the rows that both windows hold come first, so that they are merged once
    found += _put(upper, median9(*b, *c, *a), origin, row, x, shape, target)
    row = np.int32(row + width)
    found += _put(lower, median9(*b, *c, *d), origin, row, x, shape, target)
    return np.uint32(found), np.int32(row + width), ahead, below, c, d, e, f


def _start5(frames, origin, first, x, shape):
    """What `_step5` begins a strip with."""
    height, width, _ = shape
    a = _load5(frames, origin + _clip(first - 2, height) * width, x, width)
    b = _load5(frames, origin + _clip(first - 1, height) * width, x, width)
    c = _load5(frames, origin + first * width, x, width)
    d = _load5(frames, origin + _clip(first + 1, height) * width, x, width)
    e = _load5(frames, origin + _clip(first + 2, height) * width, x, width)
    ahead = np.int32(_clip(first + 3, height) * width)
    f = _load5(frames, origin + ahead, x, width)
    upper, lower, c = c[2], d[2], sort5(*c)
    pair = merge5(*sort5(*b), *c)
    return np.uint32(0), np.int32(first * width), ahead, upper, lower, pair, sort5(*a), c, sort5(*d), e, f


def _step5(state, frames, origin, x, shape, target):
    """5 x 5 of two rows. `pair` is the sorted ten of the rows before and at the first; `e`, `f` are not sorted yet."""
    found, row, ahead, upper, lower, pair, a, c, d, e, f = state
    width = shape[1]
    ahead = _below(ahead, shape)
    g = _load5(frames, origin + ahead, x, width)
    ahead = _below(ahead, shape)
    h = _load5(frames, origin + ahead, x, width)
    next_upper, next_lower = e[2], f[2]
    e, f = sort5(*e), sort5(*f)
    next_pair = merge5(*d, *e)
    middle = middle6(*pair, *next_pair)
    found += _put(upper, median11(*middle, *a), origin, row, x, shape, target)
    row = np.int32(row + width)
    found += _put(lower, median11(*middle, *f), origin, row, x, shape, target)
    return np.uint32(found), np.int32(row + width), ahead, next_upper, next_lower, next_pair, c, e, f, g, h


def _go_down(frames, origin, first, x, shape, target):
    """Filter a strip; return how many spots were found."""
    state = start(frames, origin, first, x, shape)  # noqa: F821
    for _ in range(first, min(first + ROWS, shape[0]), 4):
        state = step(state, frames, origin, x, shape, target)  # noqa: F821
        state = step(state, frames, origin, x, shape, target)  # noqa: F821
    return state[0]


def _filter(frames, height, width, out, spots, bright, dark, count):
    """Kernel: medians of frames one after another into `out`, or cleaned frames, and the number of spots."""
    left = cuda.blockIdx.x * (COLUMNS * THREADS)
    x = left + cuda.threadIdx.x
    if x >= width:
        return
    inside = left >= 2 and left + COLUMNS * THREADS + 2 <= width
    shape = height, width, np.int32((height - 1) * width)
    if COLUMNS == 2:
        bright, dark = np.uint32(bright) * np.uint32(0x10001), np.uint32(dark) * np.uint32(0x10001)
    target = out, spots, bright, dark
    found = 0
    for frame in range(cuda.blockIdx.z, len(frames) // (height * width), cuda.gridDim.z):
        origin = frame * height * width
        for first in range(cuda.blockIdx.y * ROWS, height, cuda.gridDim.y * ROWS):
            if inside:
                found += go_down_inside(frames, origin, first, x, shape, target)  # noqa: F821
            else:
                found += go_down(frames, origin, first, x, shape, target)  # noqa: F821
    if COUNTS and found > 0:
        cuda.atomic.add(count, 0, np.uint64(found))


def _choose_in_pairs(choose: Any) -> Any:
    """Return min or max of both halves of two registers: one PTX instruction, or Python in the simulator."""
    instruction = f"{choose.__name__}.u16x2 $0, $1, $2;"

    def simulate(a, b):
        low = np.uint32(0xFFFF)
        return choose(a & low, b & low) | choose(a & ~low, b & ~low)

    @intrinsic
    def apply(typingctx, a, b):
        def generate(context, builder, signature, args):
            from llvmlite import ir

            word = ir.IntType(32)
            return builder.call(ir.InlineAsm(ir.FunctionType(word, [word, word]), instruction, "=r,r,r"), args)

        return types.uint32(types.uint32, types.uint32), generate

    return simulate if config.ENABLE_CUDASIM else apply


def build(size: int, dtype: np.dtype, *, cleans: bool, counts: bool, paired: bool) -> Any:
    """Return the kernel's Python function; all it calls is made for the device and for one dtype."""
    settings = {
        "CLEANS": cleans,
        "COUNTS": counts,
        "COLUMNS": 2 if paired else 1,
        "VALUE": dtype.type,
        "SIGN": 0x8000 if dtype == np.int16 else 0,
        "DIFFERENCES": limit_differences(dtype, 0.0, "both").dtype.type,
    }
    scope = {**globals(), **settings}
    for name, inside in (("go_down_inside", True), ("go_down", False)):
        scope[name] = _for_device(size, dtype, {**settings, "INSIDE": inside})
    return _rebuild(_filter, scope)


def _for_device(size: int, dtype: np.dtype, settings: dict[str, Any]) -> Any:
    """Return the device function that goes down a strip, with functions of its own under it."""
    scope = {**globals(), **settings}
    start, step = {3: (_start3, _step3), 5: (_start5, _step5)}[size]
    functions = {name: f.py_func for name, f in vars(networks).items() if hasattr(f, "py_func")}
    functions |= {f.__name__: f for f in (_load, _unsigned, _clip, _load3, _load5, _below, _put_value, _put_pair, _put)}
    functions |= {"lesser": _lesser, "greater": _greater}
    functions |= {"start": start, "step": step, "go_down": _go_down}
    for name, function in functions.items():
        scope[name] = _rebuild(function, scope)
        if not config.ENABLE_CUDASIM:  # which would only slow them down: none of them asks where its thread is
            scope[name] = cuda.jit(device=True)(scope[name])
    if settings["COLUMNS"] == 2:
        scope |= {"lesser": _choose_in_pairs(min), "greater": _choose_in_pairs(max)}
    return scope["go_down"]


def _rebuild(function: Any, scope: dict[str, Any]) -> Any:
    return FunctionType(function.__code__, scope, function.__name__)

"""The kernels for running medians on a CUDA GPU, 3 x 3 to 7 x 7 and 3 x 3 x 3, and for cleaning spots in the same pass.

A thread goes down a column of a strip of rows and keeps sorted rows in registers, see `median_strips`; the next rows
are on their way while these are merged. From compute capability 9.0 on, values of 8 and 16 bit go two to a register: a
thread then takes two columns that lie side by side, and frames, results and masks are words of two values each.

The networks are those of the CPU's kernels, built anew for the device around its own minimum and maximum.
"""

# ruff: noqa: F821

from __future__ import annotations

from types import FunctionType
from typing import Any

import numpy as np
from numba import config, cuda

from niseg_gpu.kernels import median_strips, merging, networks
from niseg_gpu.kernels.instructions import choose_in_pairs, settle
from niseg_gpu.kernels.median import limit_differences
from niseg_gpu.kernels.median_strips import clip

THREADS = 32  # of a block, along x, one warp: the first and the last block of a row are slower, for their border
ROWS = 32  # of a strip, a multiple of 4; 3 x 3 reads two more of its neighbours, 7 x 7 six

# Each kernel is built with settings of its own in the place of these.
CLEANS = True  # or gives the medians
COUNTS = True  # adds up the spots and the NaN
PAIRED = False  # whether two columns go together
STEP_ROWS = 2  # that a step filters
TWO_STEPS = True  # whether two steps go together: what one ends with then needs no moving to where it began
REACH = 1  # how far a window reaches to either side, in columns or words
VALUE = DIFFERENCES = np.uint16  # dtype of the results, and the one that holds every difference
BYTES, FLOAT = 2, False  # of a value; whether it may be NaN
SWAPS = False  # whether the frames hold words of 16 bit with their bytes the other way round
FLIP = 0  # bit of such a word to turn over: FITS files hold unsigned values as signed ones, less half their range
SIGNS, VALUE_SIGNS = 0, 0  # bits of the signs in a register of two 16-bit values, as they come and as they go
INSIDE = False  # whether every column met has its neighbours


def lesser(a, b):
    return min(a, b)  # one instruction; a comparison and a choice would be two for floats


def greater(a, b):
    return max(a, b)


def load(frames, at, x, width):
    """The value at column `x` of a row, or the border's outside; or two values, of 16 bit each, the first one low.

    Two come unsigned, signed ones moved up by half their range: they keep their order and distances.
    """
    # columns inside are all at fixed distances, so that one address serves the whole window
    value = frames[np.uint64(np.uint32(at)) + np.uint64(x if INSIDE else clip(x, width))]
    if not PAIRED:
        return VALUE(np.uint16(swap_bytes(np.uint32(value)) ^ np.uint32(FLIP))) if SWAPS else value
    pair = np.uint32(value)
    if BYTES == 1:
        pair = np.uint32(pair & np.uint32(0xFF) | (pair & np.uint32(0xFF00)) << np.uint32(8))
    if SWAPS:
        pair = np.uint32(swap_bytes(pair))
    if not INSIDE and not 0 <= x < width:
        pair = np.uint32((pair & np.uint32(0xFFFF) if x < 0 else pair >> np.uint32(16)) * np.uint32(0x10001))
    return np.uint32(pair ^ SIGNS)


def swap_bytes(words):
    """Turn round the bytes of one or two words of 16 bit."""
    every_other = np.uint32(0x00FF00FF)
    return (words & every_other) << np.uint32(8) | words >> np.uint32(8) & every_other


def straddle(left, right):
    """The second value of one pair and the first of the next."""
    return np.uint32(np.uint32(left) >> np.uint32(16) | np.uint32(right) << np.uint32(16))


def load3_paired(frames, at, x, width):
    a, b, c = load(frames, at, x - 1, width), load(frames, at, x, width), load(frames, at, x + 1, width)
    return straddle(a, b), b, straddle(b, c)


def load5_paired(frames, at, x, width):
    a, b, c = load(frames, at, x - 1, width), load(frames, at, x, width), load(frames, at, x + 1, width)
    return a, straddle(a, b), b, straddle(b, c), c


def load7_paired(frames, at, x, width):
    a, b, c, d, e = load5_paired(frames, at, x, width)
    before, after = load(frames, at, x - 2, width), load(frames, at, x + 2, width)
    return straddle(before, a), a, b, c, d, e, straddle(e, after)


def put_value(value, median, i, target):
    """Write what becomes of a value; return how many spots that makes."""
    out, spots, bright, dark, _, _ = target
    if not CLEANS:
        out[i] = median
        return np.uint32(0)
    gap = DIFFERENCES(DIFFERENCES(greater(value, median)) - DIFFERENCES(lesser(value, median)))
    spot = gap > (bright if value > median else dark)
    out[i] = median if spot else value
    spots[i] = spot
    return np.uint32(spot)


def put_pair(values, medians, i, target):
    """The same for two; the number of spots is that of each, in its half."""
    out, spots, bright, dark, _, _ = target
    if not CLEANS:
        out[i] = pack(np.uint32(medians ^ VALUE_SIGNS))
        return np.uint32(0)
    # neither half of a difference is negative, so that none borrows from the other
    above = np.uint32(greater(values, medians) - medians)
    under = np.uint32(medians - lesser(values, medians))
    far = np.uint32((greater(above, bright) ^ bright) | (greater(under, dark) ^ dark))
    found = np.uint32(lesser(far, np.uint32(0x10001)))
    chosen = np.uint32(found * np.uint32(0xFFFF))
    out[i] = pack(np.uint32((medians & chosen | values & ~chosen) ^ VALUE_SIGNS))
    spots[i] = np.uint16(found | found >> np.uint32(8))
    return found


def pack(pair):
    """Two values as they lie in memory."""
    return np.uint16(pair | pair >> np.uint32(8)) if BYTES == 1 else pair


def put(values, medians, row, x, shape, target):
    """Write what becomes of one or two values of a row; return how many spots are to be counted, and NaN above them."""
    if row > target[5] or not INSIDE and x >= shape[1]:
        return np.uint32(0)
    i = np.uint64(np.uint32(row))
    found = put_pair(values, medians, i, target) if PAIRED else put_value(values, medians, i, target)
    if not COUNTS:
        return np.uint32(0)
    counted = target[4]
    found = found if counted[0] <= row < counted[1] else np.uint32(0)
    return np.uint32(found | np.uint32(values != values) << np.uint32(16)) if FLOAT else found


def go_down(frames, first, x, shape, target):
    """Filter a strip; return how many spots and NaN were found."""
    state = start(frames, first, x, shape)
    row, end = first, min(first + ROWS, shape[0])
    while row < end:
        state = step(state, frames, x, shape, target)
        if TWO_STEPS:
            state = step(state, frames, x, shape, target)
        row += 2 * STEP_ROWS if TWO_STEPS else STEP_ROWS
    low, high = np.uint32(state[0] & np.uint32(0xFFFF)), np.uint32(state[0] >> np.uint32(16))
    return (np.uint32(low + high), np.uint32(0)) if PAIRED else (low, high)


def count_rows(frame, counted, width):
    """Where the rows begin and end whose spots are counted in a frame, from its start."""
    here = counted[0] <= frame < counted[1]
    return np.int32(counted[2] * width if here else 0), np.int32(counted[3] * width if here else 0)


def add_up(spots, missing, count):
    """Add what the threads of a block found; a place in memory that all threads add to would hold them up."""
    sums = cuda.shared.array(2, np.uint32)
    if cuda.threadIdx.x < 2:
        sums[cuda.threadIdx.x] = 0
    cuda.syncthreads()
    if spots > 0:
        cuda.atomic.add(sums, 0, np.uint32(spots))
    if FLOAT and missing > 0:
        cuda.atomic.add(sums, 1, np.uint32(missing))
    cuda.syncthreads()
    if cuda.threadIdx.x < 2 and sums[cuda.threadIdx.x] > 0:
        cuda.atomic.add(count, cuda.threadIdx.x, np.uint64(sums[cuda.threadIdx.x]))


def filter_frames(frames, sizes, out, spots, bright, dark, counted, count):
    """Kernel: medians of frames one after another into `out`, or cleaned frames, their spots and the number of these.

    `sizes` are frames, rows, and columns or words; `counted` says of which frames and rows spots are counted.
    """
    n, height, width = sizes
    left = cuda.blockIdx.x * THREADS
    x = left + cuda.threadIdx.x
    inside = left >= REACH and left + THREADS + REACH <= width
    shape = height, width, np.int32((height - 1) * width)
    if PAIRED:
        bright, dark = np.uint32(bright) * np.uint32(0x10001), np.uint32(dark) * np.uint32(0x10001)
    number, missing, frame = 0, 0, cuda.blockIdx.z
    while frame < n:  # a range would divide to know its length
        at, rows = frame * height * width, count_rows(frame, counted, width)
        target = settle(out[at + x :]), settle(spots[at + x :]), bright, dark, rows, shape[2]
        first = cuda.blockIdx.y * ROWS
        while first < height:
            if inside:
                found = go_down_inside(settle(frames[at + x - REACH :]), first, REACH, shape, target)
            else:
                found = go_down(settle(frames[at:]), first, x, shape, target)
            number, missing = number + found[0], missing + found[1]
            first += cuda.gridDim.y * ROWS
        frame += cuda.gridDim.z
    if COUNTS:
        add_up(number, missing, count)


def filter_volume(frames, sizes, out, spots, bright, dark, counted, count):
    """Kernel: the same of windows that reach over frames, two frames a thread.

    Blocks that read the same frames lie beside each other in the grid, so that they find them in the cache.
    """
    n, height, width = sizes
    left = cuda.blockIdx.x * THREADS
    x = left + cuda.threadIdx.x
    inside = left >= REACH and left + THREADS + REACH <= width
    shape, size = (height, width, np.int32((height - 1) * width)), height * width
    if PAIRED:
        bright, dark = np.uint32(bright) * np.uint32(0x10001), np.uint32(dark) * np.uint32(0x10001)
    number, missing, frame = 0, 0, 2 * cuda.blockIdx.y
    while frame < n:
        a, b = max(frame - 1, 0) * size, frame * size
        c, d = min(frame + 1, n - 1) * size, min(frame + 2, n - 1) * size
        rows, next_rows = count_rows(frame, counted, width), count_rows(frame + 1, counted, width)
        last = shape[2] if c > b else np.int32(-1)  # a volume may end with one frame alone
        target = settle(out[b + x :]), settle(spots[b + x :]), bright, dark, rows, shape[2]
        targets = target, (settle(out[c + x :]), settle(spots[c + x :]), bright, dark, next_rows, last)
        first = cuda.blockIdx.z * ROWS
        while first < height:
            s = x - REACH if inside else 0
            near = settle(frames[a + s :]), settle(frames[b + s :]), settle(frames[c + s :]), settle(frames[d + s :])
            if inside:
                found = go_down_inside(near, first, REACH, shape, targets)
            else:
                found = go_down(near, first, x, shape, targets)
            number, missing = number + found[0], missing + found[1]
            first += cuda.gridDim.z * ROWS
        frame += 2 * cuda.gridDim.y
    if COUNTS:
        add_up(number, missing, count)


WINDOWS: dict[tuple[int, ...], tuple[Any, ...]] = {
    # sides: how a strip begins, a step, its rows, how many steps go together, columns on either side, kernel
    (3, 3): (median_strips.start3, median_strips.step3, 2, 2, 1, filter_frames),
    (5, 5): (median_strips.start5, median_strips.step5, 2, 2, 2, filter_frames),
    (7, 7): (median_strips.start7, median_strips.step7, 4, 1, 3, filter_frames),
    (3, 3, 3): (median_strips.start27, median_strips.step27, 2, 1, 1, filter_volume),
}


def build(
    window: tuple[int, ...],
    dtype: np.dtype,
    *,
    cleans: bool,
    counts: bool,
    paired: bool,
    stored: np.dtype | None = None,
) -> Any:
    """Return a kernel's Python function; all it calls is made for the device and for one dtype.

    Parameters
    ----------
    window : tuple of int
        One of `WINDOWS`.
    dtype : dtype
        Of the results.
    cleans : bool
        Replace spots, or give the medians.
    counts : bool
        Add up the spots and the NaN.
    paired : bool
        Take two columns at once: frames, results and masks come as words of two values of 8 or 16 bit, unsigned.
    stored : dtype, optional
        What the frames hold where they are words of 16 bit with their bytes the other way round. If only one of
        `stored` and `dtype` is signed, the values are half their range away from the stored ones.
    """
    start, step, step_rows, steps, reach, kernel = WINDOWS[window]
    settings = {
        "CLEANS": cleans,
        "COUNTS": counts,
        "PAIRED": paired,
        "STEP_ROWS": step_rows,
        "TWO_STEPS": steps == 2,
        "REACH": (reach + 1) // 2 if paired else reach,
        "VALUE": dtype.type,
        "DIFFERENCES": limit_differences(dtype, 0.0, "both").dtype.type,
        "BYTES": dtype.itemsize,
        "FLOAT": dtype.kind == "f",
        "SWAPS": stored is not None,
        "FLIP": 0x8000 if stored is not None and stored.kind != dtype.kind else 0,
        "SIGNS": np.uint32(0x80008000 if (stored or dtype).kind == "i" else 0),
        "VALUE_SIGNS": np.uint32(0x80008000 if dtype.kind == "i" else 0),
    }
    by_hand = {name: f.py_func for name, f in vars(networks).items() if hasattr(f, "py_func")}
    sorting = _on_device({**by_hand, **merging.NETWORKS, "lesser": lesser, "greater": greater}, {})
    if paired:
        sorting |= {"lesser": choose_in_pairs(min), "greater": choose_in_pairs(max)}
    strip = {name: f for name, f in vars(median_strips).items() if isinstance(f, FunctionType)}
    strip |= {f.__name__: f for f in (load, swap_bytes, straddle, put_value, put_pair, pack, put, go_down)}
    strip |= {"load5_paired": load5_paired, "start": start, "step": step}
    if paired:
        strip |= {"load3": load3_paired, "load5": load5_paired, "load7": load7_paired}
    scope = _on_device({"count_rows": count_rows, "add_up": add_up}, settings)
    for name, inside in (("go_down_inside", True), ("go_down", False)):
        scope[name] = _on_device(strip, {**sorting, **settings, "INSIDE": inside})["go_down"]
    return _rebuild(kernel, scope)


def _on_device(functions: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return names for code on the device: this module's, those `given`, and functions that know all of them."""
    scope = {**globals(), **given}
    for name, function in functions.items():
        scope[name] = _rebuild(function, scope)
        if not config.ENABLE_CUDASIM:  # which would only slow them down
            scope[name] = cuda.jit(device=True)(scope[name])
    return scope


def _rebuild(function: Any, scope: dict[str, Any]) -> Any:
    return FunctionType(function.__code__, scope, function.__name__)

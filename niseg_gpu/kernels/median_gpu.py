"""Running medians of 3 x 3 and 5 x 5 on a CUDA GPU, and the cleaning of spots fused with them, in one pass.

A thread goes down a column of a strip of rows, two rows at a time, and keeps the sorted rows in registers; what two
windows one above the other share is merged once. The next two rows are on their way while these are merged. From
compute capability 9.0 on, values of 8 and 16 bit go two to a register: a thread then takes two columns at once.

The networks are those of the CPU's kernels, built anew for the device around its own minimum and maximum.

Nothing here has run on a GPU yet. It compiles for one, and its results are checked in numba's simulator, which
``NUMBA_ENABLE_CUDASIM=1`` in the environment switches on before numba is imported; arrays are NumPy's there.
"""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
from numba import config, cuda, types
from numba.cuda.extending import intrinsic

from niseg_gpu.kernels import networks
from niseg_gpu.kernels.median import covers, limit_differences, replace_spot
from niseg_gpu.kernels.networks import median9, median11, merge5, middle6, sort3, sort5

if not config.ENABLE_CUDASIM:
    from numba.cuda import dispatcher

    dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a small frame does not fill a GPU; nobody need mend that

THREADS = 128  # of a block, along x
ROWS = 32  # of a strip; 3 x 3 reads two more of its neighbours, 5 x 5 four
MOST_BLOCKS = 65535  # along y and z of a grid

# What each kernel is built with instead: whether it cleans or gives the medians, whether it counts the spots, how many
# columns lie in a register, the dtype and that of its differences, and whether all columns met have their neighbours.
CLEANS = True
COUNTS = True
COLUMNS = 1
VALUE = DIFFERENCES = np.uint16
INSIDE = False


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
    # without a sign: it would fill the upper half
    return np.uint32(np.uint16(value)) | np.uint32(np.uint16(frames[np.uint64(at + two)])) << np.uint32(16)


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
    out[i], spot = replace_spot(value, median, bright, dark, DIFFERENCES)
    spots[i] = spot
    return np.uint32(spot)


def _put(values, medians, origin, row, x, shape, target):
    if row > shape[2]:
        return np.uint32(0)
    i = origin + row + x
    if COLUMNS == 1:
        return _put_value(values, medians, i, target)
    low, high = np.uint32(0xFFFF), np.uint32(16)
    found = _put_value(VALUE(values & low), VALUE(medians & low), i, target)
    if INSIDE or x + THREADS < shape[1]:
        found += _put_value(VALUE(values >> high), VALUE(medians >> high), i + THREADS, target)
    return np.uint32(found)


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


def _choose_in_pairs(choose: Any, dtype: np.dtype) -> Any:
    """Return min or max of both halves of two registers: one PTX instruction, or Python in the simulator."""
    if config.ENABLE_CUDASIM:
        return _simulate_pairs(choose, dtype.type)
    instruction = f"{choose.__name__}.{'s' if dtype.kind == 'i' else 'u'}16x2 $0, $1, $2;"

    @intrinsic
    def apply(typingctx, a, b):
        def generate(context, builder, signature, args):
            from llvmlite import ir

            word = ir.IntType(32)
            return builder.call(ir.InlineAsm(ir.FunctionType(word, [word, word]), instruction, "=r,r,r"), args)

        return types.uint32(types.uint32, types.uint32), generate

    return apply


def _simulate_pairs(choose: Any, value: Any) -> Any:
    low, high = np.uint32(0xFFFF), np.uint32(16)

    def apply(a, b):
        below, above = choose(value(a & low), value(b & low)), choose(value(a >> high), value(b >> high))
        return np.uint32(int(below) & 0xFFFF | (int(above) & 0xFFFF) << 16)

    return apply


def build(size: int, dtype: np.dtype, *, cleans: bool, counts: bool, paired: bool) -> Any:
    """Return the kernel's Python function; all it calls is made for the device and for one dtype."""
    settings = {
        "CLEANS": cleans,
        "COUNTS": counts,
        "COLUMNS": 2 if paired else 1,
        "VALUE": dtype.type,
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
    functions |= {f.__name__: f for f in (_load, _clip, _load3, _load5, _below, _put_value, _put)}
    functions |= {"replace_spot": replace_spot.py_func, "lesser": _lesser, "greater": _greater}
    functions |= {"start": start, "step": step, "go_down": _go_down}
    for name, function in functions.items():
        scope[name] = _rebuild(function, scope)
        if not config.ENABLE_CUDASIM:  # which would only slow them down: none of them asks where its thread is
            scope[name] = cuda.jit(device=True)(scope[name])
    if settings["COLUMNS"] == 2:
        scope |= {"lesser": _choose_in_pairs(min, dtype), "greater": _choose_in_pairs(max, dtype)}
    return scope["go_down"]


def _rebuild(function: Any, scope: dict[str, Any]) -> Any:
    return FunctionType(function.__code__, scope, function.__name__)


@cache
def _kernel(size: int, dtype: np.dtype, *, cleans: bool, counts: bool, paired: bool) -> Any:
    return cuda.jit(build(size, dtype, cleans=cleans, counts=counts, paired=paired))


def median_frames_gpu(frames: Any, *, size: int, xp: Any) -> Any:
    """Running median of each frame, the border value repeated outside; see `niseg_gpu.kernels.median.median_frames`.

    Parameters
    ----------
    frames : (..., Y, X) array
        On the GPU, of one of `niseg_gpu.kernels.median.DTYPES`.
    size : int
        Side of the window in pixels, one of `niseg_gpu.kernels.median.SIZES`.
    xp : module
        Array namespace of `frames`: cupy, or numpy in the simulator.

    Returns
    -------
    (..., Y, X) array
        In the dtype of `frames`, equal to the CPU's but for the sign of a zero.
    """
    return _run(
        frames, xp.empty(1, dtype=bool), limit_differences(frames.dtype, 0.0, "both"), size=size, xp=xp, cleans=False
    )


def clean_frames_gpu(
    frames: Any, *, size: int, threshold: float, kind: str, xp: Any, total: Any = None
) -> tuple[Any, Any]:
    """Replace spots by the running median, in one pass; see `niseg_gpu.spots.remove_spots`.

    Parameters
    ----------
    frames, size, xp
        As `median_frames_gpu` takes them.
    threshold : float
        Not negative.
    kind : {"bright", "dark", "both"}
    total : (1,) uint64 array, optional
        The number of spots is added to it.

    Returns
    -------
    cleaned : (..., Y, X) array
        In the dtype of `frames`.
    spots : (..., Y, X) bool array
    """
    spots = xp.empty(frames.shape, dtype=bool)
    limits = limit_differences(frames.dtype, threshold, kind)
    return _run(frames, spots, limits, size=size, xp=xp, cleans=True, total=total), spots


def why_not(shape: tuple[int, ...], dtype: Any, size: tuple[int, ...]) -> str:
    """Return why these kernels can't take frames, given the window per axis, or an empty string where they can."""
    if not covers(dtype, size):
        return f"it has no {' x '.join(map(str, size))} of {dtype}"
    if (shape[-2] + 8) * shape[-1] >= 2**31:
        return f"frames of {shape[-2]} x {shape[-1]} are too large for its indices"
    return ""


def _run(frames: Any, spots: Any, limits: np.ndarray, *, size: int, xp: Any, cleans: bool, total: Any = None) -> Any:
    flat = xp.ascontiguousarray(frames).reshape(-1)
    out = xp.empty(frames.shape, dtype=frames.dtype)
    if not flat.size:
        return out
    height, width = frames.shape[-2:]
    paired = _goes_in_pairs(frames.dtype)
    columns = THREADS * (2 if paired else 1)
    strips, n_frames = -(-height // ROWS), flat.size // (height * width)
    blocks = -(-width // columns), min(strips, MOST_BLOCKS), min(n_frames, MOST_BLOCKS)
    kernel = _kernel(size, frames.dtype, cleans=cleans, counts=total is not None, paired=paired)
    unused = xp.empty(1, dtype=np.uint64) if total is None else total
    arrays = [_as_argument(a) for a in (flat, out.reshape(-1), spots.reshape(-1), unused)]
    kernel[blocks, THREADS, _stream(xp)](arrays[0], height, width, arrays[1], arrays[2], *limits, arrays[3])
    return out


def _goes_in_pairs(dtype: np.dtype) -> bool:
    return dtype.itemsize <= 2 and (config.ENABLE_CUDASIM or cuda.get_current_device().compute_capability >= (9, 0))


def _as_argument(array: Any) -> Any:
    """The same memory for numba, which would wait for the array's stream if it took the array itself."""
    return array if config.ENABLE_CUDASIM else cuda.as_cuda_array(array, sync=False)


def _stream(xp: Any) -> Any:
    """CuPy's current stream, so that the kernel keeps its place among CuPy's."""
    pointer = 0 if config.ENABLE_CUDASIM else xp.cuda.get_current_stream().ptr
    return cuda.external_stream(pointer) if pointer else 0

"""Running medians on a CUDA GPU, and the cleaning of spots in the same pass; see `median_cuda`.

Nothing here has run on a GPU yet. The kernels compile for one, and their results are checked in numba's simulator,
which ``NUMBA_ENABLE_CUDASIM=1`` in the environment switches on before numba is imported; arrays are NumPy's there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import config, cuda

from niseg_gpu.kernels import median_cuda
from niseg_gpu.kernels.median import DTYPES, limit_differences

if not config.ENABLE_CUDASIM:
    from numba.cuda import dispatcher

    dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a small frame does not fill a GPU; nobody need mend that

WINDOWS = tuple(median_cuda.WINDOWS)
MOST_BLOCKS = 65535  # along y and z of a grid
_launching = threading.Lock()  # or all threads that begin together would build and compile the same kernel, in turns


@cache
def _kernel(window: tuple[int, ...], dtype: np.dtype, **settings: Any) -> Any:
    return cuda.jit(median_cuda.build(window, dtype, **settings))


def median_gpu(frames: Any, *, window: tuple[int, ...], xp: Any) -> Any:
    """Running median, the border value repeated outside.

    Parameters
    ----------
    frames : (..., Y, X) array
        On the GPU, of one of `niseg_gpu.kernels.median.DTYPES`.
    window : tuple of int
        One of `WINDOWS`: the sides in pixels, of a window in each frame or of one that reaches over frames, which are
        then a volume, (Z, Y, X).
    xp : module
        Array namespace of `frames`: cupy, or numpy in the simulator.

    Returns
    -------
    (..., Y, X) array
        In the dtype of `frames`, equal to the CPU's but for the sign of a zero.
    """
    limits = limit_differences(frames.dtype, 0.0, "both")
    return _run(frames, frames.dtype, xp.empty(2, dtype=bool), limits, window=window, xp=xp)


def clean_gpu(
    frames: Any,
    *,
    window: tuple[int, ...],
    threshold: float,
    kind: str,
    xp: Any,
    count: Any = None,
    own: Sequence[slice] = (),
    stored: Any = None,
) -> tuple[Any, Any]:
    """Replace spots by the running median, in one pass; see `niseg_gpu.spots.remove_spots`.

    Parameters
    ----------
    frames, window, xp
        As `median_gpu` takes them; or words of 16 bit as they lie in a file, see `stored`.
    threshold : float
        Not negative.
    kind : {"bright", "dark", "both"}
    count : (2,) uint64 array, optional
        The number of spots is added to its first value, that of NaN to its second. Nobody waits for either.
    own : two slices, optional
        Frames and rows whose spots are counted; all by default.
    stored : (dtype, dtype), optional
        What `frames`, uint16, hold with their bytes the other way round, and what these values mean: ``(">i2",
        "uint16")`` are signed values 32768 less than the unsigned ones they stand for, as in FITS files with a
        ``BZERO`` of 32768. The results are in the second dtype.

    Returns
    -------
    cleaned : (..., Y, X) array
    spots : (..., Y, X) bool array
    """
    dtype = frames.dtype if stored is None else np.dtype(stored[1])
    spots = xp.empty(frames.shape, dtype=bool)
    settings = {"window": window, "xp": xp, "count": count, "own": own, "stored": stored and np.dtype(stored[0])}
    return _run(frames, dtype, spots, limit_differences(dtype, threshold, kind), cleans=True, **settings), spots


def why_not(shape: tuple[int, ...], dtype: Any, size: tuple[int, ...]) -> str:
    """Return why these kernels can't take frames, given the window per axis, or an empty string where they can."""
    window = window_of(size)
    if np.dtype(dtype) not in DTYPES or window not in WINDOWS or len(window) == 3 < len(shape):
        return f"it has no {' x '.join(map(str, size))} of {dtype}"
    if (shape[-2] + 8) * shape[-1] >= 2**31:
        return f"frames of {shape[-2]} x {shape[-1]} are too large for its indices"
    return ""


def window_of(size: tuple[int, ...]) -> tuple[int, ...]:
    """The window without the leading axes along which it is one value long."""
    while size[:1] == (1,):
        size = size[1:]
    return size


def _run(
    frames: Any,
    dtype: np.dtype,
    spots: Any,
    limits: np.ndarray,
    *,
    window: tuple[int, ...],
    xp: Any,
    cleans: bool = False,
    count: Any = None,
    own: Sequence[slice] = (),
    stored: np.dtype | None = None,
) -> Any:
    flat = xp.ascontiguousarray(frames).reshape(-1)
    out = xp.empty(frames.shape, dtype=dtype)
    if not flat.size:
        return out
    height, width = frames.shape[-2:]
    n = flat.size // (height * width)
    counted = (*_ends(own[:1], n), *_ends(own[1:], height))
    arrays = [flat, out.reshape(-1), spots.reshape(-1)]
    paired = _go_in_pairs(dtype, width, arrays)
    if paired:
        arrays = [a.view(f"u{2 * a.itemsize}") for a in arrays]
        width //= 2
    blocks = -(-width // median_cuda.THREADS), *_share(n, height, volume=len(window) == 3)
    flat, out_values, spot_values = map(_as_argument, arrays)
    count = _as_argument(xp.empty(2, dtype=np.uint64) if count is None else count)
    with _launching:
        kernel = _kernel(window, dtype, cleans=cleans, counts=count is not None, paired=paired, stored=stored)
        launch = kernel[blocks, median_cuda.THREADS, _stream(xp)]
        launch(flat, (n, height, width), out_values, spot_values, *limits, counted, count)
    return out


def _ends(part: Sequence[slice], length: int) -> tuple[int, int]:
    """Where a slice begins and ends; none means all."""
    return part[0].indices(length)[:2] if part else (0, length)


def _share(n: int, height: int, *, volume: bool) -> tuple[int, int]:
    """Blocks along y and z of the grid."""
    strips = min(-(-height // median_cuda.ROWS), MOST_BLOCKS)
    return (min(-(-n // 2), MOST_BLOCKS), strips) if volume else (strips, min(n, MOST_BLOCKS))


def _go_in_pairs(dtype: np.dtype, width: int, arrays: Sequence[Any]) -> bool:
    """Whether two values go to a register: the device has instructions for them, and each two lie in one word."""
    return dtype.itemsize <= 2 and width % 2 == 0 and _has_pairs() and all(_address(a) % 4 == 0 for a in arrays)


def _has_pairs() -> bool:
    return config.ENABLE_CUDASIM or cuda.get_current_device().compute_capability >= (9, 0)


def _address(array: Any) -> int:
    return array.ctypes.data if config.ENABLE_CUDASIM else array.data.ptr


def _as_argument(array: Any) -> Any:
    """The same memory for numba, which would wait for the array's stream if it took the array itself."""
    return array if config.ENABLE_CUDASIM else cuda.as_cuda_array(array, sync=False)


def _stream(xp: Any) -> Any:
    """CuPy's current stream, so that the kernel keeps its place among CuPy's."""
    pointer = 0 if config.ENABLE_CUDASIM else xp.cuda.get_current_stream().ptr
    return cuda.external_stream(pointer) if pointer else 0

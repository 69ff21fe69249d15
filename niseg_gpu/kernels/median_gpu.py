"""Running medians of 3 x 3 and 5 x 5 on a CUDA GPU, and the cleaning of spots in the same pass; see `median_cuda`.

Nothing here has run on a GPU yet. The kernel compiles for one, and its results are checked in numba's simulator, which
``NUMBA_ENABLE_CUDASIM=1`` in the environment switches on before numba is imported; arrays are NumPy's there.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import config, cuda

from niseg_gpu.kernels import median_cuda
from niseg_gpu.kernels.median import covers, limit_differences

if not config.ENABLE_CUDASIM:
    from numba.cuda import dispatcher

    dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # a small frame does not fill a GPU; nobody need mend that

MOST_BLOCKS = 65535  # along y and z of a grid


@cache
def _kernel(size: int, dtype: np.dtype, *, cleans: bool, counts: bool, paired: bool) -> Any:
    return cuda.jit(median_cuda.build(size, dtype, cleans=cleans, counts=counts, paired=paired))


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
    columns = median_cuda.THREADS * (2 if paired else 1)
    strips, n_frames = -(-height // median_cuda.ROWS), flat.size // (height * width)
    blocks = -(-width // columns), min(strips, MOST_BLOCKS), min(n_frames, MOST_BLOCKS)
    kernel = _kernel(size, frames.dtype, cleans=cleans, counts=total is not None, paired=paired)
    unused = xp.empty(1, dtype=np.uint64) if total is None else total
    arrays = [_as_argument(a) for a in (flat, out.reshape(-1), spots.reshape(-1), unused)]
    kernel[blocks, median_cuda.THREADS, _stream(xp)](arrays[0], height, width, arrays[1], arrays[2], *limits, arrays[3])
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

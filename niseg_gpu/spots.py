"""Spots: single values far from their neighbours, from gammas, charged particles and dead pixels."""

from __future__ import annotations

import logging
import math
from typing import Annotated, Any, Literal

from annotated_types import Ge

from niseg_gpu.backend import backend_of
from niseg_gpu.chunks import Work
from niseg_gpu.errors import UserError
from niseg_gpu.findings import count, is_counting, own_part
from niseg_gpu.images import read_image
from niseg_gpu.io.open import open_stack
from niseg_gpu.kernels.spots_xp import NOISE_SIZE, PIECE, find_missing, median_of_values
from niseg_gpu.options import check_options
from niseg_gpu.plane import Plane
from niseg_gpu.stack import NamesFile

MANY_SPOTS = 0.1  # share of values; where more are taken for spots, whatever tells them is off
MOST_VALUES = 101**2  # of a window that SciPy's median takes; its table for one of more does not fit into memory
MOST_DEAD = 0.5  # share of pixels; a mask with more of them is most likely one of those alive

log = logging.getLogger(__name__)


def remove_spots(
    image: Any,
    *,
    size: Annotated[int, Ge(3)] = 3,
    threshold: Annotated[float, Ge(0)],
    kind: Literal["bright", "dark", "both"] = "both",
    threshold_unit: Literal["counts", "sigma", "poisson"] = "counts",
    replacement: Literal["median", "mean", "nan"] = "median",
    max_area: Annotated[int, Ge(1)] | None = None,
    neighbourhood: Literal["frame", "volume"] = "frame",
    dead_pixels: Any = None,
) -> tuple[Any, Any]:
    """Replace spots by what their surroundings say.

    A value f is a spot where it differs from the median of its `size` x `size` window by more than `threshold`:
    ``threshold < |f - median|`` for ``both``, ``f - median`` for ``bright``, ``median - f`` for ``dark``. Differences
    of integers are exact in any type. NaN is no value: it is left out of its neighbours' windows, is never a spot and
    stays. What a dead pixel says is no value either: it is left out likewise, is no spot, and is replaced as spots are.

    Parameters
    ----------
    image : (..., Y, X) array
        One frame, or frames one after another. The border value goes on outside.
    size : int
        Side of the window in pixels, odd, up to 101, or 21 in volumes.
    threshold : float
        Least difference from the median that makes a spot, in `threshold_unit`.
    kind : {"bright", "dark", "both"}
        Which spots to replace.
    threshold_unit : {"counts", "sigma", "poisson"}
        ``counts``: the units of the image. ``sigma``: the local noise, 1.4826 times the median of |f - median| over
        5 x 5 pixels (at least half a count for integers). ``poisson``: the square root of the median (at least 1).
    replacement : {"median", "mean", "nan"}
        ``mean`` is that of the window's values that are no spots; ``nan`` needs floats.
    max_area : int, optional
        Spots of more connected pixels than this (8-connected, in their frame) are structures, and left alone.
    neighbourhood : {"frame", "volume"}
        ``frame``: each frame is cleaned by itself. ``volume``: windows reach over `size` frames too.
    dead_pixels : (Y, X) array, optional
        Not 0 where a pixel is dead, in all frames. One without any live neighbour becomes NaN; in integers it stays.

    Returns
    -------
    cleaned : (..., Y, X) array
        In the dtype of `image`; half precision as float32, a mask as uint8.
    spots : (..., Y, X) bool array
        Without the dead pixels.

    Raises
    ------
    UserError
        No image of real numbers, an option that is none or does not fit it, a mask of another size.
    """
    check_options(
        remove_spots, size=size, threshold=threshold, kind=kind, threshold_unit=threshold_unit, replacement=replacement,
        max_area=max_area, neighbourhood=neighbourhood,
    )  # fmt: skip
    check_remove_spots(None, size=size, threshold=threshold, neighbourhood=neighbourhood)
    image = read_image(image, who="remove_spots")
    if replacement == "nan" and image.dtype.kind != "f":
        raise UserError(f"remove_spots: replacement nan needs floats, the image is {image.dtype}; use median or mean")
    xp = backend_of(image).xp
    dead = (
        None if dead_pixels is None else read_image(xp.asarray(dead_pixels), who="remove_spots, for dead_pixels,") != 0
    )
    if dead is not None and dead.shape != image.shape[-2:]:
        raise UserError(
            f"remove_spots: dead_pixels has shape {dead.shape}, the frames {image.shape[-2:]}; give a mask of one frame"
        )
    own = own_part(image.ndim)
    cleaned, spots, number = backend_of(image).replace_spots(
        image,
        window=_window(image, size, neighbourhood),
        threshold=float(threshold),
        kind=kind,
        threshold_unit=threshold_unit,
        replacement=replacement,
        max_area=max_area,
        dead=dead if dead is not None and bool(xp.any(dead)) else None,
        own=own,
    )
    count("spots replaced", number)
    if not is_counting() and number > MANY_SPOTS * image.size:
        log.warning(
            "remove_spots: %d of %d values (%d %%) were taken for spots: the threshold is too low",
            *(int(number), image.size, 100 * int(number) // image.size),
        )
    if dead is not None:
        frames = [len(range(*s.indices(n))) for s, n in zip(own[:-2], image.shape[:-2], strict=True)]
        count("values of dead pixels replaced", dead, times=math.prod(frames))
    return cleaned, spots


def fit_remove_spots(
    before: Any, *, dead_pixels: Annotated[str | None, NamesFile("")] = None, **parameters: Any
) -> dict[str, Any]:
    """Read the mask of dead pixels.

    Parameters
    ----------
    dead_pixels : str, optional
        File of one frame (TIFF, FITS, PNG, .npy, ...), not 0 where a pixel is dead: it is left out of its neighbours'
        windows and replaced as spots are.
    """
    mask = None if dead_pixels is None else _read_mask(dead_pixels, before.info)
    return {**parameters, "dead_pixels": mask}


def _read_mask(path: str, info: Any) -> Any:
    """A lone frame of the stack's size, as a DataArray of y and x, so that each block gets its own part."""
    mask = open_stack(path)
    frame = tuple(info.sizes[axis] for axis in ("y", "x"))
    if mask.shape != frame:
        raise UserError(
            f"remove_spots: dead_pixels {path} has shape {mask.shape}, the frames {frame}; give a mask of one frame"
        )
    dead = (mask != 0).compute()
    share = float(dead.mean())
    if share > MOST_DEAD:
        raise UserError(
            f"remove_spots: dead_pixels {path} marks {share:.0%} of the pixels; allowed: {MOST_DEAD:.0%} at most; "
            "give a mask that is 0 where a pixel is alive"
        )
    return dead


def check_remove_spots(
    before: Any,
    *,
    size: int = 3,
    threshold: float = 0.0,
    neighbourhood: str = "frame",
    replacement: str = "median",
    dead_pixels: str | None = None,
    **_: Any,
) -> None:
    """Refuse parameters that make no sense, before any data are read."""
    if not math.isfinite(threshold):
        raise UserError(f"remove_spots got threshold {threshold:g}; allowed: a finite number")
    if size % 2 == 0:
        raise UserError(f"remove_spots got size {size}; allowed: odd, 3 or more")
    power = 3 if neighbourhood == "volume" else 2
    if size**power > MOST_VALUES:
        most = next(side for side in range(101, 0, -2) if side**power <= MOST_VALUES)
        raise UserError(
            f"remove_spots got size {size} for windows in {power} dimensions; allowed: odd, 3 to {most}; "
            "spots are smaller, take a smaller window"
        )
    if before is not None and replacement == "nan" and before.info.dtype.kind != "f":
        raise UserError(
            f"remove_spots: replacement nan needs floats, the stack is {before.info.dtype} here; use median or mean, "
            "or let normalize or overlap_correct come before"
        )
    if before is not None and dead_pixels is not None:
        _read_mask(dead_pixels, before.info)


def halo_remove_spots(
    *,
    size: int = 3,
    threshold_unit: str = "counts",
    replacement: str = "median",
    max_area: int | None = None,
    neighbourhood: str = "frame",
    **_: Any,
) -> tuple[int, int]:
    """Frames and pixels of neighbourhood that a block needs.

    A component of more than `max_area` pixels shows at least that many within `max_area` pixels of any of its own.
    """
    halo = size // 2
    frames = size // 2 if neighbourhood == "volume" else 0
    if threshold_unit == "sigma":
        halo += NOISE_SIZE // 2
    if max_area is not None:
        halo += max_area
    if replacement == "mean":
        halo, frames = halo + size // 2, 2 * frames
    return frames, halo


def memory_remove_spots(
    info: Any,
    *,
    backend: Any,
    size: int = 3,
    threshold_unit: str = "counts",
    max_area: int | None = None,
    neighbourhood: str = "frame",
    dead_pixels: Any = None,
    **_: Any,
) -> Work:
    """What it holds: the result, the mask, and what tells spots; where much of a block is NaN, more.

    Kernels of our own work through frames in pieces; of a volume, and by a library, whole arrays are held.
    """
    from niseg_gpu.kernels.median import DTYPES

    values, dtype, itemsize = math.prod(info.shape), info.dtype, info.dtype.itemsize
    holes = dead_pixels is not None or dtype.kind == "f"
    if backend.cleans_in_pieces and dtype in DTYPES:
        worked = itemsize if neighbourhood == "volume" else 2 * itemsize if size > 7 else 0  # medians, or room for rows
        worked = {"counts": worked, "poisson": worked, "sigma": 18}[threshold_unit]
        worked += 8 if dead_pixels is not None and worked else 0
        at_once = values if neighbourhood == "volume" else min(values, PIECE)
        area = 12 * min(values, PIECE) if max_area is not None else 0
        return Work((itemsize + 1 + holes) * values + max(worked * at_once, area))
    worked = 3 * itemsize + {"counts": 0, "poisson": 4, "sigma": 4 if dtype.kind == "f" else 12}[threshold_unit]
    return Work((max(worked, 17 if max_area is not None else 0) + holes) * values)


def plane_remove_spots(
    *,
    size: int = 3,
    threshold: float,
    kind: str = "both",
    threshold_unit: str = "counts",
    neighbourhood: str = "frame",
    **_: Any,
) -> Plane | None:
    """The plane in which a spot is told; a threshold in units of the noise is no line in it.

    A sample of single frames knows nothing of a median over several.
    """
    if neighbourhood != "frame":
        return None

    def compute(frame: Any) -> Any:
        backend = backend_of(frame)
        xp, missing = backend.xp, find_missing(frame, None, xp=backend.xp)
        median = median_of_values(frame, (size, size), missing, backend=backend)
        residual = xp.astype(frame, xp.float32) - xp.astype(median, xp.float32)
        return xp.stack([xp.astype(frame, xp.float32), residual if kind != "both" else abs(residual)], axis=-1)

    limit = (-threshold if kind == "dark" else threshold) if threshold_unit == "counts" else None
    return Plane(("value", "abs_residual" if kind == "both" else "residual"), compute, size // 2, size, limit)


def _window(image: Any, size: int, neighbourhood: str) -> tuple[int, ...]:
    """Sides of the window along each axis."""
    flat = image.ndim - 2 if neighbourhood == "frame" else 0
    return (1,) * flat + (size,) * (image.ndim - flat)

"""Cleaning spots in whole-array calls, the same on either device: what `median.clean_frames` does in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def clean_spots_xp(
    image: Any, *, xp: Any, median: Callable[..., Any], size: tuple[int, ...], threshold: float, kind: str
) -> tuple[Any, Any]:
    """Replace what differs from the running median by more than `threshold`; see `niseg_gpu.spots.remove_spots`.

    Parameters
    ----------
    image : (..., Y, X) array
    xp : module
        Array namespace of `image`.
    median : callable
        ``(image, size=sides per axis) -> running median``.
    size : tuple of int
        Sides of the window along each axis.
    """
    middle = median(image, size=size)
    gap = xp.maximum(image, middle) - xp.minimum(image, middle)
    if gap.dtype.kind == "i":  # half of the differences wrap in a signed type, none in the unsigned one
        gap = xp.astype(gap, np.dtype(f"u{gap.dtype.itemsize}"))
    spots = gap > threshold
    if kind == "bright":
        spots &= image > middle
    elif kind == "dark":
        spots &= image < middle
    return xp.where(spots, middle, image), spots


def count_own(spots: Any, own: tuple[slice, ...]) -> Any:
    """How many spots lie in the frames, rows and columns of `own`; all of them where it is empty."""
    return spots[(..., *own[-spots.ndim :])].sum()


def frames_and_rows(own: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...] | None:
    """The frames and rows of `own` where it holds all columns of an image of `shape`; None where it doesn't."""
    if not own:
        return ()
    if len(own) != 3 or len(shape) > 3 or own[2].indices(shape[-1]) != (0, shape[-1], 1):
        return None
    return own[:2] if len(shape) == 3 else (slice(None), own[1])

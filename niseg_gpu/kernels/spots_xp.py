"""Cleaning spots in whole-array calls, the same on either device: what `median.clean_frames` does in one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def clean_spots_xp(
    image: Any, *, xp: Any, median: Callable[..., Any], size: int, threshold: float, kind: str
) -> tuple[Any, Any]:
    """Replace what differs from the running median by more than `threshold`; see `niseg_gpu.spots.remove_spots`.

    Parameters
    ----------
    image : (..., Y, X) array
    xp : module
        Array namespace of `image`.
    median : callable
        ``(image, size=sides per axis) -> running median``.
    """
    middle = median(image, size=(1,) * (image.ndim - 2) + (size, size))
    gap = xp.maximum(image, middle) - xp.minimum(image, middle)
    if gap.dtype.kind == "i":  # half of the differences wrap in a signed type, none in the unsigned one
        gap = xp.astype(gap, np.dtype(f"u{gap.dtype.itemsize}"))
    spots = gap > threshold
    if kind == "bright":
        spots &= image > middle
    elif kind == "dark":
        spots &= image < middle
    return xp.where(spots, middle, image), spots

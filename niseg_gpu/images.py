"""What learnt models take for an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError


def read_image(image: Any, *, who: str) -> Any:
    """Return an image in the type that is computed in (half precision as float32); refuse what is none."""
    try:
        xp = backend_of(image).xp
    except TypeError:
        raise UserError(f"{who} got a {type(image).__name__}; needed: a NumPy or CuPy array (..., y, x)") from None
    if image.ndim < 2 or image.dtype.kind not in "biuf":
        raise UserError(
            f"{who} got an array of shape {tuple(image.shape)} and type {image.dtype}; needed: real numbers (..., y, x)"
        )
    return xp.astype(image, np.float32) if image.dtype == np.float16 else image

"""What methods take for an image, or for spectra."""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.stack import dtype_for_steps


def read_image(image: Any, *, who: str, frames: bool = True) -> Any:
    """Return an image in a type that is computed in: as steps get it, in the machine's own order of bytes.

    Parameters
    ----------
    image : array
        NumPy or CuPy.
    who : str
        The function that it was given to, for the complaint.
    frames : bool
        Whether it is frames (..., y, x); else spectra, (n, ...).

    Raises
    ------
    UserError
        No array, no real numbers, too few axes, an empty one, or a masked array that hides values.
    """
    needed = "(..., y, x)" if frames else "(n, ...)"
    try:
        xp = backend_of(image).xp
    except TypeError:
        raise UserError(
            f"{who} got a {type(image).__name__}; needed: a NumPy or CuPy array {needed}, as np.asarray makes of others"
        ) from None
    if isinstance(image, np.ndarray):
        if np.ma.is_masked(image):
            raise UserError(f"{who} got a masked array; needed: one that hides nothing: image.filled(np.nan) of floats")
        image = np.asarray(image)
    dtype = image.dtype
    known = isinstance(dtype, np.dtype)  # CuPy's are; those of the bare array standard need no change
    if image.ndim < 1 + frames or 0 in image.shape or (known and (dtype.kind not in "biuf" or dtype.itemsize > 8)):
        raise UserError(
            f"{who} got an array of shape {tuple(image.shape)} and type {dtype}; needed: real numbers {needed} of up "
            "to 64 bits, no axis empty"
        )
    kept = dtype_for_steps(dtype.newbyteorder("=")) if known else dtype
    return image if dtype == kept else xp.astype(image, kept)

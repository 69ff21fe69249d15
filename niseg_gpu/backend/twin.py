"""What the twins have in common: their choice of kernels, what they return, and a few helpers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Clusters(NamedTuple):
    """What a k-means run ends with; arrays on the host but for `labels`.

    Attributes
    ----------
    labels : (pixels,) int32
    centroids : (k, features) float32
    inertia : float
        Sum of squared distances to the nearest centroid.
    n_iter : int
    """

    labels: Any
    centroids: np.ndarray
    inertia: float
    n_iter: int


class Cleaned(NamedTuple):
    """What the cleaning of spots gives.

    Attributes
    ----------
    image : (..., Y, X) array
    spots : (..., Y, X) bool array
    number : () array of integer
        Spots in the part of the image that was asked for; on a GPU nobody has waited for it.
    has_nan : bool
        Whether there is NaN in the image; the other three then mean nothing.
    """

    image: Any
    spots: Any
    number: Any
    has_nan: bool


@dataclass(frozen=True)
class Twin:
    """What was chosen; it travels to other processes without the libraries imported since.

    Attributes
    ----------
    kernels : {"own", "library"}
    """

    kernels: str

    def add_exactly(self, total: np.ndarray, rest: np.ndarray, part: np.ndarray) -> None:
        """Add images on the host, (Y, X), in any order to the same bits; `rest` gets what `total` rounds off."""
        from niseg_gpu.kernels.sums import add_exactly_cpu

        add_exactly_cpu(total, rest, part)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kernels,)


def neighbours_in_frame(ndim: int) -> np.ndarray:
    """Return the 3×3 pixels around one as a structuring element that reaches into no other frame."""
    structure = np.zeros((3,) * ndim, dtype=bool)
    structure[(1,) * (ndim - 2)] = True
    return structure


def has_nan(image: Any, *, xp: Any) -> bool:
    """Whether there is NaN in an image; of Inf it may say so too, for Inf - Inf looks like NaN."""
    return image.dtype.kind == "f" and bool(xp.isnan(xp.sum(image)))

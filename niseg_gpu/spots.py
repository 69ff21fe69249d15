"""Spots: single values far from their neighbours, from gammas, charged particles and dead pixels."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.findings import count


def remove_spots(
    image: Any,
    *,
    size: Annotated[int, Ge(3)] = 3,
    threshold: Annotated[float, Ge(0)],
    kind: Literal["bright", "dark", "both"] = "both",
) -> tuple[Any, Any]:
    """Replace spots by the median of their surroundings.

    A value f is a spot where it differs from the median of its `size` x `size` window by more than `threshold`:
    ``threshold < |f - median|`` for ``both``, ``f - median`` for ``bright``, ``median - f`` for ``dark``. Differences
    of integers are exact in any type. A NaN is never a spot; the medians of windows that hold one are not defined.

    Parameters
    ----------
    image : (..., Y, X) array
        One frame, or frames one after another; each is cleaned by itself. The border value goes on outside.
    size : int
        Side of the window in pixels, odd.
    threshold : float
        Least difference from the median that makes a spot, in the units of `image`.
    kind : {"bright", "dark", "both"}
        Which spots to replace.

    Returns
    -------
    cleaned : (..., Y, X) array
        In the dtype of `image`.
    spots : (..., Y, X) bool array
    """
    check_remove_spots(None, size=size, threshold=threshold)
    cleaned, spots = backend_of(image).clean_spots(image, size=size, threshold=float(threshold), kind=kind)
    count("spots replaced", spots)
    return cleaned, spots


def check_remove_spots(before: Any, *, size: int = 3, threshold: float, kind: str = "both") -> None:
    """Refuse parameters that make no sense, before any data are read."""
    if size % 2 == 0:
        raise UserError(f"remove_spots got size {size}; allowed: odd, 3 or more")


def halo_remove_spots(*, size: int = 3, **_: Any) -> int:
    """Pixels of neighbourhood that a block needs."""
    return size // 2

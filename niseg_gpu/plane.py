"""The plane in which a step tells spots from background: a pixel's value and how it stands out from its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

BANDS = 8  # of rows from which a block is sampled
_SCATTERED = (0, 4, 2, 6, 1, 5, 3, 7)  # so that bands of neighbouring frames lie far apart


class Plane(NamedTuple):
    """Two features of a pixel, and what in their plane is taken for a spot.

    Attributes
    ----------
    features : pair of str
        Names as `niseg_gpu.knn_features.FEATURES` has them.
    compute : callable
        (Y, X) block -> (Y, X, 2) float32, on the block's device.
    halo : int
        Pixels around a pixel that decide its features.
    size : int
        Side of the window of the median.
    threshold : float, optional
        Value of the second feature beyond which a pixel is a spot.
    model : KnnModel, optional
        Of these two features.
    """

    features: tuple[str, str]
    compute: Callable[[Any], Any]
    halo: int
    size: int = 3
    threshold: float | None = None
    model: Any = None


def sample_plane(block: Any, plane: Plane, *, inner: tuple[slice, ...], pixels: int) -> list[Any]:
    """Compute the features of about `pixels` pixels, in whole rows spread over a block.

    Parameters
    ----------
    block : (Y, X) or (N, Y, X) array
        One frame or several.
    plane : Plane
    inner : tuple of slice
        The part of each axis that is this block's own.
    pixels : int

    Returns
    -------
    list of (n, 2) float32 array
        On the block's device, one for each band of rows.
    """
    rows, columns = (range(*part.indices(n)) for part, n in zip(inner[-2:], block.shape[-2:], strict=True))
    frames = range(*inner[0].indices(block.shape[0])) if block.ndim == 3 else range(1)
    if not (frames and rows and columns):
        return []
    share = max(1, len(rows) // BANDS)
    thick, found = max(1, min(pixels // (BANDS * len(columns)), share)), []
    for band in range(min(BANDS, len(rows))):
        start = rows[_SCATTERED[band] * len(rows) // BANDS + (share - thick) // 2]
        low, high = max(0, start - plane.halo), min(block.shape[-2], start + thick + plane.halo)
        frame = block[frames[(2 * band + 1) * len(frames) // (2 * BANDS)]] if block.ndim == 3 else block
        features = plane.compute(frame[low:high])[start - low : start - low + thick, columns.start : columns.stop]
        found.append(features.reshape(-1, 2))
    return found

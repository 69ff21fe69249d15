"""The plane in which a step tells spots from background: a pixel's value and how it stands out from its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

THICK, BAND_PIXELS = 16, 8192  # rows of a band at least, so that its borders cost little, and pixels, so that calls do
GOLDEN = 0x9E3779B9  # the golden ratio, in 2**32


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


class Band(NamedTuple):
    """Rows `start` to `stop` of a frame of a stack."""

    frame: int
    start: int
    stop: int


def choose_bands(shape: tuple[int, ...], *, pixels: int) -> list[Band]:
    """Choose bands of whole rows, spread over a stack, with `pixels` pixels at most where a band has no more than that.

    Neither device nor cut decides which; a stack of fewer pixels is taken whole.

    Parameters
    ----------
    shape : (Y, X) or (N, Y, X)
    pixels : int
    """
    frames, (height, width) = (shape[0] if len(shape) == 3 else 1), shape[-2:]
    each = -(-height // max(THICK, -(-BAND_PIXELS // max(width, 1))))
    thick = -(-height // max(each, 1))
    number = max(1, pixels // max(thick * width, 1))
    if number >= frames * each or frames * height * width <= pixels:
        chosen = [(frame, band) for frame in range(frames) for band in range(each)]
    else:  # by multiples of the golden ratio, bands that follow each other lie far apart
        turns = ((i * GOLDEN + 2**31) % 2**32 for i in range(number))
        chosen = sorted({((2 * i + 1) * frames // (2 * number), turn * each >> 32) for i, turn in enumerate(turns)})
    return [Band(frame, band * thick, min(height, (band + 1) * thick)) for frame, band in chosen]


def sample_plane(
    block: Any, plane: Plane, *, bands: Sequence[Band], inner: tuple[slice, ...], begin: tuple[int, int]
) -> list[Any]:
    """Compute the features of the pixels of those bands, or parts of bands, that are a block's own.

    Parameters
    ----------
    block : (Y, X) or (N, Y, X) array
        One frame or several.
    plane : Plane
    bands : sequence of Band
        Of the whole stack.
    inner : tuple of slice
        The part of each axis that is this block's own.
    begin : (frame, row)
        Where in the stack this part begins.

    Returns
    -------
    list of (n, 2) float32 array
        On the block's device, one for each band.
    """
    rows, columns = (range(*part.indices(n)) for part, n in zip(inner[-2:], block.shape[-2:], strict=True))
    frames = range(*inner[0].indices(block.shape[0])) if block.ndim == 3 else range(1)
    found = []
    for band in bands:
        start, stop = max(0, band.start - begin[1]), min(len(rows), band.stop - begin[1])
        if not 0 <= band.frame - begin[0] < len(frames) or start >= stop or not columns:
            continue
        start, stop = start + rows.start, stop + rows.start
        low, high = max(0, start - plane.halo), min(block.shape[-2], stop + plane.halo)
        frame = block[frames[band.frame - begin[0]]] if block.ndim == 3 else block
        features = plane.compute(frame[low:high])[start - low : stop - low, columns.start : columns.stop]
        found.append(features.reshape(-1, 2))
    return found

"""Features beside the spectrum: more columns of the table, each standardised and weighed against the spectrum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.kmeans.cluster import hold_rows
from niseg_gpu.kmeans.lloyd import measure_points
from niseg_gpu.kmeans.table import PixelTable
from niseg_gpu.pixel_features import SPECTRUM, check_feature, compute_pixel_features, standardize

MOST_WEIGHT = 1e6  # float32 holds nothing of the others beside it


def count_extras(
    features: Mapping[str, float] | None = None, images: Mapping[str, float] | None = None, **_: Any
) -> int:
    """Columns that a table needs beside the spectrum's, given the step's parameters."""
    return sum(name != SPECTRUM for name in features or {}) + len(images or {})


def check_extras(
    features: Mapping[str, float] | None, images: Mapping[str, float] | None, *, map_shape: tuple[int, ...]
) -> None:
    """Refuse unknown features, weights that make no sense, and images that can't be read or are of another shape."""
    for name in features or {}:
        if name != SPECTRUM:
            check_feature(name, ndim=len(map_shape))
    for name, weight in {**(features or {}), **(images or {})}.items():
        if not 0 < weight <= MOST_WEIGHT:
            raise UserError(
                f"kmeans: the weight of {name} is {weight:g}; allowed: above 0, up to {MOST_WEIGHT:g}; leave out what "
                "has none"
            )
    for path in images or {}:
        _open_image(path, map_shape)


def add_features(
    table: PixelTable,
    *,
    features: Mapping[str, float] | None,
    images: Mapping[str, float] | None,
    smooth_sigma_px: float,
    workers: int | None,
) -> float:
    """Fill the further columns of a table whose spectra are complete, and scale the spectra to weigh against them.

    The spectrum as a whole (its bins' variances added up) and every other feature get the variance that is the square
    of their weight.

    Parameters
    ----------
    table : PixelTable
        With as many extra columns as `count_extras` says; pixels without a finite feature lose their data.
    features, images : mapping of str to float, optional
        Weights by name, and by path.
    smooth_sigma_px : float
    workers : int, optional

    Returns
    -------
    float
        What the spectra were multiplied by.
    """
    if not table.extras:
        return 1.0
    backend, xp = table.backend, table.backend.xp
    weights = dict(features or {})
    factor = weights.pop(SPECTRUM, 1.0) / _spread_of(table, workers)
    rows = [xp.reshape(backend.from_host(_open_image(path, table.map_shape)), (1, -1)) for path in images or {}]
    if weights:
        mean = _mean_image(table)
        rows.insert(0, compute_pixel_features(mean, list(weights), smooth_sigma_px=smooth_sigma_px))
    columns = xp.concatenate(rows)
    table.valid &= backend.to_host(xp.all(xp.isfinite(columns), axis=0))
    scaled = standardize(columns, [*weights.values(), *(images or {}).values()], valid=backend.from_host(table.valid))
    for piece in table.pieces():
        block = table.read(piece)
        block[:, : table.n_features] *= np.float32(factor)
        block[:, table.n_features :] = scaled[:, piece].T
        table.write(piece, block)
    return factor


def _spread_of(table: PixelTable, workers: int | None) -> float:
    """Root of the summed variances of the bins; 1 where nothing varies."""
    measure = measure_points(hold_rows(table.spectra, backend=table.backend, workers=workers))
    return math.sqrt(measure.total / measure.n) if measure.n and measure.total > 0 else 1.0


def _mean_image(table: PixelTable) -> Any:
    xp = table.backend.xp
    means = [xp.mean(table.read(piece)[:, : table.n_features], axis=1) for piece in table.pieces()]
    return xp.reshape(xp.concatenate(means), table.map_shape)


def _open_image(path: str, map_shape: tuple[int, ...]) -> np.ndarray:
    """Read a registered image of the map's shape, float32."""
    from niseg_gpu.io.open import open_stack

    stack = open_stack(path)
    shape = stack.shape[1:] if stack.ndim == len(map_shape) + 1 and stack.shape[0] == 1 else stack.shape
    if shape != map_shape:
        raise UserError(
            f"kmeans: the image {Path(path)} has shape {stack.shape}, the map {map_shape}; register and crop it to that"
        )
    return stack.values.reshape(map_shape).astype(np.float32)

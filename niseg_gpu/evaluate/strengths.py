"""How many of the true spots are found, by how strong they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.evaluate.masks import as_mask
from niseg_gpu.evaluate.pieces import divide, map_pieces

# In local sigma, as simulated truth gives it.
STRENGTH_EDGES = (0.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, math.inf)


@dataclass(frozen=True)
class StrengthEvaluation:
    """Recall by strength.

    Attributes
    ----------
    edges : tuple of float
        Limits of the B classes of strength; a strength at a limit belongs above it.
    pixels, found_pixels : tuple of int
        True pixels of each class, and how many of them are predicted.
    spots, found_spots : tuple of int
        True spots (8-connected) by their strongest pixel, and how many have a predicted pixel.
    no_strength : int
        True pixels left out, for their strength is NaN.
    """

    edges: tuple[float, ...]
    pixels: tuple[int, ...]
    found_pixels: tuple[int, ...]
    spots: tuple[int, ...]
    found_spots: tuple[int, ...]
    no_strength: int

    @property
    def notes(self) -> list[str]:
        return [f"{self.no_strength} true pixels without a strength (NaN) were left out"] if self.no_strength else []

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One mapping a class; recall is None where there is nothing to find."""
        counts = zip(self.pixels, self.found_pixels, self.spots, self.found_spots, strict=True)
        return [
            {
                "from": low,
                "to": None if math.isinf(high) else high,
                "pixels": pixels,
                "recall": divide(found, pixels),
                "spots": spots,
                "spot_recall": divide(found_spots, spots),
            }
            for low, high, (pixels, found, spots, found_spots) in zip(self.edges, self.edges[1:], counts, strict=False)
        ]

    def as_mapping(self) -> dict[str, Any]:
        """Return everything as plain numbers, None where undefined."""
        return {"classes": self.rows, "no_strength": self.no_strength, "notes": self.notes}


def evaluate_strengths(
    predicted: Any, truth: Any, strength: Any, *, edges: Sequence[float] = STRENGTH_EDGES
) -> StrengthEvaluation:
    """Count how many true pixels and true spots of each strength are found.

    Parameters
    ----------
    predicted, truth, strength : (..., Y, X) array
        NumPy, CuPy, Dask or xarray, of one shape. What is not 0 in the masks is positive; `strength` is read where
        `truth` is, such as ``truth/deposit.tif`` of a simulated radiograph, in sigma of the local noise.
    edges : sequence of float, optional
        Limits of the classes of strength, rising; what lies outside is not counted.

    Raises
    ------
    UserError
        Shapes that differ, NaN in a mask, or edges that do not rise.
    """
    edges = tuple(float(edge) for edge in edges)
    if len(edges) < 2 or not all(low < high for low, high in zip(edges, edges[1:], strict=False)):
        raise UserError(f"edges are {edges}; give two or more, rising")
    pieces = map_pieces(partial(_count, edges=edges), predicted=predicted, truth=truth, strength=strength)
    counts = [tuple(int(n) for n in sum(piece[i] for piece in pieces)) for i in range(4)]
    return StrengthEvaluation(edges, *counts, no_strength=sum(piece[4] for piece in pieces))


def _count(predicted: Any, truth: Any, strength: Any, *, edges: tuple[float, ...]) -> tuple[Any, ...]:
    """Pixels, found pixels, spots and found spots by class, and pixels without strength, for a piece of frames."""
    backend = backend_of(truth)
    predicted, truth = as_mask(predicted, name="predicted"), as_mask(truth, name="truth")
    labels, n_spots = backend.label(truth)
    # True pixels are few, so the rest can be done on the host.
    spot, found, value = (backend.to_host(array[truth]) for array in (labels, predicted, strength))
    known = value == value
    peak, hit = np.full(n_spots + 1, -np.inf), np.zeros(n_spots + 1, bool)
    np.maximum.at(peak, spot[known], value[known])
    np.logical_or.at(hit, spot, found)
    limits = np.asarray(edges)

    def by_class(values: np.ndarray) -> np.ndarray:
        place = np.searchsorted(limits, values, side="right") - 1
        return np.bincount(place[(place >= 0) & (place < len(limits) - 1)], minlength=len(limits) - 1)

    peak, hit = peak[1:], hit[1:]
    parts = value[known], value[known & found], peak, peak[hit]
    return *map(by_class, parts), int(known.size - known.sum())

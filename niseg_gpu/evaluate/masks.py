"""How well a mask agrees with the truth: by pixel and by spot.

Nothing undefined is given as 0: a ratio of nothing to nothing is None, and `notes` says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.evaluate.pieces import divide, map_pieces

COUNTS = ("tp", "fp", "tn", "fn")


@dataclass(frozen=True)
class Evaluation:
    """A mask against the truth; what nothing can be said of is None.

    Attributes
    ----------
    tp, fp, tn, fn : int
        True positives, false positives, true negatives, false negatives, in pixels.
    true_spots, found_spots : int
        8-connected components of the truth, frame by frame, and how many of them the mask found.
    predicted_spots, false_alarms : int
        Components of the mask, and how many of them touch no true pixel.
    found_fraction : float
        Share of a true component that must be predicted for it to count as found; 0: any pixel.
    """

    tp: int
    fp: int
    tn: int
    fn: int
    true_spots: int
    found_spots: int
    predicted_spots: int
    false_alarms: int
    found_fraction: float = 0.0

    @property
    def pixels(self) -> int:
        return self.tp + self.fp + self.tn + self.fn

    @property
    def rates(self) -> dict[str, float | None]:
        """The four counts as shares of all pixels."""
        return {name: divide(getattr(self, name), self.pixels) for name in COUNTS}

    @property
    def precision(self) -> float | None:
        return divide(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        return divide(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float | None:
        return divide(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def dice(self) -> float | None:
        """The same number as F1, under the name that segmentation gives it."""
        return self.f1

    @property
    def iou(self) -> float | None:
        return divide(self.tp, self.tp + self.fp + self.fn)

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the recalls of both classes."""
        specificity = divide(self.tn, self.tn + self.fp)
        return None if None in (self.recall, specificity) else (self.recall + specificity) / 2

    @property
    def matthews(self) -> float | None:
        """Matthews correlation (doi:10.1016/0005-2795(75)90109-9), from -1 to 1."""
        tp, fp, tn, fn = self.tp, self.fp, self.tn, self.fn
        spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        return divide(tp * tn - fp * fn, math.sqrt(spread))

    @property
    def spot_recall(self) -> float | None:
        return divide(self.found_spots, self.true_spots)

    @property
    def notes(self) -> list[str]:
        """Why what is None is None."""
        notes = []
        if self.tp + self.fn == 0:
            notes.append("the truth has no positive pixel: recall, balanced accuracy and Matthews are undefined")
        if self.tn + self.fp == 0:
            notes.append("the truth has no negative pixel: balanced accuracy and Matthews are undefined")
        if self.tp + self.fp == 0:
            notes.append("nothing was predicted: precision and Matthews are undefined")
        if self.tn + self.fn == 0:
            notes.append("everything was predicted: Matthews is undefined")
        return notes

    def as_mapping(self) -> dict[str, Any]:
        """Return everything as plain numbers, None where undefined."""
        metrics = ("precision", "recall", "f1", "dice", "iou", "balanced_accuracy", "matthews")
        spots = ("true_spots", "found_spots", "spot_recall", "predicted_spots", "false_alarms", "found_fraction")
        return {
            "pixels": self.pixels,
            "counts": {name: getattr(self, name) for name in COUNTS},
            "rates": self.rates,
            **{name: getattr(self, name) for name in (*metrics, *spots)},
            "notes": self.notes,
        }


def evaluate_mask(predicted: Any, truth: Any, *, found_fraction: float = 0.0) -> Evaluation:
    """Compare a mask with the true one, pixel by pixel and spot by spot.

    Parameters
    ----------
    predicted, truth : (..., Y, X) array
        NumPy, CuPy, Dask or xarray, of one shape; what is not 0 is positive. Dask arrays are computed a few frames
        at a time; spots end at the border of their frame.
    found_fraction : float
        Share of a true spot's pixels that must be predicted for it to count as found; 0: any pixel.

    Raises
    ------
    UserError
        Shapes that differ or have fewer than two axes, NaN, or a fraction outside 0 to 1.
    """
    if not isinstance(found_fraction, Real) or not 0 <= found_fraction <= 1:
        raise UserError(f"found_fraction is {found_fraction}; allowed: 0 (any pixel) to 1 (every pixel of the spot)")
    counted = map_pieces(partial(_count, found_fraction=found_fraction), predicted=predicted, truth=truth)
    return Evaluation(*(sum(numbers) for numbers in zip(*counted, strict=True)), found_fraction=found_fraction)


def _count(predicted: Any, truth: Any, *, found_fraction: float) -> tuple[int, ...]:
    """The first eight fields of `Evaluation` for a piece of whole frames."""
    backend = backend_of(truth)
    xp = backend.xp
    predicted, truth = as_mask(predicted, name="predicted"), as_mask(truth, name="truth")
    both = predicted & truth
    tp, positive, true = (int(xp.sum(mask)) for mask in (both, predicted, truth))
    labels, true_spots = backend.label(truth)
    sizes = xp.bincount(labels.ravel(), minlength=true_spots + 1)[1:]
    hits = xp.bincount(labels[both], minlength=true_spots + 1)[1:]
    found = int(xp.sum((hits > 0) & (hits / sizes >= found_fraction)))
    labels, predicted_spots = backend.label(predicted)
    hits = xp.bincount(labels[both], minlength=predicted_spots + 1)[1:]
    false_alarms = int(xp.sum(hits == 0))
    counts = tp, positive - tp, truth.size - positive - true + tp, true - tp
    return *counts, true_spots, found, predicted_spots, false_alarms


def as_mask(block: Any, *, name: str) -> Any:
    """Return what is not 0; refuse NaN, which is neither."""
    if block.dtype.kind == "f" and bool((block != block).any()):
        raise UserError(f"{name} holds NaN, which is neither spot nor background; a mask is 0 and one other value")
    return block != 0

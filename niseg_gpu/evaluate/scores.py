"""How well scores tell spots from the rest, at every threshold."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.evaluate.masks import as_mask
from niseg_gpu.evaluate.pieces import map_pieces
from niseg_gpu.options import check_options

EXACT_PIXELS = 2**26  # scores kept one by one up to here: 256 MiB in float32, twice that while they are sorted
CURVE_POINTS = 200
CURVE = ("threshold", "precision", "recall", "f1")
_DROPPED_BITS = 12  # of float32's 32, where scores are counted in bins
_SIGN = np.uint32(2**31)


@dataclass(frozen=True)
class ScoreEvaluation:
    """Scores against the true mask; a pixel is predicted where its score is the threshold or more.

    Attributes
    ----------
    positives, negatives : int
        Pixels of the truth that have a score.
    no_score : int
        Pixels left out, for their score is NaN.
    roc_auc : float or None
        Chance that a true pixel scores above another, ties counting half (doi:10.1148/radiology.143.1.7063747).
    average_precision : float or None
        Sum of precision times gained recall over all thresholds, as scikit-learn has it.
    best_threshold, best_f1 : float or None
        Where F1 is largest; chosen on this very truth, so an optimist's figure.
    curve : mapping of str to (N,) float64 ndarray
        ``threshold`` (ascending, 200 at most, the best among them), ``precision``, ``recall``, ``f1``.
    auc_margin : float
        What `roc_auc` may be off by; above 0 only where the scores were counted in bins.
    """

    positives: int
    negatives: int
    no_score: int
    roc_auc: float | None
    average_precision: float | None
    best_threshold: float | None
    best_f1: float | None
    curve: dict[str, np.ndarray] = field(repr=False)
    auc_margin: float = 0.0

    @property
    def notes(self) -> list[str]:
        notes = []
        if self.no_score:
            notes.append(f"{self.no_score} pixels without a score (NaN) were left out")
        if not self.positives:
            notes.append("the truth has no positive pixel with a score: AUC, average precision and F1 are undefined")
        elif not self.negatives:
            notes.append("the truth has no negative pixel with a score: AUC is undefined")
        if self.auc_margin:
            notes.append(f"scores were counted in bins of 0.05 %, so the AUC may be off by {self.auc_margin:.1e}")
        if self.best_threshold is not None:
            notes.append("the best threshold was chosen on this truth; on other images its F1 will be lower")
        return notes

    def as_mapping(self) -> dict[str, Any]:
        """Return everything as plain numbers, None where undefined."""
        names = ("positives", "negatives", "no_score", "roc_auc", "average_precision", "best_threshold", "best_f1")
        return {
            **{name: getattr(self, name) for name in names},
            "auc_margin": self.auc_margin,
            "curve": {name: [_plain(v) for v in values.tolist()] for name, values in self.curve.items()},
            "notes": self.notes,
        }


def _plain(value: float) -> float | str:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else str(value)


def evaluate_scores(scores: Any, truth: Any, *, exact_pixels: int = EXACT_PIXELS) -> ScoreEvaluation:
    """Compare scores, such as probabilities, with the true mask at every threshold.

    Parameters
    ----------
    scores, truth : (..., Y, X) array
        NumPy, CuPy, Dask or xarray, of one shape. High scores speak for a spot; NaN is left out. What is not 0 in
        `truth` is a spot.
    exact_pixels : int
        Up to this many pixels the result is exact, ties included. Above, scores are counted in bins of 1/2048 of
        their value, and `auc_margin` bounds the error of the AUC; memory does not grow with the data.

    Raises
    ------
    UserError
        Shapes that differ, or NaN in the truth.
    """
    check_options(evaluate_scores, exact_pixels=exact_pixels)
    if math.prod(np.shape(scores)) <= exact_pixels:
        *parts, missing = zip(*map_pieces(_split, scores=scores, truth=truth), strict=True)
        return evaluate_counts(*_count_ties(*parts), no_score=sum(missing), binned=False)
    bins = _Bins()
    map_pieces(bins.add, scores=scores, truth=truth)
    return evaluate_counts(*bins.table(), no_score=bins.missing, binned=True)


def _split(scores: Any, truth: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Scores of the true pixels, of the others, and how many are NaN."""
    if scores.dtype.kind not in "biuf":
        raise UserError(f"scores holds {scores.dtype} values; allowed: real numbers")
    truth = as_mask(truth, name="truth")
    known = scores == scores
    to_host = backend_of(scores).to_host
    return to_host(scores[truth & known]), to_host(scores[~truth & known]), int(known.size - known.sum())


def _count_ties(true: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores, ascending, and how many true and other pixels have each."""
    parts = [np.sort(np.concatenate(pieces)) for pieces in (true, other)]
    values = np.unique(np.concatenate(parts))
    counts = (np.diff(np.searchsorted(part, values, side="right"), prepend=0) for part in parts)
    return values.astype(float), *counts


class _Bins:
    """Counts scores by the leading bits of their float32 form, turned so that larger scores have larger keys."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, 2 ** (32 - _DROPPED_BITS)), np.int64)
        self.missing = 0
        self._lock = threading.Lock()

    def add(self, scores: Any, truth: Any) -> None:
        *parts, missing = _split(scores, truth)
        parts = [np.unique(self._key(part), return_counts=True) for part in parts]
        with self._lock:
            self.missing += missing
            for counts, (keys, numbers) in zip(self.counts, parts, strict=True):
                counts[keys] += numbers

    @staticmethod
    def _key(scores: np.ndarray) -> np.ndarray:
        bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0 makes -0 the same as 0
        return np.where(bits & _SIGN, ~bits, bits | _SIGN) >> _DROPPED_BITS

    def table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The lowest score of each bin in use, ascending, and how many true and other pixels are in it."""
        keys = np.flatnonzero(self.counts.any(axis=0))
        low = (keys << _DROPPED_BITS).astype(np.uint32)
        values = np.where(low & _SIGN, low ^ _SIGN, ~low).view(np.float32)
        values[np.isnan(values)] = -np.inf  # what lies below it in its bin would be NaN
        return values.astype(float), *self.counts[:, keys]


def evaluate_counts(
    values: np.ndarray, true: np.ndarray, other: np.ndarray, *, no_score: int = 0, binned: bool = True
) -> ScoreEvaluation:
    """Say everything that follows from how many true and other pixels have each score.

    Parameters
    ----------
    values : (N,) float ndarray
        Scores, ascending; where they were counted in bins, the lowest of each bin.
    true, other : (N,) integer ndarray
        Pixels of the truth and others with each score.
    no_score : int
        Pixels that were left out.
    binned : bool
        Whether an entry stands for a bin, and not for one score.
    """
    positives, negatives = int(true.sum()), int(other.sum())
    if not positives:
        empty = {name: np.empty(0) for name in CURVE}
        return ScoreEvaluation(0, negatives, no_score, None, None, None, None, empty)
    above, false = (np.cumsum(counts[::-1])[::-1] for counts in (true, other))  # at or above each score
    precision, recall = above / (above + false), above / positives
    f1 = 2 * above / (above + false + positives)
    auc, margin = None, 0.0
    if negatives:
        auc = float(np.sum(other / negatives * ((above - true / 2) / positives)))
        margin = float(np.sum(true / positives * (other / negatives))) / 2 if binned else 0.0
    best = len(f1) - 1 - int(np.argmax(f1[::-1]))  # of equals the highest, which predicts least
    kept = _choose_points(values, above, best)
    columns = dict(zip(CURVE, (values, precision, recall, f1), strict=True))
    return ScoreEvaluation(
        positives=positives,
        negatives=negatives,
        no_score=no_score,
        roc_auc=auc,
        average_precision=float(np.sum(true / positives * precision)),
        best_threshold=float(values[best]),
        best_f1=float(f1[best]),
        curve={name: column[kept] for name, column in columns.items()},
        auc_margin=margin,
    )


def _choose_points(values: np.ndarray, above: np.ndarray, best: int) -> np.ndarray:
    """Indices of the curve's points: half even over the recall, half over the scores, and the ends and the best."""
    if len(values) <= CURVE_POINTS:
        return np.arange(len(values))
    half = (CURVE_POINTS - 3) // 2
    by_recall = len(above) - 1 - np.searchsorted(above[::-1], np.linspace(above[-1], above[0], half))
    finite = values[np.isfinite(values)]
    by_value = np.searchsorted(values, np.linspace(finite[0], finite[-1], half))
    return np.unique(np.r_[0, by_recall, by_value, best, len(values) - 1])

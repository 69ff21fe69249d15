"""How well a label map of several classes agrees with a truth that may number them otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from niseg_gpu.backend import backend_of
from niseg_gpu.cluster_quality import adjusted_rand
from niseg_gpu.errors import UserError
from niseg_gpu.evaluate.pieces import divide, map_pieces
from niseg_gpu.options import check_options

MAX_CLASSES = 1024  # more than a label map has; the confusion matrix is square in it


@dataclass(frozen=True)
class LabelEvaluation:
    """A label map against the truth, cluster by class.

    Attributes
    ----------
    classes : tuple of int
        Labels of the truth, ascending.
    clusters : tuple of int or None
        The label of the predicted map that stands for each class, None where none is left for it.
    spare : tuple of int
        Predicted labels that stand for no class.
    confusion : (classes, clusters + spare) int64 ndarray
        Pixels; rows in the order of `classes`, columns in that of `clusters`, then `spare`.
    no_data : int
        Pixels left out, for they have no data in either map.
    accuracy_by_number : float or None
        Share of the pixels that have the same number in both maps; None where numbers of clusters mean nothing.
    """

    classes: tuple[int, ...]
    clusters: tuple[int | None, ...]
    spare: tuple[int, ...]
    confusion: np.ndarray
    no_data: int
    accuracy_by_number: float | None

    @property
    def pixels(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float | None:
        return divide(int(np.trace(self.confusion)), self.pixels)

    @property
    def per_class(self) -> list[dict[str, Any]]:
        """Precision, recall, IoU and Dice of each class."""
        rows = []
        for i, (name, cluster) in enumerate(zip(self.classes, self.clusters, strict=True)):
            hit, true, given = (int(n) for n in (
                self.confusion[i, i], self.confusion[i].sum(), self.confusion[:, i].sum()
            ))  # fmt: skip
            rows.append(
                {
                    "class": name,
                    "cluster": cluster,
                    "pixels": true,
                    "precision": divide(hit, given),
                    "recall": divide(hit, true),
                    "iou": divide(hit, true + given - hit),
                    "dice": divide(2 * hit, true + given),
                }
            )
        return rows

    @property
    def mean_iou(self) -> float | None:
        """Mean over the classes of the truth; a class that no cluster stands for counts with 0."""
        return divide(sum(row["iou"] for row in self.per_class), len(self.classes))

    @property
    def adjusted_rand(self) -> float | None:
        """Adjusted Rand index (doi:10.1007/BF01908075), which needs no assignment."""
        return adjusted_rand(self.confusion)

    @property
    def notes(self) -> list[str]:
        notes = []
        if self.no_data:
            notes.append(f"{self.no_data} pixels without data in either map were left out")
        if not self.pixels:
            notes.append("no pixel has data in both maps: everything is undefined")
        elif self.adjusted_rand is None:
            notes.append("both maps have one class, or one a pixel: the adjusted Rand index is undefined")
        missing = [str(c) for c, cluster in zip(self.classes, self.clusters, strict=True) if cluster is None]
        if missing:
            notes.append(f"no cluster stands for class {', '.join(missing)}: its precision is undefined")
        numbered = set(self.clusters) | set(self.spare) <= {None, *self.classes}
        if numbered and self.accuracy_by_number not in (None, self.accuracy):
            notes.append(
                f"clusters were renumbered to fit the truth; as they are numbered (--same-numbers) the accuracy is "
                f"{self.accuracy_by_number:.4f}"
            )
        if self.spare:
            notes.append(f"clusters that stand for no class: {', '.join(map(str, self.spare))}")
        return notes

    def as_mapping(self) -> dict[str, Any]:
        """Return everything as plain numbers, None where undefined."""
        names = ("pixels", "accuracy", "accuracy_by_number", "mean_iou", "adjusted_rand", "per_class")
        return {
            **{name: getattr(self, name) for name in names},
            "confusion": self.confusion.tolist(),
            "clusters": [*self.clusters, *self.spare],
            "no_data_pixels": self.no_data,
            "notes": self.notes,
        }


def evaluate_labels(
    predicted: Any, truth: Any, *, no_data: int | None = None, same_numbers: bool = False
) -> LabelEvaluation:
    """Compare a label map with the truth, whose numbers may be others.

    Clusters are assigned to classes one to one, so that as many pixels as possible agree
    (Kuhn, doi:10.1002/nav.3800020109); a cluster that shares no pixel with a class is never assigned to it.

    Parameters
    ----------
    predicted, truth : (..., Y, X) array of integers or bool
        NumPy, CuPy, Dask or xarray, of one shape.
    no_data : int, optional
        The label of pixels without data, left out where either map has it. Without it 255, in a map of 16 unsigned
        bits 65535, as k-means writes them.
    same_numbers : bool
        Each number means the same class in both maps, as after training on such classes: nothing is assigned.

    Raises
    ------
    UserError
        Shapes that differ, values that are no integers, or more than 1024 labels.
    """
    from scipy.optimize import linear_sum_assignment

    check_options(evaluate_labels, no_data=no_data)
    pieces = map_pieces(partial(_count_pairs, no_data=no_data), predicted=predicted, truth=truth)
    classes, clusters = (sorted({int(v) for piece in pieces for v in piece[i]}) for i in (0, 1))
    _check_number(classes, name="truth")
    _check_number(clusters, name="predicted")
    table = np.zeros((len(classes), len(clusters)), np.int64)
    for rows, columns, counts, _ in pieces:
        table[np.ix_(np.searchsorted(classes, rows), np.searchsorted(clusters, columns))] += counts
    same = {i: clusters.index(number) for i, number in enumerate(classes) if number in clusters}
    agree = sum(int(table[i, j]) for i, j in same.items())
    best = {int(i): int(j) for i, j in zip(*linear_sum_assignment(-table), strict=True) if table[i, j]}
    assigned = same if same_numbers else best
    spare = [j for j in range(len(clusters)) if j not in assigned.values()]
    confusion = np.zeros((len(classes), len(classes) + len(spare)), np.int64)
    for i, j in assigned.items():
        confusion[:, i] = table[:, j]
    confusion[:, len(classes) :] = table[:, spare]
    return LabelEvaluation(
        classes=tuple(classes),
        clusters=tuple(clusters[assigned[i]] if i in assigned else None for i in range(len(classes))),
        spare=tuple(clusters[j] for j in spare),
        confusion=confusion,
        no_data=sum(piece[3] for piece in pieces),
        accuracy_by_number=divide(agree, int(table.sum())),
    )


def _count_pairs(predicted: Any, truth: Any, *, no_data: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Labels of the truth, labels of the prediction, pixels of each pair, and pixels left out, for one piece."""
    backend = backend_of(truth)
    xp = backend.xp
    for name, block in (("predicted", predicted), ("truth", truth)):
        if block.dtype.kind not in "biu":
            raise UserError(f"{name} holds {block.dtype} values; labels are integers: convert and save them again")
    known = find_known(predicted, truth, no_data=no_data)
    (classes, rows), (clusters, columns) = (_number(xp, block[known]) for block in (truth, predicted))
    _check_number(classes, name="truth")
    _check_number(clusters, name="predicted")
    pairs = xp.bincount(rows * len(clusters) + columns, minlength=len(classes) * len(clusters))
    counts = backend.to_host(pairs).reshape(len(classes), len(clusters))
    return backend.to_host(classes), backend.to_host(clusters), counts, int(known.size - xp.sum(known))


def find_known(*maps: Any, no_data: int | None = None) -> Any:
    """Where all label maps of one shape, on one device, have data; `no_data` as `evaluate_labels` takes it."""
    known = backend_of(maps[0]).xp.ones(maps[0].shape, dtype=bool)
    for labels in maps:
        value = no_data_of(labels.dtype) if no_data is None else no_data
        if _can_hold(labels.dtype, value):
            known &= labels != value
    return known


def no_data_of(dtype: np.dtype) -> int:
    """The label that pixels without data have in maps of a type."""
    return 65_535 if dtype == np.uint16 else 255


def _can_hold(dtype: np.dtype, value: int) -> bool:
    """Whether a value can be in an array at all; CuPy compares integers with no other."""
    return value in (0, 1) if dtype.kind == "b" else np.iinfo(dtype).min <= value <= np.iinfo(dtype).max


def _number(xp: Any, values: Any) -> tuple[Any, Any]:
    """Return the distinct values and, for each value, its place among them; by a table where that is quick."""
    if values.dtype.kind == "b":
        values = values.view(xp.uint8)
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        return xp.unique(values, return_inverse=True)
    distinct = xp.flatnonzero(xp.bincount(values, minlength=1))
    table = xp.zeros(int(distinct.max()) + 1 if distinct.size else 1, dtype=xp.int64)
    table[distinct] = xp.arange(distinct.size)
    return distinct, table[values]


def _check_number(labels: Sequence[int], *, name: str) -> None:
    if len(labels) > MAX_CLASSES:
        raise UserError(
            f"{name} holds {len(labels)} different values or more; a label map has {MAX_CLASSES} at most: is it an "
            "image, or scores (--kind scores)?"
        )

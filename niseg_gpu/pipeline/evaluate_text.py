"""An evaluation as lines for people to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from niseg_gpu.evaluate.labels import LabelEvaluation
from niseg_gpu.evaluate.masks import Evaluation
from niseg_gpu.evaluate.scores import ScoreEvaluation
from niseg_gpu.evaluate.strengths import StrengthEvaluation

_SHOWN_CLUSTERS = 16  # a wider confusion matrix would not fit a terminal; the JSON file has it


def format_results(results: Mapping[str, Any], *, threshold: float | None) -> list[str]:
    """Return the lines of all results, one after the other."""
    lines = []
    for name, result in results.items():
        lines += ["", *_FORMATS[name](result)] if lines else _FORMATS[name](result)
        if name == "mask" and threshold is not None:
            missing = results["scores"].no_score
            beyond = f"; the {missing} pixels without a score count as not predicted" if missing else ""
            lines.append(f"the mask is where the score is {threshold:.6g} or more{beyond}")
        lines += [f"note: {note}" for note in result.notes]
    return lines


def format_mask(found: Evaluation) -> list[str]:
    """The confusion matrix with shares of all pixels, the figures made of it, and the spots."""
    rates = found.rates
    cells = {
        name: f"{getattr(found, name)} ({_number(None if rates[name] is None else 100 * rates[name], digits=3)} %)"
        for name in rates
    }
    lines = [
        f"{'':<12}{'predicted':>24}{'not predicted':>24}",
        f"{'true':<12}{cells['tp']:>24}{cells['fn']:>24}",
        f"{'not true':<12}{cells['fp']:>24}{cells['tn']:>24}",
        "",
    ]
    figures = {
        "precision": found.precision,
        "recall": found.recall,
        "F1 = Dice": found.f1,
        "IoU": found.iou,
        "balanced accuracy": found.balanced_accuracy,
        "Matthews correlation": found.matthews,
        "recall by spot": found.spot_recall,
    }
    lines += [_row(name, value) for name, value in figures.items()]
    share = f"at least {found.found_fraction:g} of the spot" if found.found_fraction else "any pixel"
    lines.append(f"spots found: {found.found_spots} of {found.true_spots} ({share})")
    lines.append(f"false alarms: {found.false_alarms} of {found.predicted_spots} predicted spots touch no true one")
    return lines


def format_scores(found: ScoreEvaluation) -> list[str]:
    """The areas under the curves and the best threshold."""
    return [
        _row("ROC AUC", found.roc_auc),
        _row("average precision", found.average_precision),
        _row("best F1", found.best_f1),
        f"{'at threshold':<22}{'-' if found.best_threshold is None else format(found.best_threshold, '.6g'):>10}",
    ]


def format_strengths(found: StrengthEvaluation) -> list[str]:
    """One row for each class of strength that has true pixels."""
    heads = ("strength", "pixels", "recall", "spots", "recall by spot")
    lines = ["".join(f"{head:>16}" for head in heads)]
    for row in found.rows:
        if row["pixels"]:
            limits = f"{row['from']:g} or more" if row["to"] is None else f"{row['from']:g} to {row['to']:g}"
            cells = (limits, row["pixels"], _number(row["recall"]), row["spots"], _number(row["spot_recall"]))
            lines.append("".join(f"{cell:>16}" for cell in cells))
    return lines


def format_labels(found: LabelEvaluation) -> list[str]:
    """Overall figures, one row a class, and the confusion matrix."""
    lines = [
        _row("accuracy", found.accuracy),
        _row("mean IoU", found.mean_iou),
        _row("adjusted Rand index", found.adjusted_rand),
        "",
    ]
    heads = ("class", "cluster", "pixels", "precision", "recall", "IoU", "Dice")
    lines.append("".join(f"{head:>11}" for head in heads))
    for row in found.per_class:
        cluster = "-" if row["cluster"] is None else row["cluster"]
        figures = (_number(row[name]) for name in ("precision", "recall", "iou", "dice"))
        lines.append("".join(f"{cell:>11}" for cell in (row["class"], cluster, row["pixels"], *figures)))
    names = ["-" if c is None else str(c) for c in (*found.clusters, *found.spare)]
    if len(names) <= _SHOWN_CLUSTERS:
        lines += ["", "pixels of each class (rows) in each cluster (columns)"]
        lines.append("".join(f"{cell:>11}" for cell in ("", *names)))
        for name, counts in zip(found.classes, found.confusion, strict=True):
            lines.append("".join(f"{cell:>11}" for cell in (name, *counts)))
    return lines


_FORMATS = {"mask": format_mask, "scores": format_scores, "strengths": format_strengths, "labels": format_labels}


def _row(name: str, value: float | None) -> str:
    return f"{name:<22}{_number(value):>10}"


def _number(value: float | None, *, digits: int = 4) -> str:
    """Fixed digits for figures from 0 to 1, a dash for what is undefined."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if digits == 4 else f"{value:.{digits}g}"

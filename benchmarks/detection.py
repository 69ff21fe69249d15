"""How well spots are found: ``python -m benchmarks.detection [--json FILE] [--into README.md]``.

Thresholds and neighbours are learnt from other pixels than those that are scored.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.evaluate import evaluate_mask, evaluate_scores
from niseg_gpu.knn import predict_knn
from niseg_gpu.knn_features import compute_features
from niseg_gpu.knn_model import fit_knn

from .detection_data import DataSet, Fold, find_data_dir, load_measured, load_simulated
from .machine import describe_conditions
from .table import format_head, format_line, put_into

DETECTION = "detection"  # names the marks in the README and ends the names of result files
HEAD = (
    "images", "method", "threshold", "precision", "recall", "F1", "AUC", "average precision", "spots found",
    "false alarms",
)  # fmt: skip
LECTURE = {
    "source": "ImagingLectures/MLSegmentation4NI",
    "rows": [
        {"method": "abs(f - median), fixed", "thresholds": [1000], "precision": 0.998, "recall": 0.090, "f1": 0.165},
        {"method": "kNN, 1 neighbour", "thresholds": [], "precision": 0.358, "recall": 0.409, "f1": 0.382},
    ],
}


class Found(NamedTuple):
    """Scores and the mask of a fold's test images, (N, Y, X), and the threshold between them where there is one."""

    scores: np.ndarray
    mask: np.ndarray
    threshold: float | None = None


def cut_at_fixed(fold: Fold, data: DataSet) -> Found:
    """Spots are where abs(f - median) reaches a threshold set beforehand."""
    scores = compute_features(fold.test.images, ["abs_residual"])[..., 0]
    return Found(scores, scores >= data.fixed_threshold, data.fixed_threshold)


def cut_at_best(fold: Fold, data: DataSet, *, feature: str) -> Found:
    """Spots are where a feature reaches the threshold that gives the best F1 on the training images."""
    known, scores = (compute_features(part.images, [feature])[..., 0] for part in fold)
    threshold = evaluate_scores(known, fold.training.masks).best_threshold
    return Found(scores, scores >= threshold, threshold)


def vote(fold: Fold, *, n_neighbors: int, seed: int) -> Found:
    """Spots are where more than half of the nearest training pixels are."""
    model = fit_knn(fold.training.images, fold.training.masks, n_neighbors=n_neighbors, seed=seed)
    scores = predict_knn(fold.test.images, model, scores=True)
    return Found(scores, scores > 0.5)


CUTS: dict[str, Callable[[Fold, DataSet], Found]] = {
    "abs(f - median), fixed": cut_at_fixed,
    "abs(f - median), best": partial(cut_at_best, feature="abs_residual"),
    "f - median, best": partial(cut_at_best, feature="residual"),
}
VOTES = {"kNN, 1 neighbour": 1, "kNN, 15 neighbours": 15}
DRAWS = (2018, 1, 2)  # seeds of the background pixels that train; the first draw's figures are shown


def score_methods(data: DataSet) -> list[dict[str, Any]]:
    """Apply every method to every fold; one row each."""
    rows = [score_found([cut(fold, data) for fold in data.folds], data, method=name) for name, cut in CUTS.items()]
    for name, n_neighbors in VOTES.items():
        draws = [
            score_found([vote(f, n_neighbors=n_neighbors, seed=seed) for f in data.folds], data, method=name)
            for seed in DRAWS
        ]
        rows.append({**draws[0], "f1_of_draws": [row["f1"] for row in draws]})
    return rows


def score_found(found: Sequence[Found], data: DataSet, *, method: str) -> dict[str, Any]:
    """Score the test images of all folds as one."""
    truth = np.concatenate([fold.test.masks for fold in data.folds])
    by_pixel = evaluate_mask(np.concatenate([f.mask for f in found]), truth)
    by_score = evaluate_scores(np.concatenate([f.scores for f in found]), truth)
    return {
        "data": data.name,
        "method": method,
        "thresholds": [f.threshold for f in found if f.threshold is not None],
        "precision": by_pixel.precision,
        "recall": by_pixel.recall,
        "f1": by_pixel.f1,
        "roc_auc": by_score.roc_auc,
        "average_precision": by_score.average_precision,
        "true_spots": by_pixel.true_spots,
        "found_spots": by_pixel.found_spots,
        "false_alarms": by_pixel.false_alarms,
        "pixels": by_pixel.pixels,
        "spot_pixels": by_pixel.tp + by_pixel.fn,
    }


def format_detection(record: dict[str, Any]) -> str:
    """Return a record's conditions, rows and footnotes as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lecture = [_cells({"data": "the lecture's", **row}) for row in record["lecture"]["rows"]]
    notes = [
        *record["about"],
        *(f"left out, {reason}" for reason in record["left_out"]),
        f"kNN: in brackets the least and greatest F1 of {len(DRAWS)} draws of the background that trains; in 8 bits "
        "hundreds of pixels share both features, and with 1 neighbour the draw says which of them decides for all",
        "threshold: reached or exceeded; spots found: 8-connected, any pixel of them; false alarms: found spots "
        "without a true pixel",
        f"the lecture's: its own figures for columns from 1000 of its own radiograph, from the rounded cells of the "
        f"confusion matrices in {record['lecture']['source']}; other images, so not to be compared row by row",
    ]
    return "\n".join(
        [
            f"{record['date']}, revision {record['revision']}; {versions}.",
            "",
            *format_head(HEAD),
            *(format_line(cells) for cells in (*map(_cells, record["rows"]), *lecture)),
            "",
            *(f"- {note}." for note in notes),
        ]
    )


def _cells(row: dict[str, Any]) -> list[str]:
    ratios = (row.get(name) for name in ("precision", "recall", "f1", "roc_auc", "average_precision"))
    shown = ["" if ratio is None else f"{ratio:.3f}" for ratio in ratios]
    if "f1_of_draws" in row:
        shown[2] += " ({:.3f} to {:.3f})".format(*(end(row["f1_of_draws"]) for end in (min, max)))
    spots = f"{row['found_spots']} of {row['true_spots']}" if "true_spots" in row else ""
    return [
        row["data"],
        row["method"],
        ", ".join(f"{threshold:.4g}" for threshold in dict.fromkeys(row["thresholds"])),
        *shown,
        spots,
        str(row.get("false_alarms", "")),
    ]


def measure_detection(data: Sequence[DataSet | str]) -> dict[str, Any]:
    """Score every method on every data set; in the place of one that can't be had stands why."""
    sets = [d for d in data if isinstance(d, DataSet)]
    conditions = describe_conditions()
    return {
        **{name: conditions[name] for name in ("date", "revision", "versions")},
        "about": [
            f"{d.about}: {sum(f.test.masks.size for f in d.folds)} pixels, "
            f"{sum(int(f.test.masks.sum()) for f in d.folds)} of them in spots"
            for d in sets
        ],
        "left_out": [d for d in data if isinstance(d, str)],
        "rows": [row for d in sets for row in score_methods(d)],
        "lecture": LECTURE,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print; exit status 2 where there is nothing to measure on, or nowhere to write."""
    options = _parser().parse_args(argv)
    if options.json and not options.json.absolute().parent.is_dir():
        print(f"detection: --json {options.json}: its folder does not exist; make it first", file=sys.stderr)
        return 2
    record = measure_detection(
        [
            load_measured(options.data or find_data_dir()),
            load_simulated(height=options.side, width=options.side),
        ]
    )
    for reason in record["left_out"]:
        print(f"left out, {reason}", file=sys.stderr)
    if not record["rows"]:
        return 2
    text = format_detection(record)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if options.into:
        put_into(options.into, text, name=DETECTION)
    print(text)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description="Score how spots are found.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here, named DATE-detection.json")
    parser.add_argument("--into", type=Path, metavar="README", help="put the table between the marks of this file")
    parser.add_argument("--data", type=Path, metavar="DIR", help="measured data (default: NISEG_DATA)")
    parser.add_argument("--side", type=int, default=1024, help="pixels a side of simulated images (default: 1024)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

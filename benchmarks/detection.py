"""How well spots are found: ``python -m benchmarks.detection [--json FILE] [--into README.md] [--pictures DIR]``.

Every method learns from the same images, chooses its threshold on others, and is scored on a third kind.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.evaluate import evaluate_mask, evaluate_scores, evaluate_strengths

from .detection_data import DataSet, find_data_dir, load_measured, simulate_set
from .detection_methods import SEEDS, Found, Method, choose_threshold, list_methods
from .machine import describe_conditions
from .table import format_head, format_line, put_into

DETECTION = "detection"  # names the marks in the README and ends the names of result files
LIMITS_SIGMA = (2.0, 3.0, 5.0, 10.0)  # of what a spot adds to a pixel
HEAD = (
    "images", "method", "threshold", "precision", "recall", "F1", "AUC", "average precision", "spots found",
    "false alarms",
)  # fmt: skip
STRENGTH_HEAD = (
    "method",
    *(f"F1 above {limit:g}" for limit in LIMITS_SIGMA),
    *(f"found, {low:g} to {high:g}" for low, high in zip(LIMITS_SIGMA, LIMITS_SIGMA[1:], strict=False)),
    f"found, above {LIMITS_SIGMA[-1]:g}",
)
LECTURE = {
    "source": "ImagingLectures/MLSegmentation4NI",
    "rows": [
        {"method": "abs(f - median), fixed", "thresholds": [1000], "precision": 0.998, "recall": 0.090, "f1": 0.165},
        {"method": "kNN, 1 neighbour", "thresholds": [], "precision": 0.358, "recall": 0.409, "f1": 0.382},
        {"method": "U-Net", "thresholds": [0.05], "precision": 0.347, "recall": 0.766, "f1": 0.478},
    ],
}


def score_methods(
    data: DataSet, *, models: Path | None = None, pictures: Path | None = None, tell: Any = None
) -> list[dict[str, Any]]:
    """Apply every method to every fold, with each of its seeds; one row each, of the seed with the middle F1.

    Parameters
    ----------
    data : DataSet
    models : path, optional
        Where trained networks are kept.
    pictures : path, optional
        Folder for a picture of each method's hits in the first test image.
    tell : callable, optional
        Told each row when it is known.
    """
    rows = []
    for name, method in list_methods(data, models=models).items():
        start = time.perf_counter()
        scored = sorted((score_seed(method, data, seed=seed, method_name=name) for seed in method.seeds), key=_f1)
        row, found = scored[len(scored) // 2]
        for key in ("f1", "f1_above"):
            if len(scored) > 1 and key in row:
                row[f"{key}_of_seeds"] = [other[key] for other, _ in scored]
        row["seconds"] = time.perf_counter() - start
        if pictures:
            draw_found(found, data, pictures / f"{data.name}-{_slug(name)}.png")
        rows.append(row)
        if tell:
            tell(row)
    return rows


def _f1(scored: tuple[dict[str, Any], Any]) -> float:
    return scored[0]["f1"] or 0.0


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in name).split()).lower()


def score_seed(
    method: Method, data: DataSet, *, seed: int, method_name: str
) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]:
    """Score the test images of all folds as one; also return the mask of the first test image, and its truth."""
    found = [method.find(fold, seed=seed) for fold in data.folds]
    truth = np.concatenate([fold.test.masks for fold in data.folds])
    mask = np.concatenate([f.mask for f in found])
    by_pixel = evaluate_mask(mask, truth)
    by_score = evaluate_scores(np.concatenate([f.test for f in found]), truth)
    row = {
        "data": data.name,
        "method": method_name,
        "thresholds": [f.threshold for f in found],
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
    if all(fold.test.deposits is not None for fold in data.folds):
        row |= score_strengths(found, data, tuned=method.tuned)
    return row, (mask[0], truth[0])


def score_strengths(found: Sequence[Found], data: DataSet, *, tuned: bool) -> dict[str, Any]:
    """F1 of spots above each limit, weaker ones left out and the threshold chosen anew; recall between limits."""
    deposits, truth, mask = (
        np.concatenate(parts)
        for parts in zip(
            *((fold.test.deposits, fold.test.masks, f.mask) for fold, f in zip(data.folds, found, strict=True)),
            strict=True,
        )
    )
    f1_above = []
    for limit in LIMITS_SIGMA:
        masks, truths = [], []
        for fold, f in zip(data.folds, found, strict=True):
            threshold = f.threshold
            if tuned:
                kept = _count_above(fold.validation.deposits, limit)
                threshold = choose_threshold(f.validation[kept], fold.validation.deposits[kept] > limit)
            kept = _count_above(fold.test.deposits, limit)
            masks.append(f.test[kept] >= threshold)
            truths.append(fold.test.deposits[kept] > limit)
        f1_above.append(_score_f1(np.concatenate(masks), np.concatenate(truths)))
    bands = evaluate_strengths(mask, truth, deposits, edges=(*LIMITS_SIGMA, np.inf))
    return {"f1_above": f1_above, "recall_between": [band["recall"] for band in bands.rows]}


def _count_above(deposits: np.ndarray, limit: float) -> np.ndarray:
    """The pixels that count where spots above a limit are asked for: these, and those that no spot in the mask hit."""
    return (deposits > limit) | (deposits <= LIMITS_SIGMA[0])


def _score_f1(mask: np.ndarray, truth: np.ndarray) -> float:
    hits = int(np.count_nonzero(mask & truth))
    return 2 * hits / max(1, int(mask.sum()) + int(truth.sum()))


def draw_found(found: tuple[np.ndarray, np.ndarray], data: DataSet, path: Path) -> None:
    """Draw where a mask is right and wrong, and keep the picture."""
    from niseg_gpu.figures_evaluate import draw_hits

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(draw_hits(*found).light)


def format_detection(record: dict[str, Any]) -> str:
    """Return a record's conditions, rows and footnotes as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lecture = [_cells({"data": "the lecture's", **row}) for row in record["lecture"]["rows"]]
    strong = [_strength_cells(row) for row in record["rows"] if "f1_above" in row]
    notes = [
        *record["about"],
        *(f"left out, {reason}" for reason in record["left_out"]),
        f"in brackets the least and greatest F1 of {record['seeds']} draws of what learns: background pixels of kNN "
        "and trees, weights and crops of networks; the other figures are those of the draw with the middle F1",
        "kNN: in 8 bits hundreds of pixels share both features, and with 1 neighbour the draw says which of them "
        "decides for all",
        "(f - median 5) / root: the distance from the 5 x 5 median in units of counting noise",
        "boosted trees: scikit-learn's HistGradientBoostingClassifier",
        "U-Net: 265,105 parameters; the lecture's recipe: 60 steps on one crop of 128 x 800 pixels, a ReLU for the "
        "probability, a fixed threshold; the other: logits, 1200 steps on crops of all images that learn",
        "threshold: reached or exceeded; spots found: 8-connected, any pixel of them; false alarms: found spots "
        "without a true pixel",
        f"the lecture's: its own figures on its own radiograph, from the rounded cells of the confusion matrices in "
        f"{record['lecture']['source']}; other images, so not to be compared row by row",
    ]
    by_strength = [
        "By the strength of what is to be found, in sigma of the noise of its pixel; simulated radiographs:",
        "",
        *format_head(STRENGTH_HEAD),
        *(format_line(cells) for cells in strong),
        "",
        "F1 above a limit: spots that add more, weaker ones left out of count and truth, the threshold chosen anew; "
        "found: share of the pixels between two limits at the threshold of the first table.",
        "",
    ]
    return "\n".join(
        [
            f"{record['date']}, revision {record['revision']}; {versions}.",
            "",
            *format_head(HEAD),
            *(format_line(cells) for cells in (*map(_cells, record["rows"]), *lecture)),
            "",
            *(by_strength if strong else []),
            *(f"- {note}." for note in notes),
        ]
    )


def _cells(row: dict[str, Any]) -> list[str]:
    ratios = (row.get(name) for name in ("precision", "recall", "f1", "roc_auc", "average_precision"))
    shown = ["" if ratio is None else f"{ratio:.3f}" for ratio in ratios]
    if "f1_of_seeds" in row:
        shown[2] += _range(row["f1_of_seeds"])
    spots = f"{row['found_spots']} of {row['true_spots']}" if "true_spots" in row else ""
    return [
        row["data"],
        row["method"],
        ", ".join(f"{threshold:.4g}" for threshold in dict.fromkeys(row["thresholds"])),
        *shown,
        spots,
        str(row.get("false_alarms", "")),
    ]


def _strength_cells(row: dict[str, Any]) -> list[str]:
    ranges = [_range(values) for values in zip(*row.get("f1_above_of_seeds", []), strict=True)]
    shown = [f"{f1:.3f}" for f1 in row["f1_above"]]
    shown = [f1 + spread for f1, spread in zip(shown, ranges, strict=True)] if ranges else shown
    return [row["method"], *shown, *("" if r is None else f"{r:.3f}" for r in row["recall_between"])]


def _range(values: Sequence[float]) -> str:
    return f" ({min(values):.3f} to {max(values):.3f})"


def measure_detection(data: Sequence[DataSet | str], **options: Any) -> dict[str, Any]:
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
        "seeds": len(SEEDS),
        "rows": [row for d in sets for row in score_methods(d, **options)],
        "lecture": LECTURE,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write and print; exit status 2 where there is nothing to measure on, or nowhere to write."""
    options = _parser().parse_args(argv)
    if options.json and not options.json.absolute().parent.is_dir():
        print(f"detection: --json {options.json}: its folder does not exist; make it first", file=sys.stderr)
        return 2
    sets = [load_measured(options.data or find_data_dir())]
    sets += [simulate_set(side=options.side)] if options.side else []
    record = measure_detection(sets, models=options.models, pictures=options.pictures, tell=_tell)
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


def _tell(row: dict[str, Any]) -> None:
    print(f"{row['data']}, {row['method']}: F1 {row['f1']:.3f}, {row['seconds']:.0f} s", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description="Score how spots are found.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here, named DATE-detection.json")
    parser.add_argument("--into", type=Path, metavar="README", help="put the table between the marks of this file")
    parser.add_argument("--data", type=Path, metavar="DIR", help="measured data (default: NISEG_DATA)")
    parser.add_argument(
        "--side", type=int, default=1024, help="pixels a side of simulated images, 0 for none (default: 1024)"
    )
    parser.add_argument("--models", type=Path, metavar="DIR", help="keep trained networks here, and go on with those")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw here where each method hits and misses")
    return parser


if __name__ == "__main__":
    sys.exit(main())

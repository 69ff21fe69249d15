"""The table of how well spots are found: parted data, figures that can be checked, the README's copy."""

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from benchmarks import detection, detection_data
from benchmarks.table import put_between_marks
from niseg_gpu.knn import predict_knn
from niseg_gpu.knn_model import fit_knn

ROOT = Path(__file__).parents[1]


def simulate(out, *, seed, height, width, n_frames):
    """Poisson counts with spots of single pixels far above."""
    rng = np.random.default_rng(seed)
    masks = rng.random((n_frames, height, width)) < 0.01
    frames = (rng.poisson(900, masks.shape) + masks * rng.integers(60, 3000, masks.shape)).astype(np.uint16)
    for folder in ("images", "truth"):
        (out / folder).mkdir(parents=True)
    for i, frame in enumerate(frames):
        tifffile.imwrite(out / "images" / f"image_{i:05}.tif", frame)
    tifffile.imwrite(out / "truth" / "mask.tif", masks.astype(np.uint8) * 255)


@pytest.fixture(scope="module")
def simulated():
    return detection_data.simulate_set(simulate, height=64, width=80)


@pytest.fixture(scope="module")
def rows(simulated):
    return {row["method"]: row for row in detection.score_methods(simulated)}


def test_bands_never_share_a_window():
    image = np.repeat(np.arange(256)[:, None], 5, axis=1)
    even, odd = (np.unique(detection_data.cut_bands(image, first)) for first in (0, 1))
    assert np.abs(even[:, None] - odd).min() > 2 * 2  # windows of 5 x 5, the largest of any feature
    assert len(even) == len(odd) == 112


def test_seeds_that_learn_are_not_scored(simulated):
    assert not set(detection_data.TRAINING_SEEDS) & set(detection_data.TEST_SEEDS)
    ((training, test),) = simulated.folds
    assert training.images.shape == (2, 64, 80) and test.images.shape == test.masks.shape == (3, 64, 80)
    assert not any(np.array_equal(a, b) for a in training.images for b in test.images)


def test_figures_are_those_of_counting(simulated, rows):
    (fold,) = simulated.folds
    median = np.stack([_median(frame) for frame in fold.test.images])
    mask = np.abs(fold.test.images - median) >= 1000
    hits = (mask & fold.test.masks).sum()
    row = rows["abs(f - median), fixed"]
    assert row["precision"] == pytest.approx(hits / mask.sum())
    assert row["recall"] == pytest.approx(hits / fold.test.masks.sum())
    found = predict_knn(fold.test.images, fit_knn(*fold.training, n_neighbors=15)) == 1
    hits = (found & fold.test.masks).sum()
    assert rows["kNN, 15 neighbours"]["f1"] == pytest.approx(2 * hits / (found.sum() + fold.test.masks.sum()))
    assert rows["kNN, 15 neighbours"]["f1"] == rows["kNN, 15 neighbours"]["f1_of_draws"][0]


def _median(frame):
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(frame.astype(float), 1, mode="edge"), (3, 3))
    return np.median(windows, axis=(2, 3))


def test_best_thresholds_come_from_training_images(simulated, rows):
    (fold,) = simulated.folds
    swapped = simulated._replace(folds=(detection_data.Fold(fold.training, fold.training),))
    for name, row in rows.items():
        if name.endswith("best"):
            on_itself = detection.score_found([detection.CUTS[name](swapped.folds[0], swapped)], swapped, method=name)
            assert on_itself["thresholds"] == row["thresholds"]
            assert row["f1"] > rows["abs(f - median), fixed"]["f1"]
    assert rows["f - median, best"]["roc_auc"] > rows["abs(f - median), best"]["roc_auc"]


def test_what_is_missing_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detection_data, "SIMULATOR", "niseg_gpu.simulate.none_of_these")
    assert detection.main(["--data", str(tmp_path)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "left out, measured: spots_annotated is not in" in told[0] and "none_of_these" in told[1]
    assert detection.main(["--json", str(tmp_path / "no" / "rows.json")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


def test_measured_spots(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detection_data, "SIMULATOR", "niseg_gpu.simulate.none_of_these")
    page, out = tmp_path / "page.md", tmp_path / "rows.json"
    page.write_text("head\n<!-- detection: begin -->\nold\n<!-- detection: end -->\ntail\n")
    assert detection.main(["--data", str(data_dir), "--json", str(out), "--into", str(page)]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    assert page.read_text() == f"head\n<!-- detection: begin -->\n{text}\n<!-- detection: end -->\ntail\n"
    f1 = {row["method"]: row["f1"] for row in json.loads(out.read_text())["rows"]}
    assert f1["kNN, 15 neighbours"] > 0.5 and f1["f - median, best"] > 0.5 > f1["abs(f - median), fixed"]
    assert "left out, simulated" in text and "| the lecture's | abs(f - median), fixed | 1000 | 0.998 | 0.090 |" in text


def test_the_lectures_figures_agree_with_one_another():
    for row in detection.LECTURE["rows"]:
        f1 = 2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"])
        assert row["f1"] == pytest.approx(f1, abs=6e-4)


def test_the_readmes_table_is_that_of_the_newest_results():
    newest = max((ROOT / "benchmarks" / "results").glob("*-detection.json"))
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    text = detection.format_detection(json.loads(newest.read_text(encoding="utf-8")))
    assert put_between_marks(page, text, name=detection.DETECTION) == page

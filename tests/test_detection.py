"""The table of how well spots are found: parted data, figures that can be checked, the README's copy."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import detection, detection_data, detection_methods
from benchmarks.table import put_between_marks
from niseg_gpu.evaluate import evaluate_mask
from niseg_gpu.knn import predict_knn
from niseg_gpu.knn_model import fit_knn

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def simulated() -> detection_data.DataSet:
    """Small radiographs: three to learn from, one to choose thresholds on, two to score."""
    fold = detection_data.simulate_set(side=512).folds[0]
    few = zip(fold, (3, 1, 2), strict=True)
    parts = (detection_data.Marked(*(array[:n, :128, :128] for array in marked)) for marked, n in few)
    fold = detection_data.Fold(*parts)
    return detection_data.DataSet("simulated", "small", 1000.0, (fold,))


@pytest.fixture(scope="module")
def rows(simulated, tmp_path_factory) -> dict[str, dict]:
    """All methods, with few seeds and steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection_methods, "SEEDS", (2018, 1, 2))
        patch.setitem(detection_methods.TREES, "max_iter", 20)
        few = {"epochs": 1, "steps_per_epoch": 3, "crop": 64}
        for settings in (detection_methods.RECIPE, detection_methods.THOROUGH):
            for name, value in few.items():
                patch.setitem(settings, name, value)
        folder = tmp_path_factory.mktemp("detection")
        scored = detection.score_methods(simulated, models=folder / "models", pictures=folder / "pictures")
    assert len(list((folder / "pictures").glob("simulated-*.png"))) == len(scored) == 9
    assert len(list((folder / "models").glob("*-2018/model.json"))) == 2
    return {row["method"]: row for row in scored}


def test_bands_never_share_a_window():
    image = np.repeat(np.arange(256)[:, None], 5, axis=1)
    even, odd = (np.unique(detection_data.cut_bands(image, first)) for first in (0, 1))
    assert np.abs(even[:, None] - odd).min() > 2 * 2  # windows of 5 x 5, the largest of any feature
    assert len(even) == len(odd) == 112


def test_seeds_that_learn_are_neither_scored_nor_chosen_on():
    parts = (detection_data.TRAINING_SEEDS, detection_data.VALIDATION_SEEDS, detection_data.TEST_SEEDS)
    assert len(set().union(*parts)) == sum(map(len, parts))
    fold = detection_data.simulate_set(side=32).folds[0]
    images = [image.tobytes() for part in fold for image in part.images]
    assert len(set(images)) == sum(map(len, parts))
    assert all(np.array_equal(part.masks, part.deposits > 2) for part in fold)


def test_figures_are_those_of_counting(simulated, rows):
    (fold,) = simulated.folds
    median = np.stack([_median(frame) for frame in fold.test.images])
    mask = np.abs(fold.test.images - median) >= 1000
    hits = (mask & fold.test.masks).sum()
    row = rows["abs(f - median), fixed"]
    assert row["precision"] == pytest.approx(hits / mask.sum())
    assert row["recall"] == pytest.approx(hits / fold.test.masks.sum())
    strong = fold.test.masks & (fold.test.deposits > 10)
    assert row["recall_between"][-1] == pytest.approx((mask & strong).sum() / strong.sum())
    assert row["f1_above"][-1] == pytest.approx(
        2 * (mask & strong).sum() / ((mask & (strong | ~fold.test.masks)).sum() + strong.sum())
    )
    f1 = []
    for seed in (2018, 1, 2):
        found = predict_knn(fold.test.images, fit_knn(*fold.training[:2], n_neighbors=15, seed=seed)) == 1
        f1.append(2 * (found & fold.test.masks).sum() / (found.sum() + fold.test.masks.sum()))
    row = rows["kNN, 15 neighbours"]
    assert row["f1"] == pytest.approx(np.median(f1)) and sorted(row["f1_of_seeds"]) == pytest.approx(sorted(f1))


def test_methods_that_learn_find_what_a_fixed_threshold_misses(rows):
    assert rows["boosted trees, 16 features"]["f1"] > rows["(f - median 5) / root"]["f1"] > 0.4
    for name, row in rows.items():
        assert len(row["recall_between"]) == len(row["f1_above"]) == 4
        drawn = name.startswith(("kNN", "boosted", "U-Net"))
        assert ("f1_of_seeds" in row) == drawn
        if name.startswith(("kNN", "boosted")):  # networks may find nothing after three steps
            assert len(set(row["f1_of_seeds"])) == 3


def test_features_of_trees_are_a_pixels_own_and_its_neighbours():
    image = np.full((9, 9), 100, np.uint16)
    image[4, 4], image[4, 5] = 400, 200
    found = detection_methods.compute_16_features(image)
    assert found.shape == (9, 9, 16)
    np.testing.assert_allclose(found[4, 4, [0, 3, 4, 5, 6, 7]], [400, 300, 300, 30, 300, 30])
    np.testing.assert_allclose(found[4, 4, 8:], [0] * 7 + [10])
    np.testing.assert_allclose(found[4, 6, 8:], [0] * 7 + [10])  # the brighter one is two pixels away
    assert found[4, 6, 7] == 30 and found[4, 7, 7] == 10 and found[4, 8, 7] == 0


def _median(frame):
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(frame.astype(float), 1, mode="edge"), (3, 3))
    return np.median(windows, axis=(2, 3))


def test_thresholds_are_chosen_on_validation_images(simulated, rows):
    (fold,) = simulated.folds
    swapped = fold._replace(test=fold.validation)
    for name in ("abs(f - median), best", "f - median, best", "(f - median 5) / root"):
        found = detection_methods.list_methods(simulated)[name].find(swapped, seed=0)
        assert rows[name]["thresholds"] == [found.threshold]
        curve = [evaluate_mask(found.test >= t, swapped.test.masks).f1 for t in np.unique(found.test)[::-1][:400]]
        assert evaluate_mask(found.mask, swapped.test.masks).f1 == pytest.approx(max(curve))
        assert rows[name]["f1"] > rows["abs(f - median), fixed"]["f1"]
    assert rows["f - median, best"]["roc_auc"] > rows["abs(f - median), best"]["roc_auc"]


def test_what_is_missing_is_told(tmp_path, capsys):
    assert detection.main(["--data", str(tmp_path), "--side", "0"]) == 2
    assert "left out, measured: spots_annotated is not in" in capsys.readouterr().err
    assert detection.main(["--json", str(tmp_path / "no" / "rows.json")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err


def test_measured_spots(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detection_methods, "SEEDS", (2018, 1))
    monkeypatch.setitem(detection_methods.TREES, "max_iter", 10)
    page, out = tmp_path / "page.md", tmp_path / "rows.json"
    page.write_text("head\n<!-- detection: begin -->\nold\n<!-- detection: end -->\ntail\n")
    assert detection.main(["--side", "0", "--data", str(data_dir), "--json", str(out), "--into", str(page)]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    assert page.read_text() == f"head\n<!-- detection: begin -->\n{text}\n<!-- detection: end -->\ntail\n"
    f1 = {row["method"]: row["f1"] for row in json.loads(out.read_text())["rows"]}
    assert f1["kNN, 15 neighbours"] > 0.5 and f1["f - median, best"] > 0.5 > f1["abs(f - median), fixed"]
    assert "simulated" not in text and "| the lecture's | abs(f - median), fixed | 1000 | 0.998 | 0.090 |" in text


def test_the_lectures_figures_agree_with_one_another():
    for row in detection.LECTURE["rows"]:
        f1 = 2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"])
        assert row["f1"] == pytest.approx(f1, abs=6e-4)


def test_the_readmes_table_is_that_of_the_newest_results():
    newest = max((ROOT / "benchmarks" / "results").glob("*-detection.json"))
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    text = detection.format_detection(json.loads(newest.read_text(encoding="utf-8")))
    assert put_between_marks(page, text, name=detection.DETECTION) == page

"""Recall by strength, against counting by hand and by loops."""

from __future__ import annotations

import json
import math

import dask.array as da
import numpy as np
import pytest
import tifffile
from scipy import ndimage

from niseg_gpu import cli
from niseg_gpu.errors import UserError
from niseg_gpu.evaluate.strengths import STRENGTH_EDGES, evaluate_strengths


@pytest.fixture(scope="module")
def case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    deposit = np.where(rng.random((5, 60, 70)) < 0.05, rng.pareto(0.7, (5, 60, 70)) * 2, 0).astype(np.float32)
    truth = deposit > 2
    predicted = rng.random(truth.shape) < np.where(truth, np.minimum(deposit / 20, 1), 0.01)
    return predicted, truth, deposit


def count_by_loops(predicted, truth, strength):
    """Pixels, found pixels, spots and found spots of each class, one spot after the other."""
    counts = np.zeros((4, len(STRENGTH_EDGES) - 1), int)

    def at(value):
        return max(i for i, edge in enumerate(STRENGTH_EDGES[:-1]) if value >= edge)

    for frame in range(len(truth)):
        for y, x in np.argwhere(truth[frame]):
            counts[0, at(strength[frame, y, x])] += 1
            counts[1, at(strength[frame, y, x])] += predicted[frame, y, x]
        labels, n = ndimage.label(truth[frame], np.ones((3, 3)))
        for spot in range(1, n + 1):
            k = at(strength[frame][labels == spot].max())
            counts[2, k] += 1
            counts[3, k] += predicted[frame][labels == spot].any()
    return counts.tolist()


@pytest.mark.parametrize("chunks", [None, (1, 20, 70), (5, 60, 35)])
def test_counts_are_those_of_loops(case, chunks):
    arrays = case if chunks is None else [da.from_array(array, chunks=chunks) for array in case]
    found = evaluate_strengths(*arrays)
    assert [list(c) for c in (found.pixels, found.found_pixels, found.spots, found.found_spots)] == count_by_loops(
        *case
    )
    assert sum(found.pixels) == case[1].sum() and found.no_strength == 0 and not found.notes


def test_limits_belong_above_and_what_lies_outside_is_left_out():
    strength = np.array([[1.0, 0, 2.0, 0, 4.0, 0, np.nan, 0, 9.0]])
    found = evaluate_strengths(strength > 3, strength != 0, strength, edges=(2, 4, 9))
    assert (found.pixels, found.found_pixels, found.spots) == ((1, 1), (0, 1), (1, 1))
    assert found.no_strength == 1 and "NaN" in found.notes[0]
    assert [row["recall"] for row in found.rows] == [0.0, 1.0]
    empty = evaluate_strengths(strength > 99, strength == 99, strength)
    assert empty.rows[-1]["recall"] is None and empty.rows[-1]["to"] is None and math.isinf(empty.edges[-1])


def test_what_makes_no_sense_is_refused(case):
    with pytest.raises(UserError, match="rising"):
        evaluate_strengths(*case, edges=(3, 2))
    with pytest.raises(UserError, match="must have one shape"):
        evaluate_strengths(case[0], case[1], case[2][:2])


def test_command(case, tmp_path, capsys):
    for name, array in zip(("found", "truth", "deposit"), case, strict=True):
        tifffile.imwrite(tmp_path / f"{name}.tif", array.astype(np.float32 if name == "deposit" else np.uint8))
    call = ["evaluate", str(tmp_path / "found.tif"), str(tmp_path / "truth.tif")]
    call += ["--strength", str(tmp_path / "deposit.tif"), "--json", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit) as ended:
        cli.main(call)
    assert not ended.value.code
    said, expected = capsys.readouterr().out, evaluate_strengths(*case)
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["strengths"] == expected.as_mapping()
    for row in expected.rows:
        if row["pixels"]:
            assert f"{row['recall']:.4f}" in said and f"{row['spot_recall']:.4f}" in said
    assert "100 or more" in said and "3 to 5" in said


def test_labels_have_no_strength(tmp_path, capsys):
    np.save(tmp_path / "labels.npy", np.arange(12, dtype=np.uint8).reshape(3, 4) // 4)
    path = str(tmp_path / "labels.npy")
    with pytest.raises(SystemExit) as ended:
        cli.main(["evaluate", path, path, "--strength", path])
    assert ended.value.code == 2 and "--strength needs a mask" in capsys.readouterr().err

"""The command ``evaluate``: what it makes of files, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import xarray as xr
import zarr
from PIL import Image

from niseg_gpu import cli
from niseg_gpu.evaluate import evaluate_labels, evaluate_mask, evaluate_scores
from niseg_gpu.io.save import save


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]):
    """Run the command in this process; return exit status, output and complaint."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["evaluate", *(str(a) for a in arguments)])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def files(tmp_path: Path) -> dict[str, np.ndarray]:
    """Truth as PNG, mask as TIFF, scores as npy, label maps as TIFF and in a result's store."""
    rng = np.random.default_rng(4)
    truth = rng.random((40, 60)) < 0.05
    scores = (rng.normal(size=truth.shape) + 2 * truth).astype(np.float32)
    labels = np.add.outer(np.arange(40) // 14, np.arange(60) // 31).astype(np.uint8)
    labels[0, 0] = 255
    Image.fromarray(np.where(truth, 255, 0).astype(np.uint8)).save(tmp_path / "truth.png")
    tifffile.imwrite(tmp_path / "mask.tif", (scores > 1.5).astype(np.uint8), compression="zlib")
    np.save(tmp_path / "scores.npy", scores)
    tifffile.imwrite(tmp_path / "classes.tif", (3 - np.minimum(labels, 3)).astype(np.uint16), compression="zlib")
    group = zarr.create_group(tmp_path / "result.zarr")
    for name, values in (("labels", labels), ("spots", scores > 1.5)):
        group.create_array(name, data=values, dimension_names=("y", "x"))
    return {"truth": truth, "scores": scores, "labels": labels, "classes": 3 - np.minimum(labels, 3)}


@pytest.mark.parametrize("name", ["mask.tif", "result.zarr:spots"])
def test_a_mask(evaluate, files, tmp_path: Path, name: str) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "hits.png"
    options = ["--json", out, "--picture", picture, "--found-fraction", 0.5]
    status, said, err = evaluate(tmp_path / name, tmp_path / "truth.png", *options)
    assert (status, err) == (0, "")
    expected = evaluate_mask(files["scores"] > 1.5, files["truth"], found_fraction=0.5)
    record = json.loads(out.read_text())
    assert record["kind"] == "mask" and record["mask"] == expected.as_mapping()
    assert f"{expected.tp} (" in said and f"{expected.matthews:.4f}" in said and f"wrote {picture}" in said
    assert f"spots found: {expected.found_spots} of {expected.true_spots} (at least 0.5 of the spot)" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*")), "nothing half-made is left"


def test_scores_are_cut_where_f1_is_best_or_where_told(evaluate, files, tmp_path: Path) -> None:
    scores, truth, out = tmp_path / "scores.npy", tmp_path / "truth.png", tmp_path / "out.json"
    status, said, err = evaluate(scores, truth, "--json", out, "--curve", tmp_path / "c.png")
    expected = evaluate_scores(files["scores"], files["truth"])
    assert (status, err) == (0, "") and f"{expected.roc_auc:.4f}" in said
    record = json.loads(out.read_text())
    assert record["scores"] == expected.as_mapping() and record["threshold"] == expected.best_threshold
    assert record["mask"]["f1"] == pytest.approx(expected.best_f1)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    status, said, _ = evaluate(scores, truth, "--json", out, "--overwrite", "--threshold", -1)
    cut = evaluate_mask(files["scores"] >= -1, files["truth"])
    assert json.loads(out.read_text())["mask"] == cut.as_mapping() and "score is -1 or more" in said


def test_a_mask_beside_its_scores(evaluate, files, tmp_path: Path) -> None:
    arguments = [tmp_path / "mask.tif", tmp_path / "truth.png", "--scores", tmp_path / "scores.npy"]
    status, said, err = evaluate(*arguments, "--curve", tmp_path / "c.png")
    assert (status, err) == (0, "") and (tmp_path / "c.png").is_file()
    mask = evaluate_mask(files["scores"] > 1.5, files["truth"])
    assert f"F1 = Dice{'':<13}{mask.f1:>10.4f}" in said and "ROC AUC" in said


@pytest.mark.parametrize("kind", ["auto", "labels"])
def test_label_maps(evaluate, files, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out.json"
    arguments = [tmp_path / "result.zarr:labels", tmp_path / "classes.tif", "--kind", kind, "--json", out]
    status, said, err = evaluate(*arguments)
    assert (status, err) == (0, "")
    expected = evaluate_labels(files["labels"], files["classes"].astype(np.uint16))
    record = json.loads(out.read_text())
    assert record["labels"] == expected.as_mapping() and expected.no_data == 1 and expected.accuracy == 1
    assert "note: 1 pixels without data" in said and "adjusted Rand index" in said
    assert evaluate(*arguments, "--overwrite", "--no-data", 0)[1].count("without data") == 1
    status, said, _ = evaluate(tmp_path / "classes.tif", tmp_path / "truth.png", "--no-data", -1)
    assert status == 0 and "without data" not in said and "\n        255" in said


@pytest.mark.parametrize("ending", ["zarr", "tif", "h5"])
def test_maps_of_classes_are_compared_as_numbered(evaluate, tmp_path: Path, ending: str) -> None:
    truth = np.add.outer(np.arange(40) // 14, np.zeros(60, int)).astype(np.uint8)
    np.save(tmp_path / "truth.npy", truth)
    for quantity, accuracy in (("classes", "1.0000"), ("labels", "1.0000"), ("classes", "0.3000")):
        swapped = truth if quantity == "classes" and accuracy == "1.0000" else np.array([1, 0, 2], np.uint8)[truth]
        path = tmp_path / f"{quantity}_{accuracy}.{ending}"
        save(xr.DataArray(swapped, dims=("y", "x"), attrs={"quantity": quantity}), path)
        status, said, err = evaluate(path, tmp_path / "truth.npy")
        assert (status, err) == (0, "") and f"accuracy{'':<14}{accuracy:>10}" in said
    given = tmp_path / f"labels_1.0000.{ending}"
    assert "note" not in evaluate(given, tmp_path / "truth.npy")[1], "clusters of k-means are numbered as they come"
    np.save(tmp_path / "p.npy", np.array([1, 0, 2], np.uint8)[truth])
    assert "(--same-numbers) the accuracy is 0.3000" in evaluate(tmp_path / "p.npy", tmp_path / "truth.npy")[1]
    said = evaluate(given, tmp_path / "truth.npy", "--same-numbers")[1]
    assert f"accuracy{'':<14}{'0.3000':>10}" in said and "note" not in said


def test_what_a_file_holds_is_found_out(evaluate, files, tmp_path: Path) -> None:
    def kind_of(predicted: np.ndarray, truth: np.ndarray) -> str:
        np.save(tmp_path / "p.npy", predicted)
        np.save(tmp_path / "t.npy", truth)
        status, _, err = evaluate(tmp_path / "p.npy", tmp_path / "t.npy", "--json", tmp_path / "k.json", "--overwrite")
        assert (status, err) == (0, "")
        return json.loads((tmp_path / "k.json").read_text())["kind"]

    square = np.eye(4, dtype=np.uint8)
    assert kind_of(square * 255, square) == "mask"
    assert kind_of(square.astype(np.float32), square) == "mask"
    assert kind_of(square * np.float32(0.3) + 0.1, square) == "scores"
    assert kind_of(np.where(square, np.nan, np.float32(0.5)), 1 - square) == "scores"
    assert "the 4 pixels without a score count as not predicted" in evaluate(tmp_path / "p.npy", tmp_path / "t.npy")[1]
    assert kind_of(square + 1, square) == "labels"
    assert kind_of(square, square * np.arange(4)) == "labels"
    assert kind_of(np.stack([square] * 3) * 0, np.stack([square] * 3)) == "mask"


def test_a_frame_of_a_stack_is_pictured(evaluate, tmp_path: Path) -> None:
    truth = np.zeros((3, 9, 9), np.uint8)
    truth[1] = 1
    np.save(tmp_path / "p.npy", truth * 0)
    np.save(tmp_path / "t.npy", truth)
    arguments = [tmp_path / "p.npy", tmp_path / "t.npy", "--picture", tmp_path / "h.png", "--overwrite", "--quiet"]
    sizes = set()
    for frame in (0, 1):
        assert evaluate(*arguments, "--frame", frame) == (0, "", "")
        sizes.add((tmp_path / "h.png").read_bytes())
    assert len(sizes) == 2
    status, _, err = evaluate(*arguments, "--frame", 3)
    assert status == 2 and "frame is 3; allowed: 0 to 2" in err


def test_what_is_wrong_in_labels_is_pictured(evaluate, tmp_path: Path) -> None:
    truth = np.add.outer(np.zeros((2, 30), int), np.arange(45) // 15).astype(np.uint8)
    predicted = truth.copy()
    predicted[1, 10:20, 10:40] = 0
    np.save(tmp_path / "p.npy", predicted)
    np.save(tmp_path / "t.npy", truth)
    arguments = [tmp_path / "p.npy", tmp_path / "t.npy", "--picture", tmp_path / "w.png", "--overwrite"]
    pictures = []
    for frame in (0, 1):
        status, said, err = evaluate(*arguments, "--frame", frame)
        assert (status, err) == (0, "") and f"wrote {tmp_path / 'w.png'}" in said
        pictures.append((tmp_path / "w.png").read_bytes())
    assert pictures[0] != pictures[1] and all(data.startswith(b"\x89PNG") for data in pictures)
    for expected in ([3, 2, 0, 3], [3, 1, 0, 3]):  # renumbered before it is drawn
        np.save(tmp_path / "p.npy", np.uint8(expected)[predicted])
        assert evaluate(*arguments, "--frame", 1, "--quiet") == (0, "", "")
        assert (tmp_path / "w.png").read_bytes() == pictures[1]


def test_what_is_undefined_is_said_and_not_0(evaluate, tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((4, 5), np.uint8))
    np.save(tmp_path / "s.npy", np.random.default_rng(0).random((4, 5)))
    status, said, err = evaluate(tmp_path / "none.npy", tmp_path / "none.npy", "--json", tmp_path / "o.json")
    assert (status, err) == (0, "") and "note: nothing was predicted" in said
    assert json.loads((tmp_path / "o.json").read_text())["mask"]["f1"] is None
    assert f"precision{'-':>23}" in said
    status, said, err = evaluate(tmp_path / "s.npy", tmp_path / "none.npy")
    assert (status, err) == (0, "") and "no positive pixel" in said and "predicted" not in said
    assert all(len(line) == 32 for line in said.splitlines()[:4])
    for option in ("--picture", "--curve"):
        status, _, err = evaluate(tmp_path / "s.npy", tmp_path / "none.npy", option, tmp_path / "x.png")
        assert status == 2 and "no positive pixel" in err and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["mask.tif", "gone.png"], "gone.png: no such file"),
        (["mask.tif", "small.npy"], "mask.tif is 40 x 60, {}/small.npy is 2 x 2; both must have one shape"),
        (["mask.tif", "classes.tif", "--kind", "mask"], "classes.tif holds the values 0, 3, 2, ...; a mask holds 0"),
        (["scores.npy", "classes.tif"], "classes.tif holds the values 0, 3, 2, ...; a mask holds 0"),
        (["scores.npy", "truth.png", "--kind", "labels"], "scores.npy holds float32 values; labels are integers"),
        (["mask.tif", "truth.png", "--kind", "masks"], "kind is 'masks'; did you mean 'mask'?"),
        (["mask.tif", "truth.png", "--threshold", "1"], "--threshold needs scores, but PREDICTED holds a mask"),
        (["scores.npy", "truth.png", "--threshold", "nan"], "--threshold is nan"),
        (["mask.tif", "truth.png", "--no-data", "5"], "--no-data needs labels, but PREDICTED holds a mask"),
        (["mask.tif", "truth.png", "--same-numbers"], "--same-numbers needs labels, but PREDICTED holds a mask"),
        (["classes.tif", "truth.png"], "truth.png holds 0 and 255 only, and as a label 255 means no data"),
        (["mask.tif", "truth.png", "--curve", "{}/c.png"], "--curve needs scores (--scores FILE)"),
        (["classes.tif", "classes.tif", "--curve", "{}/c.png"], "--curve needs scores (--scores FILE), but PREDICTED"),
        (["classes.tif", "classes.tif", "--picture", "{}/c.png", "--frame", "1"], "frame is 1; allowed: 0 to 0"),
        (["scores.npy", "truth.png", "--scores", "{}/scores.npy"], "--scores needs a mask, but PREDICTED holds scores"),
        (["mask.tif", "truth.png", "--json", "{}/small.json"], "small.json exists; give another name, or replace it"),
        (["mask.tif", "truth.png", "--json", "{}/no/o.json"], "no is not a folder one may write to"),
        (["mask.tif", "truth.png", "--picture", "{}/o.gif"], "o.gif: unknown ending '.gif'; allowed: .png"),
        (["mask.tif", "truth.png", "--picture", "{}/truth.png", "--overwrite"], "one name for two files"),
        (["mask.tif", "truth.png", "--found-fraction", "2"], "found_fraction is 2.0; allowed: 0"),
    ],
)
def test_misuse_is_told_in_one_line(evaluate, files, tmp_path: Path, arguments, complaint) -> None:
    np.save(tmp_path / "small.npy", np.eye(2))
    (tmp_path / "small.json").touch()
    before = sorted(tmp_path.iterdir())
    predicted, truth, *options = (str(a).replace("{}", str(tmp_path)) for a in arguments)
    status, said, err = evaluate(tmp_path / predicted, tmp_path / truth, *options)
    assert (status, said, err.count("\n")) == (2, "", 1), err
    assert complaint.replace("{}", str(tmp_path)) in err
    assert sorted(tmp_path.iterdir()) == before


def test_spots_of_a_measured_image(evaluate, data_dir: Path, tmp_path: Path) -> None:
    from niseg_gpu.backend import CPU
    from niseg_gpu.io.open import open_stack

    image = open_stack(data_dir / "spots_annotated" / "image.png").values.astype(np.float32)
    np.save(tmp_path / "residue.npy", abs(image - CPU.median(image, size=(5, 5))))
    pictures = ["--picture", tmp_path / "hits.png", "--curve", tmp_path / "curve.png"]
    mask = data_dir / "spots_annotated" / "mask.png"
    status, _, err = evaluate(tmp_path / "residue.npy", mask, *pictures, "--json", tmp_path / "o.json")
    assert (status, err) == (0, "")
    record = json.loads((tmp_path / "o.json").read_text())
    assert record["scores"]["roc_auc"] > 0.74 and record["scores"]["best_f1"] > 0.54
    assert record["mask"]["true_spots"] == 69

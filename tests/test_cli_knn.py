"""``niseg-gpu knn train``, ``knn predict`` and ``detect-spots`` from file to file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from niseg_gpu.io.open import open_stack
from niseg_gpu.knn import detect_spots, predict_knn
from niseg_gpu.knn_model import fit_knn, load_knn


def scene(seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    spots = rng.random(shape) < 0.03
    return (rng.poisson(400, shape) + spots * rng.integers(30, 300, shape)).astype(np.uint16), spots


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two images with masks, and a stack to work on, in the folder one stands in."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("a", 1), ("b", 2)):
        image, spots = scene(seed, 40, 50)
        np.save(f"{name}.npy", image)
        np.save(f"{name}_mask.npy", spots.astype(np.uint8) * 255)
    np.save("nan.npy", np.full((40, 50), np.nan, np.float32))
    np.save("stack.npy", scene(3, 4, 40, 50)[0])
    return tmp_path


PAIRS = ["--image", "a.npy", "--mask", "a_mask.npy", "--image", "b.npy", "--mask", "b_mask.npy"]


@pytest.fixture
def model(niseg, data: Path) -> Path:
    assert niseg("knn", "train", "spots.npz", *PAIRS, "--n-neighbors", 3, "--quiet") == (0, "", "")
    return data / "spots.npz"


def test_train(niseg, data: Path) -> None:
    options = ["--features", "value,residual", "--no-standardise", "--weights", "distance", "--n-neighbors", 5]
    status, out, err = niseg("knn", "train", "m.npz", *PAIRS, *options, "--background-per-spot", 2)
    assert (status, err) == (0, "")
    made = load_knn("m.npz")
    expected = fit_knn(
        [np.load("a.npy"), np.load("b.npy")],
        [np.load("a_mask.npy"), np.load("b_mask.npy")],
        features=["value", "residual"],
        standardise=False,
        n_neighbors=5,
        weights="distance",
        background_per_spot=2,
    )
    np.testing.assert_array_equal(made.points, expected.points)
    np.testing.assert_array_equal(made.labels, expected.labels)
    assert (made.n_neighbors, made.weights, made.scales.tolist()) == (5, "distance", [1, 1])
    assert made.training["files"] == [["a.npy", "a_mask.npy"], ["b.npy", "b_mask.npy"]]
    assert f"wrote m.npz\nlearnt {made.labels.sum()} spot and {2 * made.labels.sum()} background pixels" in out
    assert niseg("knn", "train", "m.npz", *PAIRS)[0] == 2
    assert niseg("knn", "train", "m.npz", *PAIRS, "--overwrite", "--features", "gradient", "--quiet") == (0, "", "")
    assert load_knn("m.npz").features == ("gradient",)


def test_all_background_may_train(niseg, data: Path) -> None:
    assert niseg("knn", "train", "m.npz", *PAIRS, "--background-per-spot", "inf")[0] == 0
    assert len(load_knn("m.npz").points) == 2 * 40 * 50


def test_train_draws_what_it_decides(niseg, data: Path) -> None:
    status, out, err = niseg("knn", "train", "m.npz", *PAIRS, "--picture", "plane.png")
    assert (status, err) == (0, "") and "wrote m.npz\nwrote plane.png\n" in out
    assert (data / "plane.png").read_bytes().startswith(b"\x89PNG")
    assert niseg("knn", "train", "m2.npz", *PAIRS, "--picture", "plane.png")[0] == 2
    assert not (data / "m2.npz").exists()


@pytest.mark.parametrize("ending", [".zarr", ".tif", ".h5", ".npy"])
def test_predict(niseg, model: Path, ending: str) -> None:
    status, out, err = niseg("knn", "predict", "stack.npy", f"out{ending}", "--model", "spots.npz")
    assert (status, err) == (0, "") and f"wrote out{ending}" in out
    written = open_stack(f"out{ending}")
    assert written.dtype == np.uint8
    expected = predict_knn(np.load("stack.npy"), load_knn(model))
    np.testing.assert_array_equal(written.values, expected)
    np.save("truth.npy", 1 - expected)  # labels would be taken for each other, a mask is wrong
    status, out, _ = niseg("evaluate", f"out{ending}", "truth.npy", "--picture", "hits.png")
    assert status == 0 and "precision                 0.0000" in out and "wrote hits.png" in out


@pytest.mark.parametrize("extra, options", [([], {}), (["--approximate"], {"exact": False})])
def test_predict_scores(niseg, model: Path, extra: list[str], options: dict) -> None:
    assert niseg("knn", "predict", "stack.npy", "s.npy", "--model", model, "--scores", "--quiet", *extra) == (0, "", "")
    expected = predict_knn(np.load("stack.npy"), load_knn(model), scores=True, **options)
    np.testing.assert_array_equal(np.load("s.npy"), expected)
    assert len(np.unique(expected)) > 2


def test_detect_spots(niseg, model: Path) -> None:
    status, out, err = niseg("detect-spots", "stack.npy", "clean.npy", "--model", "spots.npz", "--mask", "spots.npy")
    assert (status, err) == (0, "")
    cleaned, spots = detect_spots(np.load("stack.npy"), model=load_knn(model))
    np.testing.assert_array_equal(np.load("clean.npy"), cleaned)
    np.testing.assert_array_equal(np.load("spots.npy").astype(bool), spots)
    assert f"detect_spots: {spots.sum()} spots replaced" in out


def test_run_with_a_model_beside_the_pipeline_file(niseg, model: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "p.yaml").write_text("input: stack.npy\nsteps: [{detect_spots: {model: spots.npz}}]\noutput: {path: o}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert niseg("check", tmp_path / "p.yaml")[0] == 0
    assert niseg("run", tmp_path / "p.yaml", "--quiet") == (0, "", "")
    cleaned, spots = detect_spots(np.load(tmp_path / "stack.npy"), model=load_knn(model))
    np.testing.assert_array_equal(open_stack(f"{tmp_path}/o/result.zarr:image").values, cleaned)
    np.testing.assert_array_equal(open_stack(f"{tmp_path}/o/result.zarr:spots").values.astype(bool), spots)


def test_brightness_never_seen_is_told(niseg, model: Path) -> None:
    np.save("bright.npy", np.load("stack.npy") + 3000)
    status, out, err = niseg("knn", "predict", "bright.npy", "out.npy", "--model", "spots.npz")
    assert status == 0 and "8000 values whose value lies outside of the training range" in out
    assert err.count("\n") == 1 and "normalize before training" in err


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["train", "m.npz", "--image", "a.npy"], "required: --mask"),
        (["train", "m.npz", *PAIRS[:6]], "got 2 images and 1 masks"),
        (["train", "m.npz", "--image", "a.npy", "--mask", "stack.npy"], "stack.npy has shape (4, 40, 50), its image"),
        (["train", "m.npz", "--image", "a.npy", "--mask", "b.npy"], "b.npy holds"),
        (["train", "m.npz", "--image", "nan.npy", "--mask", "a_mask.npy"], "nan.npy has NaN or Inf at or beside"),
        (["train", "m.npz", *PAIRS, "--features", "valu"], "no feature 'valu'; did you mean 'value'?"),
        (["train", "m.npz", *PAIRS, "--n-neighbors", "0"], "n_neighbors is 0"),
        (["train", "m.npz", *PAIRS, "--neighbors", "2"], "no argument '--neighbors'; did you mean '--n-neighbors'?"),
        (["train", "m.txt", *PAIRS], "m.txt: unknown ending '.txt'"),
        (["train", "m.npz", "--image", "no.npy", "--mask", "a_mask.npy"], "no.npy"),
        (["train", "m.npz", *PAIRS, "--picture", "p.jpg"], "p.jpg: unknown ending '.jpg'; allowed: .png"),
        (["train", "m.npz", *PAIRS, "--picture", "p.png", "--features", "value"], "got 1 features (value); allowed: 2"),
        (["predict", "stack.npy", "out.npy"], "required: --model"),
        (["predict", "stack.npy", "out.npy", "--model", "no.npz"], "no.npz does not exist"),
        (["predict", "stack.npy", "out.npy", "--model", "a.npy"], "a.npy is no knn model"),
        (["predict", "stack.npy", "out.xyz", "--model", "no.npz"], "unknown ending '.xyz'"),
        (["tain"], "no ACTION 'tain'; did you mean 'train'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_status_2(niseg, data: Path, arguments: list[str], complaint: str) -> None:
    before = sorted(data.iterdir())
    status, out, err = niseg("knn", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("niseg-gpu: ") and err.count("\n") == 1 and complaint in err
    assert sorted(data.iterdir()) == before


@pytest.mark.parametrize("action", ["train", "predict"])
def test_both_explain_themselves(niseg, action: str) -> None:
    status, out, _ = niseg("knn", action, "--help")
    assert status == 0 and "--verbose" in out and "--device" in out

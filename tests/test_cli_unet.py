"""``niseg-gpu unet predict``, ``unet info`` and ``segment-unet`` from file to file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from niseg_gpu.backend import CPU
from niseg_gpu.io.open import open_stack
from niseg_gpu.pipeline.api import apply_steps, cluster_stack
from niseg_gpu.pipeline.engine import Engine
from niseg_gpu.pipeline.parse import parse_steps
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.folder import UNetModel, load_unet, save_unet
from niseg_gpu.unet.model import init_weights
from niseg_gpu.unet.normalise import Normalisation
from niseg_gpu.unet.predict import predict_unet


def make_model(path: Path, **config: object) -> Path:
    made = UNetConfig(**{"base_depth": 2, "levels": 2, **config})
    params, state = init_weights(made, seed=5)
    scale = Normalisation(means=(100.0,), scales=(10.0,))
    augmentation = {"rotation_deg": 30.0, "blur_pixels": [0, 1.5]}
    training = {"images": ["a.npy"], "seed": 5, "class_weights": None, "augmentation": augmentation, "ema": False}
    return save_unet(UNetModel(made, params, state, scale, 0.5, training, {"best_f1": 0.7512345}), path)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("stack.npy", np.random.default_rng(0).poisson(100, (3, 40, 50)).astype(np.uint16))
    make_model(tmp_path / "spots")
    return tmp_path


@pytest.mark.parametrize("ending", [".zarr", ".tif", ".h5", ".npy"])
def test_predict(niseg, data: Path, ending: str) -> None:
    half = float(np.median(predict_unet(np.load("stack.npy"), load_unet("spots"), result="probability")))
    status, out, err = niseg("unet", "predict", "stack.npy", f"out{ending}", "--model", "spots", "--threshold", half)
    assert (status, err) == (0, "") and f"wrote out{ending}" in out
    expected = predict_unet(np.load("stack.npy"), load_unet("spots"), threshold=half)
    assert 0 < expected.mean() < 1
    assert f"segment_unet: {expected.sum()} values segmented as not background" in out
    written = open_stack(f"out{ending}")
    assert written.dtype == np.uint8
    np.testing.assert_array_equal(written.values, expected)
    np.save("truth.npy", 1 - expected)  # labels would be taken for each other, a mask is wrong
    status, out, _ = niseg("evaluate", f"out{ending}", "truth.npy", "--picture", "hits.png")
    assert status == 0 and "precision                 0.0000" in out and "wrote hits.png" in out


@pytest.mark.parametrize("ending", [".zarr", ".tif", ".h5", ".npy"])
def test_predict_probabilities(niseg, data: Path, ending: str) -> None:
    options = ["--result", "probability", "--flips", "--quiet"]
    assert niseg("unet", "predict", "stack.npy", f"p{ending}", "--model", "spots", *options) == (0, "", "")
    expected = predict_unet(np.load("stack.npy"), load_unet("spots"), result="probability", flips=True)
    np.testing.assert_array_equal(open_stack(f"p{ending}").values, expected)


def test_step_and_pipeline(niseg, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert niseg("segment-unet", "stack.npy", "out.npy", "--model", "spots", "--threshold", "0.6", "--quiet")[0] == 0
    expected = predict_unet(np.load("stack.npy"), load_unet("spots"), threshold=0.6)
    np.testing.assert_array_equal(np.load("out.npy"), expected)
    Path("p.yaml").write_text(
        "input: stack.npy\nsteps: [{segment_unet: {model: spots, threshold: 0.6}}]\noutput: {path: o}"
    )
    (data / "elsewhere").mkdir()
    monkeypatch.chdir(data / "elsewhere")
    status, out, _ = niseg("check", data / "p.yaml")
    assert status == 0 and "segment_unet       z 3 x y 40 x x 50 uint8 mask" in out
    assert niseg("run", data / "p.yaml", "--quiet") == (0, "", "")
    np.testing.assert_array_equal(open_stack(f"{data}/o/result.zarr:image").values, expected)
    options = ("--quiet", "--out", data / "p", "--set", "segment_unet.result=probability")
    assert niseg("run", data / "p.yaml", *options) == (0, "", "")
    expected = predict_unet(np.load(data / "stack.npy"), load_unet(data / "spots"), result="probability")
    np.testing.assert_array_equal(open_stack(f"{data}/p/result.zarr:image").values, expected)


def test_swapped_classes_are_wrong_for_their_numbers_mean_something(niseg, data: Path) -> None:
    """Clusters would be renumbered to fit, and the accuracy be 1."""
    make_model(data / "m", out_classes=3)
    (data / "p.yaml").write_text("input: stack.npy\nsteps: [{segment_unet: {model: m}}]\noutput: {path: o}")
    assert niseg("run", data / "p.yaml", "--quiet") == (0, "", "")
    assert niseg("unet", "predict", "stack.npy", "m.tif", "--model", "m", "--quiet") == (0, "", "")
    expected = predict_unet(np.load("stack.npy"), load_unet("m"))
    assert len(np.unique(expected)) > 1
    np.save("swapped.npy", (expected + 1) % 3)
    for path in ("o/result.zarr", "m.tif"):
        status, out, err = niseg("evaluate", path, "swapped.npy")
        assert (status, err) == (0, "") and f"accuracy{'':<14}{'0.0000':>10}" in out


@pytest.mark.parametrize(
    "config, shape, dims, block_bytes",
    [
        ({"levels": 3}, (1001, 23), ("y", "x"), 4096),
        ({"levels": 3}, (7, 61, 23), ("z", "y", "x"), 4096),
        ({"spatial_dims": 3}, (75, 22, 17), ("z", "y", "x"), 4096),
    ],
)
def test_blocks_change_nothing(data: Path, config: dict, shape: tuple, dims: tuple, block_bytes: int) -> None:
    make_model(data / "m", **config)
    image = np.random.default_rng(1).normal(100, 10, shape).astype(np.float32)
    steps = parse_steps(
        [{"remove_spots": {"threshold": 25}}, {"segment_unet": {"model": "m", "result": "probability"}}]
    )
    stack = xr.DataArray(image, dims=dims, attrs={"quantity": "counts"})
    found = [
        Engine(CPU, block_bytes=size, workers=workers).apply(stack, steps).image.data.compute(scheduler="threads")
        for size, workers in ((2**30, 1), (block_bytes, 4))
    ]
    assert found[0].dtype == np.float16 and np.ptp(found[0]) > 0.05
    np.testing.assert_allclose(found[1], found[0], atol=1e-3, rtol=0)
    many = Engine(CPU, block_bytes=block_bytes, workers=4).apply(stack, steps).image
    assert many.data.npartitions > 2


def test_steps_after_a_probability_work_on_it_in_single_precision(data: Path) -> None:
    make_model(data / "m")
    image = np.random.default_rng(1).normal(100, 10, (6, 20, 24)).astype(np.float32)
    stack = xr.DataArray(image, dims=("tof", "y", "x"), attrs={"quantity": "counts"})
    steps = [{"segment_unet": {"model": "m", "result": "probability"}}]
    alone = apply_steps(stack, steps).image.compute()
    more = [{"remove_spots": {"threshold": 0.1}}, {"rebin_tof": {"factor": 2, "how": "mean"}}, *steps, *steps]
    assert alone.dtype == np.float16
    for n in range(1, len(more) + 1):
        found = apply_steps(stack, [*steps, *more[:n]]).image.compute()
        np.testing.assert_array_equal(found, apply_steps(alone.astype(np.float32), more[:n]).image.compute())
        assert found.dtype == (np.float32 if n < 3 else np.float16)
    clusters = [cluster_stack(each, n_clusters=2).inertia for each in (alone, alone.astype(np.float32))]
    assert clusters[0] == clusters[1]


def test_info(niseg, data: Path) -> None:
    status, out, err = niseg("unet", "info", "spots")
    assert (status, err) == (0, "")
    for line in (
        "unet for images: spots or background; 2 levels from 2 features, plain blocks",
        "channel value: (value - 100) / 10",
        "threshold 0.5",
        "training images: a.npy",
        "training class_weights: -",
        "training augmentation: rotation_deg: 30, blur_pixels: 0, 1.5",
        "training ema: no",
        "metrics best_f1: 0.751235",
    ):
        assert line in out
    status, out, _ = niseg("unet", "info", "spots", "--json")
    about = json.loads(out)
    assert status == 0 and about["config"]["base_depth"] == 2
    assert about["follows"]["parameters"] == sum(about["follows"]["layers"].values())


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["predict", "stack.npy", "o.npy"], "required: --model"),
        (["predict", "stack.npy", "o.npy", "--model", "no"], "no does not exist; name a unet model"),
        (["predict", "stack.npy", "o.npy", "--model", "stack.npy"], "stack.npy is no unet model, or a broken one"),
        (["predict", "stack.npy", "o.npy", "--model", "spots", "--threshold", "2"], "threshold is 2"),
        (["predict", "stack.npy", "o.npy", "--model", "spots", "--result", "mask"], "result is 'mask'"),
        (["predict", "stack.npy", "o.xyz", "--model", "spots"], "unknown ending '.xyz'"),
        (["predict", "image.npy", "o.npy", "--model", "volumes"], "volumes is a unet for volumes, and the stack has"),
        (["predict", "stack.npy", "o.npy", "--model", "volumes", "--threshold", "0.5"], "volumes has 3 classes"),
        (["info", "no"], "no does not exist"),
        (["inf", "spots"], "no ACTION 'inf'; did you mean 'info'?"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(niseg, data: Path, arguments: list[str], complaint: str) -> None:
    make_model(data / "volumes", spatial_dims=3, out_classes=3)
    np.save("image.npy", np.ones((20, 20), np.uint16))
    before = sorted(data.iterdir())
    status, out, err = niseg("unet", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("niseg-gpu: ") and err.count("\n") == 1 and complaint in err
    assert sorted(data.iterdir()) == before


def test_help_tells_each_option_and_its_choices(niseg) -> None:
    help_of = {action: " ".join(niseg("unet", action, "--help")[1].split()) for action in ("train", "predict")}
    assert "--batch VALUE Crops a batch. (default: 4)" in help_of["train"] and "UNetConfig" not in help_of["train"]
    assert "(one of none, batch, layer; default: none)" in help_of["train"]
    assert "(or median-frequency; default: None)" in help_of["train"]
    assert "(one of labels, probability; default: labels)" in help_of["predict"]


def test_a_choice_of_numbers_is_one_of_numbers(niseg, data: Path) -> None:
    np.save("mask.npy", np.zeros((3, 40, 50), np.uint8))
    status, _, err = niseg("unet", "train", "m", "--image", "stack.npy", "--mask", "mask.npy", "--spatial-dims", 3)
    assert status == 2 and "none to validate on" in err
    status, _, err = niseg("unet", "train", "m", "--image", "stack.npy", "--mask", "mask.npy", "--spatial-dims", 4)
    assert status == 2 and "spatial_dims is" in err and "input should be 2 or 3" in err


def test_an_interrupted_training_says_how_to_go_on(niseg, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("niseg_gpu.pipeline.learn.gather_images", interrupt)
    status, _, err = niseg("unet", "train", "m", "--image", "a.npy", "--mask", "b.npy")
    assert status == 130 and err.count("\n") == 1 and "run the same command again with --resume" in err


@pytest.mark.parametrize("action", ["predict", "info"])
def test_both_explain_themselves(niseg, action: str) -> None:
    status, out, _ = niseg("unet", action, "--help")
    assert status == 0 and "--verbose" in out


@pytest.mark.parametrize(
    "text, kept", [("false", False), ("blur_pixels: [0, 1]", {"blur_pixels": [0, 1]}), ("true", "flips")]
)
def test_augmentation_by_name_or_none(niseg, data: Path, text: str, kept: object) -> None:
    size = ["--simulate-shape", "48", "--simulate-images", "1", "--crop", "16", "--base-depth", "2", "--levels", "2"]
    short = ["--epochs", "1", "--steps-per-epoch", "1", "--batch", "1", "--quiet"]
    assert niseg("unet", "train", "m", "--simulate", "radiograph", *size, *short, "--augmentation", text) == (0, "", "")
    assert load_unet("m").training["augmentation"] == kept

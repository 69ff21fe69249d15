"""Model folders: what goes in comes out, and what is broken is named in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.folder import UNetModel, flatten, load_unet, save_unet, unflatten
from niseg_gpu.unet.model import init_weights
from niseg_gpu.unet.normalise import Normalisation, fit_normalisation

ROOT = Path(__file__).parents[1]
CONFIG = UNetConfig(base_depth=2, levels=2, block="residual", norm="batch", in_channels=2)
SCALE = Normalisation(("value", "residual"), (3.0, 0.5), (2.0, 1.5), compress=True, fill=3.0)


@pytest.fixture(scope="module")
def model() -> UNetModel:
    training = {"images": ["a.tif"], "epochs": 3}
    return UNetModel(CONFIG, *init_weights(CONFIG), SCALE, 0.3, training=training, metrics={"best_f1": 0.8})


@pytest.fixture
def folder(model: UNetModel, tmp_path: Path) -> Path:
    return save_unet(model, tmp_path / "model")


def test_a_model_comes_back_as_it_was(model: UNetModel, folder: Path) -> None:
    found = load_unet(folder)
    for name in ("config", "normalisation", "threshold", "training", "metrics"):
        assert getattr(found, name) == getattr(model, name), name
    for tree in ("params", "state"):
        assert jax.tree.structure(getattr(found, tree)) == jax.tree.structure(getattr(model, tree))
    for a, b in zip(
        jax.tree.leaves((found.params, found.state)), jax.tree.leaves((model.params, model.state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert [p.name for p in folder.parent.iterdir()] == ["model"]


def test_a_network_without_statistics_comes_back_too(tmp_path: Path) -> None:
    config = UNetConfig(base_depth=1, levels=1)
    weights = init_weights(config)
    assert weights[1] == {} == load_unet(save_unet(UNetModel(config, *weights), tmp_path / "m")).state


def test_reading_a_model_does_not_have_jax_take_a_gpus_memory(folder: Path) -> None:
    """Whatever starts JAX's devices first, here Orbax: by then JAX must have been told to take what it needs only."""
    code = (
        "import os, sys; from jax._src import xla_bridge; from niseg_gpu.unet.folder import load_unet\n"
        "told, start = [], xla_bridge.backends\n"
        "xla_bridge.backends = lambda: told.append(os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE')) or start()\n"
        "load_unet(sys.argv[1]); print(told[0])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XLA_")} | {"PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-c", code, folder], env=environment, capture_output=True, text=True)
    assert child.stdout.strip() == "false", child.stderr[-2000:]


def test_flatten_and_back() -> None:
    tree = {"downs": {0: {"kernel": np.ones(2)}, 1: {"kernel": np.zeros(3)}}, "head": {"bias": np.ones(1)}}
    flat = flatten(tree)
    assert list(flat) == ["downs/0/kernel", "downs/1/kernel", "head/bias"]
    assert jax.tree.structure(unflatten(flat)) == jax.tree.structure(tree)


def test_replacing_takes_leave(model: UNetModel, folder: Path) -> None:
    with pytest.raises(UserError, match="save_unet got a dict; needed: a UNetModel"):
        save_unet({}, folder.with_name("other"))
    with pytest.raises(UserError, match="exists; give another name, or replace it with --overwrite"):
        save_unet(model, folder)
    changed = UNetModel(CONFIG, model.params, model.state, SCALE, 0.6)
    save_unet(changed, folder, overwrite=True)
    assert load_unet(folder).threshold == 0.6
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
    other = folder.parent / "other"
    other.mkdir()
    with pytest.raises(UserError, match="is no unet model, never overwritten"):
        save_unet(model, other, overwrite=True)
    with pytest.raises(UserError, match="not a folder one may write to"):
        save_unet(model, folder / "no" / "where")


def test_weights_of_another_network_are_not_saved(model: UNetModel, tmp_path: Path) -> None:
    wide = UNetModel(replace(CONFIG, base_depth=3), model.params, model.state, SCALE)
    deep = UNetModel(replace(CONFIG, levels=3), model.params, model.state, SCALE)
    for wrong in (wide, deep):
        with pytest.raises(UserError, match=r"whose weights don't fit: .* has shape .*, its configuration says"):
            save_unet(wrong, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_files_beside_the_weights_are_let_be(model: UNetModel, folder: Path) -> None:
    for place in (folder, folder / "weights", folder / "weights" / "d"):
        (place / ".DS_Store").write_bytes(b"Bud1")
    (folder / "weights" / "notes.txt").write_text("the good one")
    np.testing.assert_array_equal(*(flatten(m.params)["head/bias"] for m in (load_unet(folder), model)))


def change(name: str, value: object):
    def spoil(folder: Path) -> None:
        about = json.loads((folder / "model.json").read_text())
        about[name] = value
        (folder / "model.json").write_text(json.dumps(about))

    return spoil


def truncate(folder: Path) -> None:
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text[: len(text) // 2])


def cut_weights(folder: Path) -> None:
    for file in (folder / "weights").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda f: shutil.rmtree(f), "does not exist; name a unet model"),
        (lambda f: (f / "model.json").unlink(), "is no unet model, or a broken one"),
        (truncate, "it has no whole model.json"),
        (change("format", "other"), "is no unet model; train one"),
        (change("version", 2), "is a unet model of version 2, this niseg-gpu reads up to 1; install a newer one"),
        (change("normalisation", {}), "is a broken unet model: its model.json lacks"),
        (change("threshold", None), "is a broken unet model: its model.json can't be understood"),
        (change("config", {"depth": 3}), "no parameter 'depth'"),
        (change("config", {**CONFIG.as_mapping(), "base_depth": 3}), "has shape .*, its configuration says"),
        (change("config", {**CONFIG.as_mapping(), "levels": 3}), "has shape .*, its configuration says"),
        (
            lambda f: shutil.rmtree(f / "weights"),
            r"is a broken unet model: its weights can't be read \(.* is missing\)",
        ),
        (cut_weights, r"its weights can't be read \(.* is not the file that was written\)"),
    ],
)
def test_a_broken_folder_is_named_in_one_line(folder: Path, spoil, message: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message) as refused:
        load_unet(folder)
    assert "\n" not in str(refused.value) and (str(folder) in str(refused.value) or "depth" in message)


def test_weights_that_are_no_numbers_are_not_kept(model: UNetModel, tmp_path: Path) -> None:
    params = jax.tree.map(np.array, model.params)
    params["head"]["bias"][0] = np.nan
    with pytest.raises(UserError, match="weights head/bias hold NaN or Inf"):
        save_unet(UNetModel(CONFIG, params, model.state, SCALE), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_together_is_refused(model: UNetModel) -> None:
    with pytest.raises(UserError, match=r"got 1 channels \(value\) and in_channels 2"):
        UNetModel(CONFIG, model.params, model.state)
    with pytest.raises(UserError, match="threshold 1.5; allowed: 0 to 1"):
        UNetModel(CONFIG, model.params, model.state, SCALE, 1.5)


def test_statistics_of_training_images() -> None:
    rng = np.random.default_rng(0)
    images = [rng.normal(50, 4, (30, 40)), rng.normal(50, 4, (20, 10))]
    images[0][3, 4] = np.nan
    images[1][5, 5] = 1e4
    values = np.concatenate([image[np.isfinite(image)] for image in images])
    plain = fit_normalisation(images)
    assert plain.scales[0] > 100
    robust = fit_normalisation(images, robust=True)
    assert robust.means[0] == pytest.approx(np.median(values), rel=1e-6)
    assert robust.scales[0] == pytest.approx(4, rel=0.1)
    two = fit_normalisation(images, channels=("residual",), robust=True)
    assert two.fill == pytest.approx(robust.means[0], rel=1e-2) and abs(two.means[0]) < 1
    assert fit_normalisation([np.full((4, 4), 7)]).scales == (1.0,)
    for bad, message in (([], "no training images"), ([np.full((3, 3), np.nan)], "nothing but NaN")):
        with pytest.raises(UserError, match=message):
            fit_normalisation(bad)
    with pytest.raises(UserError, match="unet has no feature 'valu'"):
        fit_normalisation(images, channels=["valu"])
    with pytest.raises(UserError, match="scales above 0"):
        Normalisation(scales=(0.0,))

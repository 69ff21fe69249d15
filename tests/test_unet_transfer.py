"""Transfer learning: a training begins with the weights of another one, of the same network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.pipeline.learn import train_unet
from niseg_gpu.unet.folder import load_unet

HOW = {"base_depth": 4, "levels": 2, "crop": 32, "batch": 2, "epochs": 1, "device": "cpu", "quiet": True}
STILL = {"steps_per_epoch": 1, "learning_rate": 1e-12}  # so that what it began with can be seen


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder, rng = tmp_path_factory.mktemp("spots"), np.random.default_rng(0)
    found: dict[str, list[str]] = {"images": [], "masks": []}
    for i in range(3):
        mask = rng.random((48, 40)) < 0.05
        values = {"images": rng.normal(100, 3, mask.shape) + 60 * mask, "masks": mask.astype(np.uint8)}
        for kind, array in values.items():
            np.save(folder / f"{kind}{i}.npy", array)
            found[kind].append(str(folder / f"{kind}{i}.npy"))
    return found


@pytest.fixture(scope="module")
def first(files: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "first"
    train_unet(out, **files, **{**HOW, "steps_per_epoch": 60, "learning_rate": 0.01, "norm": "batch"})
    return out


def leaves(tree, at: str = "") -> dict[str, np.ndarray]:
    if not hasattr(tree, "items"):
        return {at: np.asarray(tree)}
    return {name: leaf for key, part in tree.items() for name, leaf in leaves(part, f"{at}/{key}").items()}


def test_a_training_begins_where_another_ended(files, first: Path, tmp_path: Path) -> None:
    how = {**files, **HOW, **STILL, "norm": "batch"}
    said = train_unet(tmp_path / "second", **how, start_from=str(first))
    assert f"began with the weights of {first}" in said
    train_unet(tmp_path / "scratch", **how)
    models = [load_unet(path) for path in (first, tmp_path / "second", tmp_path / "scratch")]
    before, after, scratch = (leaves(model.params) for model in models)
    for name, weights in before.items():
        np.testing.assert_allclose(after[name], weights, atol=1e-6, err_msg=name)
    assert any(np.abs(scratch[name] - weights).max() > 0.01 for name, weights in before.items())
    losses = [model.metrics["val_loss"] for model in models]
    assert abs(losses[1] - losses[0]) < abs(losses[2] - losses[0]) / 10
    assert models[1].training["start_from"] == str(first) and len(models[1].training["start_weights"]) == 64
    with pytest.raises(UserError, match="of a training with start_from .*first, not None"):
        train_unet(tmp_path / "second", **how, resume=True)
    assert "trained to its end" in train_unet(tmp_path / "second", **how, start_from=str(first), resume=True)[0]


def test_with_other_classes_the_last_layer_begins_anew(files, first: Path, tmp_path: Path) -> None:
    how = {**files, **HOW, **STILL, "norm": "batch", "out_classes": 3, "loss": "dice"}
    said = train_unet(tmp_path / "classes", **how, start_from=str(first))
    assert any(line.endswith("but for the last layer: 3 classes instead of 1") for line in said)
    before, after = (leaves(load_unet(path).params) for path in (first, tmp_path / "classes"))
    for name, weights in before.items():
        if name.startswith("/head"):
            assert after[name].shape[-1] == 3
        else:
            np.testing.assert_allclose(after[name], weights, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"norm": "none"}, "first is a unet with norm batch, not none; train one that is alike"),
        ({"base_depth": 5}, "with base_depth 4, not 5"),
        ({"channels": ["residual"]}, "was shown the channels value, not residual; show the same"),
        ({"start_from": "nowhere"}, "nowhere"),
    ],
)
def test_another_network_is_refused(files, first: Path, tmp_path: Path, change: dict, told: str) -> None:
    how = {**files, **HOW, **STILL, "norm": "batch", "start_from": str(first)}
    with pytest.raises(UserError, match=told):
        train_unet(tmp_path / "second", **{**how, **change})
    assert not (tmp_path / "second").exists()

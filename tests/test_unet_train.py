"""Training: it learns, it resumes as if never cut, it stops where it must, and says what it validates on."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.pipeline.learn import _tell, train_unet
from niseg_gpu.unet.folder import load_unet
from niseg_gpu.unet.samples import choose_window, draw_samples, list_windows

SMALL = {"base_depth": 4, "levels": 2, "crop": 32, "steps_per_epoch": 6, "batch": 2, "device": "cpu", "quiet": True}


@pytest.fixture
def spotty(tmp_path: Path) -> dict[str, list[str]]:
    """Three images of bright pixels on noise, with their masks."""
    rng = np.random.default_rng(0)
    files: dict[str, list[str]] = {"images": [], "masks": []}
    for i in range(3):
        mask = rng.random((48, 56 + 4 * i)) < 0.03
        for kind, values in (("images", rng.normal(100, 3, mask.shape) + 60 * mask), ("masks", mask.astype(np.uint8))):
            np.save(tmp_path / f"{kind}{i}.npy", values.astype(np.float32) if kind == "images" else values)
            files[kind].append(str(tmp_path / f"{kind}{i}.npy"))
    return files


def history_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_it_learns_and_keeps_the_best_epoch(tmp_path, spotty) -> None:
    how = {**SMALL, "base_depth": 8, "steps_per_epoch": 60, "robust": True, "augmentation": False}
    said = train_unet(tmp_path / "m", **spotty, **how, epochs=2, learning_rate=0.01)
    rows = history_of(tmp_path / "m.training")
    losses = [float(row["val_loss"]) for row in rows]
    assert losses[-1] < losses[0] and float(rows[-1]["val_best_f1"]) > 0.9
    model = load_unet(tmp_path / "m")
    assert model.training["best_epoch"] == 1 + int(np.argmin(losses))
    assert model.threshold == pytest.approx(float(rows[model.training["best_epoch"] - 1]["val_best_threshold"]))
    assert model.training["split"] == "validated on the last 1 images" and any("threshold" in line for line in said)
    assert (tmp_path / "m.training" / "history.png").is_file()


def test_a_training_cut_short_and_resumed_is_the_same_as_one_that_was_not(
    tmp_path, spotty, monkeypatch, caplog
) -> None:
    how = {**spotty, **SMALL, "optimizer": "adamw", "ema": 0.5, "norm": "batch"}
    train_unet(tmp_path / "whole", **how, epochs=3)

    class Cut(Exception):
        pass

    from niseg_gpu.unet import train

    real = train.save_checkpoint

    def save_and_die(*args, **options) -> None:
        real(*args, **options)
        if len(options["history"]) == 2:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(train, "save_checkpoint", save_and_die)
        with pytest.raises(Cut):
            train_unet(tmp_path / "cut", **how, epochs=3)
    assert not (tmp_path / "cut").exists()
    shutil.copytree(tmp_path / "cut.training", tmp_path / "damaged.training")
    train_unet(tmp_path / "cut", **how, epochs=3, resume=True)
    assert history_of(tmp_path / "cut.training") == history_of(tmp_path / "whole.training")
    one, two = load_unet(tmp_path / "whole"), load_unet(tmp_path / "cut")
    np.testing.assert_array_equal(one.params["head"]["kernel"], two.params["head"]["kernel"])
    with pytest.raises(UserError, match="of a training with batch 2, not 1"):
        train_unet(tmp_path / "cut", **{**how, "batch": 1}, epochs=3, resume=True, overwrite=True)
    with pytest.raises(UserError, match="of a training with batch 2, not 1"):
        train_unet(tmp_path / "cut", **{**how, "batch": 1}, epochs=3, resume=True)
    for change in ({"robust": True}, {"compress": True}, {"weight_decay": 0.1}, {"clip_norm": 0.0}, {"patience": 2},
                   {"precision": "bfloat16"}, {"dims": ["x", "y"]}):  # fmt: skip
        with pytest.raises(UserError, match=f"of a training with {next(iter(change))} "):
            train_unet(tmp_path / "cut", **{**how, **change}, epochs=3, resume=True, overwrite=True)

    # the disk lost a part of the last checkpoint: the one before leads to the same
    checkpoints = sorted(tmp_path.glob("damaged.training/**/epoch-*"))
    damage(checkpoints[-1])
    train_unet(tmp_path / "damaged", **how, epochs=3, resume=True)
    assert "epoch-00002 is a broken checkpoint" in caplog.text
    assert history_of(tmp_path / "damaged.training") == history_of(tmp_path / "whole.training")
    for path in tmp_path.glob("damaged.training/**/epoch-*"):
        damage(path)
    with pytest.raises(UserError, match="holds broken checkpoints only; train anew with --overwrite"):
        train_unet(tmp_path / "damaged", **how, epochs=3, resume=True, overwrite=True)


def test_a_job_that_is_queued_several_times_trains_once(tmp_path, spotty, monkeypatch) -> None:
    how = {**spotty, **SMALL, "epochs": 1, "resume": True}
    train_unet(tmp_path / "m", **how)  # no checkpoint yet
    (weights,) = [path.read_bytes() for path in (tmp_path / "m").glob("model.json")]
    monkeypatch.setattr("niseg_gpu.unet.train.train", None)  # would fail
    (said,) = train_unet(tmp_path / "m", **how)
    assert "has been trained to its end" in said and (tmp_path / "m/model.json").read_bytes() == weights


def test_a_training_that_has_lost_patience_has_none_after_a_resumption(tmp_path, spotty) -> None:
    how = {**spotty, **SMALL, "epochs": 4, "patience": 1, "learning_rate": 1e-30}  # which changes no weight
    assert "stopped early: no smaller validation loss since epoch 1" in train_unet(tmp_path / "whole", **how)
    assert len(history_of(tmp_path / "whole.training")) == 2
    shutil.copytree(tmp_path / "whole.training", tmp_path / "cut.training")  # as a kill before the model leaves it
    assert "stopped early: no smaller validation loss since epoch 1" in train_unet(tmp_path / "cut", **how, resume=True)
    assert history_of(tmp_path / "cut.training") == history_of(tmp_path / "whole.training")


def damage(checkpoint: Path) -> None:
    """Change the last byte of the largest file of weights."""
    file = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")


def test_a_loss_that_is_no_number_ends_it_and_keeps_what_was_good(tmp_path, spotty) -> None:
    with pytest.raises(UserError, match="smaller learning_rate"):
        train_unet(tmp_path / "m", **spotty, **SMALL, epochs=2, learning_rate=1e30, clip_norm=0.0)
    assert not (tmp_path / "m").exists()
    # the only step's loss is that of the first weights, and a number; what it made of them is none
    how = {**SMALL, "steps_per_epoch": 1, "augmentation": False}
    with pytest.raises(UserError, match="the validation loss was (nan|inf) in epoch 1, .* smaller learning_rate"):
        train_unet(tmp_path / "m", **spotty, **how, epochs=2, learning_rate=1e30, clip_norm=0.0)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("out_classes, where", [(1, "at 0.5"), (3, "of the most probable classes")])
def test_figures_are_told_with_what_they_are_at(out_classes, where) -> None:
    figures = {"loss": 0.7, "precision": 0.02, "recall": None, "auc": 0.5, "best_f1": 0.08}
    said = _tell({f"val_{name}": value for name, value in figures.items()}, 3, 0.6, out_classes=out_classes)
    assert said.startswith("validation in epoch 3: loss 0.7, auc 0.5") and f"{where}: precision 0.02" in said
    assert ("best f1 0.08 at threshold 0.6" in said) == (out_classes == 1) and "recall" not in said
    nothing_true = {f"val_{name}": None for name in figures} | {"val_loss": 0.7}
    ends = {1: ", threshold 0.6", 3: ""}[out_classes]
    assert _tell(nothing_true, 3, 0.6, out_classes=out_classes) == f"validation in epoch 3: loss 0.7{ends}"


def test_values_that_are_no_numbers_are_told_of(tmp_path, spotty, caplog) -> None:
    image = np.load(spotty["images"][0])
    image[3, :5] = np.nan
    np.save(spotty["images"][0], image)
    train_unet(tmp_path / "m", **spotty, **{**SMALL, "steps_per_epoch": 1, "augmentation": False}, epochs=1)
    assert "5 pixels of the images are NaN or Inf" in caplog.text


def test_volumes_and_classes(tmp_path) -> None:
    rng = np.random.default_rng(1)
    for i in range(2):
        labels = rng.integers(0, 3, (8, 12, 16)).astype(np.uint8)
        np.save(tmp_path / f"v{i}.npy", (50 * labels + rng.normal(0, 1, labels.shape)).astype(np.float32))
        np.save(tmp_path / f"l{i}.npy", labels)
    names = {k: [str(tmp_path / f"{v}{i}.npy") for i in range(2)] for k, v in (("images", "v"), ("masks", "l"))}
    how = {**SMALL, "spatial_dims": 3, "out_classes": 3, "crop": [8, 8, 8], "class_weights": "median-frequency"}
    train_unet(tmp_path / "m", **names, **how, epochs=1, dims=["z", "y", "x"], augmentation=False)
    model = load_unet(tmp_path / "m")
    assert model.config.spatial_dims == 3 and len(json.loads(json.dumps(model.metrics["val_dice_by_class"]))) == 3


def test_one_image_is_validated_on_itself_only_if_insisted_upon(tmp_path, spotty) -> None:
    one = {"images": spotty["images"][:1], "masks": spotty["masks"][:1]}
    with pytest.raises(UserError, match="none to validate on; give --validation-image and --validation-mask,"):
        train_unet(tmp_path / "m", **one, **SMALL, epochs=1)
    said = train_unet(tmp_path / "m", **one, **SMALL, epochs=1, validation_rows=0.4)
    assert any("of the training images themselves" in line for line in said)


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"masks": []}, "a mask for each image"),
        ({"loss": "bces"}, "did you mean 'bce'"),
        ({"output": "relu"}, "relu_bce"),
        ({"augmentation": {"flips": True}}, "did you mean 'flip'"),
        ({"augmentation": {"gain": [0.5, 1000]}, "images": ["missing.npy"], "masks": ["missing.npy"]}, "gain=.* range"),
        ({"augmentation": {"flip": "maybe"}}, "flip='maybe'; give true or false"),
        ({"augmentation": {"rotation_deg": [0, 30]}}, "rotation_deg=.* give one number"),
        ({"class_weights": [1.0, 2.0, 3.0]}, "2 numbers from 0"),
        ({"class_weights": [-1.0, 2.0]}, "2 numbers from 0"),
        ({"crop": [32, 32, 32]}, "allowed: one side, or 2"),
        ({"spatial_dims": 3}, "no volume"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_learnt(tmp_path, spotty, change, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        train_unet(tmp_path / "m", **{**spotty, **SMALL, **change}, epochs=1)
    assert not (tmp_path / "m").exists()


def test_masks_that_mark_nothing_are_refused(tmp_path, spotty) -> None:
    np.save(tmp_path / "nothing.npy", np.zeros((48, 56), np.uint8))
    nothing = {"images": spotty["images"][:2], "masks": [str(tmp_path / "nothing.npy"), spotty["masks"][1]]}
    with pytest.raises(UserError, match="nothing but background to learn"):  # the second is validated on
        train_unet(tmp_path / "m", **nothing, **SMALL, epochs=1)
    assert not (tmp_path / "m").exists() and not (tmp_path / "m.training").exists()


def test_masks_that_mark_everything_are_refused(tmp_path, spotty) -> None:
    np.save(tmp_path / "all.npy", np.full((48, 56), 255, np.uint8))
    everything = {"images": spotty["images"][:2], "masks": [str(tmp_path / "all.npy"), spotty["masks"][1]]}
    with pytest.raises(UserError, match="no background to learn"):
        train_unet(tmp_path / "m", **everything, **SMALL, epochs=1)
    np.save(tmp_path / "from_1.npy", np.load(spotty["masks"][0]) + 1)  # all of it would be taken for spots
    from_1 = {"images": spotty["images"], "masks": [str(tmp_path / "from_1.npy"), *spotty["masks"][1:]]}
    with pytest.raises(UserError, match=r"images0.npy: the mask holds \[1, 2\]; allowed: 0 for background"):
        train_unet(tmp_path / "m", **from_1, **SMALL, epochs=1)
    assert not (tmp_path / "m").exists() and not (tmp_path / "m.training").exists()


def test_images_that_show_nothing_are_refused(tmp_path, spotty) -> None:
    np.save(tmp_path / "grey.npy", np.full((48, 56), 7, np.uint16))
    hole = np.full((48, 56), 7.0, np.float32)
    hole[3, 4] = np.nan
    np.save(tmp_path / "hole.npy", hole)
    flat = {"images": [str(tmp_path / f"{name}.npy") for name in ("grey", "hole")], "masks": spotty["masks"][:1] * 2}
    check = {"validation_images": spotty["images"], "validation_masks": spotty["masks"]}
    with pytest.raises(UserError, match="hold one value in all of their pixels: there is nothing to see"):
        train_unet(tmp_path / "m", **flat, **check, **SMALL, epochs=1)
    assert not (tmp_path / "m").exists() and not (tmp_path / "m.training").exists()


def test_masks_with_other_labels_or_another_shape_are_refused(tmp_path, spotty) -> None:
    np.save(tmp_path / "bad.npy", np.arange(48 * 56, dtype=np.uint8).reshape(48, 56))
    with pytest.raises(UserError, match="images0.npy: the mask holds"):
        train_unet(tmp_path / "m", **{**spotty, "masks": [str(tmp_path / "bad.npy"), *spotty["masks"][1:]]}, **SMALL)
    with pytest.raises(UserError, match="crop both alike"):
        train_unet(tmp_path / "m", **{**spotty, "masks": spotty["masks"][::-1]}, **SMALL)


def test_windows_cover_every_pixel_once_and_samples_lie_inside() -> None:
    import jax

    from niseg_gpu.unet.config import UNetConfig
    from niseg_gpu.unet.normalise import Normalisation
    from niseg_gpu.unet.samples import put_samples

    config = UNetConfig(base_depth=2, levels=2)
    images = [np.full(shape, i + 1, np.float32) for i, shape in enumerate([(20, 33), (40, 17)])]
    samples = put_samples(
        images, [image > 0 for image in images], config=config, normalisation=Normalisation(),
        device=jax.devices("cpu")[0],
    )  # fmt: skip
    places, fresh = list_windows(samples, (16, 16))
    seen = [np.zeros(image.shape, int) for image in images]
    for (i, *corner), first in zip(places, fresh, strict=True):
        seen[i][tuple(slice(c + f, c + 16) for c, f in zip(corner, first, strict=True))] += 1
    assert all((part == 1).all() for part in seen)
    window = choose_window(samples, (16, 16))
    assert window == (20, 17)
    drawn, masks = draw_samples(samples, jax.random.key(0), batch=64, window=window)
    assert masks.min() == 1 and {float(v) for v in np.unique(drawn)} == {1.0, 2.0}


SIMULATED = {"simulate": "radiograph", "simulate_shape": [64, 80], "simulate_images": 3, "robust": True}


def test_simulated_images_are_new_in_each_epoch_and_the_same_after_a_cut(tmp_path, monkeypatch) -> None:
    from niseg_gpu.pipeline import training_images

    how = {**SMALL, **SIMULATED, "simulate_options": {"spots": 0.03}}
    drawn = []
    real = training_images.Simulation.draw

    def draw(self, epoch):
        drawn.append((epoch, real(self, epoch)))
        return drawn[-1][1]

    monkeypatch.setattr(training_images.Simulation, "draw", draw)
    said = train_unet(tmp_path / "whole", **how, epochs=3)
    assert "validated on 1 simulated images; learnt from new simulated ones in each epoch" in said
    by_epoch = dict(drawn)
    assert sorted(by_epoch) == [1, 2, 3]
    images = [image.tobytes() for pairs in by_epoch.values() for image in pairs.images]
    assert len(set(images)) == 9
    assert all(
        image.dtype == np.uint16 and 0.005 < mask.mean() < 0.1
        for p in by_epoch.values()
        for image, mask in zip(*p, strict=True)
    )
    model = load_unet(tmp_path / "whole")
    assert model.training["simulate_options"] == {"spots": 0.03} and model.training["images"] is None
    assert model.training["augmentation"] == "flips"  # noise and blur are what they should be

    shutil.copytree(tmp_path / "whole.training", tmp_path / "cut.training")
    for last in tmp_path.glob("cut.training/**/epoch-00003"):
        shutil.rmtree(last)
    train_unet(tmp_path / "cut", **how, epochs=3, resume=True)
    assert history_of(tmp_path / "cut.training") == history_of(tmp_path / "whole.training")
    with pytest.raises(UserError, match="simulate_options"):
        train_unet(tmp_path / "cut", **{**how, "simulate_options": {}}, epochs=3, resume=True, overwrite=True)


@pytest.mark.parametrize("shape, dims", [([40, 48], 2), (36, 3)])
def test_simulated_roots(tmp_path, shape, dims) -> None:
    how = {
        **SMALL,
        "simulate": "roots",
        "simulate_shape": shape,
        "simulate_images": 1,
        "spatial_dims": dims,
        "crop": 16,
    }
    train_unet(tmp_path / "m", **how, epochs=1, simulate_options={"voxel_size_um": 500})
    assert load_unet(tmp_path / "m").training["simulate_shape"] == ([40, 48] if dims == 2 else [36, 36, 36])


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"simulate": None}, "either images with masks, or simulate"),
        ({"images": ["a.npy"], "masks": ["b.npy"]}, "either images with masks, or simulate"),
        ({"validation_rows": 0.5}, "validated on others anyway"),
        ({"spatial_dims": 3}, "allowed: roots for volumes"),
        ({"simulate_shape": [64, 64, 64]}, "allowed: one side, or 2"),
        ({"simulate_options": {"spot": 0.1}}, "did you mean 'spots'"),
        ({"simulate_options": {"seed": 1}}, "give unet train's seed"),
    ],
)
def test_a_simulation_that_can_not_be_is_said_before_anything_is_learnt(tmp_path, change, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        train_unet(tmp_path / "m", **{**SMALL, **SIMULATED, **change}, epochs=1)
    assert not (tmp_path / "m").exists() and not (tmp_path / "m.training").exists()


TWO_DEVICES = """
import sys
from pathlib import Path
import jax
from niseg_gpu.pipeline.learn import train_unet
number = int(sys.argv[2])
assert len(jax.devices()) == number
from niseg_gpu.unet import train
real, seen = train.count_batch, []
def count(logits, labels, *rest, **options):
    jax.debug.inspect_array_sharding(logits, callback=lambda s: seen.append(len(s.device_set)))
    return real(logits, labels, *rest, **options)
train.count_batch = count
train_unet(
    Path(sys.argv[1]), simulate="radiograph", simulate_shape=[64, 80], simulate_images=2, robust=True, base_depth=4,
    levels=2, crop=32, steps_per_epoch=3, batch=4, epochs=2, augmentation=False, norm="batch", device="cpu", quiet=True,
)
assert seen and set(seen) == {number}, seen  # the validation's too
"""


def run_devices(script: str, *arguments: object, devices: int) -> None:
    """Run a script in a process of its own, where JAX has so many devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_devices_learn_what_one_does(tmp_path) -> None:
    for name, number in (("one", 1), ("two", 2)):
        run_devices(TWO_DEVICES, tmp_path / name, number, devices=number)
    for one, two in zip(*(history_of(tmp_path / f"{n}.training") for n in ("one", "two")), strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-4)
        # Adam's first steps turn rounding of small slopes into steps of the learning rate
        assert float(one["val_loss"]) == pytest.approx(float(two["val_loss"]), rel=1e-2)


SHARING = """
from dataclasses import replace
import jax, numpy as np
from jax.sharding import Mesh
from niseg_gpu.backend import CPU
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.losses import make_loss
from niseg_gpu.unet.metrics import count_batch
from niseg_gpu.unet.normalise import Normalisation
from niseg_gpu.unet.samples import put_samples
from niseg_gpu.unet.train import Plan, Schedule, _make_count, choose_devices, evaluate, share_samples, start_learner
scale = Normalisation(means=(0.0,), scales=(1.0,))
plan = Plan(UNetConfig(base_depth=4, levels=2), scale, Schedule(batch=6), make_loss("bce"), (32, 32), None)
assert len(choose_devices(plan, CPU)) == 3  # of 4
assert len(choose_devices(replace(plan, schedule=Schedule(batch=5)), CPU)) == 1
assert len(choose_devices(replace(plan, config=UNetConfig(base_depth=64)), CPU)) == 1  # more weights than pixels
image = np.random.default_rng(0).normal(size=(100, 140)).astype(np.float32)  # 20 windows
samples = put_samples(
    [image], [(image > 1).astype(np.uint8)], config=plan.config, normalisation=scale, device=CPU.jax_device
)
found = []
for devices in (jax.devices()[:1], jax.devices()[:3]):
    mesh = Mesh(np.array(devices), ("batch",))
    shared = share_samples(samples, mesh)
    places = [{shard.data.unsafe_buffer_pointer() for shard in part.addressable_shards} for part in shared]
    assert [len(place) for place in places] == [1, 1, 1], "copied for each part of the processor"
    learner = jax.device_put(start_learner(plan), shared.images.sharding)
    found.append(evaluate(plan, learner, shared, count=_make_count(plan, mesh), parts=mesh.size))
one, three = found
assert abs(one["loss"] - three["loss"]) < 1e-5 and one["best_f1"] == three["best_f1"], found
"""


def test_parts_of_a_processor_share_batches_and_the_memory_of_images() -> None:
    run_devices(SHARING, devices=4)


def test_a_loss_that_is_no_number_later_keeps_the_epoch_before(tmp_path, monkeypatch) -> None:
    import jax.numpy as jnp

    from niseg_gpu.pipeline import training_images
    from niseg_gpu.unet import losses

    draw, bce = training_images.Simulation.draw, losses.bce

    def draw_spots_only(self, epoch):
        found = draw(self, epoch)
        return found if epoch < 3 else found._replace(masks=[np.ones_like(mask) for mask in found.masks])

    def break_on_spots_only(logits, labels, valid=None):
        return jnp.where(jnp.all(labels != 0), jnp.nan, bce(logits, labels, valid))

    monkeypatch.setattr(training_images.Simulation, "draw", draw_spots_only)
    monkeypatch.setitem(losses.LOSSES, "bce", break_on_spots_only)
    said = train_unet(tmp_path / "m", **{**SMALL, **SIMULATED, "augmentation": False}, epochs=5)
    assert "stopped early: the loss was nan in epoch 3" in said
    assert load_unet(tmp_path / "m").training["epochs_done"] == 2 and len(history_of(tmp_path / "m.training")) == 2


def test_activations_of_16_bits_learn_too(tmp_path) -> None:
    for precision in ("float32", "bfloat16"):
        how = {**SMALL, **SIMULATED, "augmentation": False, "precision": precision, "compress": True}
        train_unet(tmp_path / precision, **how, epochs=1)
    exact, rough = (history_of(tmp_path / f"{name}.training")[0] for name in ("float32", "bfloat16"))
    assert float(rough["loss"]) == pytest.approx(float(exact["loss"]), rel=0.02) and rough["loss"] != exact["loss"]
    assert load_unet(tmp_path / "bfloat16").params["head"]["kernel"].dtype == np.float32

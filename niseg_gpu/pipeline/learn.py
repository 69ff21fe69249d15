"""Training a U-Net from files of images and masks."""

from __future__ import annotations

import csv
import io
import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt, Interval, Lt, MinLen

from niseg_gpu.backend import select
from niseg_gpu.errors import UserError, suggest
from niseg_gpu.pipeline.files import write_file
from niseg_gpu.pipeline.progress import show_progress
from niseg_gpu.pipeline.training_images import Renewed, gather_images, plan_simulation
from niseg_gpu.stack import NamesFile
from niseg_gpu.unet.augmentation import NO_AUGMENTATION, Augmentation
from niseg_gpu.unet.config import UNetConfig

log = logging.getLogger("niseg_gpu")
Side = Annotated[int, Ge(4)]
FLIPS = replace(NO_AUGMENTATION, flip=True, quarter_turns=True)


def train_unet(
    out: Path,
    *,
    images: Annotated[list[str], MinLen(1)] | None = None,
    masks: Annotated[list[str], MinLen(1)] | None = None,
    simulate: Literal["radiograph", "roots"] | None = None,
    simulate_images: Annotated[int, Ge(1)] = 8,
    simulate_shape: Annotated[list[Side], MinLen(1)] | Side | None = None,
    simulate_options: dict[str, Any] | None = None,
    validation_images: list[str] | None = None,
    validation_masks: list[str] | None = None,
    validation_rows: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
    dims: list[str] | None = None,
    spatial_dims: Literal[2, 3] = 2,
    base_depth: Annotated[int, Ge(1)] = 24,
    levels: Annotated[int, Ge(1)] = 3,
    out_classes: Annotated[int, Ge(1)] = 1,
    block: Literal["plain", "residual", "recurrent-residual"] = "plain",
    attention: bool = False,
    norm: Literal["none", "batch", "layer"] = "none",
    output: Literal["logits", "relu"] = "logits",
    channels: Annotated[list[str], MinLen(1)] = ["value"],  # noqa: B006 (never changed)
    robust: bool = False,
    compress: bool = False,
    loss: str = "bce",
    class_weights: list[float] | Literal["median-frequency"] | None = None,
    start_from: Annotated[str | None, NamesFile("")] = None,
    crop: Side | Annotated[list[Side], MinLen(1)] = 128,
    augmentation: dict[str, Any] | bool = True,
    epochs: Annotated[int, Ge(1)] = 20,
    steps_per_epoch: Annotated[int, Ge(1)] = 50,
    batch: Annotated[int, Ge(1)] = 4,
    optimizer: Literal["adam", "adamw"] = "adam",
    learning_rate: Annotated[float, Gt(0)] = 1e-3,
    weight_decay: Annotated[float, Ge(0)] = 1e-4,
    clip_norm: Annotated[float, Ge(0)] = 1.0,
    ema: Annotated[float, Ge(0), Lt(1)] = 0.0,
    patience: Annotated[int, Ge(0)] = 0,
    seed: Annotated[int, Ge(0), Lt(2**32)] = 2018,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: Literal["auto", "cpu", "gpu"] = "auto",
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> list[str]:
    """Train a U-Net on images with masks, and save the model of the epoch with the smallest validation loss.

    Parameters
    ----------
    out : Path
        Folder of the model; checkpoints, history and its picture go into one beside it, ``OUT.training``.
    images, masks : list of str
        A mask for each image, in order: 0 for background, one more label, or the numbers of classes.
    simulate : {"radiograph", "roots"}
        Learn from simulated images instead, new ones in each epoch.
    simulate_images : int
        Of an epoch; a quarter as many, of other seeds, are validated on where no validation images are given.
    simulate_shape : int or list of int
        Their sides in pixels; 1024 for radiographs, 512 for roots in a slab and 96 in a pot.
    simulate_options : dict
        Of ``niseg-gpu simulate``, such as ``spots: 0.02``.
    validation_images, validation_masks : list of str
        Others than those to learn from; without them, the last fifth of the images.
    validation_rows : float
        Share of the rows of each image, at its end, to validate on, where there is only one image. Then training and
        validation are of the same image, and the figures better than on others.
    dims : list of str
        Axes as they lie in the files.
    spatial_dims : {2, 3}
        Images, or volumes.
    base_depth : int
        Features at full resolution; 24, with 3 levels, make the network of the lecture, of 265,105 parameters.
    levels : int
        Resolutions, the full one among them.
    out_classes : int
        1 for spots against background, else the number of classes, background one of them.
    block : {"plain", "residual", "recurrent-residual"}
        Two convolutions of 3 pixels, the same with a shortcut, or R2U-Net's recurrent ones with a shortcut.
    attention : bool
        Gates on the skip connections.
    norm : {"none", "batch", "layer"}
        After each convolution.
    output : {"logits", "relu"}
        What the last layer gives; relu is there to repeat history only.
    channels : list of str
        What the network is shown: value, or residual, abs_residual, residual5, poisson_residual, local_mean,
        gradient.
    robust : bool
        Normalise by the median and the median distance from it, which spots do not move.
    compress : bool
        Take the inverse hyperbolic sine, so that bright spots don't drown the weak.
    loss : str
        bce, focal, dice, dice_bce, tversky, or relu_bce for output relu.
    class_weights : list of float or "median-frequency"
        For bce, focal and dice_bce.
    start_from : str
        Folder of a model whose weights to begin with (transfer learning): of the same network and channels; with other
        classes the last layer begins anew.
    crop : int or list of int
        Sides of what is learnt from at a time, in pixels.
    augmentation : bool or dict
        Ranges of `niseg_gpu.unet.augmentation.Augmentation`; true for its defaults, and for simulated images for flips
        and quarter turns only: these vary by themselves, and have the noise that they should.
    epochs : int
        After each it is validated, and a checkpoint is written.
    steps_per_epoch : int
        Batches an epoch.
    batch : int
        Crops a batch.
    optimizer : {"adam", "adamw"}
        AdamW warms up and then slows down along a cosine.
    learning_rate : float
        Of AdamW, the highest.
    weight_decay : float
        For AdamW.
    clip_norm : float
        Largest norm of a gradient; 0 for none.
    ema : float
        Share of the old in a running mean of the weights, which is then what is validated and kept; 0 for none.
    patience : int
        Stop after so many epochs without a smaller validation loss; 0: never.
    seed : int
        Of weights, crops and augmentation.
    precision : {"auto", "float32", "bfloat16"}
        Of the activations; auto takes float32 on a CPU, bfloat16 on a GPU.
    device : {"auto", "cpu", "gpu"}
        All GPUs of the machine share a batch.
    resume : bool
        Go on after the last checkpoint; ends as a training that was never cut. Begins where there is none yet, and
        leaves what has been trained to its end: a job can be queued several times.
    overwrite : bool
        Replace a model of this name, and its training.
    quiet : bool
        No progress bar.

    Returns
    -------
    list of str
        What was written and learnt, a line each.
    """
    from niseg_gpu.unet.checkpoint import check_record
    from niseg_gpu.unet.folder import UNetModel, check_unet_target, read_about, save_unet
    from niseg_gpu.unet.layers import Run
    from niseg_gpu.unet.normalise import fit_normalisation
    from niseg_gpu.unet.samples import choose_crop, put_samples
    from niseg_gpu.unet.train import Plan, Schedule, choose_devices, train
    from niseg_gpu.unet.transfer import take_weights

    check_unet_target(out, overwrite=overwrite or resume)
    folder = out.with_name(f"{out.name}.training")
    if folder.exists() and not (resume or overwrite):
        raise UserError(f"{folder} is of an earlier training; go on with --resume, or begin anew with --overwrite")
    config = UNetConfig(
        spatial_dims=spatial_dims, in_channels=len(channels), base_depth=base_depth, levels=levels,
        out_classes=out_classes, block=block, attention=attention, norm=norm, output=output,
    )  # fmt: skip
    if (simulate is None) == (images is None and masks is None):
        raise UserError("unet train needs either images with masks, or simulate: radiograph or roots")
    if simulate and validation_rows:
        raise UserError("unet train got simulate and validation_rows; simulated images are validated on others anyway")
    if (output == "relu") != (loss == "relu_bce"):
        raise UserError(f"unet train got output {output} and loss {loss}; relu_bce is for output relu, and no other is")
    weights, start, began = None, {}, []
    if start_from is not None:
        weights, kept, begun = take_weights(start_from, config, channels=tuple(channels), seed=seed)
        start, began = {"start_weights": kept}, [begun]
    moves, told = _choose_augmentation(augmentation, simulated=simulate is not None)
    backend, _ = select(device)
    simulation = None
    if simulate is not None:
        simulation = plan_simulation(
            simulate, _as_list(simulate_shape) if simulate_shape else None, spatial_dims=spatial_dims,
            images=simulate_images, options=simulate_options or {}, seed=seed,
        )  # fmt: skip
    learn, check, said = gather_images(
        (images, masks), (validation_images, validation_masks), simulation=simulation, rows=validation_rows,
        grid=config.grid, dims=dims, spatial_dims=spatial_dims, classes=out_classes,
    )  # fmt: skip
    normalisation = fit_normalisation(learn.images, channels=channels, robust=robust, compress=compress)
    put = partial(put_samples, config=config, normalisation=normalisation, device=backend.jax_device)
    training, validation = put(*learn), put(*check)
    sides = choose_crop(validation, choose_crop(training, _as_list(crop), grid=config.grid), grid=config.grid)
    schedule = Schedule(
        epochs=epochs, steps_per_epoch=steps_per_epoch, batch=batch, optimizer=optimizer, learning_rate=learning_rate,
        weight_decay=weight_decay, clip_norm=clip_norm, ema=ema, patience=patience, seed=seed,
    )  # fmt: skip
    # strips are for prediction; slopes would keep all of them anyway
    network = {**backend.network, "strip_rows": 0, **({} if precision == "auto" else {"dtype": precision})}
    plan = Plan(
        config,
        normalisation,
        schedule,
        _make_loss(loss, class_weights, learn.masks, out_classes),
        sides,
        moves and replace(moves, crop=sides),
        Run(**network),
    )
    record = {
        "images": images, "masks": masks, "validation_images": validation_images, "validation_masks": validation_masks,
        "validation_rows": validation_rows, "dims": dims,
        "channels": channels, "robust": robust, "compress": compress, "loss": loss,
        **({} if simulation is None else simulation.as_mapping()),
        "start_from": start_from, **start, "class_weights": class_weights, "crop": list(sides), "augmentation": told,
        "epochs": epochs, "steps_per_epoch": steps_per_epoch, "batch": batch, "optimizer": optimizer,
        "learning_rate": learning_rate, "weight_decay": weight_decay, "clip_norm": clip_norm, "ema": ema,
        "patience": patience, "seed": seed, "precision": precision, "config": config.as_mapping(),
        "train_pixels": sum(m.size for m in learn.masks), "validation_pixels": sum(m.size for m in check.masks),
    }  # fmt: skip
    if resume and out.exists() and not overwrite:
        trained = read_about(out)["training"]
        check_record({name: trained[name] for name in record if name in trained}, record, out)
        return [f"{out} has been trained to its end; --overwrite makes another"]
    if overwrite and not resume:
        shutil.rmtree(folder, ignore_errors=True)
    make = (lambda epoch: put(*simulation.draw(epoch))) if simulation else (lambda epoch: training)
    ahead = Renewed(make, epochs=epochs)
    with ahead, show_progress("epochs", total=epochs, quiet=quiet) as progress:
        found = train(
            plan, ahead, validation, devices=choose_devices(plan, backend), folder=folder, record=record, resume=resume,
            tell=lambda row: progress(1), weights=weights,
        )  # fmt: skip
    best = found.history[found.best_epoch - 1]
    threshold = best["val_best_threshold"] if out_classes == 1 and best["val_best_threshold"] is not None else 0.5
    trained = {**record, "best_epoch": found.best_epoch, "epochs_done": len(found.history), "split": said}
    model = UNetModel(config, found.params, found.state, normalisation, float(threshold), trained, best)
    save_unet(model, out, overwrite=overwrite)
    _write_history(folder, found.history, best_epoch=found.best_epoch)
    return [
        f"wrote {out}, {folder / 'history.csv'}, {folder / 'history.png'}",
        said,
        *began,
        *([f"stopped early: {found.stopped}"] if found.stopped else []),
        _tell(best, found.best_epoch, threshold, out_classes=out_classes),
    ]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _choose_augmentation(asked: dict[str, Any] | bool, *, simulated: bool) -> tuple[Augmentation | None, Any]:
    """What is done to crops, and what a model's folder says of it."""
    if asked is False:
        return None, False
    if asked is True and simulated:
        return FLIPS, "flips"
    if asked is True:
        return Augmentation(), "defaults"
    ranges = asked
    names = [f.name for f in fields(Augmentation) if f.name != "crop"]
    for name in ranges:
        if name not in names:
            raise UserError(f"augmentation has no {name!r}{suggest(name, names)}")
    return Augmentation(**ranges), ranges


def _make_loss(name: str, weights: Any, masks: Sequence[np.ndarray], out_classes: int) -> Any:
    from niseg_gpu.unet.losses import make_loss, median_frequency_weights

    classes = max(2, out_classes)
    if weights is None:
        return make_loss(name)
    if weights == "median-frequency":
        labels = [(mask != 0) if out_classes == 1 else mask for mask in masks]
        counts = sum(np.bincount(part.ravel().astype(np.int64), minlength=classes) for part in labels)
        weights = median_frequency_weights(counts.tolist())
    if len(weights) != classes or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise UserError(
            f"unet train got class_weights {list(weights)}; allowed: {classes} numbers from 0, background first, one "
            "of them above 0"
        )
    return make_loss(name, class_weights=tuple(weights))


def _write_history(folder: Path, history: list[dict[str, Any]], *, best_epoch: int) -> None:
    from niseg_gpu.figures_unet import draw_history

    text = io.StringIO()
    writer = csv.DictWriter(text, list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_file(folder / "history.csv", text.getvalue().encode())
    write_file(folder / "history.png", draw_history(history, best_epoch=best_epoch).light)


def _tell(best: dict[str, Any], epoch: int, threshold: float, *, out_classes: int) -> str:
    """Precision and recall are not at the model's own threshold, so it is said where they are."""

    def list_figures(*names: str) -> str:
        found = {name: best[f"val_{name}"] for name in names}
        return ", ".join(f"{n.replace('_', ' ')} {value:.3g}" for n, value in found.items() if value is not None)

    parts = [list_figures("loss", "auc", *(("best_f1",) if out_classes == 1 else ()))]
    if out_classes == 1:
        parts[0] += f"{', ' if best['val_best_f1'] is None else ' at '}threshold {threshold:.3g}"
    at = list_figures("precision", "recall")
    if at:
        parts.append(f"{'at 0.5' if out_classes == 1 else 'of the most probable classes'}: {at}")
    return f"validation in epoch {epoch}: {'; '.join(parts)}"

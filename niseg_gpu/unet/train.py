"""Training a U-Net: samples drawn and augmented on the device, one compiled step, checkpoints that resume exactly."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from niseg_gpu.errors import UserError
from niseg_gpu.pages import keep_pages
from niseg_gpu.unet.augment import augment
from niseg_gpu.unet.augmentation import Augmentation
from niseg_gpu.unet.checkpoint import load_checkpoint, save_checkpoint
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.layers import Run
from niseg_gpu.unet.losses import Loss
from niseg_gpu.unet.metrics import Counts, add_counts, count_batch, summarize
from niseg_gpu.unet.model import apply_network, count_parameters, init_weights
from niseg_gpu.unet.normalise import Normalisation, normalise
from niseg_gpu.unet.samples import Samples, choose_window, cut_windows, draw_samples, list_windows

log = logging.getLogger("niseg_gpu")
History = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to learn.

    Attributes
    ----------
    epochs, steps_per_epoch, batch : int
    optimizer : {"adam", "adamw"}
        AdamW warms up over a twentieth of all steps and then falls along a cosine.
    learning_rate, weight_decay : float
    clip_norm : float
        Largest norm of a gradient; 0: none.
    ema : float
        Share of the old in the running mean of the weights that is validated and kept; 0: none.
    patience : int
        Epochs without a smaller validation loss after which to stop; 0: never.
    seed : int
    """

    epochs: int = 20
    steps_per_epoch: int = 50
    batch: int = 4
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema: float = 0.0
    patience: int = 0
    seed: int = 2018

    def make_optimizer(self) -> optax.GradientTransformation:
        steps = self.epochs * self.steps_per_epoch
        if self.optimizer == "adamw":
            warm = max(1, steps // 20)
            rate = optax.warmup_cosine_decay_schedule(0.0, self.learning_rate, warm, max(steps, warm + 1))
            chosen = optax.adamw(rate, weight_decay=self.weight_decay)
        else:
            chosen = optax.adam(self.learning_rate)
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), chosen) if self.clip_norm else chosen


class Learner(NamedTuple):
    """All that changes while a network learns."""

    params: Any
    state: Any
    optimizer: Any
    mean: Any  # of the parameters, running; the parameters themselves where none is kept


@dataclass(frozen=True)
class Trained:
    """What training ends with: the weights of the best epoch, on the host, and what led there."""

    params: Any
    state: Any
    history: History
    best_epoch: int
    stopped: str = ""


@dataclass(frozen=True)
class Plan:
    """What is trained, on what, and how; fixed for a training and its resumption."""

    config: UNetConfig
    normalisation: Normalisation
    schedule: Schedule
    loss: Loss
    crop: tuple[int, ...]
    augmentation: Augmentation | None
    run: Run = field(default_factory=Run)


def train(
    plan: Plan,
    training: Callable[[int], Samples],
    validation: Samples,
    *,
    devices: list[Any],
    folder: Path,
    record: dict[str, Any],
    tell: Callable[[dict[str, Any]], None],
    resume: bool = False,
    weights: tuple[Any, Any] | None = None,
) -> Trained:
    """Train a network.

    Parameters
    ----------
    plan : Plan
    training : callable
        Gives the samples of an epoch, the first is 1; all epochs' have the same shapes.
    validation : Samples
    devices : list of jax.Device
        A batch is shared by all of them.
    folder : Path
        Of checkpoints, one an epoch.
    record : dict
        What a resumption must agree with.
    tell : callable
        Called with the figures of each finished epoch.
    resume : bool
        Go on after the last checkpoint, if there is one. The result is that of a training that was never cut.
    weights : (params, state), optional
        What to begin with; drawn by the seed where not given.

    Raises
    ------
    UserError
        The loss is no number any more, before there was an epoch to keep; or a checkpoint of another training.
    """
    schedule = plan.schedule
    learner, history, best = start_learner(plan, weights), [], None
    if resume and (found := load_checkpoint(folder, like=learner, record=record)):
        learner, history, best = found
    mesh = Mesh(np.array(devices), ("batch",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    learner, validation = jax.device_put(learner, everywhere), share_samples(validation, mesh)
    moves = plan.augmentation is not None and plan.augmentation.moves
    step, count = None, _make_count(plan, mesh)
    stopped = ""
    with keep_pages():  # the room of a step is that of the next
        for epoch in range(len(history) + 1, schedule.epochs + 1):
            if best and schedule.patience and len(history) - best[0] >= schedule.patience:  # after a resumption too
                stopped = f"no smaller validation loss since epoch {best[0]}"
                break
            samples = share_samples(training(epoch), mesh)
            step = step or make_step(plan, mesh, choose_window(samples, plan.crop) if moves else plan.crop)
            totals, losses = None, []
            for i in range(schedule.steps_per_epoch):
                key = jax.random.fold_in(jax.random.key(schedule.seed), (epoch - 1) * schedule.steps_per_epoch + i)
                learner, loss, counts = step(learner, samples, key)
                losses.append(loss)
                totals = add_counts(totals, counts)
            row = {"epoch": epoch, "loss": float(np.mean([float(v) for v in losses])), **summarize(totals)}
            if not math.isfinite(row["loss"]):
                stopped = f"the loss was {row['loss']} in epoch {epoch}"
                break
            found = evaluate(plan, learner, validation, count=count, parts=mesh.size)
            row |= {f"val_{name}": value for name, value in found.items()}
            if not math.isfinite(row["val_loss"]):  # nothing is smaller than NaN: it would be the best for ever
                stopped = f"the validation loss was {row['val_loss']} in epoch {epoch}"
                break
            history.append(row)
            if best is None or row["val_loss"] < history[best[0] - 1]["val_loss"]:
                best = (epoch, jax.device_get((learner.mean, learner.state)))
            save_checkpoint(folder, learner=jax.device_get(learner), history=history, best=best, record=record)
            tell(row)
    if best is None:
        raise UserError(f"unet train: {stopped}, before one was finished; take a smaller learning_rate")
    return Trained(*best[1], history, best[0], stopped)


def choose_devices(plan: Plan, backend: Any) -> list[Any]:
    """Devices that share a batch evenly: as many as can, unless the weights are too many for so few pixels.

    Each device holds all weights and works on all of them at the end of a step; those that are parts of one processor
    do so side by side, for longer than the sharing saves where a network has more than `backend.weights_a_pixel`.
    """
    batch, most = plan.schedule.batch, backend.weights_a_pixel
    weights = sum(count_parameters(plan.config).values())
    found = jax.devices(backend.jax_device.platform)
    if most is not None and weights > most * batch * math.prod(plan.crop):
        found = found[:1]
    number = max(k for k in range(1, len(found) + 1) if batch % k == 0)
    return found[:number] if number > 1 else [backend.jax_device]


def share_samples(samples: Samples, mesh: Mesh) -> Samples:
    """Bring images to all devices of a mesh; parts of a processor share the same memory."""
    if mesh.size > 1 and mesh.devices.flat[0].platform == "cpu":
        samples = jax.tree.map(np.asarray, samples)  # JAX copies its own arrays for each of them, but not NumPy's
    return jax.device_put(samples, NamedSharding(mesh, PartitionSpec()))


def start_learner(plan: Plan, weights: tuple[Any, Any] | None = None) -> Learner:
    params, state = weights or init_weights(plan.config, seed=plan.schedule.seed)
    return Learner(params, state, plan.schedule.make_optimizer().init(params), params)


def make_step(plan: Plan, mesh: Mesh, window: tuple[int, ...]) -> Callable[..., tuple[Learner, jax.Array, Counts]]:
    """One batch drawn, augmented and learnt from; compiled, the old learner given up."""
    schedule, optimizer = plan.schedule, plan.schedule.make_optimizer()
    shared = NamedSharding(mesh, PartitionSpec("batch"))

    def measure(params: Any, state: Any, images: Any, masks: Any) -> tuple[jax.Array, Any]:
        logits, state = apply_network(plan.config, params, state, images, run=plan.run, training=True)
        return plan.loss(logits, masks), (state, logits)

    @partial(jax.jit, donate_argnums=0)
    def step(learner: Learner, samples: Samples, key: jax.Array) -> tuple[Learner, jax.Array, Counts]:
        drawing, changing = jax.random.split(key)
        images, masks = draw_samples(samples, drawing, batch=schedule.batch, window=window)
        images, masks = jax.lax.with_sharding_constraint((images, masks), shared)
        if plan.augmentation is not None:
            images, masks = augment(images, masks, key=changing, settings=plan.augmentation)
        images = normalise(images, plan.normalisation)
        slope = jax.value_and_grad(measure, has_aux=True)
        (loss, (state, logits)), gradient = slope(learner.params, learner.state, images, masks)
        updates, kept = optimizer.update(gradient, learner.optimizer, learner.params)
        params = optax.apply_updates(learner.params, updates)
        mean = jax.tree.map(lambda old, new: schedule.ema * old + (1 - schedule.ema) * new, learner.mean, params)
        return Learner(params, state, kept, mean), loss, count_batch(logits, masks, output=plan.config.output)

    return step


def _make_count(plan: Plan, mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array, Counts]]:
    shared = NamedSharding(mesh, PartitionSpec("batch"))

    @jax.jit
    def count(params: Any, state: Any, samples: Samples, places: jax.Array, fresh: jax.Array) -> Any:
        parts = cut_windows(samples, places, fresh, crop=plan.crop)
        images, masks, valid = jax.lax.with_sharding_constraint(parts, shared)
        images = normalise(images, plan.normalisation)
        logits, _ = apply_network(plan.config, params, state, images, run=plan.run)
        counts = count_batch(logits, masks, valid, output=plan.config.output)
        return plan.loss(logits, masks, valid), jnp.sum(valid), counts

    return count


def evaluate(
    plan: Plan, learner: Learner, samples: Samples, *, count: Callable[..., Any], parts: int
) -> dict[str, Any]:
    """Loss and figures of the running mean of the weights over all pixels of images, each once.

    A batch is of as many windows as `parts`, the devices that share it, can have equally many of.
    """
    places, fresh = list_windows(samples, plan.crop)
    batch = min(plan.schedule.batch, math.ceil(len(places) / parts) * parts)
    losses, weights, totals = [], [], None
    for start in range(0, len(places), batch):
        some = slice(start, start + batch)
        lacking = batch - len(places[some])  # a batch is always as large; what fills it up counts for nothing
        where = np.concatenate([places[some], np.resize(places, (lacking, places.shape[1]))])
        first = np.concatenate([fresh[some], np.tile(np.int32(plan.crop), (lacking, 1))])
        loss, weight, counts = count(learner.mean, learner.state, samples, where, first)
        losses.append(float(loss))
        weights.append(float(weight))
        totals = add_counts(totals, counts)
    return {"loss": float(np.average(losses, weights=weights)), **summarize(totals)}

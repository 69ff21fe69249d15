"""Figures of a network's training and validation, counted batch by batch on the device.

`count_batch` is pure and gives sums only: they add up over batches, devices and epochs, and `summarize` turns them
into the lecture's nine metrics and what else tells how good a network is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from niseg_gpu.evaluate.masks import Evaluation
from niseg_gpu.evaluate.pieces import divide
from niseg_gpu.evaluate.scores import evaluate_counts

BINS = 4096  # of the logit, from -LIMIT to LIMIT: steps of 0.8 % of the odds
LIMIT = 16.0


class Counts(NamedTuple):
    """Sums over pixels.

    Attributes
    ----------
    confusion : (K, K) array
        Pixels of each true class (rows) by the class they were given; K = 2 for one channel.
    spots, others : (BINS,) array
        Pixels of any class but background, and of background, by the bin of their score.
    error : float array
        Sum of ``|p - truth|``, p being the probability of not being background.
    """

    confusion: Any
    spots: Any
    others: Any
    error: Any


def foreground_logit(logits: jax.Array, *, output: str = "logits") -> jax.Array:
    """Return (...) log odds of not being background, from (..., K) logits or what goes through a ReLU."""
    if output == "relu":
        found = jnp.clip(jax.nn.relu(logits[..., 0]), 1e-7, 1 - 1e-7)
        return jnp.log(found) - jnp.log1p(-found)
    if logits.shape[-1] == 1:
        return logits[..., 0]
    return jax.nn.logsumexp(logits[..., 1:], axis=-1) - logits[..., 0]


def classify(logits: jax.Array, *, threshold: float = 0.5, output: str = "logits") -> jax.Array:
    """Return (...) int32 classes: the most probable, or, of one channel, 1 where the probability is `threshold`."""
    if logits.shape[-1] > 1:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    found = foreground_logit(logits, output=output)
    return (jax.nn.sigmoid(found) >= threshold).astype(jnp.int32)


def count_batch(
    logits: jax.Array,
    labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    threshold: float = 0.5,
    output: str = "logits",
) -> Counts:
    """Count a batch.

    Parameters
    ----------
    logits : (N, *space, K) array
    labels : (N, *space) integer array
    valid : (N, *space) array, optional
        Pixels that count: not 0.
    threshold : float
        Probability from which a pixel of one channel is a spot.
    output : {"logits", "relu"}
        What the network gives.
    """
    classes = max(2, logits.shape[-1])
    labels = (labels != 0) if logits.shape[-1] == 1 else labels
    truth, spot = labels.astype(jnp.int32), labels != 0
    counted = jnp.ones(truth.shape, bool) if valid is None else valid != 0
    score = foreground_logit(logits, output=output)
    bins = jnp.clip((score + LIMIT) * (BINS / (2 * LIMIT)), 0, BINS - 1).astype(jnp.int32)
    cells = truth * classes + classify(logits, threshold=threshold, output=output)
    histogram = _histogram(jnp.where(spot, bins + BINS, bins), counted, 2 * BINS)
    return Counts(
        confusion=_histogram(cells, counted, classes**2).reshape(classes, classes),
        spots=histogram[BINS:],
        others=histogram[:BINS],
        error=jnp.sum(jnp.where(counted, jnp.abs(jax.nn.sigmoid(score) - spot), 0.0)),
    )


def _histogram(values: jax.Array, counted: jax.Array, length: int) -> jax.Array:
    return jnp.bincount(jnp.where(counted, values, length).ravel(), length=length + 1)[:length]


def add_counts(total: Counts | None, batch: Counts) -> Counts:
    """Add a batch's counts to those so far, on the host in 64 bit."""
    host = Counts(
        *(
            np.asarray(part).astype(np.float64 if name == "error" else np.int64)
            for name, part in batch._asdict().items()
        )
    )
    return host if total is None else Counts(*(a + b for a, b in zip(total, host, strict=True)))


def summarize(counts: Counts) -> dict[str, Any]:
    """Return the figures that follow from counts; what nothing can be said of is None.

    Returns
    -------
    dict
        The lecture's ``tp``, ``fp``, ``tn``, ``fn``, ``accuracy``, ``precision``, ``recall``, ``auc``, ``mae``; and
        ``dice``, ``best_f1``, ``best_threshold``. Of more than two classes, all but background count as one in
        these, but in ``accuracy``; ``dice_by_class`` then holds one figure a class.
    """
    confusion = np.asarray(counts.confusion)
    tn, fp = confusion[0, 0], confusion[0, 1:].sum()
    fn, tp = confusion[1:, 0].sum(), confusion[1:, 1:].sum()
    mask = Evaluation(int(tp), int(fp), int(tn), int(fn), 0, 0, 0, 0)
    edges = np.linspace(-LIMIT, LIMIT, BINS, endpoint=False)
    lowest = 1 / (1 + np.exp(-edges))
    lowest[0] = 0.0  # its bin holds all that is below, too
    used = np.flatnonzero((counts.spots + counts.others) > 0)
    scores = evaluate_counts(lowest[used], counts.spots[used], counts.others[used])
    figures = {
        **{name: getattr(mask, name) for name in ("tp", "fp", "tn", "fn")},
        "accuracy": divide(int(np.trace(confusion)), mask.pixels),
        "precision": mask.precision,
        "recall": mask.recall,
        "auc": scores.roc_auc,
        "mae": divide(float(counts.error), mask.pixels),
        "dice": mask.dice,
        "best_f1": scores.best_f1,
        "best_threshold": scores.best_threshold,
    }
    if len(confusion) > 2:
        both, found, true = np.diag(confusion), confusion.sum(0), confusion.sum(1)
        figures["dice_by_class"] = [divide(2 * int(b), int(f + t)) for b, f, t in zip(both, found, true, strict=True)]
    return figures

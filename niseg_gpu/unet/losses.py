"""What training makes small: losses of logits against labels, each a pure function to be differentiated.

All take logits (N, *space, K) and labels (N, *space): 0 for background, else the class; with one channel, K = 1, any
label but 0 is a spot. ``valid``, of the labels' shape, weighs pixels: 0 leaves one out. A loss with parameters is made
by `make_loss`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from niseg_gpu.errors import UserError, suggest

Loss = Callable[..., jax.Array]
SMALL = 1e-7  # what Keras keeps probabilities away from 0 and 1 by


def one_hot(labels: jax.Array, classes: int) -> jax.Array:
    """Return (..., classes) float32 truth; with one channel, 1 for all labels but 0."""
    if classes == 1:
        return (labels != 0).astype(jnp.float32)[..., None]
    return jax.nn.one_hot(labels, classes)


def probabilities(logits: jax.Array) -> jax.Array:
    """Return (..., K) probabilities: a sigmoid of one channel, a softmax of more."""
    return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)


def bce(
    logits: jax.Array, labels: jax.Array, valid: jax.Array | None = None, *, class_weights: Sequence[float] = ()
) -> jax.Array:
    """Cross-entropy, binary for one channel.

    Parameters
    ----------
    class_weights : sequence of float
        One a class, background first; none: all 1. `median_frequency_weights` gives some.
    """
    return _mean(_cross_entropy(logits, labels) * _weigh(labels, logits, class_weights), valid)


def focal(
    logits: jax.Array,
    labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] = (),
) -> jax.Array:
    """Cross-entropy that turns from what is right already (Lin et al., 10.1109/ICCV.2017.324).

    Parameters
    ----------
    gamma : float
        Power of how wrong a pixel is; 0 gives `bce`.
    """
    entropy = _cross_entropy(logits, labels)
    wrong = -jnp.expm1(-entropy)  # 1 - the probability of the true class
    # the smallest amount keeps the power's slope finite where a pixel is wholly right
    weight = jnp.maximum(wrong, SMALL) ** gamma * _weigh(labels, logits, class_weights)
    return _mean(entropy * weight, valid)


def dice(logits: jax.Array, labels: jax.Array, valid: jax.Array | None = None, *, smooth: float = 1.0) -> jax.Array:
    """1 - the soft Dice coefficient over the batch (Milletari et al., 10.1109/3DV.2016.79), mean over the classes.

    Parameters
    ----------
    smooth : float
        Added above and below, so that a batch without a spot has a slope.
    """
    return tversky(logits, labels, valid, alpha=0.5, beta=0.5, smooth=smooth / 2)


def dice_bce(
    logits: jax.Array,
    labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    smooth: float = 1.0,
    dice_share: float = 0.5,
    class_weights: Sequence[float] = (),
) -> jax.Array:
    """`dice_share` times `dice`, and the rest times `bce`."""
    entropy = bce(logits, labels, valid, class_weights=class_weights)
    return dice_share * dice(logits, labels, valid, smooth=smooth) + (1 - dice_share) * entropy


def tversky(
    logits: jax.Array,
    labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
) -> jax.Array:
    """1 - Tversky's index (Salehi et al., 10.1007/978-3-319-67389-9_44), mean over the classes but background.

    Parameters
    ----------
    alpha, beta : float
        Cost of false positives and of missed pixels; 0.5 and 0.5 give Dice.
    smooth : float
        Added above and below.
    """
    classes = logits.shape[-1]
    found, true = probabilities(logits), one_hot(labels, classes)
    if valid is not None:
        found, true = found * valid[..., None], true * valid[..., None]
    axes = tuple(range(found.ndim - 1))
    both = jnp.sum(found * true, axes)
    false, missed = jnp.sum(found, axes) - both, jnp.sum(true, axes) - both
    index = (both + smooth) / (both + alpha * false + beta * missed + smooth)
    return 1 - jnp.mean(index if classes == 1 else index[1:])


def relu_bce(logits: jax.Array, labels: jax.Array, valid: jax.Array | None = None) -> jax.Array:
    """Cross-entropy of a ReLU taken for a probability, as in the lecture: for networks with ``output`` relu.

    Where the ReLU gives 0 there is no slope, and a network that gives 0 everywhere stays so.
    """
    found = jnp.clip(jax.nn.relu(logits[..., 0]), SMALL, 1 - SMALL)
    true = (labels != 0).astype(jnp.float32)
    return _mean(-(true * jnp.log(found) + (1 - true) * jnp.log1p(-found)), valid)


LOSSES: dict[str, Loss] = {
    "bce": bce,
    "focal": focal,
    "dice": dice,
    "dice_bce": dice_bce,
    "tversky": tversky,
    "relu_bce": relu_bce,
}


def make_loss(name: str, **parameters: Any) -> Loss:
    """Return a loss by its name, its parameters set.

    Raises
    ------
    UserError
        An unknown loss, or a parameter it does not have.
    """
    if name not in LOSSES:
        raise UserError(f"unet has no loss {name!r}{suggest(name, LOSSES)}")
    known = [n for n, p in inspect.signature(LOSSES[name]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for parameter in parameters:
        if parameter not in known:
            raise UserError(
                f"loss {name} has no parameter {parameter!r}{suggest(parameter, known) if known else '; it has none'}"
            )
    return partial(LOSSES[name], **parameters)


def median_frequency_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """Return weights that let rare classes count as much as the middle one (Eigen & Fergus, 10.1109/ICCV.2015.304).

    Parameters
    ----------
    counts : sequence of int
        Training pixels of each class, background first.

    Raises
    ------
    UserError
        A class without a pixel.
    """
    counts = np.asarray(counts, dtype=float)
    if not (counts > 0).all():
        raise UserError(
            f"class {int(np.argmin(counts))} has no training pixel; leave it out, or give images that show it"
        )
    return tuple((np.median(counts) / counts).tolist())


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    if logits.shape[-1] == 1:
        return optax.sigmoid_binary_cross_entropy(logits[..., 0], (labels != 0).astype(logits.dtype))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(jnp.int32))


def _weigh(labels: jax.Array, logits: jax.Array, class_weights: Sequence[float]) -> jax.Array | float:
    if not len(class_weights):
        return 1.0
    classes = max(2, logits.shape[-1])
    if len(class_weights) != classes:
        raise UserError(f"class_weights has {len(class_weights)} entries; needed: {classes}, background first")
    labels = labels != 0 if logits.shape[-1] == 1 else labels
    return jnp.asarray(class_weights, jnp.float32)[labels.astype(jnp.int32)]


def _mean(values: jax.Array, valid: jax.Array | None) -> jax.Array:
    if valid is None:
        return jnp.mean(values)
    return jnp.sum(values * valid) / jnp.maximum(jnp.sum(valid), SMALL)

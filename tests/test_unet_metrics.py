"""Counts of batches and what follows from them, against scikit-learn and the package's own comparison of masks."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from niseg_gpu.evaluate import evaluate_mask, evaluate_scores
from niseg_gpu.unet import metrics
from niseg_gpu.unet.losses import probabilities
from niseg_gpu.unet.metrics import add_counts, classify, summarize

RNG = np.random.default_rng(5)
count_batch = jax.jit(metrics.count_batch, static_argnames=("threshold", "output"))


def scene(channels: int) -> tuple[np.ndarray, np.ndarray]:
    labels = (RNG.random((4, 40, 30)) < 0.2) * RNG.integers(1, max(2, channels), (4, 40, 30))
    logits = RNG.normal(0, 2, (4, 40, 30, channels)).astype(np.float32)
    if channels == 1:
        logits[..., 0] += 2.5 * labels - 2
    else:
        logits += 2 * np.eye(channels, dtype=np.float32)[labels]
    return logits, labels.astype(np.uint8)


def test_the_nine_figures_and_more() -> None:
    logits, labels = scene(1)
    found = 1 / (1 + np.exp(-logits[..., 0].astype(float)))
    total = None
    for half in (slice(0, 1), slice(1, 4)):
        total = add_counts(total, count_batch(logits[half], labels[half], threshold=0.4))
    figures = summarize(total)
    mask = evaluate_mask(found >= 0.4, labels)
    for name in ("tp", "fp", "tn", "fn", "precision", "recall", "dice"):
        assert figures[name] == pytest.approx(getattr(mask, name)), name
    assert figures["accuracy"] == pytest.approx((mask.tp + mask.tn) / labels.size)
    assert figures["mae"] == pytest.approx(abs(found - labels).mean(), rel=1e-5)
    assert figures["auc"] == pytest.approx(roc_auc_score(labels.ravel(), found.ravel()), abs=1e-4)
    exact = evaluate_scores(found, labels)
    assert figures["best_f1"] == pytest.approx(exact.best_f1, abs=2e-3)
    assert evaluate_mask(found >= figures["best_threshold"], labels).f1 == pytest.approx(figures["best_f1"], abs=2e-3)


def test_classes() -> None:
    logits, labels = scene(3)
    figures = summarize(add_counts(None, count_batch(logits, labels)))
    found = logits.argmax(-1)
    np.testing.assert_array_equal(classify(logits), found)
    mask = evaluate_mask(found, labels)
    assert (figures["tp"], figures["fn"]) == (mask.tp, mask.fn)
    assert figures["accuracy"] == pytest.approx((found == labels).mean())
    for k, dice in enumerate(figures["dice_by_class"]):
        assert dice == pytest.approx(evaluate_mask(found == k, labels == k).dice)
    not_background = 1 - np.asarray(probabilities(logits))[..., 0]
    assert figures["auc"] == pytest.approx(roc_auc_score(labels.ravel() > 0, not_background.ravel()), abs=1e-3)


def test_pixels_left_out_are_not_counted() -> None:
    logits, labels = scene(1)
    valid = np.zeros(labels.shape, bool)
    valid[:, :20] = True
    some, part = count_batch(logits, labels, valid), count_batch(logits[:, :20], labels[:, :20])
    for a, b in zip(some, part, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_relu_taken_for_a_probability() -> None:
    logits, labels = scene(1)
    figures = summarize(add_counts(None, count_batch(logits, labels, threshold=0.3, output="relu")))
    assert figures["tp"] == ((logits[..., 0] >= 0.3) & (labels > 0)).sum()
    assert figures["mae"] == pytest.approx(abs(np.clip(logits[..., 0], 0, 1) - labels).mean(), rel=1e-4)


def test_the_lowest_threshold_takes_all_that_is_below_the_bins() -> None:
    logits = np.full((1, 2, 8, 1), -20, np.float32)
    labels = np.ones((1, 2, 8), np.uint8)
    figures = summarize(add_counts(None, count_batch(logits, labels)))
    found = 1 / (1 + np.exp(-logits[..., 0].astype(float))) >= figures["best_threshold"]
    assert figures["best_f1"] == pytest.approx(evaluate_mask(found, labels).f1)


def test_what_nothing_can_be_said_of_is_none() -> None:
    figures = summarize(add_counts(None, count_batch(np.full((1, 2, 2, 1), -9.0), np.zeros((1, 2, 2)))))
    assert figures["tn"] == 4 and figures["accuracy"] == 1
    assert figures["recall"] is None and figures["auc"] is None and figures["best_f1"] is None

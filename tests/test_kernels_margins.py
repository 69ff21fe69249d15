"""Margins: what is skipped can't have changed, and much is skipped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.kernels.lloyd import assign_and_sum_cpu
from niseg_gpu.kernels.margins import LEAD, NORM, REST, choose_pixels, make_margins, measure_doubt, measure_shift


@given(st.integers(0, 10**6), st.integers(2, 7), st.floats(-6, 2), st.floats(-3, 6))
def test_the_lead_never_shrinks_further_than_was_said(seed: int, k: int, way: float, offset: float) -> None:
    """Against the exact differences of squared distances, in float64."""
    rng = np.random.default_rng(seed)
    before = (10.0**offset + rng.normal(0, 3, (k, 30))).astype(np.float32)
    now = (before + rng.normal(0, 10.0**way, before.shape)).astype(np.float32)
    labels = rng.integers(0, k, 50)
    pixels = (before[labels] + rng.normal(0, 2, (50, 30))).astype(np.float32)

    def measure_leads(centroids: np.ndarray) -> np.ndarray:
        distances = ((pixels[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2)
        return distances - distances[np.arange(50), labels][:, None]

    known, by_rest, own = measure_shift(before, now)
    rest = np.sqrt(((pixels.astype(np.float64) - before[labels]) ** 2).sum(axis=1))
    least = known[labels] - by_rest[labels] * rest[:, None]
    changed = measure_leads(now) - measure_leads(before)
    rounding = 1e-9 * (1 + 10.0 ** (2 * offset) + 10.0 ** (2 * way)) * 30
    assert (changed >= least - rounding).all()
    assert (np.sqrt(((pixels - now[labels].astype(np.float64)) ** 2).sum(axis=1)) <= (rest + own[labels]) + 1e-6).all()


@given(st.integers(0, 10**6), st.integers(1, 2000), st.floats(-3, 5))
def test_float32_rounds_off_no_more_than_was_said(seed: int, features: int, offset: float) -> None:
    rng = np.random.default_rng(seed)
    pixels, centroids = ((10.0**offset * rng.normal(0.3, 1, (m, features))).astype(np.float32) for m in (40, 5))
    doubt = measure_doubt(centroids, blocks=1, width=features)
    norms = np.sum(centroids.astype(np.float64) ** 2, axis=1)
    narrow = norms.astype(np.float32) - np.float32(2) * _sum_in_lanes(pixels[:, None] * centroids)
    wide = norms - 2 * pixels.astype(np.float64) @ centroids.T.astype(np.float64)
    off = np.abs(narrow - wide).max(axis=1)
    assert (2 * off <= doubt.fixed + doubt.by_norm * np.linalg.norm(pixels.astype(np.float64), axis=1)).all()


def _sum_in_lanes(products: np.ndarray) -> np.ndarray:
    """Eight sums side by side in order, then all of them, in float32."""
    lanes = np.zeros((*products.shape[:-1], 8), np.float32)
    for f in range(0, products.shape[-1], 8):
        piece = products[..., f : f + 8]
        lanes[..., : piece.shape[-1]] += piece
    return lanes.sum(axis=-1, dtype=np.float32)


def test_far_clusters_are_read_once() -> None:
    rng = np.random.default_rng(0)
    centres = 1000 * rng.normal(size=(4, 100)).astype(np.float32)
    pixels = centres[np.arange(800) % 4] + rng.normal(size=(800, 100)).astype(np.float32)
    labels, memory, mean = np.full(800, 99, np.int32), {}, pixels.mean(axis=0)
    how = {"mean": mean, "quantum": 2.0**-20, "labels": labels, "memory": memory}
    first, second = centres - mean, centres - mean + np.float32(0.5)
    assign_and_sum_cpu(pixels, centroids=first, **how)
    seen = pixels.copy()
    pixels[:] = np.nan  # whoever read them would give other labels
    found = assign_and_sum_cpu(pixels, centroids=second, **how, before=first)
    assert found.moved == 0 and not found.sums.any() and (labels == np.arange(800) % 4).all()
    rest = np.linalg.norm(seen - mean - second[labels], axis=1)
    assert (memory["margins"][REST] >= rest - 1e-3).all() and (memory["margins"][REST] <= rest + 20).all()
    assert np.allclose(memory["margins"][NORM], np.linalg.norm(seen - mean, axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    "shape, dtype, steps, room",
    [
        ((10, 60), np.float32, (60, 1), True),
        ((10, 59), np.float32, (59, 1), False),
        ((10, 120), np.uint16, (120, 1), True),
        ((10, 60), np.uint16, (60, 1), False),
        ((10, 600), np.float32, (1, 10), False),
    ],
)
def test_room_is_taken_where_it_is_worth_it(shape, dtype, steps, room: bool) -> None:
    margins = make_margins(np.zeros(shape, dtype), steps=steps)
    assert (margins is not None) == room
    assert margins is None or 20 * margins.nbytes <= np.zeros(shape, dtype).nbytes


def test_pixels_without_data_are_never_wanted_and_equal_centroids_always() -> None:
    margins = np.zeros((3, 4), np.float32)
    margins[LEAD] = 0, 1, 0, np.nan
    same = np.zeros((2, 3), np.float32)
    wanted = np.empty(4, np.int64)
    labels = np.array([0, 1, -1, 0], np.int32)
    count = choose_pixels(labels, margins, *measure_shift(same, same), 1e-3, 0.0, wanted)
    assert wanted[:count].tolist() == [0, 3]

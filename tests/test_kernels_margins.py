"""Margins: what is skipped can't have changed, and much is skipped."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from niseg_gpu.kernels import lloyd
from niseg_gpu.kernels.lanes import LANES, SPAN
from niseg_gpu.kernels.lloyd import assign_and_sum_cpu, find_nearest_of_span
from niseg_gpu.kernels.margins import LEAD, REST, Watch, choose_pixels, list_groups, measure_shift
from niseg_gpu.kernels.panel import arrange_centroids
from niseg_gpu.kernels.tiles import empty_lanes


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

    lengths, known, by_rest, own = measure_shift(before, now)
    assert np.allclose(lengths, np.linalg.norm(before.astype(np.float64), axis=1)) and known.shape == (k, 8)
    assert np.isinf(known[np.arange(k), np.arange(k)]).all() and np.isinf(known[:, k:]).all()
    known, by_rest = known[:, :k].copy(), by_rest[:, :k]
    np.fill_diagonal(known, 0)  # its lead over itself stays
    rest = np.sqrt(((pixels.astype(np.float64) - before[labels]) ** 2).sum(axis=1))
    least = known[labels] - by_rest[labels] * rest[:, None]
    changed = measure_leads(now) - measure_leads(before)
    rounding = 1e-9 * (1 + 10.0 ** (2 * offset) + 10.0 ** (2 * way)) * 30
    assert (changed >= least - rounding).all()
    assert (np.sqrt(((pixels - now[labels].astype(np.float64)) ** 2).sum(axis=1)) <= (rest + own[labels]) + 1e-6).all()


@given(st.integers(0, 10**6), st.integers(1, 2000), st.floats(-3, 5))
def test_float32_rounds_off_no_more_than_was_said(seed: int, features: int, offset: float) -> None:
    """Of the kernels' own products and squares."""
    rng = np.random.default_rng(seed)
    n = SPAN
    pixels, centroids = ((10.0**offset * rng.normal(0.3, 1, (m, features))).astype(np.float32) for m in (n, 11))
    wide = np.sum(centroids.astype(np.float64) ** 2, axis=1) - 2 * pixels.astype(np.float64) @ centroids.T.astype(float)
    found, scores, doubt = score_pixels(pixels, centroids)
    own = wide[np.arange(n), found]
    others = wide.copy()
    others[np.arange(n), found] = np.inf
    lead, bound = scores[1] - scores[0].astype(np.float64), doubt.fixed
    bound = bound + doubt.by_norm * np.linalg.norm(pixels.astype(np.float64), axis=1)
    assert (np.abs(scores[0] - own) <= bound / 2).all() and (np.abs(lead - (others.min(axis=1) - own)) <= bound).all()


@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 900))
def test_the_two_nearest_are_found_and_the_first_of_equal_ones(seed: int, k: int, features: int) -> None:
    rng = np.random.default_rng(seed)
    centroids = rng.integers(-9, 10, (k, features)).astype(np.float32)  # small whole numbers: nothing is rounded
    centroids = centroids[rng.integers(0, k, k)]
    pixels = rng.integers(-9, 10, (SPAN, features)).astype(np.float32)
    expected = (centroids**2).sum(axis=1) - 2 * pixels @ centroids.T
    found, scores, _ = score_pixels(pixels, centroids)
    np.testing.assert_array_equal(found, expected.argmin(axis=1))
    two = np.sort(np.pad(expected, ((0, 0), (0, 1)), constant_values=np.inf), axis=1)[:, :2]
    np.testing.assert_array_equal(scores, two.T)


def score_pixels(pixels: np.ndarray, centroids: np.ndarray) -> tuple:
    """Nearest of the centroids of a span of pixels, the two least scores, and the doubt that is in them."""
    panel, features = arrange_centroids(centroids), pixels.shape[1]
    tile = empty_lanes(features, by_rows=True)
    tile[:features] = pixels.T
    products, parts = np.zeros((2, 4 * SPAN), np.float32)
    found, scores = np.zeros(SPAN, np.int32), np.zeros(2 * SPAN, np.float32)
    how = features, panel.values, len(centroids), panel.norms, products, parts, found, scores
    find_nearest_of_span(tile, 0, *how)
    return found, scores.reshape(2, -1), panel.doubt


@pytest.mark.parametrize("layout", ["C", "F"])
def test_kernels_that_hold_no_arrays_make_none(layout: str) -> None:
    """One of their own would be given back, and be written to, while another thread has it."""
    pixels = np.asarray(np.ones((50, 40), np.float32), order=layout)
    assign_and_sum_cpu(pixels, centroids=pixels[:2], mean=pixels[0], quantum=1.0, labels=np.zeros(50, np.int32))
    kernel = lloyd._assign_rows if layout == "C" else lloyd._assign_frames
    anew = njit(kernel.py_func)  # what comes from the cache cannot be looked at
    anew.compile(kernel.signatures[0])
    (text,) = anew.inspect_llvm().values()
    assert kernel.py_func.__name__ in text and "NRT_MemInfo_alloc" not in text and "NRT_Allocate" not in text


@pytest.mark.parametrize("layout", ["C", "F"])
def test_far_clusters_are_read_once(layout: str) -> None:
    rng = np.random.default_rng(0)
    centres = 1000 * rng.normal(size=(4, 100)).astype(np.float32)
    pixels = centres[np.arange(800) % 4] + rng.normal(size=(800, 100)).astype(np.float32)
    pixels = np.asarray(pixels, order=layout)
    labels, memory, mean = np.full(800, 99, np.int32), {}, pixels.mean(axis=0)
    how = {"mean": mean, "quantum": 2.0**-20, "labels": labels, "memory": memory}
    first, second = centres - mean, centres - mean + np.float32(0.5)
    assign_and_sum_cpu(pixels, centroids=first, **how)
    seen = pixels.copy()
    pixels[:] = np.nan  # whoever read them would give other labels
    found = assign_and_sum_cpu(pixels, centroids=second, **how, before=first)
    assert found.moved == 0 and not found.sums.any() and (labels == np.arange(800) % 4).all()
    rest = np.linalg.norm(seen - mean - second[labels], axis=1)
    assert (memory["margins"][REST] >= rest - 1e-3).all() and (memory["margins"][REST] <= rest + 30).all()
    assert len(memory["margins"]) == 2


@pytest.mark.parametrize("layout", ["C", "F"])
def test_few_pixels_in_doubt_are_looked_at_again_and_no_others(layout: str) -> None:
    rng = np.random.default_rng(1)
    n, near = 1000, np.array([0, 1, 17, 400, 998, 999])
    centres = np.stack([np.zeros(64), np.full(64, 100.0)]).astype(np.float32)
    pixels = centres[np.arange(n) % 2] + rng.normal(size=(n, 64)).astype(np.float32)
    pixels[near] = 49.0  # nearer to the first, a little
    pixels = np.asarray(pixels, order=layout)
    labels, memory, mean = np.full(n, 99, np.int32), {}, np.zeros(64, np.float32)
    how = {"mean": mean, "quantum": 2.0**-20, "labels": labels, "memory": memory}
    assign_and_sum_cpu(pixels, centroids=centres, **how)
    spoilt = np.setdiff1d(np.arange(n), (near[:, None] // LANES * LANES + np.arange(-LANES, 2 * LANES)).ravel())
    assert len(spoilt) > n / 2
    pixels[spoilt] = np.nan
    moved = centres - np.float32(3)
    found = assign_and_sum_cpu(pixels, centroids=moved, **how, before=centres)
    assert found.moved == len(near) and (labels[near] == 1).all() and found.sizes.tolist() == [-6, 6]
    assert found.sums.tolist() == [[-49.0 * 6] * 64, [49.0 * 6] * 64]


def test_margins_that_help_little_are_not_noted_for_a_while_and_then_tried_again() -> None:
    watch, seen = Watch(), []
    for share in [None, 1.0, 0.9, 0.95, 1.0, 0.5, 1.0]:
        if share is not None:
            watch.judge(share)
        noted = watch.notes()
        while not watch.noted:
            noted = watch.notes()
            seen[-1] += 1
        seen.append(0)
        assert noted
    assert seen == [0, 1, 2, 4, 0, 0, 0]


@given(st.lists(st.integers(0, 300), unique=True), st.integers(0, 15), st.sampled_from([8, 16]))
def test_groups_are_those_of_the_wanted_pixels(pixels: list[int], lead: int, size: int) -> None:
    wanted = np.array(sorted(pixels), np.int32)
    found = wanted[: list_groups(wanted, lead, size)].tolist()
    assert found == sorted({(p + lead) // size for p in pixels})


@pytest.mark.parametrize(
    "shape, dtype, room",
    [
        ((10, 40), np.float32, True),
        ((10, 39), np.float32, False),
        ((10, 80), np.uint16, True),
        ((10, 79), np.uint16, False),
    ],
)
def test_room_is_taken_where_it_is_worth_it(shape, dtype, room: bool) -> None:
    pixels, memory = np.zeros(shape, dtype), {}
    how = {"mean": np.zeros(shape[1], np.float32), "quantum": 1.0, "labels": np.zeros(10, np.int32), "memory": memory}
    assign_and_sum_cpu(pixels, centroids=pixels[:2].astype(np.float32), **how)
    assert (memory["margins"] is not None) == room
    assert memory["margins"] is None or 20 * memory["margins"].nbytes <= pixels.nbytes


def test_pixels_without_data_are_never_wanted_and_equal_centroids_always() -> None:
    margins = np.zeros((2, 4), np.float32)
    margins[LEAD] = 0, 1, 0, np.nan
    same = np.zeros((2, 3), np.float32)
    wanted = np.empty(4, np.int64)
    labels = np.array([0, 1, -1, 0], np.int32)
    count = choose_pixels(labels, margins, *measure_shift(same, same), 1e-3, 0.0, wanted)
    assert wanted[:count].tolist() == [0, 3]

"""The plane of two features: bins that lose no pixel, regions that are the model's own answers."""

import io

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from niseg_gpu.errors import UserError
from niseg_gpu.figures_knn import (
    BINS,
    NODES,
    REGION_COLOUR,
    count_plane,
    decide_region,
    draw_bivariate,
    draw_plane,
    find_edges,
    find_width,
)
from niseg_gpu.knn import classify_points, predict_knn
from niseg_gpu.knn_features import compute_features
from niseg_gpu.knn_model import fit_knn


@given(
    st.integers(-3000, 3000), st.integers(0, 60_000), st.booleans(), st.booleans(), st.sampled_from([0, 0, 190]),
    st.integers(0, 9),
)  # fmt: skip
@example(5, 0, True, True, 0, 0)  # all the same
@example(5, 0, True, True, 190, 0)
def test_every_value_falls_into_a_bin_and_whole_numbers_never_on_an_edge(low, span, whole, spreading, zeros, seed):
    values = np.random.default_rng(seed).uniform(low, low + span, 200).astype(np.float32)
    values[:zeros] = 0  # as of frames with few counts
    values = np.rint(values) if whole else values
    edges = find_edges(values, width=find_width(values) if spreading else None)
    widths = np.diff(edges)
    assert len(edges) >= 2 and (widths > 0).all() and len(edges) < 2 * BINS
    assert np.histogram(values, edges)[0].sum() == 200
    if whole:
        np.testing.assert_array_equal(edges % 1, 0.5)
        inner = widths[1:-1]  # those at the ends are cut
        centre = np.argmin(np.abs(edges[1:-2] + inner / 2)) if len(inner) else 0
        assert (np.diff(inner[centre + 1 :]) >= 0).all(), "widths that go up and down show as stripes"


def scene(seed=0):
    rng = np.random.default_rng(seed)
    spots = rng.random((60, 70)) < 0.03
    return (rng.poisson(400, spots.shape) + spots * rng.integers(30, 300, spots.shape)).astype(np.uint16), spots


@pytest.mark.parametrize("n_neighbors", [1, 15])
def test_points_of_an_image_are_classified_as_the_image_is(n_neighbors):
    model = fit_knn(*scene(), n_neighbors=n_neighbors)
    image, _ = scene(1)
    points = compute_features(image, model.features).reshape(-1, 2)
    found = classify_points(points, model)
    np.testing.assert_array_equal(found, predict_knn(image, model).ravel())
    assert 0 < found.mean() < 0.1


def test_region_is_the_models_answer_at_each_node():
    image, spots = scene()
    model = fit_knn(image, spots, features=["residual", "value"], n_neighbors=5)
    nodes = [np.linspace(-50, 250, 30, dtype=np.float32), np.linspace(350, 650, 20, dtype=np.float32)]
    region = decide_region(model, nodes)
    assert region.shape == (20, 30) and region[-1, -1] and not region[3, 5]
    for row, column in ((0, 29), (10, 7), (19, 12)):
        point = np.array([[nodes[0][column], nodes[1][row]]], np.float32)
        assert region[row, column] == classify_points(point, model)[0]


def test_picture_shows_counts_and_region(monkeypatch):
    image, spots = scene()
    model = fit_knn(image, spots, n_neighbors=15)
    features = compute_features(image, model.features).reshape(-1, 2)
    drawn = decode(draw_bivariate(features, spots.ravel(), model=model))
    monkeypatch.setattr("niseg_gpu.figures_knn.decide_region", lambda model, nodes: np.zeros((NODES, NODES), bool))
    with_nan = np.concatenate([features, [[np.nan, 1]]]).astype(np.float32)
    without = decode(draw_bivariate(with_nan, np.append(spots, True), model=model))
    tint = np.all(np.abs(drawn.astype(int) - (250, 221, 213)) < 3, axis=2)
    left, right = tint[:, : tint.shape[1] // 2].mean(), tint[:, tint.shape[1] // 2 :].mean()
    assert left > 0.2 and right > 0.15
    ground = np.all(without[tint] == 255, axis=1)
    assert ground.mean() > 0.99
    heading = np.s_[: drawn.shape[0] // 11]  # names the pixels of each half, without the one with NaN
    np.testing.assert_array_equal(drawn[heading], without[heading])


def decode(picture, page="light"):
    return np.asarray(Image.open(io.BytesIO(getattr(picture, page))).convert("RGB"))


def test_a_plane_has_two_features():
    image, spots = scene()
    model = fit_knn(image, spots, features=["value", "residual", "gradient"])
    with pytest.raises(UserError, match=r"got 3 features \(value, residual, gradient\); allowed: 2"):
        draw_bivariate(np.zeros((4, 3), np.float32), np.zeros(4, bool), model=model)


def orange(pixels):
    """Where a picture has the colour of the line, (rows, columns) bool."""
    colour = [int(REGION_COLOUR[i : i + 2], 16) for i in (1, 3, 5)]
    return np.all(np.abs(pixels.astype(int) - colour) < 12, axis=2)


def test_a_plane_counts_every_finite_pixel_and_shows_its_threshold():
    image, _ = scene()
    names = ("value", "abs_residual")
    features = compute_features(image, names).reshape(-1, 2)
    counted = count_plane(np.concatenate([features, [[np.nan, 1]]]).astype(np.float32), names=names)
    assert counted.number.sum() == len(features) and counted.widths[0] is None and counted.widths[1] > 0
    labels = ("value f, counts", "|f − median|, counts")
    plain = draw_plane(counted, labels=labels)
    # beyond all values too: the axis then reaches as far
    for threshold in (100.0, 2000.0):
        lined = draw_plane(counted, labels=labels, threshold=threshold, legend=f"threshold {threshold:g}")
        for page in ("light", "dark"):
            before, after = (orange(decode(picture, page)).sum(axis=1) for picture in (plain, lined))
            assert 1 <= (after > 0.5 * lined.width).sum() <= 4, "one line from side to side"
            assert not (before > 50).any()


def test_an_empty_plane_is_drawn_too():
    counted = count_plane(np.zeros((0, 2), np.float32), names=("value", "residual"))
    assert counted.number.sum() == 0 and draw_plane(counted, labels=("a", "b"), threshold=-5.0).width > 100

"""The k-d tree against a search of all points, ties and all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.kernels.candidates import rank_candidates
from niseg_gpu.kernels.kdtree import build_tree, find_nearest, order_by_cell


def search_all(points: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    squared = np.zeros((len(queries), len(points)))
    for f in range(points.shape[1]):
        squared += (queries[:, f, None].astype(float) - points[:, f].astype(float)) ** 2
    numbers = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squared, numbers, axis=1)), numbers


# few values, so that distances are often equal
TIES = st.sampled_from([-3.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 1e6])
FREE = st.floats(-1e4, 1e4, width=32)


@st.composite
def clouds(draw):
    features, values = draw(st.integers(1, 4)), draw(st.sampled_from([TIES, FREE]))
    arrays = [
        draw(hnp.arrays(np.float32, (draw(st.integers(least, 60)), features), elements=values)) for least in (1, 0)
    ]
    return *arrays, draw(st.integers(1, len(arrays[0]))), draw(st.integers(1, 3))


@given(clouds())
def test_the_tree_finds_what_a_full_search_finds(cloud) -> None:
    points, queries, k, workers = cloud
    kept = points.copy()
    distances, numbers = find_nearest(build_tree(points), queries, n_neighbors=k, workers=workers)
    expected = search_all(points, queries, k)
    np.testing.assert_array_equal(numbers, expected[1])
    np.testing.assert_array_equal(distances, expected[0])
    np.testing.assert_array_equal(points, kept)


@pytest.mark.parametrize("features, k", [(1, 1), (2, 1), (2, 7), (3, 5), (6, 3)])
def test_many_points(features: int, k: int) -> None:
    rng = np.random.default_rng(0)
    points, queries = (rng.normal(size=(n, features)).astype(np.float32) for n in (3000, 500))
    queries[0] = 1e6  # far outside
    distances, numbers = find_nearest(build_tree(points), queries, n_neighbors=k)
    expected = search_all(points, queries, k)
    np.testing.assert_array_equal(numbers, expected[1])
    np.testing.assert_array_equal(distances, expected[0])


def test_queries_are_each_named_once_and_neighbours_lie_together() -> None:
    queries = np.random.default_rng(1).uniform(0, 1, (5000, 2)).astype(np.float32)
    order = order_by_cell(queries, low=np.zeros(2, np.float32), high=np.ones(2, np.float32))
    assert (np.sort(order) == np.arange(5000)).all()
    steps = np.linalg.norm(np.diff(queries[order], axis=0), axis=1)
    assert steps.mean() < 0.1 * np.linalg.norm(np.diff(queries, axis=0), axis=1).mean()


@given(clouds())
def test_ranked_candidates_are_the_neighbours(cloud) -> None:
    """What the GPU's search in float32 hands over: the right points and a few more, in no reliable order."""
    points, queries, k, _ = cloud
    candidates = search_all(points, queries, len(points))[1][:, ::-1].astype(np.int32)
    distances, numbers = rank_candidates(points, queries, candidates, n_neighbors=k, xp=np)
    expected = find_nearest(build_tree(points), queries, n_neighbors=k)
    np.testing.assert_array_equal(numbers, expected[1])
    np.testing.assert_array_equal(distances, expected[0])

"""The k-d tree against a search of all points, ties and all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.kernels.candidates import rank_candidates
from niseg_gpu.kernels.kdtree import build_tree, search_tree


def search_all(points: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    squared = np.zeros((len(queries), len(points)))
    for f in range(points.shape[1]):
        squared += (queries[:, f, None].astype(float) - points[:, f].astype(float)) ** 2
    numbers = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squared, numbers, axis=1)), numbers


def search_tree_for_each(points: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    tree, squared, places = build_tree(points), np.empty((len(queries), k)), np.empty((len(queries), k), np.int32)
    for query, *found in zip(queries.astype(float), squared, places, strict=True):
        search_tree(tree, query, k, *found)
    return np.sqrt(squared), tree.numbers[places]


# few values, so that distances are often equal
TIES = st.sampled_from([-3.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 1e6])
FREE = st.floats(-1e4, 1e4, width=32)


@st.composite
def clouds(draw, *, features=(1, 4)):
    columns, values = draw(st.integers(*features)), draw(st.sampled_from([TIES, FREE]))
    points, queries = (
        draw(hnp.arrays(np.float32, (draw(st.integers(least, 60)), columns), elements=values)) for least in (1, 0)
    )
    return points, queries, draw(st.integers(1, len(points)))


@given(clouds())
def test_the_tree_finds_what_a_full_search_finds(cloud) -> None:
    points, queries, k = cloud
    kept = points.copy()
    distances, numbers = search_tree_for_each(points, queries, k)
    expected = search_all(points, queries, k)
    np.testing.assert_array_equal(numbers, expected[1])
    np.testing.assert_array_equal(distances, expected[0])
    np.testing.assert_array_equal(points, kept)


@pytest.mark.parametrize("features, k", [(1, 1), (2, 1), (2, 7), (3, 5), (6, 3)])
def test_many_points(features: int, k: int) -> None:
    rng = np.random.default_rng(0)
    points, queries = (rng.normal(size=(n, features)).astype(np.float32) for n in (3000, 500))
    queries[0] = 1e6  # far outside
    distances, numbers = search_tree_for_each(points, queries, k)
    expected = search_all(points, queries, k)
    np.testing.assert_array_equal(numbers, expected[1])
    np.testing.assert_array_equal(distances, expected[0])


@given(clouds())
def test_ranked_candidates_are_the_neighbours(cloud) -> None:
    """What the GPU's search in float32 hands over: the right points and a few more, in no reliable order."""
    points, queries, k = cloud
    candidates = search_all(points, queries, len(points))[1][:, ::-1].astype(np.int32)
    distances, numbers = rank_candidates(points, queries, candidates, n_neighbors=k, xp=np)
    expected = search_tree_for_each(points, queries, k)
    np.testing.assert_array_equal(numbers, expected[1])
    np.testing.assert_array_equal(distances, expected[0])

"""Votes of neighbours, found for many queries at once, against those of a search of all points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.kernels import votes
from niseg_gpu.kernels.candidates import count_votes, rank_candidates
from niseg_gpu.kernels.votes import find_votes, index_voters


def vote_by_hand(points, size, marks, queries, *, k: int, by_distance: bool) -> tuple[np.ndarray, np.ndarray]:
    """Each point by itself: all distances, a stable sort, the first k vote."""
    each, given = np.repeat(points, size, axis=0).astype(float), np.asarray(marks, float)
    squared = np.zeros((len(queries), len(each)))
    for f in range(points.shape[1]):
        squared += (queries[:, f, None].astype(float) - each[:, f]) ** 2
    nearest = np.argsort(squared, axis=1, kind="stable")[:, :k]
    weight = np.ones(nearest.shape)
    if by_distance:
        distance = np.sqrt(np.take_along_axis(squared, nearest, axis=1))
        weight = np.where(distance == 0, 0.0, 1 / np.where(distance == 0, 1, distance))
        sure = (distance == 0).any(1)
        weight[sure] = distance[sure] == 0
    return (weight * given[nearest]).sum(1), (weight * (1 - given[nearest])).sum(1)


def index(points, size, marks):
    first, before = np.append(0, np.cumsum(size)), np.append(0, np.cumsum(marks, dtype=np.int64))
    return index_voters(points, first=first, before=before), first, before


def mark(rng: np.random.Generator, size: np.ndarray) -> np.ndarray:
    """Numbers in the place of 0 and 1, so that their sum tells which points have voted."""
    return rng.integers(0, 2**16, size.sum())


VALUES = st.one_of(st.integers(-3, 3).map(float), st.floats(-100, 100, width=32))


@st.composite
def scenes(draw):
    features = draw(st.integers(1, 3))
    points = np.unique(draw(hnp.arrays(np.float32, (draw(st.integers(1, 80)), features), elements=VALUES)), axis=0)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    points = rng.permutation(points)
    size = rng.integers(1, draw(st.sampled_from([2, 5, 40])), len(points))
    queries = draw(hnp.arrays(np.float32, (draw(st.integers(0, 90)), features), elements=VALUES))
    return points, size, mark(rng, size), queries, draw(st.integers(1, int(min(size.sum(), 40)))), draw(st.booleans())


@given(scenes(), st.integers(1, 3))
def test_votes_are_those_of_a_full_search(scene, workers: int) -> None:
    points, size, marks, queries, k, by_distance = scene
    voters, first, before = index(points, size, marks)
    found = find_votes(voters, queries, n_neighbors=k, by_distance=by_distance, workers=workers)
    expected = vote_by_hand(points, size, marks, queries, k=k, by_distance=by_distance)
    np.testing.assert_allclose(found, expected, rtol=1e-12 if by_distance else 0)
    # the GPU's way of counting, bit for bit
    everybody = np.tile(np.arange(len(points)), (len(queries), 1))
    ranked = rank_candidates(points, queries, everybody, n_neighbors=min(k, len(points)), xp=np)
    counted = count_votes(*ranked, first, before, n_neighbors=k, by_distance=by_distance, xp=np)
    np.testing.assert_array_equal(counted, found)


def dense(rng: np.random.Generator, n: int, features: int, kind: str) -> np.ndarray:
    """Points as images have them: a cloud with far ones, a line of many within, a lattice."""
    points = rng.normal(size=(n, features)) * np.where(rng.random(n) < 0.02, 50, 1)[:, None]
    if kind == "line":
        points[: n // 3, -1] = 0
    return (points * 8).round() if kind == "lattice" else points


@pytest.mark.parametrize("kind", ["cloud", "line", "lattice"])
@pytest.mark.parametrize("features, k", [(1, 3), (2, 1), (2, 15), (2, 300), (3, 4), (5, 2)])
@pytest.mark.parametrize("n_queries", [150, 3000])
def test_bunches_of_many_queries(kind: str, features: int, k: int, n_queries: int) -> None:
    """Few queries a leaf, whose bunches span several, and many, with gatherings that are too many or too few."""
    rng = np.random.default_rng(0)
    points = np.unique(dense(rng, 2500, features, kind).astype(np.float32), axis=0)
    points, queries = rng.permutation(points), dense(rng, n_queries, features, kind).astype(np.float32)
    size = rng.integers(1, 3, len(points))
    marks = mark(rng, size)
    voters, *_ = index(points, size, marks)
    found = find_votes(voters, queries, n_neighbors=min(k, len(points)), by_distance=False)
    expected = vote_by_hand(points, size, marks, queries, k=min(k, len(points)), by_distance=False)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=10)
@given(st.integers(0, 2**32), st.integers(1, 400))
def test_who_asks_beside_a_query_does_not_matter(seed: int, number: int) -> None:
    rng = np.random.default_rng(seed)
    points, queries = (dense(rng, n, 2, "line").astype(np.float32) for n in (1500, 400))
    points = np.unique(points, axis=0)
    size = np.ones(len(points), np.int64)
    voters, *_ = index(points, size, mark(rng, size))
    every = find_votes(voters, queries, n_neighbors=7, by_distance=True)
    some = rng.permutation(400)[:number]
    np.testing.assert_array_equal(
        find_votes(voters, queries[some], n_neighbors=7, by_distance=True), np.array(every)[:, some]
    )


def test_queries_are_each_named_once_and_leaf_by_leaf() -> None:
    rng = np.random.default_rng(1)
    points, queries = rng.uniform(0, 1, (2, 5000, 2)).astype(np.float32)
    size = np.ones(5000, np.int64)
    voters, *_ = index(points, size, size)
    leaf, order = votes._order_by_leaf(voters.tree, queries)
    assert (np.sort(order) == np.arange(5000)).all() and (np.diff(leaf[order]) >= 0).all()
    steps = np.linalg.norm(np.diff(queries[order], axis=0), axis=1)
    assert steps.mean() < 0.1 * np.linalg.norm(np.diff(queries, axis=0), axis=1).mean()

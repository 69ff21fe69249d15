"""The votes of each query's nearest points on a CPU: queries that lie together are answered together.

Queries are sorted by the leaf of the k-d tree they fall into and cut into bunches. The middle one of a bunch is
searched alone; how far it had to look tells within which distance of the bunch all its neighbours lie, very likely.
These points are gathered once, and every query of the bunch looks through them in straight loops. One that finds too
few of them within the distance is searched alone, so that the answer never rests on the guess.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.kernels.kdtree import LEAF_POINTS, Tree, build_tree, search_tree

BUNCH = 32  # queries, at most
LEAF_QUERIES = 8  # where there are fewer a leaf, up to 2**MERGED leaves are taken together
MERGED = 3
REACH = 0.2  # by how much farther than its middle a bunch looks, as a share of its half diagonal
TOGETHER = 64  # queries that go down the tree side by side
BINS = 32  # of distances, to sort them by


class Voters(NamedTuple):
    """Piles of equal points, and how many spots are among each.

    Attributes
    ----------
    tree : Tree
        Over one point of each pile.
    size, spots : (piles,) int32
        Points and spots in each pile, in the order of the tree's leaves.
    first : (piles + 1,) int64
        Where each pile's points start, in the order in which the piles were given.
    before : (points + 1,) int64
        Spots among the points before each.
    """

    tree: Tree
    size: np.ndarray
    spots: np.ndarray
    first: np.ndarray
    before: np.ndarray


def index_voters(points: np.ndarray, *, first: np.ndarray, before: np.ndarray) -> Voters:
    """Prepare (piles, features) float32 points, all different, for `find_votes`."""
    tree = build_tree(points)
    size, spots = np.diff(first), before[first[1:]] - before[first[:-1]]
    return Voters(tree, *(a[tree.numbers].astype(np.int32) for a in (size, spots)), first, before)


def find_votes(
    voters: Voters, queries: np.ndarray, *, n_neighbors: int, by_distance: bool, workers: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Count the votes of each query's nearest points.

    Parameters
    ----------
    voters : Voters
    queries : (m, features) float32 ndarray
        Finite.
    n_neighbors : int
        At most the number of points, equal ones counted each.
    by_distance : bool
        Each vote counts 1 / distance, and where there are points at distance 0 they alone vote; else 1.
    workers : int
        Threads.

    Returns
    -------
    for_spots, against : (m,) float64 ndarray
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    votes = np.empty((len(queries), 2))

    def search(part: slice) -> None:
        _vote(*voters, queries[part], n_neighbors, by_distance, votes[part])

    if workers == 1:
        search(slice(None))
    else:
        from concurrent.futures import ThreadPoolExecutor

        cuts = np.linspace(0, len(queries), workers + 1, dtype=int)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(search, map(slice, cuts[:-1], cuts[1:])))
    return votes[:, 0], votes[:, 1]


class _Desk(NamedTuple):
    """Where one bunch is worked on; squared distances are from the query at hand, places those in the leaves' order.

    Attributes
    ----------
    points, places : (features, room) float64, (room,) int32
        What was gathered for the bunch.
    away : (room,) float64
        Squared distances of all that.
    close, close_places : (room,) float64, (room,) int32
        What is within the limit.
    nearest, nearest_places : (room,) float64, (room,) int32
        The same, nearest first.
    bins : (BINS + 1,) int64
    """

    points: np.ndarray
    places: np.ndarray
    away: np.ndarray
    close: np.ndarray
    close_places: np.ndarray
    nearest: np.ndarray
    nearest_places: np.ndarray
    bins: np.ndarray


@compiled
def _make_desk(features, room):  # type: ignore[no-untyped-def]
    return _Desk(
        np.empty((features, room)),
        np.empty(room, np.int32),
        np.empty(room),
        np.empty(room),
        np.empty(room, np.int32),
        np.empty(room),
        np.empty(room, np.int32),
        np.empty(BINS + 1, np.int64),
    )


@compiled
def _vote(tree, size, spots, first, before, queries, n_neighbors, by_distance, votes):  # type: ignore[no-untyped-def]
    """Bunch by bunch; `votes` (m, 2) is filled with those for spots and against."""
    features, piles = tree.points.shape
    most = min(8 * (n_neighbors + 16), piles)
    desk = _make_desk(features, most + LEAF_POINTS)
    box, query = np.empty((features, 2)), np.empty(features)
    leaf, order = _order_by_leaf(tree, queries)
    stops, depth, start = np.empty(2 * BUNCH, np.int64), 0, 0  # of the parts of a bunch that was halved
    while start < len(queries):
        if depth:
            depth -= 1
            stop = stops[depth]
        else:
            stop = start + 1
            while stop < min(start + BUNCH, len(queries)) and leaf[order[stop]] == leaf[order[start]]:
                stop += 1
        diagonal = _bound_bunch(queries, order, start, stop, box)
        gathered, limit, i = -1, 0.0, start
        while i < stop:
            for f in range(features):
                query[f] = queries[order[i], f]
            found = False
            if gathered >= 0:
                found = _sort_close(
                    desk, _keep_close(desk, gathered, query, limit, n_neighbors), limit, n_neighbors, size, tree.numbers
                )
            if not found:
                search_tree(tree, query, min(n_neighbors, piles), desk.nearest, desk.nearest_places)
            last = _count(desk, tree.numbers, size, spots, first, before, n_neighbors, by_distance, votes, order[i])
            i += 1
            if i == start + 1 and stop - start > 3:
                limit = (np.sqrt(desk.nearest[last]) + REACH * 0.5 * diagonal) ** 2
                gathered = _gather(tree, box, limit, most, desk.points, desk.places)
                if gathered < 0:
                    stops[depth], stops[depth + 1] = stop, _halve(queries, order, i, stop, box)
                    depth += 1 if stops[depth + 1] in (i, stop) else 2
                    stop = i
        start = stop


@compiled
def _order_by_leaf(tree, queries):  # type: ignore[no-untyped-def]
    """Number the leaf, or the few leaves together, that each query falls into; order queries by it."""
    first_leaf, merged = len(tree.axis) // 2, 0
    while merged < MERGED and len(queries) < ((first_leaf + 1) >> merged) * LEAF_QUERIES:
        merged += 1
    leaf, order = np.empty(len(queries), np.int32), np.empty(len(queries), np.int32)
    ends = np.zeros(((first_leaf + 1) >> merged) + 2, np.int64)
    node = np.empty(TOGETHER, np.int64)
    for start in range(0, len(queries), TOGETHER):
        number = min(TOGETHER, len(queries) - start)
        node[:] = 0
        at = 0
        while at < first_leaf:  # level by level, so that one query need not wait for what another reads
            for i in range(number):
                far = queries[start + i, tree.axis[node[i]]] >= tree.border[node[i]]
                node[i] = 2 * node[i] + 1 + far
            at = 2 * at + 1
        for i in range(number):
            leaf[start + i] = (node[i] - first_leaf) >> merged
            ends[leaf[start + i] + 1] += 1
    for i in range(1, len(ends)):
        ends[i] += ends[i - 1]
    for i in range(len(queries)):
        order[ends[leaf[i]]] = i
        ends[leaf[i]] += 1
    return leaf, order


@compiled
def _bound_bunch(queries, order, start, stop, box):  # type: ignore[no-untyped-def]
    """Fill the box around a bunch, bring the query nearest to its middle to the front; return the box's diagonal."""
    diagonal = 0.0
    for f in range(len(box)):
        low = high = queries[order[start], f]
        for i in range(start + 1, stop):
            low, high = min(low, queries[order[i], f]), max(high, queries[order[i], f])
        box[f, 0], box[f, 1] = low, high
        diagonal += (box[f, 1] - box[f, 0]) ** 2
    middle, least = start, np.inf
    for i in range(start, stop):
        squared = 0.0
        for f in range(len(box)):
            squared += (queries[order[i], f] - 0.5 * (box[f, 0] + box[f, 1])) ** 2
        if squared < least:
            middle, least = i, squared
    order[start], order[middle] = order[middle], order[start]
    return np.sqrt(diagonal)


@compiled
def _halve(queries, order, start, stop, box):  # type: ignore[no-untyped-def]
    """Bring the queries in the lower half of the box's longest side to the front; return how far they reach."""
    widest = 0
    for f in range(1, len(box)):
        if box[f, 1] - box[f, 0] > box[widest, 1] - box[widest, 0]:
            widest = f
    middle = 0.5 * (box[widest, 0] + box[widest, 1])
    for i in range(start, stop):
        if queries[order[i], widest] < middle:
            order[start], order[i] = order[i], order[start]
            start += 1
    return start


@compiled
def _gather(tree, box, limit, most, gathered, places):  # type: ignore[no-untyped-def]
    """Copy all points whose squared distance from the box is at most `limit`; return how many, -1 for too many.

    A point left out is farther than `limit` from any query in the box, as distances are summed here: see `search_tree`.
    """
    points, _, boxes, axis, _, start = tree
    first_leaf, number = len(axis) // 2, 0
    waiting, depth = np.zeros(64, np.int64), 1
    while depth:
        depth -= 1
        node, squared = waiting[depth], 0.0
        for f in range(len(box)):
            away = max(boxes[node, f, 0] - box[f, 1], box[f, 0] - boxes[node, f, 1], 0.0)
            squared += away * away
        if squared > limit:
            continue
        if node < first_leaf:
            waiting[depth], waiting[depth + 1] = 2 * node + 2, 2 * node + 1
            depth += 2
            continue
        for i in range(start[node - first_leaf], start[node - first_leaf + 1]):
            squared = 0.0
            for f in range(len(box)):
                value = np.float64(points[f, i])
                gathered[f, number] = value
                away = max(value - box[f, 1], box[f, 0] - value, 0.0)
                squared += away * away
            places[number] = i
            number += squared <= limit
        if number > most:
            return -1
    return number


@compiled(fastmath={"nnan", "nsz"})  # or the least of many is not found side by side
def _keep_close(desk, gathered, query, limit, n_neighbors):  # type: ignore[no-untyped-def]
    """Keep what is at most `limit` from the query, of one neighbour only what is nearest; return how many points."""
    away = desk.away
    for i in range(gathered):
        away[i] = 0.0
    for f in range(len(query)):
        value = query[f]
        for i in range(gathered):
            away[i] += (value - desk.points[f, i]) * (value - desk.points[f, i])
    if n_neighbors == 1:
        least = np.inf
        for i in range(gathered):
            least = away[i] if away[i] < least else least
        limit = least if least < limit else limit
    number = 0
    for i in range(gathered):  # without a branch, for nobody could foretell it
        desk.close[number], desk.close_places[number] = away[i], desk.places[i]
        number += away[i] <= limit
    return number


@compiled
def _sort_close(desk, number, limit, n_neighbors, size, numbers):  # type: ignore[no-untyped-def]
    """Sort what is close by (distance, number), roughly in bins, then by insertion; return False for too few votes."""
    close, close_places, nearest, places, bins = desk[3:]
    weight = 0
    for i in range(number):
        weight += size[close_places[i]]
    if weight < n_neighbors:
        return False
    if number == 1:
        nearest[0], places[0] = close[0], close_places[0]
        return True
    bins[:] = 0
    scale = (BINS - 1) / limit if limit > 0 else 0.0
    for i in range(number):
        bins[int(close[i] * scale) + 1] += 1
    for i in range(1, BINS):
        bins[i] += bins[i - 1]
    for i in range(number):
        place = bins[int(close[i] * scale)]
        bins[int(close[i] * scale)] += 1
        nearest[place], places[place] = close[i], close_places[i]
    for i in range(1, number):
        away, point, place = nearest[i], places[i], i
        while place > 0 and (
            away < nearest[place - 1] or (away == nearest[place - 1] and numbers[point] < numbers[places[place - 1]])
        ):
            nearest[place], places[place] = nearest[place - 1], places[place - 1]
            place -= 1
        nearest[place], places[place] = away, point
    return True


@compiled
def _count(desk, numbers, size, spots, first, before, n_neighbors, by_distance, votes, query):  # type: ignore[no-untyped-def]
    """Fill the votes of the nearest points, of the last pile only as many as still make them up; return the last."""
    for_spots, against, left, i = 0.0, 0.0, n_neighbors, -1
    coincide = by_distance and desk.nearest[0] == 0
    while left > 0:
        i += 1
        point = desk.nearest_places[i]
        taken, marked = size[point], spots[point]
        if taken > left:
            pile = first[numbers[point]]
            taken, marked = left, before[pile + left] - before[pile]
        weight = 1.0
        if coincide:
            weight = 1.0 * (desk.nearest[i] == 0)
        elif by_distance:
            weight = 1 / np.sqrt(desk.nearest[i])
        for_spots += weight * marked
        against += weight * (taken - marked)
        left -= taken
    votes[query, 0], votes[query, 1] = for_spots, against
    return i

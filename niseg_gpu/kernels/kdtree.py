"""Exact nearest neighbours of many points in few dimensions on a CPU: a balanced k-d tree (10.1145/361002.361007).

Distances are sums of squares in float64. Of points equally far the one that comes first wins, so that neighbours
never depend on how the tree was built or on which queries are asked together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

LEAF_POINTS = 8  # two float32 coordinates of 8 points fill a cache line
GRID_CODES = 256  # cells a side, so that a cell's number fits into 16 bit, which NumPy sorts by radix


class Tree(NamedTuple):
    """A complete binary tree over points; the children of node i are 2 i + 1 and 2 i + 2.

    Attributes
    ----------
    points : (n, features) float32
        In the order of the leaves.
    numbers : (n,) int64
        Of each point in the order in which they were given.
    boxes : (nodes, features, 2) float32
        Least and largest coordinates of each node's points.
    start : (nodes + 1,) int64
        Where each leaf starts; ``start[leaf]`` to ``start[leaf + 1]`` counts from the first leaf.
    """

    points: np.ndarray
    numbers: np.ndarray
    boxes: np.ndarray
    start: np.ndarray


def build_tree(points: np.ndarray) -> Tree:
    """Build the tree of (n, features) float32 points, n at least 1."""
    points = np.ascontiguousarray(points, dtype=np.float32).copy()
    levels = max(0, int(np.ceil(np.log2(len(points) / LEAF_POINTS))))
    nodes = 2 ** (levels + 1) - 1
    numbers = np.arange(len(points))
    boxes = np.empty((nodes, points.shape[1], 2), np.float32)
    bounds = np.empty((nodes, 2), np.int64)
    _split(points, numbers, boxes, bounds)
    first_leaf = nodes // 2
    return Tree(points, numbers, boxes, np.append(bounds[first_leaf:, 0], len(points)))


def find_nearest(
    tree: Tree, queries: np.ndarray, *, n_neighbors: int, workers: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Find each query's nearest points, nearest first.

    Parameters
    ----------
    tree : Tree
    queries : (m, features) float32 ndarray
        Finite.
    n_neighbors : int
        At most the number of points.
    workers : int
        Threads.

    Returns
    -------
    distances : (m, n_neighbors) float64 ndarray
    numbers : (m, n_neighbors) int64 ndarray
        Of the points in the order in which they were given.
    """
    order = order_by_cell(queries, low=tree.boxes[0, :, 0], high=tree.boxes[0, :, 1])
    ordered = np.ascontiguousarray(queries[order], dtype=np.float32)
    found = np.empty((len(queries), n_neighbors)), np.empty((len(queries), n_neighbors), np.int64)

    def search(part: slice) -> None:
        _search(tree.points, tree.numbers, tree.boxes, tree.start, ordered[part], found[0][part], found[1][part])

    if workers == 1:
        search(slice(None))
    else:
        from concurrent.futures import ThreadPoolExecutor

        cuts = np.linspace(0, len(queries), 4 * workers + 1, dtype=int)
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(search, map(slice, cuts[:-1], cuts[1:])))
    distances, numbers = np.empty_like(found[0]), np.empty_like(found[1])
    distances[order], numbers[order] = np.sqrt(found[0]), found[1]
    return distances, numbers


def order_by_cell(queries: np.ndarray, *, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Order queries along a curve through the cells of a grid, so that one finds in the cache what the last one read.

    The grid lies over the first two features, the curve is Morton's.
    """
    key = np.zeros(len(queries), np.uint16)
    for axis in range(min(2, queries.shape[1])):
        width = max(float(high[axis] - low[axis]), np.finfo(np.float32).tiny)
        code = (queries[:, axis] - low[axis]) * np.float32((GRID_CODES - 1) / width)
        key |= _SPREAD[np.clip(code, 0, GRID_CODES - 1).astype(np.uint8)] << np.uint16(axis)
    return np.argsort(key, kind="stable")


def _spread_bits() -> np.ndarray:
    """The 8 bits of each code with a free bit above each."""
    codes = np.arange(GRID_CODES, dtype=np.uint16)
    return sum(((codes >> np.uint16(bit)) & np.uint16(1)) << np.uint16(2 * bit) for bit in range(8))


_SPREAD = _spread_bits()


@njit(nogil=True, cache=True)
def _split(points, numbers, boxes, bounds):  # type: ignore[no-untyped-def]
    """Order points into leaves: each node's are halved at the median along the longest side of their box."""
    nodes, features = boxes.shape[:2]
    bounds[0, 0], bounds[0, 1] = 0, len(points)
    for node in range(nodes):
        start, stop = bounds[node]
        widest = 0
        for f in range(features):
            low = high = points[start, f]
            for i in range(start + 1, stop):
                low, high = min(low, points[i, f]), max(high, points[i, f])
            boxes[node, f, 0], boxes[node, f, 1] = low, high
            if high - low > boxes[node, widest, 1] - boxes[node, widest, 0]:
                widest = f
        if 2 * node + 2 < nodes:
            middle = (start + stop) // 2
            _select(points, numbers, start, stop - 1, middle, widest)
            bounds[2 * node + 1, 0], bounds[2 * node + 1, 1] = start, middle
            bounds[2 * node + 2, 0], bounds[2 * node + 2, 1] = middle, stop


@njit(nogil=True, cache=True)
def _select(points, numbers, left, right, middle, axis):  # type: ignore[no-untyped-def]
    """Hoare's selection: what lies before `middle` is no larger along `axis`, what lies behind no smaller."""
    while left < right:
        pivot = points[(left + right) // 2, axis]
        i, j = left, right
        while i <= j:
            while points[i, axis] < pivot:
                i += 1
            while points[j, axis] > pivot:
                j -= 1
            if i <= j:
                for f in range(points.shape[1]):
                    points[i, f], points[j, f] = points[j, f], points[i, f]
                numbers[i], numbers[j] = numbers[j], numbers[i]
                i += 1
                j -= 1
        if middle <= j:
            right = j
        elif middle >= i:
            left = i
        else:
            return


@njit(nogil=True, cache=True)
def _search(points, numbers, boxes, start, queries, distances, found):  # type: ignore[no-untyped-def]
    """Fill the squared distances and numbers of each query's nearest points."""
    nodes, features = boxes.shape[:2]
    first_leaf, k = nodes // 2, distances.shape[1]
    waiting, bound = np.empty(128, np.int64), np.empty(128)
    query = np.empty(features)
    for row in range(len(queries)):
        for f in range(features):
            query[f] = queries[row, f]
        best, best_number = distances[row], found[row]
        best[:] = np.inf
        best_number[:] = len(points)
        waiting[0], bound[0], depth, worst = 0, 0.0, 1, np.inf
        while depth:
            depth -= 1
            node = waiting[depth]
            if bound[depth] > worst:
                continue
            while node < first_leaf:
                one, two = 2 * node + 1, 2 * node + 2
                to_one, to_two = 0.0, 0.0
                for f in range(features):
                    # summed like the distances below, so that rounding never puts a box beyond a point in it
                    away = max(boxes[one, f, 0] - query[f], query[f] - boxes[one, f, 1], 0.0)
                    to_one += away * away
                    away = max(boxes[two, f, 0] - query[f], query[f] - boxes[two, f, 1], 0.0)
                    to_two += away * away
                if to_one <= to_two:
                    node, waiting[depth], bound[depth] = one, two, to_two
                else:
                    node, waiting[depth], bound[depth] = two, one, to_one
                if bound[depth] <= worst:
                    depth += 1
            for i in range(start[node - first_leaf], start[node - first_leaf + 1]):
                squared = 0.0
                for f in range(features):
                    away = query[f] - points[i, f]
                    squared += away * away
                if squared > worst or (squared == worst and numbers[i] > best_number[k - 1]):
                    continue
                number, place = numbers[i], k - 1
                while place > 0 and (
                    squared < best[place - 1] or (squared == best[place - 1] and number < best_number[place - 1])
                ):
                    best[place], best_number[place] = best[place - 1], best_number[place - 1]
                    place -= 1
                best[place], best_number[place] = squared, number
                worst = best[k - 1]

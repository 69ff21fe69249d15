"""Exact nearest neighbours of many points in few dimensions on a CPU: a balanced k-d tree (10.1145/361002.361007).

Distances are sums of squares in float64. Of points equally far the one that comes first wins, so that neighbours
never depend on how the tree was built or on which queries are asked together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

LEAF_POINTS = 16  # at most; few enough to look at all of them
GRID_CODES = 256  # cells a side, so that a cell's number fits into 16 bit, which NumPy sorts by radix


class Tree(NamedTuple):
    """A complete binary tree over points; the children of node i are 2 i + 1 and 2 i + 2.

    Attributes
    ----------
    points : (features, n) float32
        In the order of the leaves.
    numbers : (n,) int64
        Of each point in the order in which they were given.
    boxes : (nodes, features, 2) float32
        Least and largest coordinates of each node's points.
    axis : (nodes,) int64
        Along which a node's points are halved.
    start : (leaves + 1,) int64
        Where each leaf's points start.
    """

    points: np.ndarray
    numbers: np.ndarray
    boxes: np.ndarray
    axis: np.ndarray
    start: np.ndarray


def build_tree(points: np.ndarray) -> Tree:
    """Build the tree of (n, features) float32 points, n at least 1."""
    points = np.ascontiguousarray(points, dtype=np.float32).copy()
    levels = max(0, int(np.ceil(np.log2(len(points) / LEAF_POINTS))))
    nodes = 2 ** (levels + 1) - 1
    numbers = np.arange(len(points))
    boxes = np.empty((nodes, points.shape[1], 2), np.float32)
    bounds, axis = np.empty((nodes, 2), np.int64), np.empty(nodes, np.int64)
    _split(points, numbers, boxes, axis, bounds)
    return Tree(points.T.copy(), numbers, boxes, axis, np.append(bounds[nodes // 2 :, 0], len(points)))


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
        _search(*tree, ordered[part], found[0][part], found[1][part])

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
        width = float(high[axis]) - float(low[axis])
        if width > 0:
            inside = np.clip(queries[:, axis], low[axis], high[axis]) - low[axis]
            key |= _SPREAD[(inside * ((GRID_CODES - 1) / width)).astype(np.uint8)] << np.uint16(axis)
    return np.argsort(key, kind="stable")


def _spread_bits() -> np.ndarray:
    """The 8 bits of each code with a free bit above each."""
    codes = np.arange(GRID_CODES, dtype=np.uint16)
    return sum(((codes >> np.uint16(bit)) & np.uint16(1)) << np.uint16(2 * bit) for bit in range(8))


_SPREAD = _spread_bits()


@njit(nogil=True, cache=True)
def _split(points, numbers, boxes, axis, bounds):  # type: ignore[no-untyped-def]
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
        axis[node] = widest
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
def _search(points, numbers, boxes, axis, start, queries, distances, found):  # type: ignore[no-untyped-def]
    """Fill the squared distances and numbers of each query's nearest points.

    A node's bound is never larger than the distance, as summed here, to any point in it: each is the sum of the same
    squares or of smaller ones, in the same order, and rounding keeps order.
    """
    nodes, features = boxes.shape[:2]
    first_leaf, k = nodes // 2, distances.shape[1]
    waiting, bound = np.empty(64, np.int64), np.empty(64)
    query, squared = np.empty(features), np.empty(LEAF_POINTS)
    for row in range(len(queries)):
        for f in range(features):
            query[f] = queries[row, f]
        best, best_number = distances[row], found[row]
        best[:] = np.inf
        best_number[:] = len(numbers)
        waiting[0], bound[0], depth, worst = 0, 0.0, 1, np.inf
        while depth:
            depth -= 1
            node = waiting[depth]
            if bound[depth] > worst or _to_box(boxes, node, query) > worst:
                continue
            while node < first_leaf:  # down to the nearer leaf; the farther halves wait
                f, one, two = axis[node], 2 * node + 1, 2 * node + 2
                to_one, to_two = max(query[f] - boxes[one, f, 1], 0.0), max(boxes[two, f, 0] - query[f], 0.0)
                if to_one <= to_two:
                    node, waiting[depth], bound[depth] = one, two, to_two * to_two
                else:
                    node, waiting[depth], bound[depth] = two, one, to_one * to_one
                if bound[depth] <= worst:
                    depth += 1
            first, size = start[node - first_leaf], start[node - first_leaf + 1] - start[node - first_leaf]
            for i in range(size):
                squared[i] = 0.0
            for f in range(features):
                for i in range(size):
                    away = query[f] - points[f, first + i]
                    squared[i] += away * away
            for i in range(size):
                if squared[i] > worst or (squared[i] == worst and numbers[first + i] > best_number[k - 1]):
                    continue
                number, place = numbers[first + i], k - 1
                while place > 0 and (
                    squared[i] < best[place - 1] or (squared[i] == best[place - 1] and number < best_number[place - 1])
                ):
                    best[place], best_number[place] = best[place - 1], best_number[place - 1]
                    place -= 1
                best[place], best_number[place] = squared[i], number
                worst = best[k - 1]


@njit(nogil=True, cache=True)
def _to_box(boxes, node, query):  # type: ignore[no-untyped-def]
    squared = 0.0
    for f in range(len(query)):
        away = max(boxes[node, f, 0] - query[f], query[f] - boxes[node, f, 1], 0.0)
        squared += away * away
    return squared

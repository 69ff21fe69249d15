"""A balanced k-d tree over many points in few dimensions (10.1145/361002.361007), and one query's search in it.

Distances are sums of squares in float64, always summed in the same order. Of points equally far the one that comes
first wins, so that neighbours never depend on how the tree was built or on which queries are asked together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from niseg_gpu.kernels.compiled import compiled

LEAF_POINTS = 16  # at most; few enough to look at all of them


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
    axis : (nodes,) int8
        Along which a node's points are halved.
    border : (nodes,) float32
        Where: least coordinate in the upper half; 0 for leaves.
    start : (leaves + 1,) int64
        Where each leaf's points start.
    """

    points: np.ndarray
    numbers: np.ndarray
    boxes: np.ndarray
    axis: np.ndarray
    border: np.ndarray
    start: np.ndarray


def build_tree(points: np.ndarray) -> Tree:
    """Build the tree of (n, features) float32 points, n at least 1."""
    points = np.ascontiguousarray(points, dtype=np.float32).copy()
    levels = max(0, int(np.ceil(np.log2(len(points) / LEAF_POINTS))))
    nodes = 2 ** (levels + 1) - 1
    numbers = np.arange(len(points))
    boxes = np.empty((nodes, points.shape[1], 2), np.float32)
    bounds, axis = np.empty((nodes, 2), np.int64), np.empty(nodes, np.int8)
    _split(points, numbers, boxes, axis, bounds)
    halved, border = np.arange(nodes // 2), np.zeros(nodes, np.float32)
    border[halved] = boxes[2 * halved + 2, axis[halved], 0]
    return Tree(points.T.copy(), numbers, boxes, axis, border, np.append(bounds[nodes // 2 :, 0], len(points)))


@compiled
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


@compiled
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


@compiled
def search_tree(tree, query, n_neighbors, squared, places):  # type: ignore[no-untyped-def]
    """Fill the squared distances of a query's nearest points, nearest first, and their places in the leaves' order.

    A node's bound is never larger than the distance, as summed here, to any point in it: each is the sum of the same
    squares or of smaller ones, in the same order, and rounding keeps order.
    """
    points, numbers, boxes, axis, _, start = tree
    first_leaf, last = len(axis) // 2, n_neighbors - 1
    waiting, bound, away = np.empty(64, np.int64), np.empty(64), np.empty(LEAF_POINTS)
    squared[:n_neighbors] = np.inf
    waiting[0], bound[0], depth, found = 0, 0.0, 1, 0
    while depth:
        depth -= 1
        node = waiting[depth]
        if bound[depth] > squared[last] or _to_box(boxes, node, query) > squared[last]:
            continue
        while node < first_leaf:  # down to the nearer leaf; the farther halves wait
            f, one, two = axis[node], 2 * node + 1, 2 * node + 2
            to_one, to_two = max(query[f] - boxes[one, f, 1], 0.0), max(boxes[two, f, 0] - query[f], 0.0)
            if to_one <= to_two:
                node, waiting[depth], bound[depth] = one, two, to_two * to_two
            else:
                node, waiting[depth], bound[depth] = two, one, to_one * to_one
            if bound[depth] <= squared[last]:
                depth += 1
        first, size = start[node - first_leaf], start[node - first_leaf + 1] - start[node - first_leaf]
        for i in range(size):
            away[i] = 0.0
        for f in range(len(query)):
            for i in range(size):
                along = query[f] - points[f, first + i]
                away[i] += along * along
        for i in range(size):
            number = numbers[first + i]
            if away[i] > squared[last] or (
                found == n_neighbors and away[i] == squared[last] and number > numbers[places[last]]
            ):
                continue
            found = min(found + 1, n_neighbors)
            place = found - 1
            while place > 0 and (
                away[i] < squared[place - 1] or (away[i] == squared[place - 1] and number < numbers[places[place - 1]])
            ):
                squared[place], places[place] = squared[place - 1], places[place - 1]
                place -= 1
            squared[place], places[place] = away[i], first + i


@compiled
def _to_box(boxes, node, query):  # type: ignore[no-untyped-def]
    squared = 0.0
    for f in range(len(query)):
        away = max(boxes[node, f, 0] - query[f], query[f] - boxes[node, f, 1], 0.0)
        squared += away * away
    return squared

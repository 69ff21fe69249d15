"""The kernels of one k-means iteration on a CUDA GPU: nearest centroids, and the sums of the pixels of each cluster.

A block goes through tiles of pixels. While it works on one, the next is copied asynchronously into its shared memory.
A thread multiplies two pixels of the tile with all centroids over its share of the features, the products in registers;
shares are added, and the least score gives the label. Then the pixels of the tile are put in the order of their labels
and the same tile is summed: each thread owns a few features and keeps their sums over every cluster in registers from
tile to tile. The data are read once (`fuse`).

Where clusters times features are too many for registers, tiles are cut along the features too and only labels are
found (`assign`); `sum_runs` reads the data again in the order of the labels.
"""

# ruff: noqa: F821  (functions call each other by the names that `lloyd_cuda.build` gives them)
from __future__ import annotations

from types import FunctionType
from typing import Any

import numpy as np
from numba import config, cuda, float32, float64, int32, types, uint32

from niseg_gpu.kernels import lloyd_ptx, lloyd_tile
from niseg_gpu.kernels.lloyd_ptx import UNPACKED
from niseg_gpu.kernels.lloyd_tile import (
    CLUSTERS,
    COLUMNS,
    EACH,
    FLIP,
    GROUPS,
    ITEM,
    MOVED,
    ORDER,
    PER_VECTOR,
    PRODUCTS,
    ROWS,
    SETTLED,
    SPAN,
    THREADS,
    TOTAL,
    TOTALS,
    VALUE,
    WHOLE,
    WIDTH,
    WORD,
)


def _begin(words, ints, mean, at, quads, features):
    """Set the counters to zero and bring the mean into shared memory."""
    thread = cuda.threadIdx.x
    for i in range(thread, ORDER, THREADS):
        ints[i] = 0
    for i in range(np.int32(thread), np.int32(4 * quads), np.int32(THREADS)):
        value = mean[i] if i < features else np.float32(0)
        if WHOLE and WIDTH > 4:
            value += np.float32(UNPACKED + (32768 if FLIP else 0))
        words[at + i] = value
    cuda.syncthreads()


def _fuse(pixels, n, length, features, vectors, table, mean, norms, magic, labels, places, partial):
    """Kernel: one iteration in one pass. A block's sums, sizes and number of labels that moved go into its row."""
    words, ints = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    tile, values = cuda.shared.array(0, WORD), cuda.shared.array(0, VALUE)
    products, settled = cuda.local.array(PRODUCTS, float32), cuda.local.array(SETTLED, int32)
    totals, centre = cuda.local.array(TOTALS, TOTAL), cuda.local.array(EACH, float32)
    thread, rows, quads = cuda.threadIdx.x, ROWS * GROUPS, vectors * PER_VECTOR
    counts, own_count, own_moved = ints, 0, 0
    order = ints[ORDER:]
    at_tiles, step, at_table, at_mean, shares, slab = places
    begin(words, ints, mean, at_mean, quads, features)
    for i in range(TOTALS):
        totals[i] = TOTAL(0)
    if not WHOLE:
        for j in range(EACH):
            feature = thread + j * THREADS
            centre[j] = mean[feature] if feature < features else np.float32(0)
    stage_table(table, words, at_table, 0, quads)
    number, tiles, side = cuda.blockIdx.x, (n + rows - 1) // rows, 0
    stage_rows(pixels, words, at_tiles, number * rows, lesser(rows, n - number * rows), length)
    close_copies()
    while number < tiles:
        following = number + cuda.gridDim.x
        if following < tiles:
            to = at_tiles + (1 - side) * step
            stage_rows(pixels, words, to, following * rows, lesser(rows, n - following * rows), length)
        close_copies()
        await_older_copies()
        cuda.syncthreads()
        at = (at_tiles + side * step) * (4 // ITEM)  # in values
        scale = 1 if WIDTH == 1 else 4 // ITEM
        for i in range(PRODUCTS):
            products[i] = np.float32(0)
        row = np.int32((at + thread % GROUPS * length) // scale)
        gap = np.int32(GROUPS * length // scale)
        multiply(tile, words, row, gap, at_table, at_mean, vectors, features, products)
        first = number * rows
        own_moved += settle_tile(first, n, labels, norms, words, shares, slab, products, counts, settled)
        cuda.syncthreads()
        place_tile(at, length, counts, order, settled)
        cuda.syncthreads()
        sum_tile(values, order, counts, centre, magic, totals, np.int32(0))
        cuda.syncthreads()
        if thread < CLUSTERS:
            own_count += counts[thread]
            counts[thread] = 0
        number, side = following, 1 - side
    if thread < CLUSTERS:
        counts[thread] = own_count
    cuda.atomic.add(ints, MOVED, np.int32(own_moved))
    cuda.syncthreads()
    columns = CLUSTERS * (features + 1) + 1
    sums = partial[cuda.blockIdx.x * columns :]
    put_totals(features, mean, counts, totals, sums)
    put_tallies(counts, ints[MOVED:], sums[CLUSTERS * features :])


def _assign(pixels, n, length, features, vectors, table, mean, norms, labels, places, partial):
    """Kernel: labels alone. A block's sizes and number of labels that moved go into its row."""
    words, ints = cuda.shared.array(0, float32), cuda.shared.array(0, int32)
    tile, values = cuda.shared.array(0, WORD), cuda.shared.array(0, VALUE)
    products, settled = cuda.local.array(PRODUCTS, float32), cuda.local.array(SETTLED, int32)
    thread, rows, own_moved = cuda.threadIdx.x, ROWS * GROUPS, 0
    at_tiles, step, at_table, at_mean, shares, slab = places
    begin(words, ints, mean, at_mean, vectors * PER_VECTOR, features)
    length_here = 4 * SPAN + 1 if WIDTH == 1 else 4 * SPAN + 4
    number, tiles, side, ahead = cuda.blockIdx.x, (n + rows - 1) // rows, 0, 0
    while number < tiles:
        for i in range(PRODUCTS):
            products[i] = np.float32(0)
        for start in range(-SPAN, vectors, SPAN):
            # what is worked on now was asked for one turn before, the first of all in a turn of its own
            if start < 0 and number >= cuda.gridDim.x:
                continue
            following, ahead = number, start + SPAN
            if ahead >= vectors:
                following, ahead = number + cuda.gridDim.x, 0
            if following < tiles:
                here, other = lesser(SPAN, vectors - ahead), 1 - side
                first, to = following * rows, at_tiles + other * step
                stage_span(pixels, words, values, to, first, lesser(rows, n - first), length, ahead, here)
                to, quad = at_table + other * (4 * SPAN * PER_VECTOR * CLUSTERS), ahead * PER_VECTOR
                stage_table(table, words, to, quad, here * PER_VECTOR)
            close_copies()
            if start >= 0:
                await_older_copies()
                cuda.syncthreads()
                at, here = at_tiles + side * step, lesser(SPAN, vectors - start)
                row = np.int32((at if WIDTH > 1 else at * (4 // ITEM)) + thread * length_here)
                at = at_table + side * (4 * SPAN * PER_VECTOR * CLUSTERS)
                gap, at_quad = np.int32(GROUPS * length_here), at_mean + 4 * start * PER_VECTOR
                multiply(tile, words, row, gap, at, at_quad, here, features - 4 * start, products)
                cuda.syncthreads()
            side = 1 - side
        first = number * rows
        own_moved += settle_tile(first, n, labels, norms, words, shares, slab, products, ints, settled)
        number += cuda.gridDim.x
    cuda.atomic.add(ints, MOVED, np.int32(own_moved))
    cuda.syncthreads()
    put_tallies(ints, ints[MOVED:], partial[cuda.blockIdx.x * (CLUSTERS + 1) :])


def _prepare(centroids, k, features, quads, table, norms):
    """Kernel: lay the centroids out by quads of features, and add up their squares; one block a cluster.

    Clusters beyond the `k` there are come to lie infinitely far away.
    """
    squares = cuda.shared.array(THREADS, float64)
    cluster, thread = cuda.blockIdx.x, cuda.threadIdx.x
    total = 0.0
    for i in range(thread, 4 * quads, THREADS):
        value = centroids[cluster * features + i] if cluster < k and i < features else np.float32(0)
        table[(i // 4 * cuda.gridDim.x + cluster) * 4 + i % 4] = value
        total += np.float64(value) * np.float64(value)
    squares[thread] = total
    half = THREADS // 2
    while half:
        cuda.syncthreads()
        if thread < half:
            squares[thread] += squares[thread + half]
        half //= 2
    if thread == 0:
        norms[cluster] = np.float32(squares[0]) if cluster < k else np.float32(np.inf)


def _sum_runs(pixels, length, features, mean, magic, order, starts, run, sums):
    """Kernel: sum runs of pixels in the order of their labels; see `_add_runs` for where the sums go."""
    feature = cuda.blockIdx.y * THREADS + cuda.threadIdx.x
    place = starts[0] + cuda.blockIdx.x * run
    stop, label = lesser(place + run, starts[CLUSTERS]), 0
    if feature >= features:
        return
    while place < stop:
        while starts[label + 1] <= place:
            label += 1
        end, begin = lesser(stop, starts[label + 1]), place
        total, centre = TOTAL(0), mean[feature]
        while place < end:
            value = pixels[np.int64(order[place]) * length + feature]
            if WHOLE:
                total += TOTAL(value)
            else:
                total += (np.float64(np.float32(np.float32(value) - centre)) + magic) - magic
            place += 1
        exact = np.float64(total)
        if WHOLE:
            exact -= np.float64(centre) * (end - begin)
        sums[(cuda.blockIdx.x + label) * features + feature] = exact


def _add_runs(sums, starts, run, features, out):
    """Kernel: add the sums of all runs of each cluster. Run r has that of cluster c in row r + c: no two share one."""
    column = cuda.blockIdx.x * COLUMNS + cuda.threadIdx.x % COLUMNS
    total = 0.0
    if column < CLUSTERS * features:
        label = column // features
        begin, end = starts[label] - starts[0], starts[label + 1] - starts[0]
        behind = (end - 1) // run + 1 if end > begin else 0
        for r in range(begin // run + cuda.threadIdx.x // COLUMNS, behind, THREADS // COLUMNS):
            total += sums[(r + label) * features + column % features]
    add_tree(total, column, CLUSTERS * features, out)


def _add_parts(partial, parts, columns, out):
    """Kernel: add up the rows of all blocks."""
    column = cuda.blockIdx.x * COLUMNS + cuda.threadIdx.x % COLUMNS
    total = 0.0
    if column < columns:
        for part in range(cuda.threadIdx.x // COLUMNS, parts, THREADS // COLUMNS):
            total += partial[part * columns + column]
    add_tree(total, column, columns, out)


def _add_tree(total, column, columns, out):
    """Add what the threads of a column have."""
    totals = cuda.shared.array(THREADS, float64)
    thread, half = cuda.threadIdx.x, THREADS // COLUMNS // 2
    totals[thread] = total
    while half:
        cuda.syncthreads()
        if thread < half * COLUMNS:
            totals[thread] += totals[thread + half * COLUMNS]
        half //= 2
    if thread < COLUMNS and column < columns:
        out[column] = totals[thread]


KERNELS = {f.__name__: f for f in (_fuse, _assign, _prepare, _sum_runs, _add_runs, _add_parts)}
INSTRUCTIONS = ("load4", "copy16", "unpack", "close_copies", "await_older_copies")
ON_DEVICE = (*(f for f in vars(lloyd_tile).values() if isinstance(f, FunctionType)), _begin, _add_tree)


def build(kernel: str, *, dtype: np.dtype, clusters: int, wide: bool, whole: bool, groups: int, each: int) -> Any:
    """Return a kernel's Python function; all it calls is made for one case.

    Parameters
    ----------
    kernel : {"fuse", "assign", "prepare", "sum_runs", "add_runs", "add_parts"}
    dtype : dtype
        Of the pixels.
    clusters : int
    wide : bool
        Whether rows begin at multiples of 16 bytes.
    whole : bool
        Whether the values and the mean are whole numbers.
    groups : int
        Threads side by side along the pixels of a tile, a power of two.
    each : int
        Features that a thread sums.
    """
    width = 16 // dtype.itemsize if wide else 1
    value = getattr(types, dtype.name)
    total = (int32 if dtype.kind == "i" else uint32) if whole else float64
    settings = {
        "GROUPS": groups,
        "CLUSTERS": clusters,
        "PRODUCTS": lloyd_tile.ROWS * clusters,
        "EACH": each,
        "TOTALS": each * clusters,
        "ITEM": dtype.itemsize,
        "WIDTH": width,
        "PER_VECTOR": max(1, width // 4),
        "WHOLE": whole,
        "FLIP": 0x8000_8000 if wide and dtype == np.int16 else 0,
        "VALUE": value,
        "WORD": value if width <= 4 else uint32,
        "TOTAL": total,
    }
    scope = {**globals(), **vars(lloyd_tile), **settings}
    scope |= {name: getattr(lloyd_ptx, name) for name in INSTRUCTIONS}
    for function in (*ON_DEVICE, *_write_out(clusters, settings["PER_VECTOR"])):
        made = _rebuild(function, scope)
        # the simulator needs no wrapper, and it would only slow it down
        scope[function.__name__.removeprefix("_")] = made if config.ENABLE_CUDASIM else cuda.jit(device=True)(made)
    return _rebuild(KERNELS[f"_{kernel}"], scope)


def _write_out(clusters: int, per_vector: int) -> list[Any]:
    """Loops over what is in registers, written out: not all of them would be unrolled, and then it would not be."""
    heads = {
        "multiply_clusters(words, begin, x, products)": "multiply_cluster(words, begin, {}, x, products)",
        "sum_tile(values, order, counts, centre, magic, totals, place)": (
            "place = sum_cluster({}, place, values, order, counts, centre, magic, totals)"
        ),
        "put_totals(features, mean, counts, totals, sums)": "put_cluster({}, features, mean, counts, totals, sums)",
        "multiply_packed(words, table, mean, vector, raw, x, products)": (
            "multiply_packed_quad(words, table, mean, vector, {}, raw, x, products)"
        ),
    }
    functions = []
    for head, line in heads.items():
        made: dict[str, Any] = {}
        n = per_vector if "quad" in line else clusters
        # as a bare number, each would be a type of its own, and compiled for itself
        exec("\n    ".join([f"def {head}:", *(line.format(f"np.int32({i})") for i in range(n))]), made)
        functions.append(made[head.partition("(")[0]])
    return functions


def _rebuild(function: Any, scope: dict[str, Any]) -> Any:
    return FunctionType(function.__code__, scope, function.__name__)

"""What a block of the k-means kernels does with a tile of pixels; see `lloyd_cuda`, which builds it for one case."""

# ruff: noqa: F821  (functions call each other by the names that `lloyd_cuda.build` gives them)
from __future__ import annotations

import numpy as np
from numba import cuda, float32, float64, uint32

from niseg_gpu.kernels.lloyd_ptx import UNPACKED

THREADS = 256
ROWS = 2  # pixels that a thread multiplies
QUADS = 4 * ROWS  # of each, four features at a time
SPAN = 4  # vectors in a row of a tile that is cut along the features; one more is left free, against bank conflicts
MOVED, ORDER = 64, 68  # where shared memory holds, after the sizes, the labels moved, and the order of the labels
SETTLED = 2 * ROWS
COLUMNS = 32  # of partial sums that a block adds up, several threads a column

# The functions below are built with settings of their own in the place of these.
GROUPS = 16  # threads side by side along the pixels of a tile; the rest share the features
CLUSTERS = 8
PRODUCTS = ROWS * CLUSTERS  # of a thread
EACH = 3  # features that a thread sums
TOTALS = EACH * CLUSTERS
ITEM = 4  # bytes of a value
WIDTH = 4  # values in a vector of 16 bytes; 1 where rows don't begin at multiples of 16 bytes
PER_VECTOR = 1  # times that it has four features
WHOLE = False  # values and mean are whole numbers, so that sums are integers
FLIP = 0  # bits of a word that make signed values unsigned, keeping their order
VALUE, WORD = float32, float32  # types of a value and of a quarter of a vector
TOTAL = float64  # of a running sum


def _index(i):
    """An index that is not negative: numba need not look whether it counts from the end."""
    return np.uint64(np.int32(i))


def _lesser(a, b):
    return a if a < b else b


def _multiply(tile, words, row, gap, table, mean, vectors, left, products):
    """Add this thread's share of the features to the products of its pixels with the centroids.

    Its first pixel begins at `row` in the tile, the next `gap` further; `left` features of it are in the tile.
    """
    x = cuda.local.array(QUADS, float32)
    raw = cuda.local.array(QUADS, uint32)
    vector, end = np.int32(cuda.threadIdx.x // GROUPS), np.int32(vectors)
    while vector < end:
        at = np.int32(row + 4 * vector)
        if WIDTH == 1:
            for r in range(ROWS):
                for w in range(4):
                    x[4 * r + w] = np.float32(tile[index(at + r * gap + w)])
            if 4 * vector + 4 > left:  # what follows is the next pixel's, and may be no number
                for r in range(ROWS):
                    for w in range(4):
                        if 4 * vector + w >= left:
                            x[4 * r + w] = np.float32(0)
            multiply_quad(words, table, mean, vector, x, products)
        elif WIDTH == 4:
            for r in range(ROWS):
                load4(tile, np.int32(at + r * gap), x, np.int32(4 * r))
            multiply_quad(words, table, mean, vector, x, products)
        else:
            for r in range(ROWS):
                load4(tile, np.int32(at + r * gap), raw, np.int32(4 * r))
            multiply_packed(words, table, mean, vector, raw, x, products)
        vector = np.int32(vector + THREADS // GROUPS)


def _multiply_packed_quad(words, table, mean, vector, part, raw, x, products):
    for r in range(ROWS):
        for w in range(4):
            word = raw[4 * r + (4 * part + w) * ITEM // 4] ^ np.uint32(FLIP)
            x[4 * r + w] = unpack(word, np.uint32(8 * ITEM), np.uint32(w % (4 // ITEM)))
            if not WHOLE:  # else the mean takes it off too
                x[4 * r + w] -= np.float32(UNPACKED + (32768 if FLIP else 0))
    multiply_quad(words, table, mean, np.int32(PER_VECTOR * vector + part), x, products)


def _multiply_quad(words, table, mean, quad, x, products):
    centre = cuda.local.array(4, float32)
    load4(words, np.int32(mean + 4 * quad), centre, np.int32(0))
    for r in range(ROWS):
        for w in range(4):
            x[4 * r + w] -= centre[w]
    multiply_clusters(words, np.int32(table + quad * (4 * CLUSTERS)), x, products)


def _multiply_cluster(words, begin, cluster, x, products):
    centroid = cuda.local.array(4, float32)
    load4(words, np.int32(begin + 4 * cluster), centroid, np.int32(0))
    for r in range(ROWS):
        for w in range(4):
            products[r * CLUSTERS + cluster] += x[4 * r + w] * centroid[w]


def _stage_rows(pixels, words, to, first, rows, length):
    """Start to copy whole rows: one piece of memory. What the last row of all lacks becomes zeros."""
    begin = np.int64(first) * length
    there = np.int32(lesser(rows * length, len(pixels) - begin) * ITEM)
    i, end = np.int32(cuda.threadIdx.x), np.int32(there >> 4)
    while i < end:
        copy16(words, np.int32(to + 4 * i), pixels, begin + i * (16 // ITEM), np.int32(16))
        i = np.int32(i + THREADS)
    i, end = np.int32(end + cuda.threadIdx.x), np.int32((rows * length * ITEM + 15) >> 4)
    while i < end:
        left = there - 16 * i
        copy16(words, np.int32(to + 4 * i), pixels, begin + i * (16 // ITEM), np.int32(left if left > 0 else 0))
        i = np.int32(i + THREADS)


def _stage_table(table, words, to, begin, quads):
    """Start to copy what the centroids have of some quads of features."""
    for i in range(np.int32(cuda.threadIdx.x), np.int32(quads * CLUSTERS), np.int32(THREADS)):
        at = np.int64(4) * (np.int64(begin) * CLUSTERS + i)
        copy16(words, np.int32(to + 4 * i), table, at, np.int32(16))


def _stage_span(pixels, words, values, to, first, rows, length, begin, vectors):
    """Bring the vectors from `begin` on, at most `SPAN`, of some rows."""
    for i in range(np.int32(cuda.threadIdx.x), np.int32(rows * SPAN), np.int32(THREADS)):
        row, vector = i // SPAN, i % SPAN
        at = np.int64(first + row) * length + np.int64(begin + vector) * (4 * PER_VECTOR)
        if vector < vectors:
            if WIDTH > 1:
                slot, left = to + row * (4 * SPAN + 4) + 4 * vector, lesser(16, (len(pixels) - at) * ITEM)
                copy16(words, np.int32(slot), pixels, at, np.int32(left if left > 0 else 0))
            else:
                slot = to * (4 // ITEM) + row * (4 * SPAN + 1) + 4 * vector
                for w in range(4):
                    inside = (begin + vector) * 4 + w < length
                    values[slot + w] = pixels[at + w] if inside else VALUE(0)


def _lay_shares(products, words, shares, slab):
    """Lay this thread's products beside those of its pixels from other shares of the features."""
    at = shares + cuda.threadIdx.x // GROUPS * slab + cuda.threadIdx.x % GROUPS
    for r in range(ROWS):
        for cluster in range(CLUSTERS):
            words[index(at + (cluster * ROWS + r) * GROUPS)] = products[r * CLUSTERS + cluster]


def _add_shares(words, shares, slab, norms):
    """Turn the shares of a tile into scores, |c|^2 - 2 x c."""
    for i in range(np.int32(cuda.threadIdx.x), np.int32(ROWS * GROUPS * CLUSTERS), np.int32(THREADS)):
        total = np.float32(0)
        for share in range(THREADS // GROUPS):
            total += words[index(shares + share * slab + i)]
        words[index(shares + i)] = norms[index(i // (ROWS * GROUPS))] - np.float32(2) * total


def _choose_from_shares(words, shares, row):
    label, least = np.int32(0), words[index(shares + row)]
    for cluster in range(1, CLUSTERS):
        score = words[index(shares + cluster * (ROWS * GROUPS) + row)]
        if score < least:
            label, least = np.int32(cluster), score
    return label


def _choose_from_products(products, r, norms):
    label, least = np.int32(0), norms[0] - np.float32(2) * products[r * CLUSTERS]
    for cluster in range(1, CLUSTERS):
        score = norms[cluster] - np.float32(2) * products[r * CLUSTERS + cluster]
        if score < least:
            label, least = np.int32(cluster), score
    return label


def _settle(label, pixel, n, labels, counts, settled, r):
    """Store the label of a pixel and count it; return whether it moved.

    `settled` gets the cluster and the pixel's rank among those of the tile in it, -1 where it is left out.
    """
    settled[2 * r + 1] = -1
    if pixel >= n:
        return np.int32(0)
    old = labels[pixel]
    if old < 0:
        return np.int32(0)
    if old != label:
        labels[pixel] = label
    settled[2 * r] = label
    settled[2 * r + 1] = cuda.atomic.add(counts, label, np.int32(1))
    return np.int32(old != label)


def _settle_tile(first, n, labels, norms, words, shares, slab, products, counts, settled):
    """From products to labels; return how many of this thread's moved."""
    thread, tile = cuda.threadIdx.x, ROWS * GROUPS
    if GROUPS == THREADS:
        moved = np.int32(0)
        for r in range(ROWS):
            label = choose_from_products(products, r, norms)
            moved += settle(label, first + r * GROUPS + thread, n, labels, counts, settled, r)
        return moved
    lay_shares(products, words, shares, slab)
    cuda.syncthreads()
    add_shares(words, shares, slab, norms)
    cuda.syncthreads()
    if thread >= tile:
        return np.int32(0)
    return settle(choose_from_shares(words, shares, thread), first + thread, n, labels, counts, settled, 0)


def _place_tile(begin, length, counts, order, settled):
    """Put where the rows of this thread's pixels begin into the order of their labels."""
    for r in range(ROWS):
        row = r * GROUPS + cuda.threadIdx.x
        if (r == 0 or GROUPS == THREADS) and row < ROWS * GROUPS and settled[2 * r + 1] >= 0:
            place = settled[2 * r + 1]
            for cluster in range(settled[2 * r]):
                place += counts[cluster]
            order[place] = begin + row * length


def _sum_cluster(cluster, place, values, order, counts, centre, magic, totals):
    """Add the pixels of one cluster to its totals; return where the next one's begin in the order."""
    end = np.int32(place + counts[index(cluster)])
    while place < end:
        at = index(order[index(place)] + cuda.threadIdx.x)
        for j in range(EACH):
            value = values[at + np.uint64(j * THREADS)]
            if WHOLE:
                totals[cluster * EACH + j] += TOTAL(value)
            else:
                exact = np.float64(np.float32(np.float32(value) - centre[j]))
                totals[cluster * EACH + j] += (exact + magic) - magic
        place = np.int32(place + 1)
    return end


def _put_cluster(cluster, features, mean, counts, totals, sums):
    for j in range(EACH):
        feature = cuda.threadIdx.x + j * THREADS
        if feature < features:
            total = np.float64(totals[cluster * EACH + j])
            if WHOLE:
                total -= np.float64(mean[feature]) * counts[cluster]
            sums[cluster * features + feature] = total


def _put_tallies(counts, moved, tallies):
    """Write the sizes of the clusters and the number of labels that moved."""
    for i in range(cuda.threadIdx.x, CLUSTERS + 1, THREADS):
        tallies[i] = counts[i] if i < CLUSTERS else moved[0]

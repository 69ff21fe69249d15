"""Sums in float64: of spectra by cluster, each read once; of images in any order, to the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.kernels.compiled import compiled


@compiled
def _sum_rows(rows, labels, sums):
    for i in range(rows.shape[0]):
        total = sums[labels[i]]
        for j in range(rows.shape[1]):
            total[j] += rows[i, j]


def sum_by_label_cpu(rows: np.ndarray, labels: np.ndarray, *, n_labels: int) -> np.ndarray:
    """Return the sum of `rows` (n, features) of each label, (n_labels, features) float64."""
    sums = np.zeros((n_labels, rows.shape[1]))
    _sum_rows(rows, labels, sums)
    return sums


def sum_by_label_xp(rows: Any, labels: Any, *, xp: Any, n_labels: int, block: int = 8192) -> Any:
    """The same in whole-array calls of the namespace `xp`, as products with the labels' indicator."""
    sums = xp.zeros((n_labels, rows.shape[1]), dtype=xp.float64)
    numbers = xp.arange(n_labels)[:, None]
    for start in range(0, rows.shape[0], block):
        member = xp.astype(numbers == labels[None, start : start + block], xp.float64)
        sums += member @ xp.astype(rows[start : start + block, ...], xp.float64)
    return sums


@compiled
def _sum_frames(frames, sums):
    for y in range(frames.shape[1]):
        total = sums[y]  # stays in the cache
        for f in range(frames.shape[0]):
            row = frames[f, y]
            for x in range(row.size):
                total[x] += row[x]


def sum_frames_cpu(frames: np.ndarray) -> np.ndarray:
    """Return the sum of `frames` (N, Y, X), of float16 (probabilities), float32 or float64, as (Y, X) float64.

    Of float32 values it is exact, and so the same however a stack is cut, unless they differ by more than 2**29 / N.
    """
    sums = np.zeros(frames.shape[1:])
    if frames.dtype == np.float16:  # which numba does not compile
        for frame in frames:
            sums += frame
    else:
        _sum_frames(frames, sums)
    return sums


@compiled
def _add(total, rest, part):
    for y in range(total.shape[0]):
        for x in range(total.shape[1]):
            before, new = total[y, x], np.float64(part[y, x])
            after = before + new
            share = after - before
            rest[y, x] += (before - (after - share)) + (new - share)
            total[y, x] = after


def add_exactly_cpu(total: np.ndarray, rest: np.ndarray, part: np.ndarray) -> None:
    """Add `part` (Y, X) to `total` + `rest` (Y, X) float64, of which `rest` gets what `total` rounds off.

    Together they hold 106 bits, so that float32 images give the same sum in any order. Knuth's sum of two
    ([10.1137/030601818](https://doi.org/10.1137/030601818), algorithm 3.1).
    """
    _add(total, rest, part)

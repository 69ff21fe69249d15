"""The networks, by the principle that what sorts zeros and ones sorts everything (Knuth, 5.3.4)."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from niseg_gpu.kernels.selection import (
    SORTS,
    merging,
    run_network,
    sorting,
    two_medians,
    two_medians_of_nines,
    two_nines,
)


def run(network, values):
    return np.array(run_network(network, list(values), lesser=np.minimum, greater=np.maximum))


@pytest.mark.parametrize("n", [*SORTS, 9, 11, 13])
def test_every_list_is_sorted(n: int) -> None:
    values = np.array(list(product([0, 1], repeat=n))).T
    np.testing.assert_array_equal(run(sorting(n), values), np.sort(values, axis=0))


@pytest.mark.parametrize(("one", "two"), [(1, 1), (3, 3), (6, 3), (5, 5), (7, 7), (9, 9), (14, 14), (14, 28), (2, 9)])
def test_every_pair_of_lists_is_merged(one: int, two: int) -> None:
    lists = [[[0] * (n - k) + [1] * k for k in range(n + 1)] for n in (one, two)]
    values = np.array([a + b for a, b in product(*lists)]).T
    np.testing.assert_array_equal(run(merging(one, two), values), np.sort(values, axis=0))


@pytest.mark.parametrize("size", [3, 5, 7, 9, 11, 13])
def test_two_medians_of_rows(size: int) -> None:
    rows = np.random.default_rng(size).integers(0, 2, (size + 1, size, 20_000))
    lines = np.sort(rows, axis=1)
    pairs = [np.sort(np.concatenate([lines[k], lines[k + 1]]), axis=0) for k in range(1, size - 2, 2)]
    found = run(two_medians(size), np.concatenate([rows[size - 1], rows[size], lines[size - 2], *pairs, lines[0]]))
    np.testing.assert_array_equal(found[0], np.median(rows[:-1].reshape(size**2, -1), axis=0))
    np.testing.assert_array_equal(found[1], np.median(rows[1:].reshape(size**2, -1), axis=0))
    np.testing.assert_array_equal(found[2 : 2 + 2 * size], np.concatenate(lines[size - 1 :]))
    kept = np.sort(np.concatenate(lines[size - 2 : size]), axis=0) if size > 3 else np.empty((0, rows.shape[-1]))
    np.testing.assert_array_equal(found[2 + 2 * size :], kept)


def test_two_medians_of_a_volume() -> None:
    values = np.random.default_rng(0).integers(0, 2, (4, 4, 3, 20_000))
    nines = [run(two_nines(), frame.reshape(12, -1)) for frame in values]
    for frame, pair in zip(values, nines, strict=True):
        np.testing.assert_array_equal(pair[:9], np.sort(frame[:3].reshape(9, -1), axis=0))
        np.testing.assert_array_equal(pair[9:], np.sort(frame[1:].reshape(9, -1), axis=0))
    found = run(two_medians_of_nines(), np.concatenate([pair[:9] for pair in nines]))
    np.testing.assert_array_equal(found[0], np.median(values[:3, :3].reshape(27, -1), axis=0))
    np.testing.assert_array_equal(found[1], np.median(values[1:, :3].reshape(27, -1), axis=0))


def test_nothing_is_worked_out_that_no_result_needs() -> None:
    """Minima and maxima a pixel: 17 for 3 x 3, 59 for 5 x 5, 158 for 7 x 7; 84 a voxel."""
    operations = [sum(o.lesser + o.greater for o in two_medians(size).operations) // 2 for size in (3, 5, 7)]
    voxel = sum(o.lesser + o.greater for net in (two_nines(), two_medians_of_nines()) for o in net.operations) // 2
    assert (*operations, voxel) == (17, 59, 158, 84)

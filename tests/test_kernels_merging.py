"""Networks made by program, by the 0-1 principle: what merges all lists of zeros and ones merges all lists."""

from __future__ import annotations

from itertools import product
from types import FunctionType

import pytest

from niseg_gpu.kernels.merging import NETWORKS, make_merge, make_sort


def interpret(function):
    """The same function, in Python."""
    return FunctionType(function.__code__, {"lesser": min, "greater": max})


def count_choices(function) -> int:
    """Minima and maxima that a call takes, one a line."""
    return function.__code__.co_nlocals - function.__code__.co_argcount


def assert_merges(function, n: int, m: int, first: int, last: int) -> None:
    merge = interpret(function)
    for i, j in product(range(n + 1), range(m + 1)):
        values = [0] * (n - i) + [1] * i + [0] * (m - j) + [1] * j
        found = merge(*values)
        assert ([found] if first == last else list(found)) == sorted(values)[first : last + 1]


@pytest.mark.parametrize("n, m", [(1, 1), (1, 4), (3, 3), (4, 7), (6, 3), (8, 8)])
def test_merges_of_all_ranks_and_of_some(n: int, m: int) -> None:
    whole = make_merge(n, m)
    assert_merges(whole, n, m, 0, n + m - 1)
    for first in range(n + m):
        for last in range(first, n + m):
            some = make_merge(n, m, first=first, last=last)
            assert_merges(some, n, m, first, last)
            assert count_choices(some) <= count_choices(whole)


@pytest.mark.parametrize("n", range(1, 10))
def test_sorts(n: int) -> None:
    sort = interpret(make_sort(n))
    for values in product((0, 1), repeat=n):
        found = sort(*values)
        assert ([found] if n == 1 else list(found)) == sorted(values)


@pytest.mark.parametrize(
    "name, n, m, first, last, choices",
    [
        ("merge7", 7, 7, 0, 13, 42),
        ("core22", 14, 14, 3, 24, 100),
        ("middle8", 22, 14, 14, 21, 66),
        ("median15", 8, 7, 7, 7, 14),
        ("merge3", 3, 3, 0, 5, 12),
        ("merge9", 6, 3, 0, 8, 24),
        ("middle10", 9, 9, 4, 13, 46),
        ("median19", 10, 9, 9, 9, 18),
    ],
)
def test_the_kernels_networks(name: str, n: int, m: int, first: int, last: int, choices: int) -> None:
    assert_merges(NETWORKS[name], n, m, first, last)
    assert count_choices(NETWORKS[name]) == choices

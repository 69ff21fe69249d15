"""Networks that sort and merge, written by program: too long to write by hand, and shorter where less is asked for.

They are Batcher's odd-even merge (https://doi.org/10.1145/1468075.1468121), of which only the minima and maxima are
kept that the wanted ranks need. Like those of `networks`, the functions take and return scalars and hold no branch;
they call `lesser` and `greater` by these names, so that a device can be given its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

from niseg_gpu.kernels.networks import greater, lesser

LOWEST = None  # stands for a value below all others

Exchange = Callable[[Any, Any], tuple[Any, Any]]


def make_merge(n: int, m: int, *, first: int = 0, last: int | None = None) -> Callable[..., Any]:
    """Return a function that merges two sorted lists, as far as wanted.

    Parameters
    ----------
    n, m : int
        Lengths of the lists; the function takes their values one after another.
    first, last : int
        Ranks wanted, from 0; all by default.

    Returns
    -------
    callable
        Gives the values of rank `first` to `last`, sorted; a scalar where that is one.
    """
    last = n + m - 1 if last is None else last

    # the same merge takes fewer steps where a list starts at the right one of even and odd places
    traces = [_trace_merge(n, m, first, last, odd=odd) for odd in product((0, 1), repeat=2)]
    lines, results = min(traces, key=lambda trace: len(trace[0]))
    return _write(f"merge_{n}_{m}", [*_names("a", n), *_names("b", m)], lines, results)


def make_sort(n: int) -> Callable[..., Any]:
    """Return a function that sorts `n` values."""
    trace = _Trace()
    results = _sort(_names("a", n), trace.exchange)
    return _write(f"sort_{n}", _names("a", n), trace.needed(results), results)


class _Trace:
    """Notes each minimum and maximum taken, by the name of its result."""

    def __init__(self) -> None:
        self.taken: dict[str, tuple[str, str, str]] = {}

    def exchange(self, x: Any, y: Any) -> tuple[Any, Any]:
        if x is LOWEST or y is LOWEST:
            return LOWEST, y if x is LOWEST else x
        low, high = f"low{len(self.taken)}", f"high{len(self.taken)}"
        self.taken[low], self.taken[high] = ("lesser", x, y), ("greater", x, y)
        return low, high

    def needed(self, results: Iterable[str]) -> list[str]:
        """The lines of code that lead to `results`."""
        wanted, lines = set(results), []
        for name, (choose, x, y) in reversed(self.taken.items()):
            if name in wanted:
                wanted |= {x, y}
                lines.append(f"{name} = {choose}({x}, {y})")
        return lines[::-1]


def _trace_merge(n: int, m: int, first: int, last: int, *, odd: tuple[int, int]) -> tuple[list[str], list[str]]:
    trace = _Trace()
    # value i of n has at least i and at most i + m below it
    skipped = max(first - m, 0), max(first - n, 0)
    a, b = _names("a", n)[skipped[0] : last + 1], _names("b", m)[skipped[1] : last + 1]
    merged = _merge([LOWEST] * odd[0] + a, [LOWEST] * odd[1] + b, trace.exchange)
    below = sum(odd) - sum(skipped)
    results = merged[first + below : last + 1 + below]
    return trace.needed(results), results


def _merge(a: Sequence[Any], b: Sequence[Any], exchange: Exchange) -> list[Any]:
    """Batcher's merge: of the even places, of the odd places, then each odd one against the next even one."""
    if not a or not b:
        return [*a, *b]
    if len(a) == len(b) == 1:
        return [*exchange(a[0], b[0])]
    even, odd = _merge(a[::2], b[::2], exchange), _merge(a[1::2], b[1::2], exchange)
    merged = [even[0]]
    for x, y in zip(odd, even[1:], strict=False):
        merged += exchange(x, y)
    return [*merged, *odd[len(even) - 1 :], *even[len(odd) + 1 :]]


def _sort(values: Sequence[Any], exchange: Exchange) -> list[Any]:
    half = (len(values) + 1) // 2
    if len(values) == 1:
        return [*values]
    return _merge(_sort(values[:half], exchange), _sort(values[half:], exchange), exchange)


def _names(letter: str, n: int) -> list[str]:
    return [f"{letter}{i}" for i in range(n)]


def _write(name: str, arguments: Sequence[str], lines: Sequence[str], results: Sequence[str]) -> Callable[..., Any]:
    """Make a function of lines of code."""
    code = [f"def {name}({', '.join(arguments)}):", *lines, f"return {', '.join(results)}"]
    scope: dict[str, Any] = {"lesser": lesser, "greater": greater}
    exec("\n    ".join(code), scope)
    return scope[name]


NETWORKS = {
    # 7 x 7: of 28 values in four windows one above the other the 3 least and the 3 greatest are no median of 49
    "sort7": make_sort(7),
    "merge7": make_merge(7, 7),
    "core22": make_merge(14, 14, first=3, last=24),
    "middle8": make_merge(22, 14, first=14, last=21),
    "median15": make_merge(8, 7, first=7, last=7),
    # 3 x 3 x 3, from threes of neighbours in a row
    "merge3": make_merge(3, 3),
    "merge9": make_merge(6, 3),
    "middle10": make_merge(9, 9, first=4, last=13),
    "median19": make_merge(10, 9, first=9, last=9),
}

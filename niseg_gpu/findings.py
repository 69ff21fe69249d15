"""Counting what happens to the data, so that nothing is clipped, dropped or lost in silence.

A method calls ``count("values without open beam", mask)``; whoever runs it opens ``collect()`` around it and
reports the sums. Outside of ``collect()`` a count goes nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple


class _Tally(NamedTuple):
    numbers: dict[str, Any]
    inner: tuple[slice, ...]


_tally: ContextVar[_Tally | None] = ContextVar("tally", default=None)


def count(what: str, where: Any, *, times: int = 1) -> None:
    """Add to the tally of `what`.

    Parameters
    ----------
    what : str
    where : (..., Y, X) array of bool or integer, or integer
        Where it happened, or how often, in the block at hand; or a number of times within `own_part`, counted already.
    times : int
        Values that each entry stands for.
    """
    tally = _tally.get()
    if tally is not None:
        number = (where[own_part(where.ndim)].sum() if getattr(where, "ndim", 0) else where) * times
        tally.numbers[what] = tally.numbers[what] + number if what in tally.numbers else number


def is_counting() -> bool:
    """Whether somebody will report what is counted."""
    return _tally.get() is not None


def own_part(ndim: int) -> tuple[slice, ...]:
    """What of a block of `ndim` axes is counted, as slices: all of it, or what `collect` was told."""
    tally = _tally.get()
    inner = tally.inner[-ndim:] if tally is not None else ()
    return (*(slice(None),) * (ndim - len(inner)), *inner)


@contextmanager
def collect(inner: tuple[slice, ...] = ()) -> Iterator[dict[str, Any]]:
    """Tally every `count` made by this thread inside the block.

    Parameters
    ----------
    inner : tuple of slice
        Frames, rows and columns that are this block's own; what lies around them is counted by its neighbours.
    """
    tally = _Tally({}, inner)
    token = _tally.set(tally)
    try:
        yield tally.numbers
    finally:
        _tally.reset(token)

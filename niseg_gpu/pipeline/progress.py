"""A bar with rate and remaining time on long work; silent where nobody watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def show_progress(what: str, *, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Give a function to be told of values done; the bar shows on a terminal only.

    Parameters
    ----------
    what : str
    total : int
        Values in all.
    quiet : bool
        Show nothing, terminal or not.
    """
    from tqdm import tqdm

    with tqdm(
        total=total,
        desc=what,
        unit="value",
        unit_scale=True,
        disable=True if quiet else None,
        leave=False,
        dynamic_ncols=True,
    ) as bar:
        yield bar.update

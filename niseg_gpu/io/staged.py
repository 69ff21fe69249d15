"""Results that appear under their name only when whole: made beside it under a hidden one, then moved into place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give a hidden name beside `path` to make a file or folder under.

    Parameters
    ----------
    path : Path
        Where it is moved to when the block ends well, in the place of what is there. Else what was made is removed, and
        what was there stays.

    Yields
    ------
    Path
        Nothing is there yet.
    """
    path = path.absolute()
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    _remove(partial)  # of a killed process with the same number
    try:
        yield partial
        _move(partial, path)
    finally:
        _remove(partial)


def _move(partial: Path, path: Path) -> None:
    """Put `partial` in the place of `path`, which comes back if that fails."""
    if not path.is_dir() or path.is_symlink():
        if partial.is_dir() and os.path.lexists(path):
            path.unlink()  # a folder cannot replace a file or link in one go
        os.replace(partial, path)
        return
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    os.rename(path, old)
    with ExitStack() as undo:
        undo.callback(os.rename, old, path)
        os.rename(partial, path)
        undo.pop_all()
    shutil.rmtree(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # an error of the block's own must not be lost over this
    else:
        path.unlink(missing_ok=True)

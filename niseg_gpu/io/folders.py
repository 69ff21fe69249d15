"""Folders of results: there when whole, or not at all, and replaced only where they are what they should be."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from niseg_gpu.errors import UserError
from niseg_gpu.io.staged import staged


def check_folder(path: Path, *, overwrite: bool, sign: str | Path, kind: str = "result") -> None:
    """Refuse a folder that can't be made, or exists and may not be replaced.

    Parameters
    ----------
    path : Path
    overwrite : bool
        Whether an earlier one may be replaced.
    sign : str or Path
        A file that an earlier one holds; what has none is never replaced.
    kind : str
        What it is, in a word.

    Raises
    ------
    UserError
    """
    if os.path.lexists(path):
        if not overwrite:
            raise UserError(f"{path} exists; give another name, or replace it with --overwrite")
        if not (path / sign).is_file():
            raise UserError(
                f"{path} exists and is no earlier {kind} (no {sign} in it), so it is not replaced; give another name"
            )
    parent = path.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{path} can't be made: {parent} is not a folder one may write to; give another name")


@contextmanager
def staged_folder(path: Path, *, overwrite: bool, sign: str | Path, kind: str = "result") -> Iterator[Path]:
    """Give a folder to fill; it gets its name when the block ends well and vanishes when it does not.

    An earlier one is replaced with `overwrite`, at the end; see `check_folder`.
    """
    check_folder(path, overwrite=overwrite, sign=sign, kind=kind)
    try:
        with staged(path, folder=True) as folder:
            yield folder
            check_folder(path, overwrite=overwrite, sign=sign, kind=kind)  # another may have made it meanwhile
    except OSError as error:
        raise UserError(tell_unwritten(path, error)) from None


def tell_unwritten(path: Path, error: OSError) -> str:
    """Say in a line that `path` can't be written, why, and what to do."""
    short = error.errno is None and "requested and" in str(error)  # so NumPy words a full disk
    full = short or error.errno in (errno.ENOSPC, errno.EDQUOT)
    why = os.strerror(errno.ENOSPC) if short else error.strerror or error
    where = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
    advice = "free some room, or write elsewhere" if full else "give another name"
    return f"{path} can't be written: {why}{where}; {advice}"

"""Names of files and folders as they are given from Python."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from niseg_gpu.errors import UserError

LONGEST = 255  # bytes of a name on all usual file systems


def read_path(path: Any, *, who: str) -> Path:
    """Return the name of a file or folder as a Path; refuse what names none.

    Parameters
    ----------
    path : str or os.PathLike
    who : str
        The function that it was given to, for the complaint.

    Raises
    ------
    UserError
        Neither text nor a path, no name at all, or one that no file can have.
    """
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str):
        raise UserError(
            f"{who} got a {type(path).__name__} for a path; allowed: a str or Path that names a file or folder"
        )
    if not name.strip() or "\0" in name:
        raise UserError(f"{who} got the path {name!r}; allowed: the name of a file or folder")
    for part in Path(name).parts:
        if len(os.fsencode(part)) > LONGEST:
            raise UserError(f"{who} got a path with the name {part[:20]}...; allowed: names of up to {LONGEST} bytes")
    return Path(name)

"""Pictures and figures as files, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from niseg_gpu.errors import UserError
from niseg_gpu.io.folders import tell_unwritten
from niseg_gpu.io.staged import staged


def check_file_target(path: Path, *, ending: str, overwrite: bool) -> None:
    """Refuse a name that a file can't be written under."""
    if path.suffix.lower() != ending:
        raise UserError(f"{path}: unknown ending {path.suffix!r}; allowed: {ending}")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path} can't be made: {path.parent} is not a folder one may write to; choose another")
    if path.is_dir():
        raise UserError(f"{path} is a folder; give another name")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; give another name, or replace it with --overwrite")


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when whole."""
    try:
        with staged(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise UserError(tell_unwritten(path, error)) from None

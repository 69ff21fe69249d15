"""Folders of simulated data: there when whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from niseg_gpu.errors import UserError
from niseg_gpu.io.staged import staged


@contextmanager
def appear_when_whole(out: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes ``out`` at the end, or is removed when anything goes wrong."""
    if out.exists() or out.is_symlink():
        raise UserError(f"output folder '{out}' exists; give another name or remove it")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise UserError(f"can't write to '{out.parent}', no folder one may write to; give another output folder")
    try:
        with staged(out) as folder:
            folder.mkdir()
            yield folder
    except OSError as error:
        raise UserError(f"can't write '{out}' ({error.strerror}); free space or give another output folder") from error

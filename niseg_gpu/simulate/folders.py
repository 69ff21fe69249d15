"""Folders of simulated data: there when whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from niseg_gpu.errors import UserError


@contextmanager
def appear_when_whole(out: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes ``out`` at the end, or is removed when anything goes wrong."""
    if out.exists() or out.is_symlink():
        raise UserError(f"output folder '{out}' exists; give another name or remove it")
    try:
        nest = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise UserError(f"can't write to '{out.parent}' ({error.strerror}); give another output folder") from error
    try:
        # The folder in the nest has the usual permissions, the nest itself is private.
        folder = nest / "whole"
        folder.mkdir()
        yield folder
        folder.rename(out)
    except OSError as error:
        raise UserError(f"can't write '{out}' ({error.strerror}); free space or give another output folder") from error
    finally:
        shutil.rmtree(nest, ignore_errors=True)

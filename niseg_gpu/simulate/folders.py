"""Folders of simulated data: there when whole, or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from niseg_gpu.errors import UserError
from niseg_gpu.io.staged import staged

SUMMARY = Path("truth", "simulation.json")


@contextmanager
def appear_when_whole(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to fill that becomes ``out`` at the end, or is removed when anything goes wrong.

    An earlier simulation is replaced with `overwrite`, at the end; whatever else is there is refused.
    """
    check_folder(out, overwrite=overwrite)
    try:
        with staged(out) as folder:
            folder.mkdir()
            yield folder
    except OSError as error:
        raise UserError(f"can't write '{out}' ({error.strerror}); free space or give another output folder") from error


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Refuse a folder that can't be made, or exists and may not be replaced."""
    if out.exists() or out.is_symlink():
        if not overwrite:
            raise UserError(f"output folder '{out}' exists; give another name, or replace it with --overwrite")
        if not (out / SUMMARY).is_file():
            raise UserError(
                f"output folder '{out}' exists and is no earlier simulation (no {SUMMARY} in it), so it is not "
                "replaced; give another name"
            )
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK | os.X_OK):
        raise UserError(f"can't write to '{out.parent}', no folder one may write to; give another output folder")


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write what was asked for and counted beside the truth; numbers of NumPy as plain ones."""
    text = json.dumps(summary, indent=1, default=lambda number: number.item())
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")

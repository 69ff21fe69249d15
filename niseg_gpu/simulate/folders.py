"""Folders of simulated data: there when whole, or not at all."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from niseg_gpu.io.folders import staged_folder

SUMMARY = Path("truth", "simulation.json")


def appear_when_whole(out: Path, *, overwrite: bool = False) -> AbstractContextManager[Path]:
    """Give a folder to fill that becomes ``out`` at the end, or is removed when anything goes wrong.

    An earlier simulation is replaced with `overwrite`, at the end; whatever else is there is refused.
    """
    return staged_folder(out, overwrite=overwrite, sign=SUMMARY, kind="simulation")


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write what was asked for and counted beside the truth; numbers of NumPy as plain ones."""
    text = json.dumps(summary, indent=1, default=lambda number: number.item())
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")

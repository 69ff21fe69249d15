"""What the folder of a run holds beside pictures: JSON that people can read, small arrays, the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SIGN = "run.json"  # of an earlier run


def to_json(value: Any) -> Any:
    """Turn what `json` does not know (NumPy scalars and arrays, paths) into what it knows."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def write_json(path: Path, content: Any) -> None:
    """Write `content` readable by people; bytes of names that are no UTF-8 as JSON's escapes."""
    text = json.dumps(content, indent=2, default=to_json, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def write_array(group: Any, name: str, values: np.ndarray, dims: tuple[str, ...], **attrs: Any) -> None:
    """Write a small array whole, with the names of its axes."""
    from niseg_gpu.io.zarr import create_array

    array = create_array(
        group, name, shape=values.shape, dtype=values.dtype, dims=dims, chunks=values.shape, attrs=attrs
    )
    array[...] = values


class _LogFile(logging.FileHandler):
    """Loses a line that a full disk does not take; what the run writes beside it fails too, and tells of it once."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print no traceback."""


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Keep what the package logs in a file while the block runs."""
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("niseg_gpu")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()

"""The folder of a run: built under a temporary name beside its own, renamed when whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.staged import staged


def check_folder(path: Path, *, overwrite: bool, sign: str = "run.json") -> None:
    """Refuse a folder that can't be made or exists, unless it is an earlier result (it holds `sign`) to replace."""
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise UserError(f"{path} exists; give another --out, or replace it with --overwrite")
        if not (path / sign).is_file():
            raise UserError(
                f"{path} exists and is no earlier result (no {sign} in it), so it is not replaced; give another --out"
            )
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{path} can't be made: {parent} is not a folder one may write to; give another --out")


@contextmanager
def staged_folder(path: Path, *, overwrite: bool, sign: str = "run.json") -> Iterator[Path]:
    """Give a folder to fill; it gets its name when the block ends well and vanishes when it does not."""
    check_folder(path, overwrite=overwrite, sign=sign)
    try:
        with staged(path) as folder:
            folder.mkdir(parents=True)
            yield folder
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error} ({error.filename or path})") from None


def to_json(value: Any) -> Any:
    """Turn what `json` does not know (NumPy scalars and arrays, paths) into what it knows."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


def write_json(path: Path, content: Any) -> None:
    """Write `content` readable by people."""
    path.write_text(json.dumps(content, indent=2, default=to_json, ensure_ascii=False) + "\n", encoding="utf-8")


def write_array(group: Any, name: str, values: np.ndarray, dims: tuple[str, ...], **attrs: Any) -> None:
    """Write a small array whole, with the names of its axes."""
    from niseg_gpu.io.zarr import create_array

    array = create_array(
        group, name, shape=values.shape, dtype=values.dtype, dims=dims, chunks=values.shape, attrs=attrs
    )
    array[...] = values

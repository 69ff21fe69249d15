"""What the folder of a run holds beside pictures: JSON that people can read, and small arrays."""

from __future__ import annotations

import json
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

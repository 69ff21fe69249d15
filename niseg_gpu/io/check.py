"""What every array file must hold to be read as a stack."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from niseg_gpu.errors import UserError


def check_file(path: Path) -> None:
    """Raise a UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")


def check_stack(where: str, *, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise a UserError naming `where` if an array is not real numbers (or bool) in 2 or more dimensions."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise UserError(f"{where}: values of type {dtype}; allowed: real numbers and bool; convert and save them again")
    if any(length != length for length in shape):
        raise UserError(f"{where}: unknown lengths {tuple(shape)}; call compute_chunk_sizes() of its Dask array first")
    if len(shape) < 2 or 0 in shape:
        raise UserError(f"{where}: shape {tuple(shape)}; needed: 2 or more dimensions, none of length 0")

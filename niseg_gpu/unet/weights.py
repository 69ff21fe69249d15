"""Weights on disk: written and read by Orbax, with a sum of each file, so that only whole ones are read."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from niseg_gpu.backend import count_cores, cpu_model
from niseg_gpu.xla import start_jax


class BrokenWeights(Exception):
    """Weights that are not, or not all, what was written; says why in a line."""


def write_weights(folder: Path, weights: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Write arrays into a folder that is not there yet.

    Returns
    -------
    dict of str to str
        The SHA-256 sum of each file by its path in the folder, for `read_weights`.

    Raises
    ------
    OSError
        There is no room for them.
    """
    ocp = _start_orbax()
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), weights)
    except ValueError as error:  # TensorStore's for whatever the system says
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
    return sum_files(folder)


def read_weights(folder: Path, sums: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Read what `write_weights` wrote.

    A damaged file is found before Orbax reads it: it would go on reading the others after the error, and print to the
    terminal, unasked, that nobody waits for them any more. Files that nobody wrote for it, as those that file managers
    leave, are let be.

    Raises
    ------
    BrokenWeights
        A file is missing or changed.
    """
    ocp = _start_orbax()
    try:
        found = sum_files(folder)
    except OSError as error:
        raise BrokenWeights(f"{error.filename}: {error.strerror}") from None
    for name in sorted(sums):
        if name not in found:
            raise BrokenWeights(f"{name} is missing")
        if found[name] != sums[name]:
            raise BrokenWeights(f"{name} is not the file that was written")
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(folder.absolute())
    except Exception as error:  # Orbax and TensorStore fail in ways of their own, as where theirs is an older release
        raise BrokenWeights(" ".join(f"{type(error).__name__}: {error}".split())[:120]) from None


def _start_orbax() -> Any:
    """Import Orbax; it has JAX look for devices, so JAX must have been set up: else it takes most of a GPU's memory."""
    start_jax(cpu_model(), devices=count_cores())
    import orbax.checkpoint as ocp

    return ocp


def sum_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 sum of each file by its path in the folder."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums

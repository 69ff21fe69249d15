"""Compiling kernels once a machine: numba's cache on disk, made to see changes in all files that a kernel is made of.

By itself the cache looks at the one file that holds a kernel, and goes on with yesterday's where a function from
another file has changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.core.caching import FunctionCache

log = logging.getLogger("niseg_gpu")

# called from compiled code only: without the wrappers for Python it compiles in two thirds of the time
inline = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
# becomes part of what calls it: a call takes and gives back a hold on each array, which a loop over rows feels
within = njit(inline="always")


class _KernelCache(FunctionCache):
    """Keeps what was compiled under a key that holds the text of all kernels; goes without where that can't be."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # whatever a crash or a full disk has left of it
            with suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with suppress(OSError):  # of a full disk: the next process compiles anew
            super().save_overload(sig, data)

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), hash_sources())


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function for each signature it is called with, without the interpreter's lock, and keep the result.

    It is kept beside the function's file, else in the user's cache, else nowhere.

    Parameters
    ----------
    function : callable, optional
        Without it a decorator with the options is returned.
    **options
        For numba, such as ``fastmath``.
    """
    if function is None:
        return partial(compiled, **options)
    dispatcher = njit(nogil=True, **options)(function)
    try:
        dispatcher._cache = _KernelCache(function)
    except RuntimeError:  # no folder for it may be written to
        _tell_uncached()
    return dispatcher


@cache
def _tell_uncached() -> None:
    log.warning(
        "kernels are compiled anew in each process, for neither %s nor a cache in the home folder may be written to; "
        "name another folder with NUMBA_CACHE_DIR",
        Path(__file__).parent,
    )


@cache
def hash_sources() -> str:
    """Hash the text of the files in this folder."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def read_flat(array: np.ndarray) -> np.ndarray:
    """Return an array's values in a row, not to be written to: one signature to compile, whoever may write to them."""
    flat = np.ascontiguousarray(array).reshape(-1)
    flat.flags.writeable = False
    return flat

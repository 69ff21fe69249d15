"""Compiling kernels once a machine: numba's cache on disk, made to see changes in all files that a kernel is made of.

By itself the cache looks at the one file that holds a kernel, and goes on with yesterday's where a function from
another file has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numba.core.caching import FunctionCache

# called from compiled code only: without the wrappers for Python it compiles in two thirds of the time
inline = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
# becomes part of what calls it: a call takes and gives back a hold on each array, which a loop over rows feels
within = njit(inline="always")


class _KernelCache(FunctionCache):
    """Keeps what was compiled under a key that holds the text of all kernels."""

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), hash_sources())


def compiled(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function for each signature it is called with, without the interpreter's lock, and keep the result.

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
    dispatcher._cache = _KernelCache(function)
    return dispatcher


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

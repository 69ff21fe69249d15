"""Where Dask computes: on threads of this process."""

from __future__ import annotations

from typing import Any

from niseg_gpu.backend import count_cores


def use_threads(workers: int | None = None) -> Any:
    """Have Dask compute on that many threads of this process inside a ``with`` block.

    Parameters
    ----------
    workers : int, optional
        Threads; all cores this process may use by default.

    Returns
    -------
    context manager
    """
    import dask
    from dask.threaded import get

    # the function itself: to look up its name, Dask would import all of its distributed scheduler
    return dask.config.set(scheduler=get, num_workers=workers or count_cores())

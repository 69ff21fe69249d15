"""The same steps from Python, on stacks instead of files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niseg_gpu.backend import count_cores, limit_threads, select
from niseg_gpu.errors import UserError
from niseg_gpu.io.check import check_stack
from niseg_gpu.io.gate import gated
from niseg_gpu.io.paths import read_path
from niseg_gpu.kmeans.cluster import hold_rows
from niseg_gpu.kmeans.step import KMeansResult, fit_kmeans
from niseg_gpu.pipeline.engine import Applied, Engine
from niseg_gpu.pipeline.parse import parse_steps
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.pipeline.store import open_target
from niseg_gpu.threads import use_threads

if TYPE_CHECKING:
    import xarray as xr


def apply_steps(
    stack: xr.DataArray,
    steps: Sequence[Any],
    *,
    open_beam: xr.DataArray | None = None,
    dark: xr.DataArray | None = None,
    device: str = "auto",
    kernels: str = "auto",
    bad_values: str = "error",
) -> Applied:
    """Apply block-wise steps to a stack, lazily.

    Parameters
    ----------
    stack : xarray.DataArray
        As `open_stack` gives it, or any with dims (…, "y", "x").
    steps : sequence
        Names, ``{name: parameters}`` or `Step` values, as in a pipeline file.
    open_beam, dark : xarray.DataArray, optional
        References for ``normalize``.
    device : {"auto", "cpu", "gpu"}
    kernels : {"auto", "library", "own"}
        What is taken where both are there; auto takes our own on the CPU and the library's on a GPU.
    bad_values : {"error", "keep"}
        Refuse NaN, Inf, negative counts and saturated values, or go on.

    Returns
    -------
    Applied
        ``image`` and ``masks``, DataArrays over Dask on the host.

    Raises
    ------
    UserError
        A step that is unknown, misused, or does not fit the stack.
    """
    _check_stacks(frames=True, stack=stack, open_beam=open_beam, dark=dark)
    if bad_values not in ("error", "keep"):
        raise UserError(f"apply_steps got bad_values {bad_values!r}; allowed: error, keep")
    engine, steps = _engine(device, bad_values, kernels=kernels), parse_steps(steps)
    last = steps[-1].name if steps else ""
    if last and OPS[last].apply is None:
        raise UserError(f"{last} does not work block by block; apply the steps before it, then call cluster_stack")
    applied = engine.apply(stack, steps, open_beam=open_beam, dark=dark)
    masks = {name: engine.to_host(mask) for name, mask in applied.masks.items()}
    return Applied(engine.to_host(applied.image), masks)


def cluster_stack(
    stack: xr.DataArray,
    *,
    device: str = "auto",
    kernels: str = "auto",
    folder: str | Path | None = None,
    **parameters: Any,
) -> KMeansResult:
    """Cluster a stack's pixels by their spectra (or, without a ToF axis, its voxels by their value).

    Parameters
    ----------
    stack : xarray.DataArray
        With dims ("tof", "y", "x"), or any without ``tof``.
    device : {"auto", "cpu", "gpu"}
    kernels : {"auto", "library", "own"}
        As for `apply_steps`.
    folder : str or Path, optional
        On a disk with room for the spectra: what of them is large for the device's memory lies in a nameless file there
        meanwhile. Without one such spectra are refused.
    **parameters
        Of the step ``kmeans``; see `fit_kmeans`.
    """
    import dask.array as da

    _check_stacks(frames=False, stack=stack)
    (step,) = parse_steps([{"kmeans": parameters}])
    engine = _engine(device, "keep", kernels=kernels)
    engine.fit(stack, [step], reading=False)
    image = engine.apply(stack, [], whole=OPS[step.name].whole).image
    where = None if folder is None else read_path(folder, who="cluster_stack")
    table, target = open_target(engine.backend, image, folder=where, **step.parameters)
    with use_threads(engine.workers):
        with gated([target]) as targets:
            da.store([image.data], targets, lock=False)
    hold = partial(hold_rows, backend=engine.backend, workers=engine.workers) if table.in_file else None
    with limit_threads(engine.workers):
        return fit_kmeans(table, engine.workers, hold, **step.parameters)


def _check_stacks(*, frames: bool, **stacks: Any) -> None:
    """Refuse what is no stack, before any step meets it; None is one that was not given."""
    for name, stack in stacks.items():
        if stack is None and name != "stack":
            continue
        if not hasattr(stack, "dims") or not hasattr(stack, "data"):
            raise UserError(
                f"{name} is a {type(stack).__name__}; allowed: an xarray.DataArray, as open_stack gives it, or "
                'xarray.DataArray(values, dims=("tof", "y", "x"))'
            )
        if stack.ndim > 3:
            raise UserError(f"{name} has {stack.ndim} axes {stack.shape}; allowed: 2 or 3")
        check_stack(name, shape=stack.shape, dtype=stack.dtype)
        _check_order(name, tuple(map(str, stack.dims)), frames=frames)


def _check_order(name: str, dims: tuple[str, ...], *, frames: bool) -> None:
    """Refuse axes in another order than steps work in, which look at places and not at names."""
    if "tof" in dims[1:] or (frames and dims[-2:] != ("y", "x")):
        needed = "tof first" if not frames else "tof, y, x" if "tof" in dims else "..., y, x"
        raise UserError(
            f"{name} has the axes {', '.join(dims)}; needed: {needed}: give {name}.transpose(...), or .rename(...) "
            "where they are called otherwise"
        )


def _engine(device: str, bad_values: str, *, kernels: str = "auto") -> Engine:
    backend, _ = select(device, kernels=kernels)
    return Engine(backend, bad_values=bad_values, workers=count_cores())

"""A block or a few of the real input taken through a pipeline, to learn how long the rest will take.

They go the way of a run, but the results stay in memory and are thrown away.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.backend import limit_threads
from niseg_gpu.chunks import Region
from niseg_gpu.kmeans.cluster import draw_starts, hold_rows
from niseg_gpu.kmeans.lloyd import assign, measure_points
from niseg_gpu.pages import give_back, keep_little
from niseg_gpu.pipeline.clock import measure_peak_memory
from niseg_gpu.pipeline.engine import Applied, Stage
from niseg_gpu.pipeline.ledger import Ledger
from niseg_gpu.pipeline.run import Session
from niseg_gpu.pipeline.store import WALL, store_blocks
from niseg_gpu.threads import use_threads

if TYPE_CHECKING:
    import xarray as xr

    from niseg_gpu.kmeans.table import PixelTable

LONG_S = 5.0  # for a first block; then only one more is tried
MOST_BLOCKS = 8
PASSES = 3  # of k-means


@dataclass(frozen=True)
class LastTrial:
    """What k-means took for the pixels of the blocks tried, in seconds: to measure and draw, and for an iteration."""

    pixels: int
    measure_s: float
    draw_s: float
    pass_s: float


@dataclass(frozen=True)
class Trial:
    """What was measured on some blocks, each in a thread of its own.

    Attributes
    ----------
    blocks : int
    seconds : float
        By the clock on the wall.
    steps : mapping of str to float
        Seconds by what was done, over all threads together.
    stored : float
        Bytes on disk for each byte of the stacks that are kept.
    last : LastTrial or None
        Of the step that ends the pipeline.
    """

    blocks: int
    seconds: float
    steps: Mapping[str, float]
    stored: float
    last: LastTrial | None


def fit_for_trial(session: Session) -> list[Stage]:
    """Fit the block-wise steps without going through the input: doses are left out, frames that are averaged are few.

    What the steps do with a block, and hold for it, is the same.
    """
    references = {
        name: stack[:1] if stack is not None and stack.ndim == 3 and "tof" not in stack.dims else stack
        for name, stack in session.inputs.references.items()
    }
    steps = [
        replace(step, parameters={**step.parameters, "dose_roi": None}) if "dose_roi" in step.parameters else step
        for step in session.local_steps
    ]
    return session.engine.fit(session.inputs.sample, steps, reading=True, **references)


def run_trial(session: Session, stages: Sequence[Stage], regions: Sequence[Region]) -> tuple[Trial, int]:
    """Take the first block through all steps, then it again; where that was fast, with others, twice; time the last.

    After the first, what the process holds with all libraries and kernels loaded is measured: it comes back in bytes.

    Parameters
    ----------
    session : Session
    stages : sequence of Stage
        Of `fit_for_trial`.
    regions : sequence of tuple of slice
        All blocks.
    """
    start = time.perf_counter()
    with keep_little():  # or what threads keep of the block would count as base
        _take_blocks(session, stages, regions[:1])  # what compiles, compiles here
        slow = time.perf_counter() - start > LONG_S
        base = measure_base_memory()
    some = regions[: 1 if slow else min(session.workers, MOST_BLOCKS)]
    if not slow:
        _take_blocks(session, stages, some)  # memory is taken from the system here, which the blocks of a run do once
    return _take_blocks(session, stages, some), base


def _take_blocks(session: Session, stages: Sequence[Stage], regions: Sequence[Region]) -> Trial:
    import zarr
    from zarr.storage import MemoryStore

    sample, before = session.inputs.sample, dict(session.clock.seconds)
    ledger = Ledger(session.engine.backend, session.clock)
    applied = session.engine.map_stages(sample, stages, whole=session.whole, ledger=ledger)
    lengths = [part.stop for part in regions[-1]]
    axis = next((i - sample.ndim for i, n in enumerate(sample.shape) if lengths[i] < n), None)

    def cut(stack: xr.DataArray) -> xr.DataArray:
        return stack if axis is None else stack.isel({stack.dims[axis]: slice(0, lengths[axis])})  # None: all blocks

    mean = applied.mean_image if applied.mean_image is None else cut(applied.mean_image)
    few = Applied(cut(applied.image), {name: cut(mask) for name, mask in applied.masks.items()}, mean)
    group = zarr.create_group(MemoryStore())
    with use_threads(session.workers):
        start = time.perf_counter()
        table, _ = store_blocks(session, few, group, ledger=ledger, quiet=True)
        seconds = time.perf_counter() - start
    steps = {n: took - before.get(n, 0.0) for n, took in session.clock.seconds.items() if n != WALL}
    arrays = [array for _, array in group.arrays()]
    stored = sum(a.nbytes_stored() for a in arrays) / sum(a.nbytes for a in arrays) if arrays else 1.0
    last = _try_last(session, table) if table is not None else None
    return Trial(len(regions), seconds, steps, min(stored, 1.0), last)


def _try_last(session: Session, table: PixelTable) -> LastTrial | None:
    """Start k-means on some pixels, and iterate a little; None where they are too few."""
    assert session.last_step is not None
    backend, parameters = table.backend, session.last_step.parameters
    if table.extras:  # the library of the features counts
        backend.gaussian(backend.xp.zeros((8, 8), dtype=backend.xp.float32), sigma=1.0)
    rows = table.compact()[:, : table.n_features]
    numbers = parameters["n_clusters"]
    k = max(numbers) if isinstance(numbers, list) else numbers
    if k > len(rows):
        return None
    points = hold_rows(rows, backend=backend, workers=session.workers)
    names = ("init", "n_init", "init_sample")
    how = {"n_clusters": k, **{name: parameters[name] for name in names}}

    def draw() -> tuple[Any, Any]:
        return draw_starts(points, **how, random_state=np.random.RandomState(parameters["seed"]))

    with limit_threads(session.workers):
        measure, starts = draw()  # loads, or compiles, the kernels
        measure_s, draw_s = _time(lambda: measure_points(points)), _time(draw)
        if backend.kernels == "library":
            floats = backend.xp.astype(rows, backend.xp.float32)
            start = starts[0] + measure.mean
            pass_s = _time(lambda: backend.run_lloyd(floats, centroids=start, max_iter=PASSES, tol=0.0)) / PASSES
        else:
            assign(points, measure, starts[0])
            pass_s = _time(lambda: [assign(points, measure, starts[0]) for _ in range(PASSES)]) / PASSES
    return LastTrial(len(rows), measure_s, max(draw_s - measure_s, 0.0), pass_s)


def _time(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def load_report() -> None:
    """Import what a run draws its report with, so that it counts."""
    from jinja2 import Environment  # noqa: F401

    from niseg_gpu import figures, report  # noqa: F401

    figures.load_libraries()


def measure_base_memory() -> int:
    """Bytes that this process holds once all that was computed is given back: interpreter, libraries, kernels."""
    gc.collect()
    if sys.platform != "linux":
        return measure_peak_memory()
    give_back()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

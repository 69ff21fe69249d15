"""Running a pipeline: from the files to the folder of results."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.backend import CPU, count_cores, select
from niseg_gpu.io.folders import check_folder, staged_folder
from niseg_gpu.io.gate import gated
from niseg_gpu.kmeans.step import open_table
from niseg_gpu.kmeans.table import PixelTable
from niseg_gpu.pipeline.clock import Clock, measure_peak_memory
from niseg_gpu.pipeline.clusters import cluster, write_clusters
from niseg_gpu.pipeline.engine import Applied, Engine, Stage
from niseg_gpu.pipeline.inputs import Inputs, open_inputs
from niseg_gpu.pipeline.parse import Pipeline, Step
from niseg_gpu.pipeline.planes import PlaneSamples
from niseg_gpu.pipeline.progress import show_progress
from niseg_gpu.pipeline.results import SIGN, write_array, write_json
from niseg_gpu.pipeline.sinks import FetchTarget, HostTarget, SumTarget
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.pipeline.workers import describe_workers, workers_of
from niseg_gpu.spots import MANY_SPOTS
from niseg_gpu.stack import UNITS, StackInfo
from niseg_gpu.threads import use_threads

if TYPE_CHECKING:
    import xarray as xr

PACKAGES = (
    *("numpy", "dask", "xarray", "zarr", "astropy", "scipy", "scikit-learn", "numba", "jax", "flax"),
    *("cupy", "cucim", "cuml"),
)

WALL = "all blocks, by the clock on the wall"

log = logging.getLogger("niseg_gpu")


@dataclass(frozen=True)
class Session:
    """One run's choices: device, threads, clock, opened inputs; a client where k-means has workers of its own."""

    pipeline: Pipeline
    engine: Engine
    reason: str
    inputs: Inputs
    client: Any = None

    @property
    def workers(self) -> int:
        return self.engine.workers

    @property
    def clock(self) -> Clock:
        return self.engine.clock

    @property
    def local_steps(self) -> list[Step]:
        return [s for s in self.pipeline.steps if OPS[s.name].apply is not None]

    @property
    def last_step(self) -> Step | None:
        """The step that ends the pipeline, where there is one."""
        ends = [s for s in self.pipeline.steps if OPS[s.name].apply is None]
        return ends[0] if ends else None

    def apply(self, *, samples: PlaneSamples | None = None) -> Applied:
        """Apply the block-wise steps to the inputs, in blocks that the last step can use."""
        whole = OPS[self.last_step.name].whole if self.last_step else frozenset()
        references = self.inputs.references
        return self.engine.apply(self.inputs.sample, self.local_steps, whole=whole, samples=samples, **references)


def open_session(pipeline: Pipeline, *, client: Any = None, reading: bool = True) -> Session:
    """Choose the device, open the inputs and check every step against them; whether data will be read is said."""
    backend, reason = select(pipeline.compute.device, kernels=pipeline.compute.kernels)
    workers = pipeline.compute.workers or count_cores()
    engine = Engine(backend, bad_values=pipeline.input.bad_values, workers=workers)
    inputs = open_inputs(pipeline.input, clock=engine.clock, reading=reading)
    session = Session(pipeline, engine, reason, inputs, client)
    check_steps(session)
    return session


def check_steps(session: Session) -> list[Stage]:
    """Check every step; return the stack after each."""
    return session.engine.fit(session.inputs.sample, session.pipeline.steps, reading=False, **session.inputs.references)


def run_pipeline(pipeline: Pipeline, *, overwrite: bool = False, quiet: bool = False) -> Path:
    """Run a pipeline into its folder of results.

    Parameters
    ----------
    pipeline : Pipeline
    overwrite : bool
        Replace an earlier result of the same name.
    quiet : bool
        No progress bar.

    Returns
    -------
    Path
        The folder: ``result.zarr``, ``report.html``, ``preview/``, ``run.json``, ``log.txt``.
    """
    from niseg_gpu.figures import load_libraries
    from niseg_gpu.report import write_report

    started, out = datetime.now(UTC).astimezone(), Path(pipeline.output.path)
    start = time.perf_counter()
    check_folder(out, overwrite=overwrite, sign=SIGN)
    with ExitStack() as stack:
        session = open_session(pipeline, client=stack.enter_context(workers_of(pipeline.compute)))
        folder = stack.enter_context(staged_folder(out, overwrite=overwrite, sign=SIGN))
        stack.enter_context(_log_to(folder / "log.txt"))
        log.info(
            "%s %s on %s (%s)",
            pipeline.input.path,
            session.inputs.sample.shape,
            session.engine.backend.name,
            session.reason,
        )
        # beside the blocks, which leave the interpreter to others most of the time
        threading.Thread(target=load_libraries, daemon=True).start()
        results = write_results(session, folder, quiet=quiet)
        with session.clock.timing("report", 0):
            record = _record(session, results, started=started.isoformat(timespec="seconds"))
            record.update(_costs(session, seconds=time.perf_counter() - start))
            write_json(folder / SIGN, record)
            for line in record["findings"]:
                log.info("%s", line)
            write_report(folder)
        record.update(_costs(session, seconds=time.perf_counter() - start))
        write_json(folder / SIGN, record)
    return out


def _log_to(path: Path) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def logging_to_file() -> Any:
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)
            handler.close()

    return logging_to_file()


def write_results(session: Session, folder: Path, *, quiet: bool) -> dict[str, Any]:
    """Fill ``result.zarr``; return what ``run.json`` says of the results."""
    import zarr

    with use_threads(session.workers):
        samples = PlaneSamples(session.engine.backend)
        applied = session.apply(samples=samples)
        group = zarr.create_group(folder / "result.zarr", attributes={"quantity": StackInfo.of(applied.image).quantity})
        table, sums = store_blocks(session, applied, group, quiet=quiet)
    _write_coords(group, applied.image)
    pictured = applied.mean_image if applied.mean_image is not None else applied.image
    mean = sums["mean_image" if applied.mean_image is not None else "image"].mean()
    write_array(group, "mean_image", mean, ("y", "x"), units=pictured.attrs.get("quantity", ""))
    if "spots" in sums:
        write_array(group, "spot_count", sums["spots"].total, ("y", "x"))
        total = sums["spots"].total
        warn_of_many_spots(session, int(total.sum(dtype=np.int64)), of=total.size * sums["spots"].frames)
    with session.clock.timing("report", 0):
        samples.write(group)
    results: dict[str, Any] = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in group.arrays()}
    if table is not None:
        found = cluster(session, table)
        results["labels"] = write_clusters(
            group, found, applied.image, folder=folder, arrays=session.pipeline.output.arrays
        )
    return results


def store_blocks(
    session: Session, applied: Applied, group: Any, *, quiet: bool
) -> tuple[PixelTable | None, dict[str, Any]]:
    """Compute every block once and write it wherever it is wanted."""
    import dask.array as da

    from niseg_gpu.io.zarr import align_chunks, create_array

    backend, clock, kept = session.engine.backend, session.clock, session.pipeline.output.arrays
    image = applied.image
    pairs: list[tuple[Any, Any]] = []
    sums: dict[str, Any] = {}
    table = None
    with show_progress("blocks", total=image.size, quiet=quiet) as progress:
        sums["image"] = SumTarget(backend, shape=image.shape, dtype=np.float64, progress=progress)
        if session.last_step is not None:
            table, target = make_table(session, image)
            pairs.append((image, target))
        if "spots" in applied.masks:
            sums["spots"] = SumTarget(backend, shape=applied.masks["spots"].shape, dtype=np.uint32)
            pairs.append((applied.masks["spots"], sums["spots"]))
        if applied.mean_image is not None:
            sums["mean_image"] = SumTarget(backend, shape=applied.mean_image.shape, dtype=np.float64)
            pairs.append((applied.mean_image, sums["mean_image"]))
        for stack in (image, *applied.masks.values()):
            if ("image" if stack is image else "spots") in kept:
                array = create_array(
                    group,
                    str(stack.name),
                    shape=stack.shape,
                    dtype=stack.dtype,
                    dims=_mask_dims(stack, image),
                    chunks=align_chunks(stack.chunks, itemsize=stack.dtype.itemsize),
                    attrs={"units": stack.attrs.get("quantity", "")} if stack is image else {},
                )
                pairs.append((stack, HostTarget(array, backend=backend, clock=clock)))
        pairs.append((image, sums["image"]))  # last, so that the bar moves when a block is done with
        with clock.timing(WALL, session.inputs.nbytes), gated([t for _, t in pairs]) as targets:
            da.store([s.data for s, _ in pairs], targets, lock=False)
    return table, sums


def warn_of_many_spots(session: Session, number: int, *, of: int) -> None:
    """Say so where more than a tenth of all values were taken for spots: then whatever tells them is off."""
    if number > MANY_SPOTS * of:
        first = next(step.name for step in session.pipeline.steps if OPS[step.name].mask)
        cause = "the threshold is too low" if first == "remove_spots" else "the model suits other images"
        what = f"of {of} values ({100 * number // of} %) were taken for spots: {cause}"
        session.clock.add_findings("warning", {what: number})


def make_table(session: Session, image: xr.DataArray) -> tuple[PixelTable, Any]:
    """Make a table for the last step, on the host where workers are to get it, and what the blocks are written to."""
    assert session.last_step is not None
    backend, parameters = session.engine.backend, session.last_step.parameters
    if session.client is None:
        table = open_table(backend, image, **parameters)
        return table, table
    table = open_table(CPU, image, **parameters)
    return table, FetchTarget(table, backend=backend)


def store_table(session: Session, image: xr.DataArray, *, progress: Any) -> PixelTable:
    """Compute every block once and gather the spectra; nothing is kept on disk."""
    import dask.array as da

    table, target = make_table(session, image)
    watch = SumTarget(session.engine.backend, shape=image.shape, dtype=np.float64, progress=progress)
    with gated([target, watch]) as targets:
        da.store([image.data, image.data], targets, lock=False)
    return table


def _mask_dims(stack: xr.DataArray, image: xr.DataArray) -> tuple[str, ...]:
    """Axis names; a ToF axis of another length than the image's gets a name of its own."""
    return tuple(
        f"{dim}_{stack.name}" if image.sizes.get(dim) != size else dim
        for dim, size in zip(map(str, stack.dims), stack.shape, strict=True)
    )


def _write_coords(group: Any, image: xr.DataArray) -> None:
    for name, values in image.coords.items():
        write_array(group, str(name), values.values, tuple(map(str, values.dims)), units=UNITS.get(str(name), ""))
    group.attrs["coordinates"] = " ".join(str(n) for n in image.coords if n not in image.dims)  # read so by xarray


def _record(session: Session, results: dict[str, Any], *, started: str) -> dict[str, Any]:
    """What ``run.json`` holds, but for the costs."""
    sample = session.inputs.sample
    files = sample.attrs.get("files", [])
    return {
        "niseg_gpu": importlib.metadata.version("niseg-gpu"),
        "started": started,
        "device": {
            "name": session.engine.backend.name,
            "hardware": session.engine.backend.describe(),
            "workers": session.workers,
            "reason": session.reason,
            "uses": _tell_uses(session),
            **_describe_cluster(session),
        },
        "versions": versions(),
        "pipeline": session.pipeline.as_mapping(),
        "input": {
            "path": session.pipeline.input.path,
            "shape": list(sample.shape),
            "dims": list(sample.dims),
            "dtype": str(sample.dtype),
            "bytes": int(sample.nbytes),
            "files": len(set(files)),
            "quantity": StackInfo.of(sample).quantity,
        },
        "findings": session.clock.findings(),
        "results": results,
    }


def _describe_cluster(session: Session) -> dict[str, Any]:
    """Where the last step went, if not to this process."""
    if session.client is None:
        return {}
    compute = session.pipeline.compute
    workers = describe_workers(session.client, device=compute.device, kernels=compute.kernels)
    return {"cluster": [{"worker": address, **found} for address, found in workers.items()]}


def _tell_uses(session: Session) -> dict[str, str]:
    """By what each step was computed."""
    uses = session.engine.backend.uses
    told = {step.name: uses.get(step.name, uses["everything else"]) for step in session.pipeline.steps}
    if session.client is not None and session.last_step is not None:
        told[session.last_step.name] = "the workers of the cluster: kernels of our own, or array calls of the library"
    return told


def _costs(session: Session, *, seconds: float) -> dict[str, Any]:
    """Seconds and GB/s by step; those of steps that run in several threads are per thread."""
    clock = session.clock
    rows = []
    for name, took in clock.seconds.items():
        if name == "to device" and session.engine.backend.name == "cpu":
            continue
        parallel = name not in ("kmeans", "report", WALL)
        wall = took / session.workers if parallel else took
        row = {"name": name, "seconds": round(wall, 4), "bytes": clock.bytes[name]}
        if clock.bytes[name] and wall > 1e-3:  # a step that touches no value has no rate
            row["gb_per_s"] = round(clock.bytes[name] / wall / 1e9, 3)
        rows.append(row)
    return {"seconds": round(seconds, 3), "steps": rows, "peak_memory_gb": round(measure_peak_memory() / 1e9, 3)}


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        for name in (package, f"{package}-cuda13x", f"{package}-cu13", f"{package}-cuda12x", f"{package}-cu12"):
            try:
                found[package] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found

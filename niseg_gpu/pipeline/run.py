"""Running a pipeline: from the files to the folder of results."""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.backend import CPU, count_cores, select
from niseg_gpu.errors import add_note
from niseg_gpu.io.folders import check_folder
from niseg_gpu.io.unfinished import unfinished_folder
from niseg_gpu.kmeans.step import is_table_large
from niseg_gpu.pages import give_back
from niseg_gpu.pipeline.checkpoint import (
    CHECKPOINT,
    RESULTS,
    BrokenRun,
    Checkpoint,
    check_finished,
    identify_run,
    stamp_step_files,
)
from niseg_gpu.pipeline.clock import Clock, measure_peak_memory
from niseg_gpu.pipeline.clusters import cluster, write_clusters
from niseg_gpu.pipeline.engine import Applied, Engine, Stage
from niseg_gpu.pipeline.inputs import Inputs, open_inputs
from niseg_gpu.pipeline.ledger import Ledger
from niseg_gpu.pipeline.parse import Pipeline, Step, check_pipeline
from niseg_gpu.pipeline.results import SIGN, log_to, write_array, write_json
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.pipeline.store import WALL, store_blocks, warn_of_many_spots
from niseg_gpu.pipeline.workers import describe_workers, workers_of
from niseg_gpu.stack import UNITS, StackInfo
from niseg_gpu.threads import use_threads

if TYPE_CHECKING:
    import xarray as xr

PACKAGES = (
    *("numpy", "dask", "xarray", "zarr", "astropy", "scipy", "scikit-learn", "numba", "jax", "flax"),
    *("cupy", "cucim", "cuml"),
)

log = logging.getLogger("niseg_gpu")


@dataclass(frozen=True)
class Session:
    """One run's choices: device, threads, clock, opened inputs; a client where k-means has workers of its own.

    `table_is_large` says that the spectra for the last step belong in a file, for the memory does not hold them.
    """

    pipeline: Pipeline
    engine: Engine
    reason: str
    inputs: Inputs
    client: Any = None
    table_is_large: bool = False

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

    @property
    def whole(self) -> frozenset[str]:
        """Axes that the last step lets no block split."""
        return OPS[self.last_step.name].whole if self.last_step else frozenset()

    def apply(self, *, ledger: Ledger | None = None) -> Applied:
        """Apply the block-wise steps to the inputs, in blocks that the last step can use."""
        references = self.inputs.references
        return self.engine.apply(self.inputs.sample, self.local_steps, whole=self.whole, ledger=ledger, **references)


def open_session(pipeline: Pipeline, *, client: Any = None, reading: bool = True) -> Session:
    """Choose the device, open the inputs and check every step against them; whether data will be read is said."""
    backend, reason = select(pipeline.compute.device, kernels=pipeline.compute.kernels)
    workers = pipeline.compute.workers or count_cores()
    engine = Engine(backend, bad_values=pipeline.input.bad_values, workers=workers)
    inputs = open_inputs(pipeline.input, clock=engine.clock, reading=reading)
    session = Session(pipeline, engine, reason, inputs, client)
    stages = check_steps(session)
    if session.last_step is None:
        return session
    at = CPU if client is not None else backend
    before = stages[-2].info if len(stages) > 1 else StackInfo.for_steps(inputs.sample)
    return replace(session, table_is_large=is_table_large(at, before, workers=workers, **session.last_step.parameters))


def check_steps(session: Session) -> list[Stage]:
    """Check every step; return the stack after each."""
    return session.engine.fit(session.inputs.sample, session.pipeline.steps, reading=False, **session.inputs.references)


def run_pipeline(pipeline: Pipeline, *, overwrite: bool = False, resume: bool = False, quiet: bool = False) -> Path:
    """Run a pipeline into its folder of results.

    A run that keeps the image, or whose steps end with none that needs all pixels, writes a checkpoint every half
    minute. Where it is killed, or ends with an error, the hidden folder it was filling stays if it holds one.

    Parameters
    ----------
    pipeline : Pipeline
    overwrite : bool
        Replace an earlier result of the same name.
    resume : bool
        Go on after the last checkpoint, where there is one, to the same results, byte for byte; begin where there is
        none; leave a finished run of the same pipeline as it is, unless with `overwrite`.
    quiet : bool
        No progress bar.

    Returns
    -------
    Path
        The folder: ``result.zarr``, ``report.html``, ``preview/``, ``run.json``, ``log.txt``.

    Raises
    ------
    UserError
        Among others: an unfinished run is there and neither is to be resumed nor replaced; it is of another pipeline,
        other files, other kernels.
    """
    from niseg_gpu.figures import load_libraries
    from niseg_gpu.report import write_report

    check_pipeline(pipeline, who="run_pipeline")
    started, out = datetime.now(UTC).astimezone(), Path(pipeline.output.path)
    if resume and not overwrite and (out / SIGN).is_file():
        check_finished(out / SIGN, pipeline)
        return out
    check_folder(out, overwrite=overwrite, sign=SIGN)
    with ExitStack() as stack:
        session = open_session(pipeline, client=stack.enter_context(workers_of(pipeline.compute)))
        step_files = stamp_step_files(pipeline)
        folder = stack.enter_context(
            unfinished_folder(out, overwrite=overwrite, sign=SIGN, resume=resume, kept=CHECKPOINT)
        )
        ledger = open_ledger(session, folder)
        stack.enter_context(_telling_of(ledger))
        stack.enter_context(log_to(folder / "log.txt"))
        log.info(
            "%s %s on %s (%s)",
            pipeline.input.path,
            session.inputs.sample.shape,
            session.engine.backend.name,
            session.reason,
        )
        for line in session.inputs.bad_frames:
            log.info("bad frame: %s", line)
        # beside the blocks, which leave the interpreter to others most of the time
        threading.Thread(target=load_libraries, daemon=True).start()
        results = write_results(session, folder, ledger=ledger, quiet=quiet)
        with session.clock.timing("report", 0):
            record = _record(session, results, started=started.isoformat(timespec="seconds"))
            record["step_files"] = step_files
            record["resumed_after_blocks"] = ledger.resumed_after
            record.update(_costs(session, seconds=ledger.seconds))
            write_json(folder / SIGN, record)
            for line in record["findings"]:
                log.info("%s", line)
            write_report(folder)
        record.update(_costs(session, seconds=ledger.seconds))
        write_json(folder / SIGN, record)
    return out


def open_ledger(session: Session, folder: Path) -> Ledger:
    """Open the account of the blocks, with a checkpoint where what they leave can be had again from the disk."""
    backend, kept = session.engine.backend, session.pipeline.output.arrays
    if session.last_step is not None and "image" not in kept:
        return Ledger(backend, session.clock)
    sample = session.inputs.sample
    n_files = len(set(sample.attrs.get("files", ())))
    apart = sample.ndim == 3 and n_files == len(sample) and not session.inputs.bad_frames  # or blocks need other files
    frames = n_files if apart else 0
    of = identify_run(session, _tell_uses(session))
    return Ledger(backend, session.clock, checkpoint=Checkpoint(folder / CHECKPOINT, of=of, frames=frames))


@contextmanager
def _telling_of(ledger: Ledger) -> Iterator[None]:
    """Say of an error how much of the work is kept."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, BrokenRun) and ledger.keep():
            of = f"{ledger.kept} of {len(ledger.regions)} blocks are done and kept"
            add_note(error, f"{of}; the same command with --resume goes on after them")
        raise


def write_results(session: Session, folder: Path, *, ledger: Ledger, quiet: bool) -> dict[str, Any]:
    """Fill ``result.zarr``; return what ``run.json`` says of the results."""
    with use_threads(session.workers):
        applied = session.apply(ledger=ledger)
        give_back()  # what averaging the references had
        group = open_group(folder / RESULTS, applied, ledger=ledger)
        table, sums = store_blocks(session, applied, group, ledger=ledger, quiet=quiet, folder=folder)
    ledger.keep()
    give_back()  # what the blocks had, before k-means and the report want theirs
    _write_coords(group, applied.image)
    pictured = applied.mean_image if applied.mean_image is not None else applied.image
    mean = sums["mean_image" if applied.mean_image is not None else "image"].mean()
    write_array(group, "mean_image", mean, ("y", "x"), units=pictured.attrs.get("quantity", ""))
    if "spots" in sums:
        write_array(group, "spot_count", sums["spots"].total, ("y", "x"))
        total = sums["spots"].total
        warn_of_many_spots(session, int(total.sum(dtype=np.int64)), of=total.size * sums["spots"].frames)
    with session.clock.timing("report", 0):
        ledger.samples.write(group)
    results: dict[str, Any] = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in group.arrays()}
    if table is not None:
        found = cluster(session, table)
        results["labels"] = write_clusters(
            group, found, applied.image, folder=folder, arrays=session.pipeline.output.arrays
        )
    del table
    give_back()
    return results


def open_group(path: Path, applied: Applied, *, ledger: Ledger) -> Any:
    """Make the group of arrays, or open that of the run to go on with and leave in it what blocks were written to."""
    import zarr

    ledger.load()
    if not ledger.done:
        shutil.rmtree(path, ignore_errors=True)  # of a run to go on with that had not got far enough
        return zarr.create_group(path, attributes={"quantity": StackInfo.of(applied.image).quantity})
    log.info("going on after %d of %d blocks", len(ledger.done), len(ledger.regions))
    for entry in path.iterdir():
        if entry.is_dir() and entry.name not in ("image", *applied.masks):
            shutil.rmtree(entry)  # written anew, and perhaps half written: not to be opened
    return zarr.open_group(path, mode="r+")


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
        "working_folder": str(Path.cwd()),
        "input": {
            "path": session.pipeline.input.path,
            "shape": list(sample.shape),
            "dims": list(sample.dims),
            "dtype": str(sample.dtype),
            "bytes": int(sample.nbytes),
            "files": len(set(files)),
            "quantity": StackInfo.of(sample).quantity,
            "bad_frames": session.inputs.bad_frames,
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
    if session.last_step is not None and session.table_is_large and session.engine.backend.kernels == "library":
        told[session.last_step.name] = "array calls of the library, on parts of a table in a file"
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

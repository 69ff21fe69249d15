"""Making a plan: a few blocks are tried, and the rest is computed from shapes, dtypes and steps."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from niseg_gpu.backend import CPU, count_cores, count_memory_limit
from niseg_gpu.chunks import Region, widen
from niseg_gpu.io.open import count_decoded
from niseg_gpu.kmeans.arrays import count_held
from niseg_gpu.kmeans.extras import count_extras
from niseg_gpu.kmeans.table import count_table_bytes
from niseg_gpu.pipeline.blocks import PARTS, cut_blocks, halo_of
from niseg_gpu.pipeline.engine import Stage
from niseg_gpu.pipeline.memory import count_averages, count_device, count_host, find_peak, follow_block
from niseg_gpu.pipeline.parse import Pipeline, check_pipeline
from niseg_gpu.pipeline.plan import BlockPlan, Disk, Plan, Room, Seconds, StepPlan, find_problems
from niseg_gpu.pipeline.run import Session, open_session
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.pipeline.trial import Trial, fit_for_trial, load_report, run_trial
from niseg_gpu.pipeline.workers import check_cluster
from niseg_gpu.report import tell_bytes
from niseg_gpu.stack import StackInfo

REPORT_BYTES = 10_000_000  # on disk: the page, pictures, small arrays
TABLE = "table of spectra, until the end"


def plan_pipeline(pipeline: Pipeline) -> Plan:
    """Find out what a run of a pipeline will need.

    A few blocks of the input are read and taken through the steps, with their results in memory; nothing is written.

    Parameters
    ----------
    pipeline : Pipeline

    Returns
    -------
    Plan

    Raises
    ------
    UserError
        What `check` would refuse, but for workers that do not answer, and what the blocks tried hold that a run would
        refuse.
    """
    check_pipeline(pipeline, who="plan_pipeline")
    check_cluster(pipeline.compute)
    session = open_session(pipeline, reading=False)
    load_report()
    stages = fit_for_trial(session)
    regions = cut_blocks(session.inputs.sample, stages, whole=session.whole, parts=PARTS * session.workers)
    trial, base = run_trial(session, stages, regions)
    return make_plan(session, stages, regions, trial, base=base)


def make_plan(session: Session, stages: Sequence[Stage], regions: Sequence[Region], trial: Trial, *, base: int) -> Plan:
    """Put a plan together from what is known of the stacks and what a trial has measured.

    Parameters
    ----------
    session : Session
    stages : sequence of Stage
        Of the block-wise steps, fitted.
    regions : sequence of tuple of slice
        The blocks.
    trial : Trial
    base : int
        Bytes that a process holds with all libraries loaded.
    """
    sample, backend = session.inputs.sample, session.engine.backend
    infos = [StackInfo.for_steps(sample), *(stage.info for stage in stages)]
    image, halo = infos[-1], halo_of(stages)
    region = max(regions, key=lambda r: math.prod(_lengths(widen(r, sample.shape, halo=halo))))
    way = follow_block(sample, stages, region, backend=backend)
    at_once = min(session.workers, len(regions))
    last = (OPS[session.last_step.name], session.last_step.parameters) if session.last_step else None
    seconds = estimate_seconds(session, regions, trial)
    disk = _plan_disk(session, stages, trial)
    inputs = [stack for stack in (sample, *session.inputs.references.values()) if stack is not None]
    kept = {"mapped": 0, "unpacked": 0, **session.inputs.kept}
    in_rows = len(regions) > 1 and regions[0][-2] != regions[1][-2]
    read_beside = [stack for stack in inputs if stack is sample or ("tof" in sample.dims and "tof" in stack.dims)]
    host = count_host(
        image,
        way,
        at_once=at_once,
        base=base - kept["unpacked"],  # the trial has done so
        **kept,
        decoded=sum(count_decoded(stack, at_once=at_once, in_rows=in_rows) for stack in read_beside),
        last=last,
        written=max([n // len(regions) for name, n in disk.arrays.items() if name in ("image", "spots")], default=0),
        n_planes=sum(stage.op.plane is not None and stage.op.plane(**stage.state) is not None for stage in stages),
        pictures_frames="image" in disk.arrays and "tof" not in image.dims,
        backend=backend,
        fetched=session.pipeline.compute.cluster is not None,
        in_file=session.table_is_large,
    )
    averages = _plan_averages(session, base=base - kept["unpacked"], kept=kept)
    host = {**averages, **host}
    room = Room(host, find_peak(host)[1], count_memory_limit(), min(CPU.read_budget().free, count_memory_limit()))
    gpu = None
    if backend.has_bus:
        how = {"backend": backend, "in_file": session.table_is_large}
        device, budget = count_device(image, way, at_once=at_once, last=last, **how), backend.read_budget()
        gpu = Room(device, find_peak(device)[1], budget.total, budget.for_arrays)
    return Plan(
        session.inputs.nbytes,
        tuple(_plan_steps(session, stages, trial, seconds, [way.raw, *(way.raw + n for n in way.steps)])),
        BlockPlan(len(regions), _lengths(region), _lengths(widen(region, sample.shape, halo=halo)), at_once),
        backend.name,
        session.reason,
        room,
        gpu,
        disk,
        seconds,
        tuple(find_problems(room, gpu, disk, workers=at_once, mapped=kept["mapped"])),
        tuple(_tell_unknown(session, room, disk)),
    )


def _tell_unknown(session: Session, host: Room, disk: Disk) -> Iterator[str]:
    """What memory no figure is given for."""
    if session.pipeline.compute.cluster is not None:
        here = host.phases["last step"]
        shared = here["table of spectra"] + disk.arrays.get(TABLE, 0) + here["its own arrays"]
        yield (
            f"of the workers' memory: they share {tell_bytes(shared)} of spectra and what k-means needs with them, and "
            "each holds its libraries besides, and what Dask has on the way"
        )


def _plan_averages(session: Session, *, base: int, kept: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The phase in which frames of open beam and dark current are averaged, where they are."""
    engine, steps = session.engine, list(session.local_steps)
    names = [step.name for step in steps]
    if "normalize" not in names:
        return {}
    found, with_tof = [], "tof" in session.inputs.sample.dims
    for stack in session.inputs.references.values():
        if stack is not None and stack.ndim == 3 and not (with_tof and "tof" in stack.dims):
            stages = engine.refer(stack, steps[: names.index("normalize")], reading=True).stages
            regions = cut_blocks(stack, stages, whole=frozenset(), parts=PARTS * session.workers)
            found.append(
                count_averages(
                    follow_block(stack, stages, regions[0], backend=engine.backend),
                    at_once=min(session.workers, len(regions)),
                    base=base,
                    frame=math.prod(stack.shape[1:]),
                    decoded=count_decoded(stack, at_once=session.workers, in_rows=False),
                    backend=engine.backend,
                    **kept,
                )
            )
    return {"averages": max(found, key=lambda parts: sum(parts.values()))} if found else {}


def _lengths(region: Region) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in region)


def estimate_seconds(session: Session, regions: Sequence[Region], trial: Trial) -> Seconds:
    """Scale what the trial took to the whole input."""
    n, sample = len(regions), session.inputs.sample
    at_once = trial.blocks if session.engine.backend.threads == 1 else min(session.workers, n, count_cores())
    blocks, again = trial.seconds * n / at_once, 0.0
    for step in session.local_steps:
        if step.name == "normalize":
            frames = [s for s in session.inputs.references.values() if s is not None and "tof" not in s.dims]
            again += sum(stack.nbytes for stack in frames) / sample.nbytes
            roi = step.parameters["dose_roi"]
            cut_in_rows = n > 1 and regions[0][0] == regions[1][0]
            again += 0 if roi is None else (roi[3] - roi[1]) / sample.sizes["y"] if cut_in_rows else 1
    writing = blocks * trial.steps.get("write", 0.0) / max(sum(trial.steps.values()), 1e-9)
    found = Seconds(again * (blocks - writing), blocks, writing)
    if session.last_step is None or trial.last is None:
        return found
    last, parameters = trial.last, session.last_step.parameters
    bins = session.engine.fit(sample, session.local_steps, reading=False, **session.inputs.references)
    info = bins[-1].info if bins else StackInfo.for_steps(sample)
    pixels = math.prod(info.shape) // info.sizes.get("tof", 1)
    numbers = parameters["n_clusters"] if isinstance(parameters["n_clusters"], list) else [parameters["n_clusters"]]
    more, drawn = pixels / last.pixels, parameters["init_sample"]
    of_sample = more if drawn is None else min(drawn, pixels) / min(drawn, last.pixels)
    start = len(numbers) * (last.measure_s * more + last.draw_s * of_sample)
    reading = trial.steps.get("read", 0.0) / trial.blocks * n / at_once  # of the whole input: at the same pace
    iteration = last.pass_s * more * sum(numbers) / max(numbers) + _read_again(session, info) * reading * len(numbers)
    starts = parameters["n_init"] if drawn is None and isinstance(parameters["init"], str) else 1
    return Seconds(found.before, blocks, writing, start, iteration, parameters["max_iter"] * starts)


def _read_again(session: Session, image: StackInfo) -> float:
    """What each iteration reads of a table in a file, as a part of the bytes of the input."""
    if session.last_step is None or not session.table_is_large or session.client is not None:
        return 0.0
    extras = count_extras(**session.last_step.parameters)
    held = sum(count_held(image, extras, backend=session.engine.backend, workers=session.workers))
    return max(count_table_bytes(image, extras=extras, backend=CPU) - held, 0) / session.inputs.sample.nbytes


def _plan_steps(
    session: Session, stages: Sequence[Stage], trial: Trial, seconds: Seconds, held: Sequence[int]
) -> list[StepPlan]:
    sample, took = StackInfo.of(session.inputs.sample), sum(trial.steps.values())
    names = [stage.name for stage in stages]

    def share(name: str) -> float:
        return seconds.blocks * trial.steps.get(name, 0.0) / max(took, 1e-9) / max(names.count(name), 1)

    rows = [
        StepPlan("input", sample.dims, sample.shape, str(sample.dtype), sample.quantity, (0, 0), held[0], share("read"))
    ]
    for stage, nbytes in zip(stages, held[1:], strict=True):
        info, halo = stage.info, halo_of([stage])
        about = (info.dims, info.shape, str(info.dtype), info.quantity)
        rows.append(StepPlan(stage.name, *about, halo, nbytes, share(stage.name)))
    if session.last_step is not None:
        last = rows[-1]
        dims = tuple(d for d in last.dims if d != "tof")
        shape = tuple(n for d, n in zip(last.dims, last.shape, strict=True) if d != "tof")
        most = seconds.last_start + seconds.iterations * seconds.last_iteration
        rows.append(
            StepPlan(session.last_step.name, dims, shape, "uint8", "labels", (0, 0), 0, most if trial.last else None)
        )
    return rows


def _plan_disk(session: Session, stages: Sequence[Stage], trial: Trial) -> Disk:
    """Bytes of what `write_results` keeps, or has there meanwhile; the trial's compression is that of the stacks."""
    kept = session.pipeline.output.arrays
    infos = [StackInfo.for_steps(session.inputs.sample), *(stage.info for stage in stages)]
    image, arrays = infos[-1], {}
    if "image" in kept:
        arrays["image"] = math.prod(image.shape) * image.dtype.itemsize
    masks = [math.prod(stage.info.shape) for stage in stages if stage.op.mask]
    if "spots" in kept and masks:
        arrays["spots"] = sum(masks)
    stacks = sum(arrays.values())
    frame = math.prod(image.shape[-2:])
    arrays["mean_image, spot_count"] = frame * (8 if masks else 4)
    if session.last_step is not None:
        bins = image.sizes.get("tof", 1)
        numbers = session.last_step.parameters["n_clusters"]
        numbers = numbers if isinstance(numbers, list) else [numbers]
        if "labels" in kept:
            arrays["labels"] = sum((1 if k < 255 else 2) * math.prod(image.shape) // bins for k in numbers)
        if "spectra" in kept:
            arrays["spectra"] = 12 * sum(numbers) * bins
        if session.table_is_large:
            extras = count_extras(**session.last_step.parameters)
            arrays[TABLE] = count_table_bytes(image, extras=extras, backend=CPU)
    arrays["report"] = REPORT_BYTES
    most = sum(arrays.values())
    folder = Path(session.pipeline.output.path).absolute()
    while not folder.exists():
        folder = folder.parent
    return Disk(arrays, most, int(most - stacks * (1 - trial.stored)), shutil.disk_usage(folder).free)

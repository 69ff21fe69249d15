"""One step from file to file."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.pipeline.clusters import cluster, format_spectra, label_map, tell_trials
from niseg_gpu.pipeline.files import check_file_target, write_file
from niseg_gpu.pipeline.parse import Pipeline
from niseg_gpu.pipeline.progress import show_progress
from niseg_gpu.pipeline.run import Session, open_session
from niseg_gpu.pipeline.store import store_table, warn_of_many_spots
from niseg_gpu.pipeline.workers import workers_of
from niseg_gpu.threads import use_threads

if TYPE_CHECKING:
    import xarray as xr


def transform_file(
    pipeline: Pipeline,
    out: Path,
    *,
    overwrite: bool = False,
    quiet: bool = False,
    mask: str | None = None,
    spectra: str | None = None,
) -> list[str]:
    """Run a pipeline of one step from its input to one file.

    Parameters
    ----------
    pipeline : Pipeline
    out : Path
        Its ending names the format.
    overwrite : bool
        Replace files that exist.
    quiet : bool
        No progress bar.
    mask : str, optional
        Where the mask of a step that makes one goes.
    spectra : str, optional
        Where the clusters' mean spectra go, as ``.csv``.

    Returns
    -------
    list of str
        What was written and what was found, a line each.
    """

    from niseg_gpu.io.save import check_apart, check_target, save, save_together

    targets = [Path(p) for p in (out, mask) if p is not None]
    for target in targets:
        check_target(target, overwrite=overwrite)
    if spectra is not None:
        check_file_target(Path(spectra), ending=".csv", overwrite=overwrite)
    check_apart([Path(p) for p in (out, mask, spectra) if p is not None])
    provenance = pipeline.as_mapping()
    with ExitStack() as stack:
        session = open_session(pipeline, client=stack.enter_context(workers_of(pipeline.compute)))
        stack.enter_context(use_threads(session.workers))
        applied = session.apply()
        if session.last_step is not None:
            with show_progress("blocks", total=applied.image.size, quiet=quiet) as progress:
                found = cluster(session, store_table(session, applied.image, folder=out.parent, progress=progress))
            save(label_map(found, applied.image), out, overwrite=overwrite, provenance=provenance)
            if spectra is not None:
                write_file(Path(spectra), format_spectra(found, applied.image))
        else:
            with show_progress("values", total=applied.image.size, quiet=quiet) as progress:
                stacks = {out: watched(session, applied.image, progress)}
                if mask is not None:
                    stacks[Path(mask)] = session.engine.to_host(applied.masks["spots"])
                save_together(stacks, overwrite=overwrite, provenance=provenance)
            _warn_of_many_spots(session, of=applied.image.size)
    written = [f"wrote {p}" for p in (out, mask, spectra) if p is not None]
    trials = tell_trials(found) if session.last_step is not None else []
    return written + trials + session.clock.findings()


def _warn_of_many_spots(session: Session, *, of: int) -> None:
    for step in session.pipeline.steps:
        number = sum(session.clock.number(step.name, what) for what in ("spots replaced", "spots found"))
        warn_of_many_spots(session, number, of=of)


def watched(session: Session, image: xr.DataArray, progress: Any) -> xr.DataArray:
    """The image on the host, telling `progress` of every block."""

    def tell(block: Any) -> np.ndarray:
        block = session.engine.backend.to_host(block)
        progress(block.size)
        return block

    meta = np.empty((0,) * image.ndim, image.dtype)
    return image.copy(data=image.data.map_blocks(tell, dtype=image.dtype, meta=meta))

"""The step that ends a pipeline with clusters: running it, and writing what it found."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.backend import limit_threads
from niseg_gpu.cluster_quality import EDGE_SHARE, FEW
from niseg_gpu.kmeans.cluster import hold_rows
from niseg_gpu.kmeans.spread import scatter_points
from niseg_gpu.kmeans.step import KMeansResult, fit_kmeans
from niseg_gpu.kmeans.table import PixelTable
from niseg_gpu.pipeline.results import write_array
from niseg_gpu.stack import StackInfo

if TYPE_CHECKING:
    import xarray as xr

    from niseg_gpu.pipeline.run import Session

log = logging.getLogger("niseg_gpu")


def cluster(session: Session, table: PixelTable) -> KMeansResult:
    """Run the step that ends the pipeline."""
    step = session.last_step
    assert step is not None
    log.info("clustering %d pixels by %d values", *table.rows.shape)
    spread = None
    if session.client is not None:
        compute = session.pipeline.compute
        spread = partial(scatter_points, session.client, device=compute.device, kernels=compute.kernels)
    elif table.in_file:
        spread = partial(hold_rows, backend=session.engine.backend, workers=session.workers)
    with limit_threads(session.workers), session.clock.timing(step.name, table.rows.nbytes):
        found = fit_kmeans(table, session.workers, spread, **step.parameters)
        session.engine.backend.synchronize()
    session.clock.add_findings(step.name, dict(_findings(found, table, **step.parameters)))
    return found


def _findings(
    found: KMeansResult, table: PixelTable, *, max_iter: int, tol: float, **_: Any
) -> Iterator[tuple[str, int]]:
    if table.in_file:
        megabytes = math.ceil(table.rows.nbytes / 1e6)
        yield "MB of spectra kept in a file, for they are large for the memory: each pass reads what is left", megabytes
    missing = int((~table.valid).sum())
    if missing:
        yield "pixels without data, in no cluster", missing
    if found.n_iter >= max_iter and tol > 0:
        yield "iterations done, stopped by max_iter before it settled", found.n_iter
    empty = int((found.pixels == 0).sum())
    if empty:
        yield f"of {len(found.pixels)} clusters hold no pixel: are there enough different ones?", empty
    few = int(((found.pixels > 0) & (found.pixels * FEW < found.pixels.sum())).sum())
    if few:
        yield f"of {len(found.pixels)} clusters hold less than 1 pixel in {FEW}, as spots do: remove_spots first?", few
    for k in np.flatnonzero(found.edge_share > EDGE_SHARE):
        percent = int(100 * found.edge_share[k])
        yield f"% of cluster {k} lie on borders between others: it follows edges, and is no material", percent


def write_clusters(
    group: Any, found: KMeansResult, image: xr.DataArray, *, folder: Path, arrays: list[str]
) -> dict[str, Any]:
    """Write labels, centroids and spectra; return what ``run.json`` says of them."""
    feature = "tof" if "tof" in image.dims else "feature"
    dims = tuple(d for d in map(str, image.dims) if d != "tof")
    if "labels" in arrays:
        write_array(group, "labels", found.labels, dims, quantity="labels")
        for other in found.others:
            write_array(group, f"labels_k{other.n_clusters}", other.labels, dims, quantity="labels")
    if "spectra" in arrays:
        write_array(group, "spectra", found.spectra, ("cluster", feature))
        write_array(group, "centroids", found.centroids, ("cluster", feature))
        write_array(group, "cluster_pixels", found.pixels, ("cluster",))
        if found.deviations is not None:
            write_array(group, "deviations", found.deviations, ("cluster", feature))
        for other in found.others:
            of_its_own = f"cluster_k{other.n_clusters}", feature  # xarray wants one length of each axis
            write_array(group, f"spectra_k{other.n_clusters}", other.spectra, of_its_own)
        if feature == "tof":
            (folder / "spectra.csv").write_bytes(format_spectra(found, image))
    described = _describe(found)
    if found.others:
        tried = sorted((found, *found.others), key=lambda each: each.n_clusters)
        described["tried"] = [_describe(each) for each in tried]
    return described


def _describe(found: KMeansResult) -> dict[str, Any]:
    described = {
        "n_clusters": found.n_clusters,
        "inertia": found.inertia,
        "n_iter": found.n_iter,
        "pixels": found.pixels,
        "no_data": int(found.labels.size - found.pixels.sum()),
        "edge_share": [None if np.isnan(share) else round(float(share), 4) for share in found.edge_share],
    }
    measured = {"silhouette": found.silhouette, "stability": found.stability}
    return {**described, **{name: value for name, value in measured.items() if value is not None}}


def tell_trials(found: KMeansResult) -> list[str]:
    """A line on each number of clusters, where several were tried."""
    if not found.others:
        return []
    lines = []
    for each in sorted((found, *found.others), key=lambda each: each.n_clusters):
        measured = {"inertia": each.inertia, "silhouette": each.silhouette, "stability": each.stability}
        line = ", ".join(f"{name} {value:.4g}" for name, value in measured.items() if value is not None)
        edges = np.flatnonzero(each.edge_share > EDGE_SHARE)
        line += f", following edges: {', '.join(map(str, edges))}" if edges.size else ""
        lines.append(f"k = {each.n_clusters}: {line}" + (" (written)" if each is found else ""))
    return lines


def label_map(found: KMeansResult, image: xr.DataArray) -> xr.DataArray:
    """The labels as a stack with the image's spatial axes."""
    info = StackInfo.of(image)
    dims = tuple(d for d in info.dims if d != "tof")
    keep = {k: v for k, v in info.attrs.items() if k == "files"}
    return StackInfo(dims, found.labels.shape, found.labels.dtype, {}, {**keep, "quantity": "labels"}).wrap(
        found.labels, name="labels"
    )


def format_spectra(found: KMeansResult, image: xr.DataArray) -> bytes:
    """The clusters' mean spectra as CSV, a bin a row: time of flight, wavelength, a column each.

    With deviations, each cluster has two columns more: these, and the number of its pixels, the same in every row.
    """
    columns = {
        f"{name}_{'s' if name != 'wavelength' else 'angstrom'}": image.coords[name].values
        for name in ("tof", "wavelength")
        if name in image.coords
    }
    columns |= {f"cluster_{k}": spectrum for k, spectrum in enumerate(found.spectra)}
    if found.deviations is not None:
        columns |= {f"cluster_{k}_deviation": deviation for k, deviation in enumerate(found.deviations)}
        columns |= {f"cluster_{k}_pixels": np.full(len(found.spectra[k]), n) for k, n in enumerate(found.pixels)}
    table = np.column_stack(list(columns.values()))
    text = io.BytesIO()
    np.savetxt(text, table, delimiter=",", header=",".join(columns), comments="", fmt="%.9g")
    return text.getvalue()

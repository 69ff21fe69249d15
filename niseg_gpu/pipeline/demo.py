"""The demo: a simulated run through the whole main job."""

from __future__ import annotations

from pathlib import Path

from niseg_gpu.backend import select
from niseg_gpu.io.folders import check_folder, staged_folder
from niseg_gpu.pipeline.parse import read_pipeline
from niseg_gpu.pipeline.run import run_pipeline
from niseg_gpu.simulate.tof import simulate_tof

SIZES = {"small": {}, "full": {"height": 512, "width": 512, "n_bins": 916}}

PIPELINE = """\
# The demo's pipeline; run it again with: niseg-gpu run pipeline.yaml --out another-folder
input:
  path: data/sample
  open_beam: data/open_beam
steps:
  - overlap_correct: {}
  - remove_spots: {size: 3, threshold: 200, kind: bright}
  - assign_wavelength: {flight_path_m: 10}
  - rebin_tof: {factor: 5}
  - normalize: {dose_by_shutter_counts: true}
  - kmeans: {n_clusters: 4, seed: 2018}
output:
  path: result
"""


def run_demo(
    out: Path,
    *,
    size: str = "small",
    device: str = "auto",
    kernels: str = "auto",
    overwrite: bool = False,
    quiet: bool = False,
) -> Path:
    """Simulate a run under `out` and take it through the whole main job.

    Parameters
    ----------
    out : Path
        Folder to make: ``data/`` (the run, its open beam and the truth), ``pipeline.yaml``, ``result/``.
    size : {"small", "full"}
    device : {"auto", "cpu", "gpu"}
    kernels : {"library", "own"}
        What a GPU takes where both are there.
    overwrite : bool
        Replace an earlier demo of the same name.
    quiet : bool
        No progress bar.

    Returns
    -------
    Path
        The folder of results.
    """
    check_folder(out, overwrite=overwrite, sign="pipeline.yaml")
    select(device, kernels=kernels)  # a GPU demanded and missing is said before anything is simulated
    with staged_folder(out, overwrite=overwrite, sign="pipeline.yaml") as folder:
        simulate_tof(folder / "data", **SIZES[size])
        (folder / "pipeline.yaml").write_text(PIPELINE, encoding="utf-8")
    pipeline = read_pipeline(
        out / "pipeline.yaml", overrides=[f"compute.device={device}", f"compute.kernels={kernels}"]
    )
    return run_pipeline(pipeline, quiet=quiet)

"""From the FITS frames on disk to labels and mean spectra, each side in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import ITERATIONS, N_CLUSTERS, SIZES, THRESHOLD, prepare_centroids, prepare_run
from benchmarks.rows import Ran

ROOT = Path(__file__).parents[1]


class Labels:
    """Overlap correction, spot cleaning and k-means; labels and mean spectra are kept."""

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_plain"
    equal = "labels identical, spectra to 1e-5 relative"
    included = "whole processes: start-up, files in the page cache, results written (ours: with its report)"
    warm_up = False
    keep_image = False

    def setup(self, size: str) -> None:
        self.run, self.centroids = prepare_run(size), prepare_centroids(size)
        n_bins, height, width = SIZES[size].values()
        self.shape, self.dtype = (n_bins, height, width), np.dtype(np.int16)
        self.nbytes = 2 * n_bins * height * width

    def time_plain(self, size: str) -> Ran:
        with _folder_beside(self.run) as folder:
            out = Path(folder) / "plain"
            options = ["--centroids", self.centroids, "--iterations", ITERATIONS, "--threshold", THRESHOLD]
            took = launch("benchmarks.plain", self.run, out, *options, *["--keep-image"] * self.keep_image)
            found = {name: np.load(out / f"{name}.npy") for name in ("labels", "spectra")}
        return Ran(found, took["seconds"], _costs(took))

    def time_ours(self, size: str) -> Ran:
        import zarr

        with _folder_beside(self.run) as folder:
            out, pipeline = Path(folder) / "ours", Path(folder) / "pipeline.json"
            pipeline.write_text(json.dumps(self.describe_pipeline(out)), encoding="utf-8")  # JSON is YAML
            took = launch("niseg_gpu", "run", pipeline, "--quiet")
            group = zarr.open_group(out / "result.zarr", mode="r")
            found = {name: group[name][...] for name in ("labels", "spectra")}
            record = json.loads((out / "run.json").read_text(encoding="utf-8"))
        steps = {step["name"]: step["seconds"] for step in record["steps"]}
        details = {"device": record["device"]["name"], "seconds_by_step": steps}
        return Ran(found, took["seconds"], {**_costs(took), **details})

    def describe_pipeline(self, out: Path) -> dict[str, Any]:
        """The pipeline of ``niseg-gpu run``."""
        kmeans = {"n_clusters": N_CLUSTERS, "init": str(self.centroids), "max_iter": ITERATIONS, "tol": 0}
        return {
            "input": {"path": str(self.run)},
            "steps": [
                {"overlap_correct": {}},
                {"remove_spots": {"size": 3, "threshold": THRESHOLD}},
                {"kmeans": kmeans},
            ],
            "output": {"path": str(out), "arrays": ["image"] * self.keep_image + ["labels", "spectra"]},
        }

    def assert_equal(self, found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
        np.testing.assert_array_equal(found["labels"], expected["labels"])
        np.testing.assert_allclose(found["spectra"], expected["spectra"], rtol=1e-5)


class LabelsAndImage(Labels):
    """The same, and the corrected and cleaned stack is kept too."""

    keep_image = True


def launch(module: str, *arguments: Any) -> dict[str, Any]:
    """Run a Python module in its own process; return seconds, CPU seconds and peak memory in bytes."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-I", "-S", str(ROOT / "benchmarks" / "launch.py")]
    command += [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)
    took = json.loads(done.stdout.splitlines()[-1])
    if took["status"] != 0:
        raise RuntimeError(f"{module} ended with status {took['status']}: {done.stderr.strip()[-300:]}")
    return took


def _folder_beside(run: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder for results on the disk that holds the data."""
    return tempfile.TemporaryDirectory(prefix="results-", dir=run.parent)


def _costs(took: dict[str, Any]) -> dict[str, Any]:
    return {"peak_memory_gb": took["peak_bytes"] / 1e9, "cpu_seconds": took["cpu_seconds"]}

"""From the FITS frames on disk to labels and mean spectra, each side in its own process."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.backend import CPU

from . import plain
from .bench_read import FETCHED
from .clock import Ran
from .data import ITERATIONS, N_CLUSTERS, THRESHOLD, prepare_centroids, prepare_run, shape_of_run
from .limits import drop_files
from .memory import sources_first

PLAIN_NEEDS = 12  # bytes of memory for each byte of the frames
TIES, TIE = 1e-4, 1e-4  # pixels allowed to lie half way, and how near to half way their squared distances must be
RESULTS = ("labels", "centroids", "spectra")


class Labels:
    """Overlap correction, spot cleaning and k-means; labels and mean spectra are kept."""

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_plain"
    equal = "labels identical but for ties (counted), spectra to 1e-3 relative, centroids to 1e-4 of their length"
    included = "whole processes: start-up, files in the page cache, results written (ours: with its report)"
    warm_up = False
    devices = ("cpu", "gpu")
    on_host = ("plain",)
    own_process = True
    bins, keep_image, cold = 916, False, False

    def setup(self, size: str) -> None:
        self.shape, self.dtype = tuple(shape_of_run(size, bins=self.bins).values()), np.dtype(np.int16)
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        if CPU.count_memory() < PLAIN_NEEDS * self.nbytes:
            raise NotImplementedError(f"the plain script needs {PLAIN_NEEDS * self.nbytes / 1e9:.0f} GB of memory")
        self.run, self.centroids = prepare_run(size, bins=self.bins), prepare_centroids(size, bins=self.bins)
        if size != "small":  # once through all code, so that no side finds the disk or numba's cache cold
            warm = type(self)()
            warm.setup("small")
            warm.time_plain("small"), warm.time_ours("small")

    def time_plain(self, size: str) -> Ran:
        with _folder_beside(self.run) as folder:
            out = Path(folder) / "plain"
            self.prepare_cache()
            took = launch(*self.tell_plain(out))
            self.check_cache(took)
            found = {name: np.load(out / f"{name}.npy") for name in RESULTS}
        return Ran(found, took["seconds"], _costs(took), waited=True, ran_on="cpu")

    def time_ours(self, size: str) -> Ran:
        import zarr

        with _folder_beside(self.run) as folder:
            out = Path(folder) / "ours"
            command = self.tell_ours(out)
            self.prepare_cache()
            took = launch(*command)
            self.check_cache(took)
            group = zarr.open_group(out / "result.zarr", mode="r")
            found = {name: group[name][...] for name in RESULTS}
            record = json.loads((out / "run.json").read_text(encoding="utf-8"))
        steps = {step["name"]: step["seconds"] for step in record["steps"]}
        details = {**_costs(took), "seconds_by_step": steps}
        # a process that has ended leaves nothing under way
        return Ran(found, took["seconds"], details, waited=True, ran_on=record["device"]["name"])

    def peakmem_plain(self, size: str) -> None:
        """In this process, of which asv knows the peak; rows have that of the process whose seconds they tell."""
        with _folder_beside(self.run) as folder:
            run_here(*self.tell_plain(Path(folder) / "plain"))

    def peakmem_ours(self, size: str) -> None:
        with _folder_beside(self.run) as folder:
            run_here(*self.tell_ours(Path(folder) / "ours"))

    def tell_plain(self, out: Path) -> list[Any]:
        """The program, and what it is told."""
        options = ["--centroids", self.centroids, "--iterations", ITERATIONS, "--threshold", THRESHOLD]
        return [[Path(plain.__file__)], self.run, out, *options, *["--keep-image"] * self.keep_image]

    def tell_ours(self, out: Path) -> list[Any]:
        pipeline = out.with_name("pipeline.json")
        pipeline.write_text(json.dumps(self.describe_pipeline(out)), encoding="utf-8")  # JSON is YAML
        return [["-m", "niseg_gpu"], "run", pipeline, "--quiet"]

    def prepare_cache(self) -> None:
        """Have the files in the page cache, or none of them."""
        if self.cold:
            drop_files(self.run.iterdir())
        else:
            for path in self.run.iterdir():
                path.read_bytes()

    def check_cache(self, took: dict[str, Any]) -> None:
        """Whether what was to be read from the disk was."""
        least, fetched = FETCHED * self.nbytes * self.cold, took["fetched_bytes"]
        assert fetched >= least, f"only {fetched:.4g} bytes came from the disk, not {least:.4g}"

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
            "compute": {
                "device": os.environ.get("NISEG_BENCH_DEVICE", "auto"),
                "kernels": os.environ.get("NISEG_BENCH_KERNELS", "auto"),
            },
        }

    def least(self, side: str) -> dict[str, float]:
        """The files are read once; all else could go on meanwhile."""
        return {"disk" if self.cold else "cache": self.nbytes}

    def assert_equal(self, found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, int]:
        ties = find_ties(self.run, found["labels"], expected)
        spectra = move_pixels(expected["spectra"], expected["labels"], found["labels"], ties)
        np.testing.assert_allclose(found["spectra"], spectra, rtol=1e-3)  # NumPy's sum of 60,000 float32: 4e-4
        # of the labels an iteration earlier, where other pixels were ties: each adds its noise over the cluster's size
        lengths = np.linalg.norm(expected["centroids"], axis=1)
        off = np.linalg.norm(found["centroids"] - expected["centroids"], axis=1) / lengths
        assert off.max() <= 1e-4, f"centroid {off.argmax()} is off by {off.max():.3g} of its length; allowed: 1e-4"
        return {"ties_decided_otherwise": len(ties)}


class LabelsAndImage(Labels):
    """The same, and the corrected and cleaned stack is kept too."""

    keep_image = True


class LabelsOf661(Labels):
    """A run of 661 bins."""

    bins = 661


class LabelsOf3000(Labels):
    """A run of 3000 bins."""

    bins = 3000


class LabelsCold(Labels):
    """The same as `Labels`, the files on the disk only: the system forgets them, and what it fetches is counted."""

    included = "whole processes: start-up, files on the disk, results written (ours: with its report)"
    cold = True

    def setup(self, size: str) -> None:
        super().setup(size)
        if self.read_in_process() < FETCHED * self.nbytes:
            raise NotImplementedError("the files cannot be dropped from the page cache here, or nobody counts it")

    def read_in_process(self) -> float:
        """Bytes that another process fetches from the disk when it reads all files, forgotten before."""
        self.prepare_cache()
        code = "import pathlib, sys; [path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()]"
        return launch(["-c", code], self.run)["fetched_bytes"]


def find_ties(run: Path, labels: np.ndarray, expected: dict[str, np.ndarray]) -> dict[tuple[int, int], np.ndarray]:
    """Find pixels labelled otherwise than expected, (y, x), with their spectra, (N,) float64.

    They must be few and as near to one centroid as to the other. Both sides round the overlap correction in their own
    way, in the last bit of float32; a pixel that lies half way between two clusters may then go to either.
    """
    places = np.argwhere(labels != expected["labels"])
    allowed = max(1, int(TIES * labels.size))
    assert len(places) <= allowed, f"{len(places)} of {labels.size} labels differ; allowed: {allowed}, where near ties"
    ties: dict[tuple[int, int], np.ndarray] = {}
    if not len(places):
        return ties
    counts, windows = plain.read_stack(run), plain.read_windows(run)
    for y, x in places:
        top, left = max(y - 1, 0), max(x - 1, 0)
        corrected = plain.correct_overlap(counts[:, top : y + 2, left : x + 2], *windows)
        spectrum = plain.remove_spots(corrected, THRESHOLD)[0][:, y - top, x - left].astype(np.float64)
        pair = expected["centroids"][[labels[y, x], expected["labels"][y, x]]]
        got, best = ((spectrum - pair) ** 2).sum(axis=1)
        assert abs(got - best) <= TIE * best, f"pixel {y}, {x}: squared distance {got:.6g}, to the expected {best:.6g}"
        ties[int(y), int(x)] = spectrum
    return ties


def move_pixels(
    means: np.ndarray, before: np.ndarray, after: np.ndarray, spectra: dict[tuple[int, int], np.ndarray]
) -> np.ndarray:
    """Turn the mean spectra of the labels `before`, (k, N), into those of `after`, which differ at `spectra`."""
    pixels = np.bincount(before.ravel(), minlength=len(means)).astype(np.float64)
    sums = means * pixels[:, None]
    for place, spectrum in spectra.items():
        for label, sign in ((before[place], -1), (after[place], 1)):
            sums[label] += sign * spectrum
            pixels[label] += sign
    return sums / pixels[:, None]


def launch(program: Sequence[Any], *arguments: Any) -> dict[str, Any]:
    """Run a Python program in its own process; return seconds, CPU seconds and peak memory in bytes."""
    command = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py"))]
    command += [sys.executable, "-P", *map(str, [*program, *arguments])]
    done = subprocess.run(command, env=sources_first(), capture_output=True, text=True, check=True)
    took = json.loads(done.stdout.splitlines()[-1])
    if took["status"] != 0:
        raise RuntimeError(f"{program[-1]} ended with status {took['status']}: {done.stderr.strip()[-300:]}")
    return took


def run_here(program: Sequence[Any], *arguments: Any) -> None:
    """Run a Python program in this process."""
    before = sys.argv
    sys.argv = list(map(str, [program[-1], *arguments]))
    try:
        if program[0] == "-m":
            runpy.run_module(program[-1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(program[-1]), run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"{program[-1]} ended with status {ended.code}") from ended
    finally:
        sys.argv = before


def _folder_beside(run: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder for results on the disk that holds the data."""
    return tempfile.TemporaryDirectory(prefix="results-", dir=run.parent)


def _costs(took: dict[str, Any]) -> dict[str, Any]:
    costs = {"peak_memory_gb": took["peak_bytes"] / 1e9, "cpu_seconds": took["cpu_seconds"]}
    return {**costs, "fetched_gb": took["fetched_bytes"] / 1e9}

"""k-means on a table that memory does not hold: every bit as on one that it holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from niseg_gpu.backend import CPU, Cpu
from niseg_gpu.errors import UserError
from niseg_gpu.kmeans.arrays import count_held
from niseg_gpu.kmeans.cluster import hold_rows
from niseg_gpu.kmeans.points import Part
from niseg_gpu.kmeans.step import fit_kmeans, open_table
from niseg_gpu.pipeline.api import cluster_stack
from niseg_gpu.pipeline.parse import parse_pipeline
from niseg_gpu.pipeline.planner import plan_pipeline
from niseg_gpu.pipeline.run import run_pipeline
from niseg_gpu.simulate.tof import simulate_tof
from niseg_gpu.stack import StackInfo

ARRAYS = ("labels", "centroids", "spectra", "deviations", "pixels", "edge_share")


def stack_of(dtype: str, *, shape: tuple[int, int, int] = (40, 50, 60), seed: int = 0) -> xr.DataArray:
    rng = np.random.default_rng(seed)
    n = shape[1] * shape[2]
    values = rng.uniform(200, 900, (5, shape[0]))[rng.integers(0, 5, n)] + rng.normal(0, 90, (n, shape[0]))
    stack = values.T.reshape(shape).astype(dtype)
    if dtype == "f4":
        stack[3, 7, 9:50] = np.nan
        stack[:, 20] = np.inf
    return xr.DataArray(stack, dims=("tof", "y", "x"))


def fill(table, stack: xr.DataArray, *, cuts: tuple[int, ...] = (0, 13, 14, 50), across: tuple[int, ...] = (0, 60)):
    for a, b in zip(cuts, cuts[1:], strict=False):
        for c, d in zip(across, across[1:], strict=False):
            table[slice(0, 40), slice(a, b), slice(c, d)] = table.backend.from_host(stack.values[:, a:b, c:d])
    return table


@pytest.mark.parametrize("dtype", ["u2", "f4", "f8"])
@pytest.mark.parametrize(
    "how",
    [
        {"n_clusters": 5, "deviations": True},
        {"n_clusters": [4, 2, 7], "init_sample": None, "n_init": 2},
        {"n_clusters": 3, "features": {"x": 0.1, "smooth": 0.5, "spectrum": 2.0}, "deviations": True},
    ],
)
def test_a_file_gives_what_memory_gives(backend, tmp_path: Path, monkeypatch, dtype: str, how: dict) -> None:
    stack = stack_of(dtype)
    expected = fit_kmeans(fill(open_table(backend, stack, **how), stack), **how)
    table = fill(open_table(CPU, stack, folder=tmp_path, **how), stack, across=(0, 7, 60))
    read, reads = Part.read, []
    monkeypatch.setattr(Part, "read", lambda part: (part.is_near or reads.append(part.number), read(part))[1])
    monkeypatch.setattr(type(backend), "count_memory", lambda self: 500_000)  # holds some of it
    found = fit_kmeans(table, spread=lambda rows: hold_rows(rows, backend=backend, workers=2), **how)
    assert len(reads) > 3 * len(set(reads)) > 9  # parts that are read anew in each pass
    for ours, theirs in zip((found, *found.others), (expected, *expected.others), strict=True):
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
        assert (ours.inertia, ours.n_iter, ours.silhouette) == (theirs.inertia, theirs.n_iter, theirs.silhouette)


def test_a_stack_in_python_needs_a_folder_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stack_of("f4")
    expected = cluster_stack(stack, n_clusters=4, device="cpu")
    monkeypatch.setattr(Cpu, "count_memory", lambda self: 400_000)
    with pytest.raises(UserError, match="has 0.0004 GB; name a folder with room for them"):
        cluster_stack(stack, n_clusters=4, device="cpu")
    found = cluster_stack(stack, n_clusters=4, device="cpu", folder=tmp_path)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.inertia == expected.inertia and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "data"
    simulate_tof(out, height=48, width=64, n_bins=60, seed=1)
    return out


def pipeline_of(data: Path, out: Path, *, kernels: str = "auto") -> dict:
    return {
        "input": {"path": str(data / "sample")},
        "steps": ["overlap_correct", {"kmeans": {"n_clusters": 3, "seed": 1}}],
        "output": {"path": str(out), "arrays": ["labels", "spectra"]},
        "compute": {"device": "cpu", "workers": 2, "kernels": kernels},
    }


def run_with(data: Path, out: Path, *, kernels: str = "auto", memory: int | None = None, monkeypatch=None) -> Path:
    pipeline = pipeline_of(data, out, kernels=kernels)
    with monkeypatch.context() as patched:
        if memory is not None:
            patched.setattr(Cpu, "count_memory", lambda self: memory)
        return run_pipeline(parse_pipeline(pipeline), quiet=True)


def test_a_run_goes_on_where_memory_ends(simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60 bins of 48 x 64 float32 are 737 kB; of 500 kB a table may have 300."""
    usual = run_with(simulated, tmp_path / "usual", monkeypatch=monkeypatch)
    small = run_with(simulated, tmp_path / "small", memory=500_000, monkeypatch=monkeypatch)
    one, two = (xr.open_zarr(out / "result.zarr", consolidated=False) for out in (usual, small))
    xr.testing.assert_identical(one.load(), two.load())
    assert (small / "spectra.csv").read_bytes() == (usual / "spectra.csv").read_bytes()
    findings = [json.loads((out / "run.json").read_text())["findings"] for out in (usual, small)]
    told = "kmeans: 1 MB of spectra kept in a file, for they are large for the memory: each pass reads what is left"
    assert told in findings[1] and set(findings[1]) - {told} == set(findings[0])
    assert {p.name for p in small.iterdir()} == {p.name for p in usual.iterdir()}
    uses = [json.loads((out / "run.json").read_text())["device"]["uses"]["kmeans"] for out in (usual, small)]
    assert uses[0] == uses[1]  # our own kernels both


def test_the_library_takes_array_calls_then(simulated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run_with(simulated, tmp_path / "out", kernels="library", memory=500_000, monkeypatch=monkeypatch)
    usual = run_with(simulated, tmp_path / "usual", kernels="library", monkeypatch=monkeypatch)
    assert json.loads((out / "run.json").read_text())["device"]["uses"]["kmeans"].startswith("array calls")
    one, two = (xr.open_zarr(each / "result.zarr", consolidated=False) for each in (out, usual))
    assert (one.labels.values != two.labels.values).mean() < 1e-3


def test_a_step_from_file_to_file_too(simulated: Path, tmp_path: Path, niseg, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("kmeans", simulated / "sample", "--n-clusters", 3, "--device", "cpu", "--quiet")
    assert niseg(*command[:2], tmp_path / "usual.npy", *command[2:])[0] == 0
    monkeypatch.setattr(Cpu, "count_memory", lambda self: 250_000)  # 16-bit counts are 369 kB
    assert niseg(*command[:2], tmp_path / "small.npy", *command[2:])[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "usual.npy"), np.load(tmp_path / "small.npy"))
    assert {p.name for p in tmp_path.iterdir()} == {"usual.npy", "small.npy"}


def test_a_plan_counts_the_file_and_what_is_held_of_it(simulated: Path, tmp_path: Path, monkeypatch) -> None:
    pipeline = parse_pipeline(pipeline_of(simulated, tmp_path / "out"))
    usual = plan_pipeline(pipeline)
    monkeypatch.setattr(Cpu, "count_memory", lambda self: 500_000)
    large = plan_pipeline(pipeline)
    table = 60 * 48 * 64 * 4
    assert usual.host.phases["blocks"]["table of spectra"] == table + 48 * 64
    assert large.host.phases["blocks"]["table of spectra"] == 0
    assert 0 < large.host.phases["last step"]["table of spectra"] <= 0.65 * 250_000
    assert large.disk.most == usual.disk.most + table and large.disk.expected >= table
    assert usual.problems == large.problems == ()


@pytest.mark.parametrize(("dtype", "pixels", "bins"), [("u2", 40_000, 300), ("f4", 2_000, 50), ("u1", 50_000, 70)])
@pytest.mark.parametrize("memory", [3_000_000, 20_000_000, 10**10])
def test_what_is_held_stays_within_half_of_the_memory(monkeypatch, dtype: str, pixels: int, bins: int, memory) -> None:
    monkeypatch.setattr(Cpu, "count_memory", lambda self: memory)
    info = StackInfo(("tof", "y", "x"), (bins, 1, pixels), np.dtype(dtype))
    held, beside = count_held(info, 0, backend=CPU, workers=2)
    nbytes = pixels * bins * np.dtype(dtype).itemsize
    assert beside == 0 and 0.15 * min(nbytes, memory / 2) < held < memory / 2 + 2**23


def test_pixels_that_memory_does_not_even_label_are_refused(
    simulated: Path, tmp_path: Path, niseg, monkeypatch
) -> None:
    monkeypatch.setattr(Cpu, "count_memory", lambda self: 50_000)
    status, _, complaint = niseg("kmeans", simulated / "sample", tmp_path / "labels.npy", "--n-clusters", 3, "--quiet")
    assert status == 2 and "half of the memory is 25000 bytes; 3072 pixels of 60 features need" in complaint
    assert not list(tmp_path.iterdir())

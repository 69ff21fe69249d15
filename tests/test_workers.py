"""k-means of a pipeline on the workers of a scheduler: the same bytes, and a line for whatever is amiss there."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from niseg_gpu import UserError, open_workers, run_pipeline
from niseg_gpu.io.save import save
from niseg_gpu.pipeline.parse import Compute, parse_pipeline, read_pipeline
from niseg_gpu.pipeline.workers import check_cluster

ROOT = Path(__file__).parents[1]


def stack_of(values: np.ndarray) -> xr.DataArray:
    return xr.DataArray(values, dims=("tof", "y", "x"), coords={"tof": np.arange(len(values)) * 1e-5})


# in processes of their own, as the event loops end at their leisure
ON_WORKERS = """
    import json, os, sys
    from pathlib import Path
    import distributed
    from niseg_gpu.cli import main
    from niseg_gpu import UserError
    from niseg_gpu.kmeans import spread
    from niseg_gpu.pipeline import workers
    def end(device, kernels):
        os._exit(1)
    def call(*arguments):
        try:
            main([*map(str, arguments)])
        except SystemExit as ended:
            assert not ended.code, arguments
    if __name__ == "__main__":
        folder, file = Path(sys.argv[1]), Path(sys.argv[1]) / "scheduler.json"
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            address = cluster.scheduler_address
            file.write_text(json.dumps(cluster.scheduler.identity()))
            call("check", folder / "p.yaml", "--cluster", address)
            call("run", folder / "p.yaml", "--cluster", address, "--out", folder / "there", "--quiet")
            call("run", folder / "p.yaml", "--cluster", file, "--out", folder / "lib", "--quiet",
                 "--kernels", "library")
            call("kmeans", folder / "run.zarr", folder / "labels.npy", "--cluster", address, "--n-clusters", 3,
                 "--bad-values", "keep", "--device", "cpu", "--quiet")
            for device, kernels, version in ("gpu", "auto", "0.1.0"), ("auto", "auto", "0.0.9"):
                workers.importlib.metadata.version = lambda name, version=version: version
                try:
                    with workers.open_workers(address, device=device, kernels=kernels):
                        print("connected")
                except UserError as error:
                    print("refused:", error)
            workers.importlib.metadata.version = lambda name: "0.1.0"
            spread.WATCH_SECONDS, describe, workers._describe = 1, workers._describe, end
            try:
                with workers.open_workers(address):
                    print("connected")
            except UserError as error:
                print("refused:", error)
            workers._describe = describe
            cluster.scale(0)
            cluster.sync(cluster._correct_state)
            workers.PATIENCE_S = 1
            try:
                with workers.open_workers(address):
                    print("connected")
            except UserError as error:
                print("refused:", error)
"""


def test_a_pipeline_gives_the_same_bytes_on_workers(tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="distributed is not installed; it comes with the hpc extra")
    values = np.random.default_rng(3).normal(100, 5, (6, 40, 50)).astype(np.float32)
    values[:, :, 25:] += 60
    values[2, 7, 9] = np.nan
    save(stack_of(values), tmp_path / "run.zarr")
    (tmp_path / "p.yaml").write_text(
        "input: {path: run.zarr, bad_values: keep}\n"
        "steps: [kmeans: {n_clusters: [3, 2], features: {x: 0.1}, deviations: true}]\n"
        "compute: {device: cpu}\n"
    )
    here = run_pipeline(read_pipeline(tmp_path / "p.yaml", overrides=[f"output.path={tmp_path}/here"]), quiet=True)
    script = tmp_path / "on_workers.py"
    script.write_text(textwrap.dedent(ON_WORKERS))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, script, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (dict(zarr.open_group(out / "result.zarr", mode="r").arrays()) for out in (here, tmp_path / "there"))
    assert one.keys() == two.keys() and {"labels_k2", "deviations"} <= one.keys()
    for name, array in one.items():
        assert np.asarray(array[...]).tobytes() == np.asarray(two[name][...]).tobytes(), name
    record = (tmp_path / "there" / "run.json").read_text()
    assert record.count('"worker": "tcp://') == 2
    library = zarr.open_group(tmp_path / "lib" / "result.zarr", mode="r")
    np.testing.assert_array_equal(library["labels"], one["labels"])
    assert set(np.unique(np.load(tmp_path / "labels.npy"))) == {0, 1, 2, 255}
    assert ": 2 workers (cpu: " in done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith(("refused", "connected"))]
    assert "of the workers: device is gpu, but no GPU can be used" in told[0]
    assert "has niseg-gpu 0.1.0, here is 0.0.9; install the same there" in told[1]
    assert "gone, asked for its device; install the same niseg-gpu there" in told[2]
    assert "has no worker, nor got one in 1 s; start some" in told[3]


@pytest.mark.parametrize(
    "cluster, device, message",
    [
        ("", "auto", "cluster is ''; allowed: gpus, an address"),
        ("node1", "auto", "cluster is 'node1'; allowed: gpus, an address such as tcp://node1:8786, the .json file"),
        ("nowhere.json", "auto", "cluster is nowhere.json: no such file; allowed: gpus"),
        ("gpus", "cpu", "cluster is gpus, but device is cpu; say device: auto"),
    ],
)
def test_what_is_no_cluster_is_told_at_once(cluster: str, device: str, message: str) -> None:
    with pytest.raises(UserError, match=message):  # as `plan` asks
        check_cluster(Compute(cluster=cluster, device=device))
    with pytest.raises(UserError, match=message), open_workers(cluster, device=device):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"id": "Scheduler"}'])
def test_a_file_that_no_scheduler_wrote_is_told_at_once(tmp_path: Path, content: str) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(content)
    message = r"scheduler\.json, which no scheduler wrote: it holds no address; allowed: gpus"
    with pytest.raises(UserError, match=message), open_workers(str(path)):
        pass


def test_gpus_are_asked_for_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("niseg_gpu.pipeline.workers.why_no_gpu", lambda: "no CUDA device")
    with (
        pytest.raises(UserError, match="cluster is gpus, but no GPU can be used: no CUDA device"),
        open_workers("gpus"),
    ):
        pass


def test_a_cluster_that_nothing_would_go_to_is_refused() -> None:
    mapping = {"input": "run", "steps": [{"rebin_tof": {"factor": 2}}], "compute": {"cluster": "gpus"}}
    with pytest.raises(UserError, match="compute.cluster is given, but no step would go there; allowed with kmeans"):
        parse_pipeline(mapping)


def test_the_file_of_a_scheduler_starts_from_the_pipelines_folder(tmp_path: Path) -> None:
    for given, cluster in (("s.json", str(tmp_path / "s.json")), ("tcp://a:1", "tcp://a:1"), ("gpus", "gpus")):
        mapping = {"input": "run", "steps": ["kmeans"], "compute": {"cluster": given}}
        assert parse_pipeline(mapping, base=tmp_path).compute.cluster == cluster


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_on_gpus(backend, tmp_path: Path) -> None:
    """A worker for each GPU there is gives the labels of this process."""
    values = np.random.default_rng(3).normal(100, 5, (60, 40, 50)).astype(np.float32)
    values[:, :, 25:] += 60
    save(stack_of(values), tmp_path / "run.zarr")
    found = []
    for cluster in (None, "gpus"):
        mapping = {
            "input": str(tmp_path / "run.zarr"),
            "steps": [{"kmeans": {"n_clusters": 2}}],
            "output": {"path": str(tmp_path / str(cluster))},
            "compute": {"device": "gpu", "kernels": "own", "cluster": cluster},
        }
        group = zarr.open_group(run_pipeline(parse_pipeline(mapping), quiet=True) / "result.zarr", mode="r")
        found.append(np.asarray(group["labels"][...]))
    np.testing.assert_array_equal(*found)

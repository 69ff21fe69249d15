"""What a plan promises is what a run takes; and a plan that does not fit says so."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

import niseg_gpu
from niseg_gpu.knn_model import fit_knn, save_knn
from niseg_gpu.pipeline.memory import AVERAGED
from niseg_gpu.pipeline.parse import parse_pipeline
from niseg_gpu.pipeline.plan import Disk, Room, Seconds, find_problems
from niseg_gpu.pipeline.plan_text import format_plan
from niseg_gpu.pipeline.planner import estimate_seconds, plan_pipeline
from niseg_gpu.pipeline.run import open_session
from niseg_gpu.pipeline.trial import LastTrial, Trial
from niseg_gpu.simulate.tof import simulate_tof
from niseg_gpu.unet.folder import UNetModel

ROOT = Path(__file__).parents[1]
GB, RUNS = 10**9, 2
VARYING = ["spectra", "normalized", "frames cleaned"]  # by a few per cent, with the turns of the threads
STEADY = ["frames clustered", "rows of packed frames", "nearest neighbours", "network"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 39 MB with its open beam, and 63 MB of frames."""
    folder = tmp_path_factory.mktemp("planned")
    simulate_tof(folder / "tof", height=256, width=256, n_bins=300, seed=1)
    frames = np.random.default_rng(0).poisson(900, (120, 512, 512)).astype(np.uint16)
    tifffile.imwrite(folder / "frames.tif", frames)
    with h5py.File(folder / "frames.h5", "w") as file:  # compressed, and blocks of rows need all of each frame
        file.create_dataset("data", data=frames[:60], chunks=(1, 512, 512), compression="gzip", compression_opts=1)
    tifffile.imwrite(folder / "few.tif", frames[:8])
    spots = np.random.default_rng(1).random((2, 512, 512)) < 0.01
    save_knn(fit_knn(list(frames[:2] + np.float32(400) * spots), list(spots)), folder / "knn.npz")
    make_unet(folder / "unet")
    return folder


def make_unet(path: Path) -> Path:
    from niseg_gpu.unet.config import UNetConfig
    from niseg_gpu.unet.model import init_weights
    from niseg_gpu.unet.normalise import Normalisation

    config = UNetConfig(base_depth=4, levels=2)
    model = UNetModel(config, *init_weights(config), Normalisation(means=(900.0,), scales=(30.0,)))
    return niseg_gpu.save_unet(model, path)


def pipeline_of(data: Path, out: Path, case: str) -> dict:
    tof, frames = {"path": str(data / "tof/sample")}, {"path": str(data / "frames.tif")}
    both = {**tof, "open_beam": str(data / "tof/open_beam")}
    cleaned = ["overlap_correct", {"remove_spots": {"threshold": 200}}]
    normalized = [*cleaned, {"normalize": {"dose_by_shutter_counts": True}}]
    binned = {"path": f"{data / 'frames.h5'}:/data", "dims": ["tof", "y", "x"]}
    given, steps, arrays = {
        "spectra": (tof, [*cleaned, {"kmeans": {"n_clusters": 6, "max_iter": 15}}], ["image", "labels", "spectra"]),
        "normalized": (both, normalized, ["image", "spots"]),
        "frames cleaned": (frames, [{"remove_spots": {"threshold": 150}}], ["image"]),
        "rows of packed frames": (binned, [{"kmeans": {"n_clusters": 3, "max_iter": 5}}], ["labels"]),
        "nearest neighbours": (
            {"path": str(data / "few.tif")},
            [{"detect_spots": {"model": str(data / "knn.npz"), "approximate": True}}],
            ["image", "spots"],
        ),
        "network": ({"path": str(data / "few.tif")}, [{"segment_unet": {"model": str(data / "unet")}}], ["image"]),
        "frames clustered": (frames, [{"kmeans": {"n_clusters": 3, "max_iter": 5}}], ["labels"]),
    }[case]
    compute = {"device": "cpu", "workers": 2}
    return {"input": given, "steps": steps, "output": {"path": str(out), "arrays": arrays}, "compute": compute}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak memory of one process")
@pytest.mark.parametrize("case", [*VARYING, *STEADY])
def test_a_run_takes_the_memory_and_disk_that_were_planned(data: Path, tmp_path: Path, case: str) -> None:
    """Each in a process of its own, as from a shell; the kernels are compiled before, as they are once a machine.

    What some runs take varies with the turns of their threads: a plan is for the one that takes most.
    """
    out, file = tmp_path / "out", tmp_path / "pipeline.json"
    mapping = pipeline_of(data, out, case)
    file.write_text(json.dumps(mapping))

    def call(*arguments: str) -> str:
        command = [sys.executable, "-m", "niseg_gpu", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    plan_pipeline(parse_pipeline(mapping))  # compiles, which takes memory too
    planned = json.loads(call("plan", str(file), "--json"))
    assert not out.exists() and planned["problems"] == []
    peaks = []
    for _ in range(RUNS if case in VARYING else 1):
        call("run", str(file), "--quiet", "--overwrite")
        peaks.append(json.loads((out / "run.json").read_text())["peak_memory_gb"] * GB)
    measured = max(peaks)
    told = {name: round(sum(parts.values()) / 1e6) for name, parts in planned["host"]["phases"].items()}
    assert 0.8 <= measured / planned["host"]["peak"] <= 1, (measured, told)
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert written <= planned["disk"]["most"]
    assert 0.5 * written < planned["disk"]["expected"] <= planned["disk"]["most"]


def test_what_is_not_planned_is_said(data: Path, tmp_path: Path) -> None:
    compute = {"device": "cpu", "workers": 2, "cluster": "tcp://127.0.0.1:1"}
    plan = plan_pipeline(parse_pipeline(small_pipeline(data, tmp_path / "out", compute=compute)))
    assert "no figure of the workers' memory: they share 0.1" in format_plan(plan)


def small_pipeline(data: Path, out: Path, **changes) -> dict:
    mapping = pipeline_of(data, out, "spectra")
    return {**mapping, **changes}


def test_a_plan_is_data(data: Path, tmp_path: Path) -> None:
    plan = niseg_gpu.plan_pipeline(parse_pipeline(small_pipeline(data, tmp_path / "out")))
    assert [step.name for step in plan.steps] == ["input", "overlap_correct", "remove_spots", "kmeans"]
    assert [step.shape for step in plan.steps] == [(300, 256, 256)] * 3 + [(256, 256)]
    assert [step.dtype for step in plan.steps][:3] == ["int16", "float32", "float32"]
    assert [step.halo for step in plan.steps] == [(0, 0), (0, 0), (0, 1), (0, 0)]
    assert plan.blocks.number * plan.blocks.shape[1] >= 256 and plan.blocks.workers == 2
    assert plan.blocks.shape_read == (300, plan.blocks.shape[1] + 2, 256)
    assert plan.steps[0].block_bytes == 2 * np.prod(plan.blocks.shape_read) < plan.steps[2].block_bytes
    assert plan.host.peak == max(sum(parts.values()) for parts in plan.host.phases.values())
    assert plan.host.phases["blocks"]["table of spectra"] == 256 * 256 * (300 * 4 + 1)
    assert plan.gpu is None and plan.device == "cpu" and plan.problems == plan.unknown == ()
    assert plan.disk.arrays["image"] == 300 * 256 * 256 * 4 and "spots" not in plan.disk.arrays
    assert plan.seconds.iterations == 15 and 0 < plan.seconds.least < plan.seconds.most
    assert json.loads(json.dumps(plan.as_mapping()))["blocks"]["number"] == plan.blocks.number
    assert not (tmp_path / "out").exists()


def test_more_workers_hold_more_blocks(data: Path, tmp_path: Path) -> None:
    held = []
    for workers in (1, 2):
        mapping = small_pipeline(data, tmp_path / "out", compute={"device": "cpu", "workers": workers})
        plan = plan_pipeline(parse_pipeline(mapping))
        held.append((plan.host.phases["blocks"]["blocks in flight"], plan.blocks))
    (one, first), (two, second) = held
    assert first.workers == 1 and second.workers == 2
    assert one / np.prod(first.shape_read) == pytest.approx(two / 2 / np.prod(second.shape_read), rel=0.05)


def test_time_grows_with_blocks_pixels_and_iterations(data: Path, tmp_path: Path) -> None:
    session = open_session(parse_pipeline(small_pipeline(data, tmp_path / "out")), reading=False)
    rows = [(slice(0, 300), slice(i, i + 32), slice(0, 256)) for i in range(0, 256, 32)]
    trial = Trial(2, 1.0, {"read": 0.5, "remove_spots": 1.0, "write": 0.5}, 0.5, LastTrial(16384, 0.1, 0.2, 0.05))
    whole, half = (estimate_seconds(session, regions, trial) for regions in (rows, rows[:4]))
    assert whole.blocks == 2 * half.blocks == 4.0 and whole.writing == 1.0 and whole.before == 0
    assert whole.last_iteration == pytest.approx(0.2) and whole.last_start == pytest.approx(4 * 0.1 + 0.2)
    assert whole.most - whole.least == pytest.approx(14 * 0.2)
    nothing = estimate_seconds(session, rows, replace(trial, last=None))
    assert nothing.iterations == 0 and nothing.least == nothing.most == 4.0


def test_what_must_be_known_first_takes_time_too(data: Path, tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(1), tmp_path
    for name, n in (("sample", 12), ("open", 6)):
        tifffile.imwrite(folder / f"{name}.tif", rng.poisson(500, (n, 40, 50)).astype(np.uint16))
    mapping = {
        "input": {"path": str(folder / "sample.tif"), "open_beam": str(folder / "open.tif")},
        "steps": [{"normalize": {"dose_roi": [0, 0, 50, 10]}}],
        "output": {"path": str(folder / "out")},
        "compute": {"device": "cpu"},
    }
    plan = plan_pipeline(parse_pipeline(mapping))
    frames = 6 / 12  # which are averaged; and all blocks once for the dose
    assert plan.seconds.before == pytest.approx((frames + 1) * (plan.seconds.blocks - plan.seconds.writing))
    assert not plan.unknown and plan.host.phases["averages"]["averages"] == AVERAGED * 40 * 50
    tifffile.imwrite(folder / "open.tif", rng.poisson(500, (40, 50)).astype(np.uint16))
    assert "averages" not in plan_pipeline(parse_pipeline(mapping)).host.phases  # a lone frame is there already


def test_memory_that_is_not_there_is_named_with_what_to_do() -> None:
    disk, parts = Disk({}, 0, 0, GB), {"process and libraries": GB, "blocks in flight": 8 * GB, "table of spectra": 0}
    room = Room({"blocks": parts}, 9 * GB, 5 * GB, 5 * GB)
    (problem,) = find_problems(room, None, disk, workers=8)
    assert problem.startswith("the host needs 9 GB of memory, most of it for the blocks in flight, and has 5 GB")
    assert problem.endswith("take fewer workers (--set compute.workers=4)")
    table = Room({"blocks": {**parts, "blocks in flight": GB, "table of spectra": 20 * GB}}, 22 * GB, 5 * GB, 5 * GB)
    (problem,) = find_problems(table, None, disk, workers=8)
    assert problem.endswith("; rebin, select or crop")
    assert not find_problems(replace(room, total=9 * GB), None, disk, workers=8)
    assert not find_problems(room, None, disk, workers=8, mapped=4 * GB), "the system takes mapped files back"
    (problem,) = find_problems(replace(room, total=9 * GB), room, disk, workers=8)
    assert problem.startswith("the GPU needs 9 GB")


def test_room_on_the_disk_is_looked_at() -> None:
    room = Room({"blocks": {"process and libraries": 1}}, 1, 2, 2)
    assert not find_problems(room, None, Disk({}, 9 * GB, 3 * GB, 4 * GB), workers=1)
    (problem,) = find_problems(room, None, Disk({}, 9 * GB, 5 * GB, 4 * GB), workers=1)
    assert "about 5 GB of results are expected where 4 GB are free; write elsewhere (--out), or keep fewer" in problem


def test_the_command_prints_the_plan_then_complains(data: Path, tmp_path: Path, niseg, monkeypatch) -> None:
    file = tmp_path / "pipeline.json"
    file.write_text(json.dumps(small_pipeline(data, tmp_path / "out")))
    status, out, complaint = niseg("plan", file)
    assert (status, complaint) == (0, "") and out.splitlines()[-1] == "it fits"
    assert {"step", "input", "overlap_correct", "remove_spots", "kmeans", "blocks", "memory", "disk", "time"} <= {
        line.split()[0] for line in out.splitlines() if line
    }
    monkeypatch.setattr("niseg_gpu.pipeline.planner.count_memory_limit", lambda: 10**8)
    status, out, complaint = niseg("plan", file)
    assert status == 2 and out.splitlines()[-1].startswith("time") and len(complaint.splitlines()) == 1
    assert complaint.startswith("niseg-gpu: it does not fit: the host needs") and "has 0.1 GB; " in complaint
    status, out, _ = niseg("plan", file, "--json", "--set", "kmeans.max_iter=3")
    assert status == 2 and json.loads(out)["seconds"]["iterations"] == 3 and json.loads(out)["problems"]


def test_an_existing_result_and_bad_values_are_refused(data: Path, tmp_path: Path, niseg) -> None:
    file, out = tmp_path / "pipeline.json", tmp_path / "out"
    out.mkdir()
    file.write_text(json.dumps(small_pipeline(data, out)))
    status, _, complaint = niseg("plan", file)
    assert status == 2 and "exists" in complaint
    np.save(tmp_path / "bad.npy", np.full((3, 8, 9), np.nan, np.float32))
    file.write_text(json.dumps({"input": str(tmp_path / "bad.npy"), "steps": [{"remove_spots": {"threshold": 1}}]}))
    status, _, complaint = niseg("plan", file, "--out", tmp_path / "new")
    assert status == 2 and "NaN" in complaint


def test_what_is_no_cluster_is_refused(data: Path, tmp_path: Path, niseg) -> None:
    file = tmp_path / "pipeline.json"
    file.write_text(json.dumps(small_pipeline(data, tmp_path / "out")))
    for given in ("node1", ""):
        status, _, complaint = niseg("plan", file, "--cluster", given)
        assert status == 2 and f"cluster is {given!r}; allowed: gpus, an address" in complaint


@pytest.mark.parametrize("shape", [(4, 1, 7), (4, 2, 3)])
def test_a_run_whose_blocks_are_all_tried_is_planned(tmp_path: Path, niseg, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "run.npy", np.random.default_rng(0).poisson(900, shape).astype(np.uint16))
    steps = "steps: [{rebin_tof: {factor: 2}}, scale_spectra, {kmeans: {n_clusters: 2}}]"  # and a mean image before
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(f"input: {{path: run.npy, dims: [tof, y, x]}}\n{steps}\noutput: {{path: out}}\n")
    status, said, err = niseg("plan", pipeline, "--set", "compute.workers=2")
    assert (status, err) == (0, "") and "it fits" in said


def test_a_network_is_held_once(tmp_path: Path) -> None:
    model = make_unet(tmp_path / "unet")
    np.save(tmp_path / "stack.npy", np.random.default_rng(0).poisson(900, (8, 96, 80)).astype(np.uint16))
    mapping = {
        "input": str(tmp_path / "stack.npy"),
        "steps": [{"segment_unet": {"model": str(model)}}],
        "output": {"path": str(tmp_path / "out")},
    }
    held = []
    for workers in (1, 2):
        pipeline = parse_pipeline({**mapping, "compute": {"device": "cpu", "workers": workers}})
        plan = plan_pipeline(pipeline)
        assert plan.steps[-1].dtype == "uint8" and plan.blocks.workers == workers
        held.append(plan.host.phases["blocks"]["blocks in flight"])
    assert 0 < held[1] < 2 * held[0], "two workers share the network"


def test_a_gpu_has_its_lines(data: Path, tmp_path: Path) -> None:
    plan = plan_pipeline(parse_pipeline(small_pipeline(data, tmp_path / "out")))
    gpu = Room({"blocks": {"blocks in flight": 2 * GB}}, 2 * GB, 80 * GB, 79 * GB)
    text = format_plan(replace(plan, gpu=gpu, seconds=Seconds(1.0, 2.0)))
    assert "GPU     2 GB at most, of 80 GB; 79 GB are free" in text and "about 1 s for doses" in text

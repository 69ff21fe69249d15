"""A run's folder: complete, or not there at all."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import xarray as xr
from scipy.ndimage import maximum_filter, minimum_filter

from niseg_gpu.errors import UserError
from niseg_gpu.io.open import open_stack
from niseg_gpu.pipeline import clusters
from niseg_gpu.pipeline.parse import parse_pipeline
from niseg_gpu.pipeline.results import log_to
from niseg_gpu.pipeline.run import run_pipeline
from niseg_gpu.simulate.tof import simulate_tof


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "data"
    simulate_tof(out, height=48, width=64, n_bins=60, seed=1)
    return out


def pipeline_of(data: Path, out: Path, **changes) -> dict:
    return {
        "input": {"path": str(data / "sample"), "open_beam": str(data / "open_beam")},
        "steps": [
            "overlap_correct",
            {"remove_spots": {"threshold": 300, "kind": "bright"}},
            {"assign_wavelength": {"flight_path_m": 10}},
            {"rebin_tof": {"factor": 5}},
            {"normalize": {"dose_by_shutter_counts": True}},
            {"kmeans": {"n_clusters": 4}},
        ],
        "output": {"path": str(out)},
        **changes,
    }


@pytest.fixture(scope="module")
def finished(simulated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    return run_pipeline(parse_pipeline(pipeline_of(simulated, out)), quiet=True)


def test_the_folder_holds_what_the_readme_promises(finished: Path) -> None:
    assert {p.name for p in finished.iterdir()} == {
        "result.zarr", "spectra.csv", "report.html", "preview", "run.json", "log.txt",
    }  # fmt: skip
    assert {"labels.png", "mean_image.png", "spectra.png", "spots.png"} <= {
        p.name for p in (finished / "preview").iterdir()
    }
    run = xr.open_zarr(finished / "result.zarr", consolidated=False)
    assert run.image.dims == ("tof", "y", "x") and run.image.shape == (12, 48, 64)  # three shutter windows
    assert run.spots.shape == (60, 48, 64) and run.spots.dtype == bool
    assert run.labels.shape == (48, 64) and run.spectra.shape == run.centroids.shape == (4, 12)
    assert run.tof.attrs["units"] == "s" and 1 < float(run.wavelength[0]) < float(run.wavelength[-1]) < 6
    np.testing.assert_allclose(run.mean_image, run.image.mean("tof"), rtol=1e-5)
    np.testing.assert_array_equal(run.spot_count, run.spots.sum("tof_spots"))


def test_spots_of_bins_that_were_joined_later_can_be_opened(finished: Path) -> None:
    spots = open_stack(f"{finished}/result.zarr:spots")
    assert spots.dims == ("tof", "y", "x") and spots.shape == (60, 48, 64)
    np.testing.assert_array_equal(spots, xr.open_zarr(finished / "result.zarr", consolidated=False).spots)


def test_what_is_read_back_knows_what_it_is(simulated: Path, finished: Path, tmp_path: Path) -> None:
    """Without that a transmission would pass for counts, and be normalized a second time."""
    given = finished / "result.zarr"
    quantities = {name: open_stack(f"{given}:{name}").attrs["quantity"] for name in ("image", "spots", "labels")}
    assert quantities == {"image": "transmission", "spots": "mask", "labels": "labels"}
    mapping = pipeline_of(simulated, tmp_path / "out", steps=["normalize"])
    mapping["input"]["path"] = str(given)
    with pytest.raises(UserError, match="normalize works on counts, the stack holds transmission"):
        run_pipeline(parse_pipeline(mapping), quiet=True)
    counts = pipeline_of(simulated, tmp_path / "counts", steps=[{"remove_spots": {"threshold": 300}}])
    counted = open_stack(str(run_pipeline(parse_pipeline(counts), quiet=True) / "result.zarr"))
    original = open_stack(counts["input"]["path"])
    for name in ("quantity", "shutter_windows", "shutter_counts"):  # with these a run can go on from here
        np.testing.assert_array_equal(counted.attrs[name], original.attrs[name], err_msg=name)


def test_the_record_says_how_it_was_made(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    assert parse_pipeline(record["pipeline"]).as_mapping() == record["pipeline"], "it can be run again"
    spots = record["pipeline"]["steps"][1]["remove_spots"]
    assert (spots["size"], spots["threshold"], spots["kind"]) == (3, 300.0, "bright"), "defaults are written out"
    names = [step["name"] for step in record["steps"]]
    assert names[0] == "read" and {"overlap_correct", "remove_spots", "normalize", "write", "kmeans"} <= set(names)
    assert all(step["seconds"] >= 0 for step in record["steps"]) and record["seconds"] > 0
    assert 0.05 < record["peak_memory_gb"] < 10
    assert record["versions"]["numpy"] == np.__version__
    assert record["results"]["labels"]["n_clusters"] == 4
    spots = xr.open_zarr(finished / "result.zarr", consolidated=False).spots
    assert f"remove_spots: {int(spots.sum())} spots replaced" in record["findings"]


def test_the_materials_come_out_right(finished: Path, simulated: Path) -> None:
    truth = tifffile.imread(simulated / "truth" / "labels.tif")
    labels = xr.open_zarr(finished / "result.zarr", consolidated=False).labels.values
    inside = minimum_filter(truth, 5) == maximum_filter(truth, 5)  # away from blurred edges
    right = 0
    for material in np.unique(truth):
        found = labels[(truth == material) & inside]
        right += np.bincount(found).max() if found.size else 0
    assert right / inside.sum() > 0.97


def test_the_same_run_gives_the_same_arrays(finished: Path, simulated: Path, tmp_path: Path) -> None:
    again = pipeline_of(simulated, tmp_path / "again", compute={"device": "cpu", "workers": 1})
    run_pipeline(parse_pipeline(again), quiet=True)
    one, two = (xr.open_zarr(p / "result.zarr", consolidated=False) for p in (finished, tmp_path / "again"))
    assert set(one.variables) == set(two.variables) >= {"image", "spots", "labels", "spectra", "centroids", "tof"}
    xr.testing.assert_equal(one, two)


def test_workers_are_not_seen_in_any_array(tmp_path: Path) -> None:
    """Blocks of frames, whose number goes with the workers."""
    frames = np.random.default_rng(0).uniform(0, 60_000, (40, 20, 30)).astype(np.float32)
    np.save(tmp_path / "frames.npy", frames)
    found = []
    for workers in (1, 3):
        mapping = {
            "input": {"path": str(tmp_path / "frames.npy")},
            "steps": [{"remove_spots": {"threshold": 30_000}}],
            "output": {"path": str(tmp_path / f"out{workers}")},
            "compute": {"device": "cpu", "workers": workers},
        }
        out = run_pipeline(parse_pipeline(mapping), quiet=True)
        found.append(xr.open_zarr(out / "result.zarr", consolidated=False).load())
    assert {"image", "mean_image", "spot_count", "spots", "spot_plane"} <= set(found[0].variables)
    xr.testing.assert_equal(*found)
    exact = found[0].image.values.astype(np.float64).mean(axis=0)
    np.testing.assert_array_equal(found[0].mean_image, exact.astype(np.float32))


def test_only_the_arrays_asked_for_are_kept(simulated: Path, tmp_path: Path) -> None:
    mapping = pipeline_of(simulated, tmp_path / "out")
    mapping["output"]["arrays"] = ["labels"]
    run_pipeline(parse_pipeline(mapping), quiet=True)
    kept = set(xr.open_zarr(tmp_path / "out" / "result.zarr", consolidated=False).variables)
    assert "labels" in kept and not kept & {"image", "spots", "spectra"}
    assert (tmp_path / "out" / "report.html").is_file()


def test_an_existing_folder_is_refused_before_anything_is_read(simulated: Path, tmp_path: Path) -> None:
    mapping = pipeline_of(tmp_path / "no such data", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out exists; give another name"):
        run_pipeline(parse_pipeline(mapping))
    with pytest.raises(UserError, match="no earlier result"):
        run_pipeline(parse_pipeline(mapping), overwrite=True)


def test_an_earlier_result_is_replaced_when_told_so(simulated: Path, tmp_path: Path) -> None:
    mapping = pipeline_of(simulated, tmp_path / "out")
    run_pipeline(parse_pipeline(mapping), quiet=True)
    mapping["steps"][-1] = {"kmeans": {"n_clusters": 2}}
    run_pipeline(parse_pipeline(mapping), quiet=True, overwrite=True)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["results"]["labels"]["n_clusters"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RuntimeError("broken"), OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_run_that_fails(simulated: Path, tmp_path: Path, monkeypatch, fault) -> None:
    def fail(*args, **kwargs):
        raise fault

    monkeypatch.setattr(clusters, "fit_kmeans", fail)
    expected = UserError if isinstance(fault, OSError) else type(fault)
    with pytest.raises(expected):
        run_pipeline(parse_pipeline(pipeline_of(simulated, tmp_path / "out")), quiet=True)
    assert list(tmp_path.iterdir()) == []
    assert not [h for h in logging.getLogger("niseg_gpu").handlers if isinstance(h, logging.FileHandler)]


def test_a_folder_that_cannot_be_made_is_told(simulated: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="can't be made"):
        run_pipeline(parse_pipeline(pipeline_of(simulated, tmp_path / "file" / "out")))


def test_a_bad_frame_found_late_leaves_nothing(simulated: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(simulated, tmp_path / "data")
    frame = sorted((tmp_path / "data" / "sample").glob("*.fits"))[33]
    content = bytearray(frame.read_bytes())
    content[2880:2882] = (-7).to_bytes(2, "big", signed=True)
    frame.write_bytes(content)
    with pytest.raises(UserError, match=rf"{frame.name}: frame 33, row 0, column 0 holds -7 \(negative\)"):
        run_pipeline(parse_pipeline(pipeline_of(tmp_path / "data", tmp_path / "out")), quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_threshold_that_marks_much_is_warned_of(simulated: Path, tmp_path: Path) -> None:
    mapping = pipeline_of(simulated, tmp_path / "out")
    mapping["steps"] = [{"remove_spots": {"threshold": 1}}]
    run_pipeline(parse_pipeline(mapping), quiet=True)
    (line,) = [f for f in json.loads((tmp_path / "out" / "run.json").read_text())["findings"] if "too low" in f]
    number, size, percent = map(int, re.match(r"warning: (\d+) of (\d+) values \((\d+) %\) were taken", line).groups())
    assert 10 < percent == 100 * number // size


@pytest.mark.parametrize("replace", ["median", "none"])
def test_a_step_that_looks_for_spots_leaves_its_plane(tmp_path: Path, replace: str) -> None:
    from niseg_gpu.figures_knn import Counted, decide_region
    from niseg_gpu.knn_features import compute_features
    from niseg_gpu.knn_model import fit_knn, load_knn, save_knn

    rng = np.random.default_rng(0)
    spots = rng.random((3, 40, 48)) < 0.02
    counts = (rng.poisson(300, spots.shape) + 200 * spots).astype(np.uint16)
    tifffile.imwrite(tmp_path / "volume.tif", counts, photometric="minisblack")
    model = save_knn(fit_knn(counts[0], spots[0], n_neighbors=3), tmp_path / "spots.npz")
    mapping = {
        "input": {"path": str(tmp_path / "volume.tif"), "dims": ["z", "y", "x"]},
        "steps": [
            {"detect_spots": {"model": str(model), "replace": replace}},
            {"remove_spots": {"threshold": 80, "kind": "bright"}},
        ],
        "output": {"path": str(tmp_path / "out")},
    }
    out = run_pipeline(parse_pipeline(mapping), quiet=True)
    run = xr.open_zarr(out / "result.zarr", consolidated=False)
    number, about = run.spot_plane, run.spot_plane.attrs
    assert (about["step"], about["n_neighbors"], about["threshold"]) == ("detect_spots", 3, None)
    edges = tuple(run[f"spot_plane_{name}_edges"].values for name in about["features"])
    features = compute_features(counts, about["features"]).reshape(-1, 2)  # all of them, for they are few
    np.testing.assert_array_equal(number.values, np.histogram2d(*features.T, edges)[0])
    nodes = Counted(number.values, edges, tuple(about["even_up_to"])).nodes
    np.testing.assert_array_equal(run.spot_plane_region, decide_region(load_knn(model), nodes))
    second = run.spot_plane_2
    assert (second.attrs["step"], second.attrs["threshold"], second.attrs["median_size"]) == ("remove_spots", 80, 3)
    assert "spot_plane_2_region" not in run and second.dims == ("spot_plane_2_value", "spot_plane_2_residual")
    page = (out / "report.html").read_text()
    done = "replaced" if replace == "median" else "found"
    assert f"{int(run.spot_count.sum())} spots {done}" in page and f"Where spots were {done}" in page
    for text in (
        "Values and how they stand out: detect_spots. ",
        "Values and how they stand out: remove_spots. ",
        "In the orange region a pixel is taken for a spot.",
        "Beyond the orange line a pixel is taken for a spot.",
    ):
        assert text in page
    assert {"spot_plane.png", "spot_plane_2.png"} <= {p.name for p in (out / "preview").iterdir()}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_on_a_full_disk_prints_no_traceback(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("niseg_gpu"), "handlers", [])  # those of other tests write to what is closed
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), log_to(tmp_path / "log.txt"):  # for the line is lost
        logging.getLogger("niseg_gpu").warning("a line")
    assert capsys.readouterr().err == ""

"""The main job on measured data, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from niseg_gpu.io.open import open_stack
from niseg_gpu.pipeline.api import apply_steps
from niseg_gpu.pipeline.parse import parse_pipeline
from niseg_gpu.pipeline.run import run_pipeline

SAMPLE = {"y": slice(22, 193), "x": slice(214, None)}
STEPS = [
    {"overlap_correct": {}},
    {"select_tof": {"first": 130, "last": 913}},
    {"rebin_tof": {"factor": 8}},
    "scale_spectra",
]


@pytest.fixture(scope="module")
def segment(data_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """Run the job with k clusters, once each."""
    done: dict[int, xr.Dataset] = {}

    def run(n_clusters: int) -> xr.Dataset:
        if n_clusters not in done:
            out = tmp_path_factory.mktemp("run") / f"k{n_clusters}"
            steps = [*STEPS, {"kmeans": {"n_clusters": n_clusters}}]
            pipeline = {"input": str(data_dir / "tof_mcp_crop"), "steps": steps, "output": {"path": str(out)}}
            run_pipeline(parse_pipeline(pipeline), quiet=True)
            done[n_clusters] = xr.open_zarr(out / "result.zarr", consolidated=False).load()
        return done[n_clusters]

    return run


def test_the_crystalline_sample_is_one_cluster(segment) -> None:
    labels = segment(2).labels
    sample = labels.isel(SAMPLE)
    cluster = int(np.bincount(sample.values.ravel()).argmax())
    assert float((sample == cluster).mean()) >= 0.99
    assert float((labels.isel(x=slice(0, 185)) == cluster).mean()) <= 0.001


def test_three_clusters_also_separate_the_hexagon(segment) -> None:
    two, three = segment(2).labels, segment(3).labels
    open_beam = int(np.bincount(three.isel(x=slice(0, 185)).values.ravel()).argmax())
    inside = three.isel(SAMPLE).values
    assert (inside == open_beam).mean() <= 0.01
    sizes = np.sort(np.bincount(inside.ravel(), minlength=3))[::-1] / inside.size
    assert sizes[0] > 0.35 and sizes[1] > 0.35  # the sample is cut in two
    counts = segment(2).mean_image
    means = [float(counts.where(three == k).mean()) for k in range(3) if k != open_beam]
    assert abs(means[0] - means[1]) / max(means) > 0.05, "one part is darker: the hexagon"
    assert float((two == two.isel(x=0, y=0)).mean()) > 0.5


def test_spectra_are_the_means_of_their_pixels(segment) -> None:
    for k in (2, 3):
        run = segment(k)
        for cluster in range(k):
            mean = run.image.where(run.labels == cluster).mean(("y", "x"), dtype=np.float64)
            np.testing.assert_allclose(run.spectra[cluster], mean, rtol=2e-6)


def test_overlap_correction_joins_the_shutter_windows(data_dir: Path) -> None:
    stack = open_stack(data_dir / "tof_mcp_crop")
    assert stack.attrs["shutter_windows"] == [[0, 126], [127, 431], [432, 644], [645, 915]]
    open_beam = {"x": slice(0, 185)}
    corrected = apply_steps(stack, [{"overlap_correct": {"per_trigger": True}}]).image.isel(open_beam)
    mean = corrected.mean(("y", "x"), dtype=np.float64).compute().values
    raw = stack.isel(open_beam).mean(("y", "x"), dtype=np.float64).compute().values
    # Measured: +4.0, -3.7, -5.1 %. The shutter is closed for 0.33 ms; the slope of the spectrum before each border has
    # those signs and about that size; lines fitted on both sides give other figures: the cause is not settled.
    for last, slack in ((126, 0.041), (431, 0.04), (644, 0.055)):
        before, after = slice(last - 5, last), slice(last + 2, last + 7)  # border bins left out
        assert abs(mean[after].mean() / mean[before].mean() - 1) < slack, f"border after bin {last}"
    assert 1.4 < raw[433:438].mean() / raw[426:431].mean() < 1.7


def test_a_chunked_run_equals_an_unchunked_one(data_dir: Path) -> None:
    stack = open_stack(data_dir / "tof_mcp_crop").isel(y=slice(60, 100), x=slice(190, 230))
    steps = [STEPS[0], {"remove_spots": {"size": 5, "threshold": 25}}, *STEPS[1:]]
    whole = apply_steps(stack.compute(), steps)
    for chunks in ({"tof": 100, "y": 40, "x": 40}, {"tof": 916, "y": 7, "x": 31}):
        cut = apply_steps(stack.chunk(chunks), steps)
        np.testing.assert_array_equal(cut.image.values, whole.image.values)
        np.testing.assert_array_equal(cut.masks["spots"].values, whole.masks["spots"].values)


def test_rebinning_conserves_counts(data_dir: Path) -> None:
    stack = open_stack(data_dir / "tof_mcp_crop").isel(y=slice(0, 64))
    rebinned = apply_steps(stack, [{"rebin_tof": {"factor": 7}}]).image
    assert rebinned.sizes["tof"] == 18 + 44 + 30 + 39  # windows of 127, 305, 213 and 271
    assert int(rebinned.sum(dtype=np.float64)) == int(stack.sum(dtype=np.int64))


def run_references(data_dir: Path, out: Path, sample: str, beam: str, dark: str, threshold: float) -> dict:
    pipeline = {
        "input": {"path": str(data_dir / sample), "open_beam": str(data_dir / beam), "dark": str(data_dir / dark)},
        "steps": [{"remove_spots": {"threshold": threshold}}, "normalize"],
        "output": {"path": str(out)},
    }
    run_pipeline(parse_pipeline(pipeline), quiet=True)
    return json.loads((out / "run.json").read_text())


def test_tomography_becomes_a_volume_of_transmission(data_dir: Path, tmp_path: Path) -> None:
    names = ("xray_tomo/tiffs", "xray_tomo/flat_00001.tiff", "xray_tomo/dark_00001.tiff")
    record = run_references(data_dir, tmp_path / "out", *names, threshold=2000)
    volume = xr.open_zarr(tmp_path / "out" / "result.zarr", consolidated=False)
    assert volume.image.dims == ("angle", "y", "x") and volume.image.shape == (91, 135, 160)
    air = volume.image.isel(y=slice(5, 20)).values
    # the beam faded after the flat was taken; the air is bright, even, and nothing is above it
    assert 0.6 < np.median(air) < 0.8 and float(volume.image.max()) < 0.85
    assert 0.05 < float(volume.image.min()) < 0.1
    assert record["pipeline"]["steps"][0]["remove_spots"]["size"] == 3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "tomography" in page and "spectrum" not in page.lower()


def test_a_single_radiograph_becomes_transmission(data_dir: Path, tmp_path: Path) -> None:
    names = [f"radiograph_wood/{name}_0000.tif" for name in ("wood", "ob", "dc")]
    run_references(data_dir, tmp_path / "out", *names, threshold=1000)
    image = xr.open_zarr(tmp_path / "out" / "result.zarr", consolidated=False).image
    assert image.dims == ("y", "x")
    assert 1.05 < float(np.median(image.values)) < 1.25, (
        "no dose correction: the beam was brighter than in the open beam"
    )
    assert float(image.max()) < 1.5, "spots would be brighter still"

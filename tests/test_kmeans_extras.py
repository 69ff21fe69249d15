"""Features beside the spectrum and several numbers of clusters, through the step and the command line."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import xarray as xr
import zarr

from niseg_gpu import cluster_stack, run_pipeline
from niseg_gpu.errors import UserError
from niseg_gpu.io.save import save
from niseg_gpu.pipeline.parse import parse_pipeline


def noisy_halves(*, bins: int = 6, side: int = 40, gap: float = 1.0) -> np.ndarray:
    """Two materials, left and right, that single pixels do not tell apart."""
    stack = np.random.default_rng(5).normal(100, 1, (bins, side, side)).astype(np.float32)
    stack[:, :, side // 2 :] += gap
    return stack


def stack_of(values: np.ndarray) -> xr.DataArray:
    coords = {"tof": np.arange(len(values)) * 1e-5, "wavelength": ("tof", 1 + 0.1 * np.arange(len(values)))}
    return xr.DataArray(values, dims=("tof", "y", "x"), coords=coords)


def accuracy(labels: np.ndarray) -> float:
    right = np.zeros(labels.shape, bool)
    right[:, labels.shape[1] // 2 :] = True
    agree = float(((labels == 1) == right).mean())
    return max(agree, 1 - agree)


@pytest.mark.parametrize("extra", [{"smooth": 2.0}, {"x": 1.0}, {"smooth": 1.0, "spectrum": 0.2}])
def test_a_feature_beside_the_spectrum_tells_apart_what_it_alone_does_not(extra: dict[str, float]) -> None:
    stack = stack_of(noisy_halves())
    plain = cluster_stack(stack, device="cpu", n_clusters=2)
    more = cluster_stack(stack, device="cpu", n_clusters=2, features=extra, smooth_sigma_px=3.0)
    assert accuracy(plain.labels) < 0.95 < accuracy(more.labels)


def test_spectra_keep_their_units_and_their_bins_whatever_the_weights() -> None:
    values = noisy_halves(gap=30)
    found = cluster_stack(
        stack_of(values), device="cpu", n_clusters=2, features={"x": 0.3, "sobel_y": 0.1, "spectrum": 3}
    )
    for k in range(2):
        member = found.labels == k
        np.testing.assert_allclose(found.spectra[k], values[:, member].mean(1), rtol=1e-5)
    np.testing.assert_allclose(np.sort(found.centroids, axis=0), np.sort(found.spectra, axis=0), rtol=1e-5)


def test_a_registered_image_is_a_second_modality(tmp_path) -> None:
    values = noisy_halves(gap=0)
    xray = np.random.default_rng(0).normal(0, 0.1, values.shape[1:]).astype(np.float32)
    xray[:, 20:] += 1
    xray[3, 3] = np.nan
    np.save(tmp_path / "xray.npy", xray)
    found = cluster_stack(stack_of(values), device="cpu", n_clusters=2, images={str(tmp_path / "xray.npy"): 2.0})
    assert found.labels[3, 3] == 255
    assert accuracy(found.labels) > 0.99
    np.save(tmp_path / "small.npy", xray[:5])
    with pytest.raises(UserError, match="small.npy has shape .* register and crop"):
        cluster_stack(stack_of(values), device="cpu", images={str(tmp_path / "small.npy"): 1.0})


def test_a_missing_pixel_stays_without_a_cluster() -> None:
    values = noisy_halves(gap=30)
    values[2, 5, 6] = np.nan
    found = cluster_stack(stack_of(values), device="cpu", n_clusters=2, features={"x": 0.1, "smooth": 0.1})
    assert found.labels[5, 6] == 255 and (found.labels == 255).sum() == 1


def test_deviations_are_those_of_the_pixels_of_each_cluster() -> None:
    values = noisy_halves(gap=30)
    found = cluster_stack(stack_of(values), device="cpu", n_clusters=2, deviations=True, features={"y": 0.01})
    for k in range(2):
        np.testing.assert_allclose(found.deviations[k], values[:, found.labels == k].std(1), rtol=1e-3)


def test_several_numbers_of_clusters_are_what_each_alone_is() -> None:
    stack = stack_of(noisy_halves(gap=30))
    several = cluster_stack(stack, device="cpu", n_clusters=[2, 5, 1], seed=3)
    for found in (several, *several.others):
        alone = cluster_stack(stack, device="cpu", n_clusters=found.n_clusters, seed=3)
        np.testing.assert_array_equal(found.labels, alone.labels)
        assert found.inertia == alone.inertia
    assert [found.n_clusters for found in several.others] == [5, 1]
    assert several.silhouette > 0.8 > several.others[0].silhouette and several.others[1].silhouette is None
    assert several.stability == 1 and several.others[0].stability < 0.9


@pytest.mark.parametrize(
    "parameters, complaint",
    [
        ({"features": {"sobelx": 1}}, "did you mean 'sobel_x'"),
        ({"features": {"z": 1}}, "one image"),
        ({"features": {"x": 0}}, "weight of x is 0; allowed: above 0"),
        ({"features": {"x": float("nan")}}, "weight of x is nan"),
        ({"features": {"x": 1e300}}, r"weight of x is 1e\+300; allowed: above 0, up to 1e\+06"),
        ({"images": {"nowhere.tif": 1}}, "nowhere.tif"),
        ({"n_clusters": [2, 2]}, "twice"),
        ({"n_clusters": []}, "n_clusters"),
        ({"n_clusters": [2, 10**4]}, "1600 pixels"),
        ({"n_clusters": [2, 3], "init": [[1.0] * 6] * 2}, "one n_clusters"),
        ({"n_clusters": 2, "init": [[1.0] * 6] * 2, "features": {"x": 1}}, "without features"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(parameters: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        cluster_stack(stack_of(noisy_halves()), device="cpu", **parameters)


def test_a_run_writes_every_map_and_the_spectra_as_a_table(tmp_path) -> None:
    values = noisy_halves(gap=30)
    values[:, :, 19:21] = 115
    save(stack_of(values), tmp_path / "run.zarr")
    np.save(tmp_path / "xray.npy", values[0])
    step = {"n_clusters": [3, 2], "deviations": True, "images": {"xray.npy": 0.01}}
    run_pipeline(
        parse_pipeline(
            {"input": "run.zarr", "steps": [{"kmeans": step}], "output": {"path": "out"}, "compute": {"device": "cpu"}},
            base=tmp_path,
        ),
        quiet=True,
    )
    opened = xr.open_zarr(tmp_path / "out" / "result.zarr", consolidated=False)
    assert opened.spectra.wavelength.dims == opened.spectra_k2.wavelength.dims == ("tof",)
    np.testing.assert_allclose(opened.spectra.wavelength, 1 + 0.1 * np.arange(6))
    group = zarr.open_group(tmp_path / "out" / "result.zarr", mode="r")
    assert set(np.unique(group["labels"])) == {0, 1, 2} and set(np.unique(group["labels_k2"])) == {0, 1}
    assert group["spectra_k2"].shape == (2, 6) and group["deviations"].shape == (3, 6)
    with open(tmp_path / "out" / "spectra.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[3]["wavelength_angstrom"]) == pytest.approx(1.3) and len(rows) == 6
    assert float(rows[2]["cluster_1"]) == pytest.approx(group["spectra"][1, 2], rel=1e-6)
    assert float(rows[2]["cluster_1_deviation"]) == pytest.approx(group["deviations"][1, 2], rel=1e-6)
    assert {row["cluster_2_pixels"] for row in rows} == {str(group["cluster_pixels"][2])}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [trial["n_clusters"] for trial in run["results"]["labels"]["tried"]] == [2, 3]
    assert any("follows edges" in line for line in run["findings"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Choosing the number of clusters" in page and "follows edges" in page
    assert (tmp_path / "out" / "preview" / "label_maps.png").is_file()


def test_a_cluster_of_a_few_pixels_is_told_for_it_may_be_spots(tmp_path, niseg) -> None:
    values = noisy_halves(gap=30)
    values[4, 11, 12] = 60_000
    np.save(tmp_path / "stack.npy", values)
    status, out, complaint = niseg(
        "kmeans", tmp_path / "stack.npy", tmp_path / "labels.tif", "--dims", "tof,y,x", "--n-clusters", 3,
        "--init-sample", 1600, "--device", "cpu",
    )  # fmt: skip
    assert status == 0, complaint
    assert "kmeans: 1 of 3 clusters hold less than 1 pixel in 1000, as spots do: remove_spots first?" in out


def test_the_command_takes_features_and_lists(tmp_path, niseg) -> None:
    np.save(tmp_path / "stack.npy", noisy_halves(gap=30))
    status, out, complaint = niseg(
        "kmeans", tmp_path / "stack.npy", tmp_path / "labels.tif", "--dims", "tof,y,x", "--n-clusters", "2,4",
        "--features", "x: 0.1, smooth: 0.2", "--device", "cpu", "--spectra", tmp_path / "s.csv", "--quiet",
    )  # fmt: skip
    assert status == 0, complaint
    status, out, complaint = niseg(
        "kmeans", tmp_path / "stack.npy", tmp_path / "labels.tif", "--dims", "tof,y,x", "--n-clusters", "4,2",
        "--device", "cpu", "--overwrite",
    )  # fmt: skip
    assert status == 0, complaint
    two, four = [line for line in out.splitlines() if line.startswith("k = ")]
    assert two.startswith("k = 2: inertia ") and ", silhouette 0.9" in two and ", stability 1" in two
    assert four.startswith("k = 4: ") and four.endswith(" (written)") and "written" not in two
    status, _, complaint = niseg(
        "kmeans", tmp_path / "stack.npy", tmp_path / "more.tif", "--dims", "tof,y,x", "--features", "x"
    )
    assert status == 2 and "features" in complaint and complaint.count("\n") == 1

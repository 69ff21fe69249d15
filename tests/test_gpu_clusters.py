"""k-means on each device: the step, the estimator on every kind of array, and more data than there is room for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from niseg_gpu.backend import CPU, Cpu
from niseg_gpu.kmeans.estimator import KMeans
from niseg_gpu.pipeline.api import cluster_stack
from niseg_gpu.pipeline.parse import parse_pipeline
from niseg_gpu.pipeline.run import run_pipeline
from niseg_gpu.simulate.tof import simulate_tof

BINS, HEIGHT, WIDTH, K = 17, 24, 31, 4
STARTS = np.array([[2, 3], [2, 20], [15, 3], [15, 25]])


def draw(dtype: str = "float32", *, missing: bool = False) -> np.ndarray:
    """(BINS, HEIGHT, WIDTH) counts of four materials, one in each corner, far apart for their noise."""
    rng = np.random.default_rng(0)
    material = 2 * (np.arange(HEIGHT) >= 10)[:, None] + (np.arange(WIDTH) >= 12)
    spectra = rng.uniform(200, 900, (BINS, K))
    stack = rng.normal(spectra[:, material], 25).clip(0).astype(dtype)
    if missing:
        stack[:, 5, 7], stack[3, 20, 30], stack[:, 23, :4] = np.nan, np.inf, np.nan
    return stack


def start_of(stack: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(stack[:, STARTS[:, 0], STARTS[:, 1]].T).astype(np.float32)


def wrap(stack: np.ndarray, chunks: Any = (5, 7, 9)) -> xr.DataArray:
    tof = 1e-3 + 1e-5 * np.arange(len(stack))
    return xr.DataArray(da.from_array(stack, chunks=chunks), dims=("tof", "y", "x"), coords={"tof": tof})


def both(backend: Any, stack: np.ndarray, **how: Any) -> tuple[Any, Any]:
    """The step on the device with the kernels of its library, and on the CPU with our own."""
    kernels = {"device": backend.name, "kernels": "library"}, {"device": "cpu", "kernels": "own"}
    return tuple(cluster_stack(wrap(stack), **chosen, **how) for chosen in kernels)


def assert_same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.labels.dtype == expected.labels.dtype and found.n_iter == expected.n_iter
    for name in ("centroids", "spectra", "deviations", "edge_share"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if other is not None:
            np.testing.assert_allclose(one, other, rtol=1e-4, err_msg=name)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    for name in ("inertia", "silhouette", "stability"):
        other = getattr(expected, name)
        assert getattr(found, name) == (other if other is None else pytest.approx(other, rel=1e-4)), name


@pytest.mark.parametrize("dtype", ["float32", "uint16", "int16", "uint8", "float64"])
def test_the_step_finds_the_same_clusters(backend, dtype: str) -> None:
    stack = (draw() / 4).astype(dtype) if dtype == "uint8" else draw(dtype)
    found, expected = both(backend, stack, n_clusters=K, seed=3, deviations=True)
    assert_same(found, expected)
    assert sorted(found.pixels) == [10 * 12, 14 * 12, 10 * 19, 14 * 19]


OPTIONS = {
    "centroids given": {"n_clusters": K, "init": "starts", "max_iter": 3, "tol": 0},
    "random starts": {"n_clusters": K, "init": "random", "n_init": 3},
    "starts from all pixels": {"n_clusters": K, "init_sample": None, "n_init": 2},
    "starts from few": {"n_clusters": K, "init_sample": 200},
    "several numbers": {"n_clusters": [K, 2]},
    "one cluster": {"n_clusters": 1, "deviations": True},
    "features": {"n_clusters": K, "features": {"x": 0.2, "y": 0.2, "smooth": 0.5, "sobel_x": 0.1}},
    "images": {"n_clusters": K, "images": {"image.npy": 0.5}},
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_steps_options_do_the_same(backend, tmp_path: Path, name: str, missing: bool) -> None:
    how, stack = dict(OPTIONS[name]), draw(missing=missing)
    if "init" in how and how["init"] == "starts":
        how["init"] = start_of(stack).tolist()
    if "images" in how:
        np.save(tmp_path / "image.npy", draw()[0] + 5)
        how["images"] = {str(tmp_path / "image.npy"): 0.5}
    found, expected = both(backend, stack, **how)
    assert_same(found, expected)
    assert (found.labels == 255).sum() == (6 if missing else 0)
    assert len(found.others) == len(expected.others) == (name == "several numbers")
    for one, other in zip(found.others, expected.others, strict=True):
        assert_same(one, other)


def test_voxels_without_a_spectrum(backend) -> None:
    """A volume's voxels are pixels of one feature."""
    volume = xr.DataArray(draw()[:6].round(), dims=("z", "y", "x")).chunk({"z": 2})
    found, expected = (
        cluster_stack(volume, n_clusters=3, device=device, kernels=kernels)
        for device, kernels in ((backend.name, "library"), ("cpu", "own"))
    )
    assert found.labels.shape == volume.shape
    assert (found.labels != expected.labels).mean() < 2e-3, "rounding may decide for few of those half way"
    np.testing.assert_allclose(found.spectra, expected.spectra, rtol=1e-3)


def test_a_whole_job_gives_what_the_cpu_gives(backend, tmp_path: Path) -> None:
    simulate_tof(tmp_path / "data", height=40, width=48, n_bins=36, seed=1)
    groups = []
    for device in (backend.name, "cpu"):
        mapping = {
            "input": {"path": str(tmp_path / "data" / "sample"), "open_beam": str(tmp_path / "data" / "open_beam")},
            "steps": [
                "overlap_correct",
                {"remove_spots": {"threshold": 300, "kind": "bright"}},
                {"assign_wavelength": {"flight_path_m": 10}},
                {"rebin_tof": {"factor": 4}},
                {"normalize": {"dose_by_shutter_counts": True}},
                {"kmeans": {"n_clusters": 3, "deviations": True}},
            ],
            "output": {"path": str(tmp_path / f"on-{device}-{len(groups)}")},
            "compute": {"device": device, "kernels": "auto" if groups else "library"},
        }
        groups.append(zarr.open_group(run_pipeline(parse_pipeline(mapping), quiet=True) / "result.zarr", mode="r"))
    found, expected = ({name: np.asarray(array[...]) for name, array in group.arrays()} for group in groups)
    assert found.keys() == expected.keys() >= {"labels", "image", "spots", "spectra", "mean_image", "spot_count"}
    for name, values in expected.items():
        exact = values.dtype.kind not in "fc"
        np.testing.assert_allclose(found[name], values, rtol=0 if exact else 1e-4, atol=0, err_msg=name)
    assert expected["spots"].any() and set(np.unique(expected["labels"])) >= {0, 1, 2}


def estimate(data: Any, start: np.ndarray, backend: Any, **how: Any) -> KMeans:
    how = {"max_iter": 6, "tol": 0, "feature_dim": 0, "kernels": "library", **how}
    return KMeans(len(start), init=start, device=backend.name, **how).fit(data)


def assert_same_estimate(found: KMeans, expected: KMeans) -> None:
    """Sums are exact on either device: the same labels lead to the same centroids, to the last bit."""
    np.testing.assert_array_equal(found.labels_, expected.labels_)
    np.testing.assert_array_equal(found.cluster_centers_, expected.cluster_centers_)
    assert found.inertia_ == pytest.approx(expected.inertia_, rel=1e-5) and found.n_iter_ == expected.n_iter_


KINDS = {
    "array": lambda b, stack: b.from_host(stack),
    "columns of an array": lambda b, stack: b.from_host(np.repeat(stack, 2, axis=2))[:, :, ::2],
    "blocks of the host": lambda b, stack: da.from_array(stack, chunks=(5, 7, 9)),
    "blocks of the device": lambda b, stack: da.from_array(stack, chunks=(BINS, 7, 9)).map_blocks(
        b.from_host, dtype=stack.dtype, meta=b.xp.empty((0, 0, 0), dtype=stack.dtype)
    ),
    "stack": lambda b, stack: wrap(stack),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, missing", [("float32", False), ("float32", True), ("uint16", False), ("int32", False)])
def test_the_estimator_takes_every_kind_of_array(backend, kind: str, dtype: str, missing: bool) -> None:
    stack = draw(dtype, missing=missing)
    expected = estimate(stack, start_of(stack), CPU, kernels="own")
    found = estimate(KINDS[kind](backend, stack), start_of(stack), backend)
    assert_same_estimate(found, expected)
    assert (found.labels_ == -1).sum() == (6 if missing else 0)
    np.testing.assert_array_equal(found.predict(KINDS[kind](backend, stack)), expected.predict(stack))


def test_the_estimator_draws_the_same_starts(backend) -> None:
    stack = draw(missing=True)
    how = {"init": "k-means++", "random_state": 5, "n_init": 2}
    found, expected = (
        KMeans(K, feature_dim=0, device=twin.name, kernels=twin.kernels, **how).fit(wrap(stack))
        for twin in (replace(backend, kernels="library"), CPU)
    )
    assert_same_estimate(found, expected)


@pytest.mark.parametrize("kernels", ["library", "own"])
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("host_share", [1.0, 0.0])
def test_what_there_is_no_room_for_comes_again_in_each_pass(backend, monkeypatch, dtype, kernels, host_share) -> None:
    """From page-locked memory, or read anew, in parts of a few kilobytes; more than 2^16 pixels."""
    rng = np.random.default_rng(4)
    spectra = rng.integers(100, 900, (16, 40))
    data = (spectra[rng.integers(0, 16, (300, 240))] + rng.integers(0, 60, (300, 240, 40))).astype(dtype)
    start = spectra.astype(np.float32) + 30
    monkeypatch.setattr("niseg_gpu.kmeans.arrays.PART_BYTES", 2**18)
    monkeypatch.setattr("niseg_gpu.kmeans.points.LEAST_PART_BYTES", 2**14)
    monkeypatch.setattr("niseg_gpu.kmeans.arrays.HOST_SHARE", host_share)
    budget = 16 * data[..., 0].size + 3 * data.nbytes // 4
    expected = estimate(data, start, CPU, kernels="own", feature_dim=-1)
    lazy = da.from_array(data, chunks=(64, 100, 40))
    found = estimate(lazy, start, backend, kernels=kernels, feature_dim=-1, memory_budget=budget)
    assert_same_estimate(found, expected)
    assert len(np.unique(found.labels_)) == 16


@settings(max_examples=15)
@given(
    chunks=st.tuples(st.integers(1, BINS), st.integers(1, HEIGHT), st.integers(1, WIDTH)),
    dtype=st.sampled_from(["float32", "uint16", ">u2", ">f4"]),
    axes=st.permutations([0, 1, 2]),
)
def test_chunks_axes_and_byte_order_are_not_seen_in_the_result(backend, chunks, dtype, axes) -> None:
    stack = draw(dtype)
    start = start_of(stack)
    expected = estimate(stack, start, CPU, kernels="own")
    turned = np.ascontiguousarray(stack.transpose(axes))
    lazy = da.from_array(turned, chunks=tuple(chunks[a] for a in axes))
    found = estimate(lazy, start, backend, feature_dim=axes.index(0))
    labels = found.labels_ if axes.index(1) < axes.index(2) else found.labels_.T
    np.testing.assert_array_equal(labels, expected.labels_)
    np.testing.assert_array_equal(found.cluster_centers_, expected.cluster_centers_)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 17), (2, 3), (70_001, 3)], ids=str)
def test_clusters_of_few_pixels_and_of_many(backend, dtype: str, shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(7).integers(0, 900, shape).astype(dtype)
    k = min(2, len(pixels))
    start = pixels[:k].astype(np.float32)
    how = {"max_iter": 3, "feature_dim": -1}
    expected = estimate(pixels, start, CPU, kernels="own", **how)
    assert_same_estimate(estimate(backend.from_host(pixels), start, backend, **how), expected)


def test_clusters_from_the_same_start(backend) -> None:
    """`run_lloyd` of the library, one iteration a call, ends where the CPU's does, and changes no pixel."""
    rows = np.ascontiguousarray(draw().reshape(BINS, -1).T)
    for max_iter, tol in ((1, 0.0), (5, 0.0), (300, 1e-4)):
        pixels = backend.from_host(rows.copy())
        how = {"centroids": start_of(draw()), "max_iter": max_iter, "tol": tol}
        found, expected = backend.run_lloyd(pixels, **how), CPU.run_lloyd(rows.copy(), **how)
        np.testing.assert_array_equal(backend.to_host(found.labels), expected.labels)
        np.testing.assert_allclose(found.centroids, expected.centroids, rtol=1e-5)
        assert found.inertia == pytest.approx(expected.inertia, rel=1e-5) and found.n_iter == expected.n_iter
        np.testing.assert_allclose(backend.to_host(pixels), rows, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "uint16", "int16", "float64"])
@pytest.mark.parametrize("n, features, k", [(500, 17, 4), (1, 1, 1), (1, 40, 2), (70_001, 3, 5)])
def test_assign_and_sum(backend, dtype: str, n: int, features: int, k: int) -> None:
    """One pass by array calls: labels, and sums to the last bit; pixels without data stay out."""
    rng = np.random.default_rng(n)
    pixels = rng.integers(0, 900, (n, features)).astype(dtype)
    mean = np.rint(pixels.mean(0)).astype(np.float32)
    how = {
        "centroids": rng.integers(0, 900, (k, features)).astype(np.float32) - mean,
        "mean": mean,
        "quantum": 2.0**-20,
    }
    labels = np.full(n, k, np.int32)
    labels[1::7] = -1
    there = backend.from_host(labels.copy())
    found = replace(backend, kernels="library").assign_and_sum(backend.from_host(pixels), **how, labels=there)
    expected = Cpu("own").assign_and_sum(pixels, **how, labels=labels)
    assert (backend.to_host(there) != labels).mean() < 1e-3, "whole numbers: ties alone may be decided otherwise"
    np.testing.assert_array_equal(backend.to_host(there)[1::7], labels[1::7])
    assert found.moved == expected.moved
    if (backend.to_host(there) == labels).all():
        np.testing.assert_array_equal(backend.to_host(found.sums), expected.sums)
        np.testing.assert_array_equal(backend.to_host(found.sizes), expected.sizes)

"""The estimator: scikit-learn's answers and conventions, on every kind of array."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import sklearn.cluster
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

import niseg_gpu
from niseg_gpu.backend import CPU, Cpu, select
from niseg_gpu.errors import UserError
from niseg_gpu.io.open import open_stack
from niseg_gpu.kmeans import points as points_module
from niseg_gpu.kmeans.arrays import open_points
from niseg_gpu.kmeans.estimator import KMeans
from niseg_gpu.kmeans.lloyd import measure_points, run_lloyd
from niseg_gpu.kmeans.points import cut_map
from niseg_gpu.pipeline.api import apply_steps

ROOT = Path(__file__).parents[1]


def clustered(n: int = 4000, features: int = 30, *, k: int = 5, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.uniform(200, 900, (k, features))
    return (centres[rng.integers(0, k, n)] + rng.normal(0, 40, (n, features))).clip(0).astype(dtype)


def bytes_of(found: KMeans) -> tuple:
    return found.labels_.tobytes(), found.cluster_centers_.tobytes(), found.inertia_, found.n_iter_


def assert_as_sklearn(data: np.ndarray, *, n_clusters: int, **how) -> None:
    ours = KMeans(n_clusters, **how).fit(data)
    theirs = sklearn.cluster.KMeans(n_clusters, **{"n_init": 1, **how}).fit(data)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-5, atol=1e-3)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5) and ours.n_iter_ == theirs.n_iter_


@pytest.mark.parametrize("max_iter, tol", [(1, 0.0), (3, 0.0), (300, 0.0), (300, 1e-4), (300, 0.05)])
def test_from_the_same_centroids_it_ends_where_sklearn_ends(max_iter, tol) -> None:
    data = clustered()
    assert_as_sklearn(data, n_clusters=5, init=data[[3, 99, 1000, 2000, 3999]], max_iter=max_iter, tol=tol)


@pytest.mark.parametrize("how", [{"random_state": 3}, {"init": "random", "n_init": 4, "random_state": 5}])
def test_the_same_random_state_gives_sklearns_clusters(how) -> None:
    assert_as_sklearn(clustered(seed=1), n_clusters=5, **how)


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_empty_clusters_are_moved_as_sklearn_moves_them(lost) -> None:
    data = clustered(seed=2)
    start = data[np.arange(9) * 400].copy()
    start[:lost] += 1e4 * np.arange(1, lost + 1)[:, None]
    assert_as_sklearn(data, n_clusters=9, init=start, max_iter=2, tol=0)


def test_pure_noise_has_no_answer_that_rounding_can_not_change() -> None:
    data = np.random.default_rng(0).normal(size=(20_000, 30)).astype(np.float32)
    ours = KMeans(8, init=data[:8], tol=0).fit(data)
    theirs = sklearn.cluster.KMeans(8, init=data[:8], n_init=1, tol=0).fit(data)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-3)


def test_the_measured_run_is_clustered_as_sklearn_does(data_dir: Path) -> None:
    steps = [{"overlap_correct": {}}, {"select_tof": {"first": 130, "last": 913}}, {"rebin_tof": {"factor": 8}}]
    stack = apply_steps(open_stack(data_dir / "tof_mcp_crop"), [*steps, "scale_spectra"]).image
    spectra = np.ascontiguousarray(stack.values.reshape(stack.shape[0], -1).T)
    for k in (2, 3, 4, 6):
        start, _ = sklearn.cluster.kmeans_plusplus(spectra, k, random_state=1)
        ours = KMeans(k, init=start).fit(stack)
        theirs = sklearn.cluster.KMeans(k, init=start, n_init=1).fit(spectra.astype(np.float64))
        # in float64: where clusters overlap (k = 6), its sums in float32 lead scikit-learn itself to other labels,
        # one pixel in a thousand, and others again with one thread
        np.testing.assert_array_equal(ours.labels_.ravel(), theirs.labels_)
        assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-5) and ours.n_iter_ == theirs.n_iter_


@settings(max_examples=15)
@given(st.data())
def test_kind_layout_chunks_and_threads_are_not_seen_in_the_result(data) -> None:
    dtype = data.draw(st.sampled_from(["float32", "uint16"]))
    height, width, features = 40, 25, 12
    rows = clustered(height * width, features, dtype=dtype)
    stack = np.ascontiguousarray(rows.T).reshape(features, height, width)
    expected = KMeans(4, random_state=0, workers=1).fit(rows)
    chunks = tuple(data.draw(st.integers(1, n)) for n in stack.shape)
    axes = data.draw(st.permutations(["tof", "y", "x"]))
    lazy = xr.DataArray(da.from_array(stack, chunks=chunks), dims=("tof", "y", "x"))
    for other in (lazy, lazy.copy(data=stack)):
        found = KMeans(4, random_state=0, workers=data.draw(st.sampled_from([1, 2, 4]))).fit(other)
        assert found.labels_.shape == (height, width) and bytes_of(found) == bytes_of(expected)
    turned = xr.DataArray(stack, dims=("tof", "y", "x")).transpose(*axes)
    named = KMeans(4, random_state=0, feature_dim="tof").fit(turned)
    first = KMeans(4, random_state=0, feature_dim=axes.index("tof")).fit(turned.values)
    assert bytes_of(named) == bytes_of(first)
    if axes.index("y") < axes.index("x"):
        assert bytes_of(named) == bytes_of(expected)


def test_parts_far_smaller_than_the_data_give_the_same(monkeypatch) -> None:
    data = clustered()
    start = data[np.arange(7) * 500].copy()
    start[:2] += 1e4  # two empty clusters
    whole = KMeans(7, init=start).fit(data)
    for most in (5000, 77_777):
        monkeypatch.setattr(points_module, "PART_BYTES", most)
        monkeypatch.setattr(points_module, "LEAST_PART_BYTES", most)
        monkeypatch.setattr(points_module.choose_part_bytes, "__kwdefaults__", {"most": most})
        assert len(open_points(data).regions) > 5
        assert bytes_of(KMeans(7, init=start).fit(data)) == bytes_of(whole)


@pytest.mark.parametrize("k", [2, 12])  # both arrangements of centroids
def test_values_beyond_their_squares_are_refused_and_those_below_clustered(k: int) -> None:
    data = clustered(400, 20)
    data /= np.abs(data - (data.min(axis=0) / 2 + data.max(axis=0) / 2)).max()
    most = np.sqrt(float(np.finfo(np.float32).max) / 8 / 20)
    with pytest.raises(UserError, match="whose squares float32 does not hold; allowed: up to 1.46e"):
        KMeans(k, random_state=0).fit(data * np.float32(1.01 * most))
    found, usual = (KMeans(k, random_state=0).fit(data * np.float32(2.0**n)) for n in (60, 0))
    assert 2.0**60 < most and found.labels_.tobytes() == usual.labels_.tobytes()


def test_only_pixels_that_stay_in_memory_are_remembered() -> None:
    data = clustered(features=90)
    lazy = da.from_array(data, chunks=(250, -1))
    points = open_points(lazy, memory_budget=900_000)
    measure = measure_points(points)
    run_lloyd(points, measure, start=data[:5] - measure.mean, max_iter=4, tol=0)
    kept = [part for part in points.parts.values() if part.is_near]
    assert 0 < len(kept) < len(points.parts)
    assert all(part.memory["margins"].shape == (2, len(part.labels)) for part in kept)
    assert not any(part.memory for part in points.parts.values() if not part.is_near)
    whole = KMeans(5, random_state=0).fit(data)
    assert bytes_of(KMeans(5, random_state=0, memory_budget=900_000).fit(lazy)) == bytes_of(whole)


def test_it_follows_the_conventions_of_sklearn() -> None:
    data = clustered()
    model = clone(KMeans(3, random_state=1)).set_params(n_clusters=5)
    assert repr(model) == "KMeans(n_clusters=5, random_state=1)"
    labels = model.fit_predict(data)
    np.testing.assert_array_equal(labels, model.labels_)
    np.testing.assert_array_equal(model.predict(data), labels)
    np.testing.assert_array_equal(model.predict(model.cluster_centers_), np.arange(5))
    assert model.cluster_centers_.shape == (5, 30) and model.n_features_in_ == 30 and labels.dtype == np.int32
    assert niseg_gpu.KMeans is KMeans


def test_data_are_neither_changed_nor_copied() -> None:
    data = clustered(20_000, 661)
    before = data.copy()
    tracked = KMeans(4, random_state=0, n_init=2)
    peak = peak_of(lambda: tracked.fit(data))
    np.testing.assert_array_equal(data, before)
    assert peak < 0.1 * data.nbytes


def peak_of(work) -> int:
    """Bytes that NumPy allocates at most at a time, all threads together."""
    import tracemalloc

    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_pixels_without_data_are_in_no_cluster(caplog) -> None:
    data = clustered()
    holes = data.copy()
    holes[[0, 17, 3999]] = np.nan
    holes[5, 3] = np.inf
    with caplog.at_level(logging.WARNING, logger="niseg_gpu"):
        found = KMeans(5, random_state=0).fit(holes)
    assert "4 of 4000 pixels hold NaN or Inf" in caplog.text
    without = KMeans(5, random_state=0).fit(np.delete(data, [0, 5, 17, 3999], axis=0))
    assert (found.labels_ == -1).sum() == 4
    np.testing.assert_array_equal(found.labels_[found.labels_ >= 0], without.labels_)
    assert found.inertia_ == pytest.approx(without.inertia_, rel=1e-9)
    np.testing.assert_array_equal(found.predict(holes), found.labels_)


def test_constant_data_are_one_cluster(caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="niseg_gpu"):
        found = KMeans(3, random_state=0).fit(np.full((50, 4), 1234.5, np.float32))
    assert (found.labels_ == 0).all() and found.inertia_ == 0
    np.testing.assert_array_equal(found.cluster_centers_, np.float32(1234.5))
    assert caplog.text.count("2 of 3 clusters hold no pixel; are there enough different ones?") == 1


def test_more_clusters_than_different_pixels_are_told_in_a_line(caplog) -> None:
    data = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    with caplog.at_level(logging.WARNING, logger="niseg_gpu"):
        found = KMeans(5, random_state=0).fit(data)
    assert found.inertia_ == pytest.approx(0, abs=1e-9) and len(set(found.labels_)) == 3
    assert caplog.text.count("2 of 5 clusters hold no pixel") == 1


def test_one_cluster_one_pixel_one_feature() -> None:
    data = clustered(200, 1)
    one = KMeans(1).fit(data)
    assert (one.labels_ == 0).all() and one.cluster_centers_[0, 0] == pytest.approx(data.mean(), rel=1e-6)
    assert one.inertia_ == pytest.approx(((data - data.mean(dtype=float)) ** 2).sum(dtype=float), rel=1e-6)
    single = KMeans(1).fit(data[:1])
    assert single.labels_.tolist() == [0] and single.inertia_ == 0 and single.cluster_centers_[0, 0] == data[0, 0]


@pytest.mark.parametrize(
    "how, data, message",
    [
        ({}, np.zeros(5), "array of 1 axes; allowed: pixels x features or more"),
        ({}, np.zeros((0, 3)), "holds nothing"),
        ({}, np.zeros((3, 3), complex), "values of complex128; allowed: integers, float32, float64"),
        ({"n_clusters": 9}, np.eye(5), "n_clusters 9, there are 5 pixels with data; allowed: 1 to 5"),
        ({}, np.full((9, 2), np.nan), "no pixel with data: each holds NaN or Inf"),
        ({"n_clusters": 2, "init": np.zeros((3, 5))}, np.eye(5), r"shape \(3, 5\); allowed: \(2, 5\)"),
        ({"n_clusters": 2, "init": np.zeros((2, 4))}, np.eye(5), r"shape \(2, 4\); allowed: \(2, 5\)"),
        ({"n_clusters": 1, "init": [[np.nan] * 5]}, np.eye(5), "NaN or Inf"),
        ({"init": "kmeans"}, np.eye(9), "init is 'kmeans'; allowed: k-means"),
        ({"n_clusters": 10**30}, np.eye(9), "n_clusters 10{30}, there are 9 pixels with data; allowed: 1 to 9"),
        ({"random_state": -1}, np.eye(9), "random_state is -1; allowed: None, a whole number from 0 to 4294967295"),
        ({"random_state": "x"}, np.eye(9), "random_state is 'x'; allowed: None"),
        ({}, da.ones((9, 9))[da.arange(9) > 3], r"unknown lengths \(nan, 9\); call its compute_chunk_sizes"),
        ({"n_clusters": 0}, np.eye(9), "n_clusters is 0; allowed: a whole number from 1 on"),
        ({"n_init": 0}, np.eye(9), "n_init is 0; allowed: auto, a whole number from 1 to 10000"),
        ({"n_init": 10**30}, np.eye(9), "n_init is 10{30}; allowed: auto, a whole number from 1 to 10000"),
        ({"tol": -1}, np.eye(9), "tol is -1; allowed: a number from 0 on"),
        ({"kernels": "fast"}, np.eye(9), "kernels is 'fast'; allowed: auto, library, own"),
        ({"kernels": "fast"}, da.ones((9, 9)), "kernels is 'fast'; allowed: auto, library, own"),
        ({"feature_dim": "tof"}, np.eye(9), "no names of axes; give its number"),
        ({"feature_dim": 2}, np.eye(9), "feature_dim is 2; allowed: -2 to 1"),
        ({"feature_dim": "t"}, xr.DataArray(np.eye(9), dims=("tof", "x")), "feature_dim is 't'; allowed: tof, x"),
        ({"memory_budget": 1000}, da.ones((500, 9)), "memory_budget is 1000 bytes; 500 pixels of 9 features need"),
    ],
)
def test_bad_input_is_told_in_a_line(how, data, message) -> None:
    with pytest.raises(UserError, match=message):
        KMeans(**how).fit(data)


class StandinGpu(Cpu):
    """A GPU by its name and its choice of kernels, with the CPU's hands; notes which kernels it was asked for."""

    kernels, name, asked = "library", "gpu", []

    def assign_and_sum(self, pixels: np.ndarray, **how):
        self.asked.append(self.kernels)
        return CPU.assign_and_sum(pixels, **how)


@pytest.mark.parametrize("kernels, taken", [("auto", "library"), ("library", "library"), ("own", "own")])
def test_kernels_are_chosen_for_this_model_alone(monkeypatch, kernels: str, taken: str) -> None:
    monkeypatch.setattr("niseg_gpu.backend.choose.why_no_gpu", lambda: "")
    monkeypatch.setattr("niseg_gpu.backend.choose.GPU", StandinGpu("library"))
    others = {kind: select("gpu", kernels=kind)[0] for kind in ("library", "own")}
    data = clustered()
    model = KMeans(5, random_state=0, device="gpu", kernels=kernels)
    StandinGpu.asked.clear()
    labels = model.fit_predict(da.from_array(data, chunks=(1000, -1)))
    assert set(StandinGpu.asked) == {taken}
    np.testing.assert_array_equal(labels, KMeans(5, random_state=0).fit_predict(data))
    assert all(twin.kernels == kind for kind, twin in others.items())
    assert CPU.kernels == "own" and open_points(data).backend is CPU


def test_the_librarys_calls_give_the_same_clusters() -> None:
    data = clustered()
    own, library = (KMeans(5, random_state=0, kernels=kernels).fit(data) for kernels in ("own", "library"))
    assert open_points(data, kernels="library").backend == Cpu("library")
    np.testing.assert_array_equal(own.labels_, library.labels_)
    np.testing.assert_allclose(own.cluster_centers_, library.cluster_centers_, rtol=1e-6)


def test_predict_asks_for_a_fit_and_its_features() -> None:
    with pytest.raises(UserError, match="no clusters yet; call fit first"):
        KMeans(2).predict(np.eye(3))
    with pytest.raises(UserError, match="predict got 4 features; fit had 3"):
        KMeans(2, random_state=0).fit(np.eye(3)).predict(np.eye(4))
    with pytest.raises(UserError, match="no parameter 'k'; allowed: n_clusters, init"):
        KMeans(2).set_params(k=3)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), st.integers(1, 500), st.data())
def test_a_map_is_cut_without_gaps_and_no_part_is_too_large(shape, most, data) -> None:
    chunks = None
    if data.draw(st.booleans()):
        chunks = [da.core.normalize_chunks((data.draw(st.integers(1, n)),), shape=(n,))[0] for n in shape]
    seen = np.zeros(shape, int)
    for region in cut_map(tuple(shape), pixel_bytes=3, part_bytes=most, chunks=chunks):
        seen[region] += 1
        assert seen[region].size * 3 <= max(most, 3)
    assert (seen == 1).all()


def test_points_that_cannot_be_gone_over_are_none() -> None:
    with pytest.raises(TypeError, match="abstract"):
        points_module.Points([], map_shape=(), n_features=1)


def test_a_block_that_cannot_be_read_ends_it() -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise OSError("bad sector")

    lazy = da.ones((4000, 50), chunks=(100, 50), dtype=np.float32).map_blocks(fail, meta=np.empty((0, 0), np.float32))
    threads = threading.active_count()
    with pytest.raises(OSError, match="bad sector"):
        KMeans(2, memory_budget=600_000).fit(lazy)
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads


OUT_OF_CORE = """
    import sys
    from pathlib import Path
    import dask.array as da, numpy as np
    from niseg_gpu import KMeans
    def read_memory(name):
        lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
        return 1024 * int(lines[name].split()[0])
    data, how = da.from_zarr(sys.argv[1]), {"tol": 0, "feature_dim": 0}
    how |= {"init": np.load(sys.argv[2])} if sys.argv[2] else {"random_state": 0}
    KMeans(4, max_iter=1, memory_budget=10**8, **how).fit(da.arange(360_000, dtype="uint16").reshape(40, 9, 1000))
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is forgotten
    before = read_memory("VmRSS")
    found = KMeans(4, max_iter=3, memory_budget=int(sys.argv[3]), **how).fit(data)
    np.savez(sys.argv[4], labels=found.labels_, centroids=found.cluster_centers_, inertia=found.inertia_,
             peak=read_memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has /proc/self/status")
@pytest.mark.parametrize(
    ("given", "chunks", "budget"),
    [
        pytest.param(True, (40, 32, 2048), 200_000_000, id="given"),
        pytest.param(False, (40, 32, 2048), 200_000_000, id="drawn from all pixels"),
        pytest.param(True, (2, 1536, 2048), 460_000_000, id="gathered from chunks of frames"),
    ],
)
def test_out_of_core_keeps_to_its_budget_and_gives_the_same_bytes(
    tmp_path: Path, given: bool, chunks: tuple[int, ...], budget: int
) -> None:
    shape = (40, 1536, 2048)  # 252 MB of 16 bit
    stack = np.tile(np.random.default_rng(0).integers(0, 400, (40, 96, 2048), dtype=np.uint16), (1, 16, 1))
    stack[:, :700, 300:900] += 900
    array = zarr.create_array(tmp_path / "stack.zarr", shape=shape, chunks=chunks, dtype="u2", compressors=None)
    array[...] = stack
    start = stack[:, [0, 200, 800, 1000], [5, 400, 1000, 500]].T.astype(np.float32)
    np.save(tmp_path / "start.npy", start)
    arguments = [tmp_path / "stack.zarr", tmp_path / "start.npy" if given else "", budget, tmp_path / "found.npz"]
    command = [sys.executable, "-c", textwrap.dedent(OUT_OF_CORE), *map(str, arguments)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    found = np.load(tmp_path / "found.npz")
    assert found["peak"] < budget, found["peak"]
    how = {"init": start} if given else {"random_state": 0}
    here = KMeans(4, max_iter=3, tol=0, feature_dim=0, **how).fit(stack)
    assert here.labels_.tobytes() == found["labels"].tobytes()
    assert here.cluster_centers_.tobytes() == found["centroids"].tobytes() and here.inertia_ == found["inertia"]


@pytest.mark.parametrize(
    "data, options, complaint",
    [
        ([[1, 2], [3]], {}, "kmeans got a list that is no array"),
        (xr.Dataset({"a": ("x", [1.0])}), {}, "kmeans got a Dataset that is no array"),
        (np.ma.masked_greater(np.eye(9), 0.5), {}, "kmeans got a masked array; needed: NaN"),
        (np.eye(9, dtype=np.float16), {}, "kmeans got values of float16"),
        (np.eye(9), {"feature_dim": 1.0}, "feature_dim is 1.0; allowed: -2 to 1"),
        (np.eye(9), {"feature_dim": [1]}, r"feature_dim is \[1\]; allowed: -2 to 1"),
        (np.eye(9), {"device": "gpus"}, "device is 'gpus'; allowed: auto, cpu, gpu"),
        (np.eye(9), {"n_init": np.array([1, 2])}, "n_init is array.*; allowed: auto, a whole number"),
    ],
)
def test_what_is_no_data_or_option_is_told_in_one_line(data, options: dict, complaint: str) -> None:
    with pytest.raises(niseg_gpu.UserError, match=complaint):
        niseg_gpu.KMeans(2, **options).fit(data)

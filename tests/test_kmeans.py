"""k-means on stacks against scikit-learn, and what surrounds it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from niseg_gpu.backend import CPU, Cpu
from niseg_gpu.errors import UserError
from niseg_gpu.kmeans.step import fit_kmeans
from niseg_gpu.kmeans.table import PixelTable, number_pixels


def clustered_stack(*, features: int = 12, height: int = 20, width: int = 30, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.uniform(200, 900, (4, features))
    plan = rng.integers(0, 4, height * width)
    return (
        (centres[plan] + rng.normal(0, 40, (plan.size, features))).T.reshape(features, height, width).astype(np.float32)
    )


def table_of(stack: np.ndarray, backend=CPU, cuts: tuple[int, ...] = (0, 7, 20)) -> PixelTable:
    table = PixelTable(backend, shape=stack.shape, features=True)
    full = slice(0, stack.shape[0]), slice(0, stack.shape[2])
    for a, b in zip(cuts, cuts[1:], strict=False):
        table[full[0], a:b, full[1]] = backend.from_host(stack[:, a:b])
    return table


def test_equal_to_sklearn_from_the_same_centroids(backend) -> None:
    stack = clustered_stack()
    pixels = np.ascontiguousarray(stack.reshape(12, -1).T)
    start = pixels[[5, 100, 300, 500]]
    for max_iter, tol in ((3, 0.0), (300, 0.0), (300, 1e-4)):
        ours = fit_kmeans(table_of(stack, backend), n_clusters=4, init=start.tolist(), max_iter=max_iter, tol=tol)
        theirs = KMeans(4, init=start, n_init=1, max_iter=max_iter, tol=tol).fit(pixels)
        np.testing.assert_array_equal(ours.labels, theirs.labels_.reshape(20, 30))
        assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
        np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, rtol=1e-5)


def test_spectra_and_sizes_are_those_of_the_labels(backend) -> None:
    stack = clustered_stack()
    found = fit_kmeans(table_of(stack, backend), n_clusters=4, max_iter=1)
    for k in range(4):
        member = found.labels == k
        np.testing.assert_allclose(found.spectra[k], stack[:, member].mean(1, dtype=float), rtol=1e-5)
        assert found.pixels[k] == member.sum()


def test_the_same_seed_gives_the_same_labels_however_the_stack_is_cut() -> None:
    stack = clustered_stack()
    one, two = (fit_kmeans(table_of(stack, cuts=cuts), n_clusters=3, seed=7) for cuts in ((0, 20), (0, 1, 2, 19, 20)))
    np.testing.assert_array_equal(one.labels, two.labels)
    assert one.inertia == two.inertia


def test_pixels_without_data_are_in_no_cluster() -> None:
    stack = clustered_stack()
    stack[3, 4, 5] = np.nan
    stack[0, 19, 29] = np.inf
    found = fit_kmeans(table_of(stack), n_clusters=3)
    assert found.labels[4, 5] == found.labels[19, 29] == 255
    assert (found.labels == 255).sum() == 2 and found.pixels.sum() == 598
    assert np.isfinite(found.spectra).all()


def test_many_clusters_get_wider_labels() -> None:
    stack = np.arange(600, dtype=np.float32).reshape(1, 20, 30)
    found = fit_kmeans(table_of(stack), n_clusters=300, max_iter=2)
    assert found.labels.dtype == np.uint16 and len(np.unique(found.labels)) == 300


def test_more_starts_are_never_worse() -> None:
    stack = clustered_stack(seed=5)
    for seed in range(6):
        one, many = (fit_kmeans(table_of(stack), n_clusters=4, init="random", n_init=n, seed=seed) for n in (1, 8))
        assert many.inertia <= one.inertia * (1 + 1e-6)


@pytest.mark.parametrize("kernels", ["own", "library"])
def test_data_without_differences_are_one_cluster_of_which_all_have_the_spectrum(kernels: str) -> None:
    stack = np.full((12, 20, 30), 7, np.float32)
    found = fit_kmeans(table_of(stack, Cpu(kernels)), n_clusters=3)
    assert (found.labels == 0).all() and found.pixels.tolist() == [600, 0, 0] and found.inertia == 0
    np.testing.assert_array_equal(found.spectra, 7)
    stack[:, 10:] = 8
    found = fit_kmeans(table_of(stack, Cpu(kernels)), n_clusters=3)
    assert sorted(found.pixels) == [0, 300, 300] and set(np.unique(found.spectra)) == {7, 8}


def test_no_data_at_all_are_refused() -> None:
    with pytest.raises(UserError, match="no pixel with data: each holds NaN or Inf"):
        fit_kmeans(table_of(np.full((12, 20, 30), np.nan, np.float32)), n_clusters=3)


def test_more_clusters_than_pixels_are_refused() -> None:
    with pytest.raises(UserError, match="n_clusters 601, there are 600 pixels with data; allowed: 1 to 600"):
        fit_kmeans(table_of(clustered_stack()), n_clusters=601)


def test_centroids_from_a_file(tmp_path) -> None:
    stack = clustered_stack()
    start = np.ascontiguousarray(stack.reshape(12, -1).T[[5, 100, 300]])
    np.save(tmp_path / "start.npy", start)
    by_file = fit_kmeans(table_of(stack), n_clusters=3, init=str(tmp_path / "start.npy"))
    by_value = fit_kmeans(table_of(stack), n_clusters=3, init=start.tolist())
    np.testing.assert_array_equal(by_file.labels, by_value.labels)


@pytest.mark.parametrize(
    "init, message",
    [
        ("kmeans++", "kmeans\\+\\+ can't be read as centroids \\(No such file or directory\\); allowed: k-means"),
        (__file__, r"test_kmeans.py can't be read as centroids \(no array of numbers\)"),
        ([[1.0, 2.0]], r"shape \(1, 2\); allowed: \(3, 12\)"),
        ([[np.nan] * 12] * 3, "NaN or Inf"),
    ],
)
def test_wrong_centroids_are_told(init, message) -> None:
    with pytest.raises(UserError, match=message):
        fit_kmeans(table_of(clustered_stack()), n_clusters=3, init=init)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.data())
def test_the_table_holds_each_pixels_spectrum(features, height, width, data) -> None:
    stack = np.random.default_rng(0).normal(size=(features, height, width)).astype(np.float32)
    table = PixelTable(CPU, shape=stack.shape, features=True)
    row, column = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    every = slice(0, features)
    for ys in (slice(0, row), slice(row, height)):
        for xs in (slice(0, column), slice(column, width)):
            if ys.stop > ys.start and xs.stop > xs.start:
                table[every, ys, xs] = stack[every, ys, xs]
    np.testing.assert_array_equal(table.spectra, stack.reshape(features, -1).T)
    assert table.valid.all()


def test_the_table_refuses_part_of_a_spectrum() -> None:
    table = PixelTable(CPU, shape=(4, 2, 2), features=True)
    with pytest.raises(ValueError, match="block of 2 features for a table of 4"):
        table[0:2, 0:2, 0:2] = np.zeros((2, 2, 2), np.float32)


def test_more_spectra_than_memory_are_refused_before_they_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cpu, "count_memory", lambda self: 10**9)
    with pytest.raises(UserError, match="all spectra in memory, 1.05 GB, and the cpu has 1 GB; name a folder"):
        PixelTable(CPU, shape=(1000, 512, 512), features=True)
    PixelTable(CPU, shape=(1000, 512, 512), features=True, dtype=np.uint16)


def test_voxels_of_a_volume_are_pixels_of_one_feature() -> None:
    volume = np.concatenate([np.zeros((2, 3, 3)), np.ones((1, 3, 3))]).astype(np.float32)
    table = PixelTable(CPU, shape=volume.shape, features=False)
    for z in range(3):
        table[z : z + 1, 0:3, 0:3] = volume[z : z + 1]
    found = fit_kmeans(table, n_clusters=2)
    assert found.labels.shape == volume.shape
    assert len(np.unique(found.labels[:2])) == 1 and (found.labels[2] != found.labels[0]).all()


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_counts_stay_narrow_and_give_what_floats_give(dtype) -> None:
    stack = np.clip(clustered_stack() / 8, 0, 127).astype(dtype)
    narrow = PixelTable(CPU, shape=stack.shape, features=True, dtype=stack.dtype)
    narrow[(slice(0, 12), slice(0, 20), slice(0, 30))] = stack
    assert narrow.spectra.dtype == stack.dtype
    ours, floats = fit_kmeans(narrow, n_clusters=4), fit_kmeans(table_of(stack.astype(np.float32)), n_clusters=4)
    np.testing.assert_array_equal(ours.labels, floats.labels)
    # the mean taken off whole numbers is rounded
    np.testing.assert_allclose(ours.centroids, floats.centroids, rtol=1e-6)
    assert ours.inertia == pytest.approx(floats.inertia, rel=1e-9)


def test_the_libraries_kernel_can_be_asked_for() -> None:
    stack = clustered_stack()
    stack[3, 4, 5] = np.nan
    start = np.ascontiguousarray(stack.reshape(12, -1).T[[5, 100, 300, 500]]).tolist()
    own = fit_kmeans(table_of(stack), n_clusters=4, init=start)
    assert Cpu("library").uses["kmeans"].startswith("sklearn")
    library = fit_kmeans(table_of(stack, Cpu("library")), n_clusters=4, init=start)
    np.testing.assert_array_equal(own.labels, library.labels)
    np.testing.assert_allclose(own.spectra, library.spectra, rtol=1e-6)
    np.testing.assert_array_equal(own.pixels, library.pixels)
    assert own.n_iter == library.n_iter and own.inertia == pytest.approx(library.inertia, rel=1e-5)


def test_starts_from_all_pixels_and_from_a_sample() -> None:
    stack = clustered_stack()
    for sample in (None, 100, 10**6):
        found = fit_kmeans(table_of(stack), n_clusters=4, init_sample=sample)
        again = fit_kmeans(table_of(stack), n_clusters=4, init_sample=sample)
        assert found.inertia == again.inertia and (found.pixels > 100).all()


def test_threads_are_not_seen_in_the_result() -> None:
    stack = clustered_stack(height=90, width=70)
    found = [fit_kmeans(table_of(stack, cuts=(0, 90)), workers, n_clusters=5) for workers in (1, 2, 4)]
    assert len({(f.labels.tobytes(), f.centroids.tobytes(), f.spectra.tobytes(), f.inertia) for f in found}) == 1


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_pixels_are_numbered_as_in_the_flat_map(map_shape: list[int], data) -> None:
    where = tuple(slice(a := data.draw(st.integers(0, n - 1)), data.draw(st.integers(a + 1, n))) for n in map_shape)
    expected = np.arange(np.prod(map_shape)).reshape(map_shape)[where].ravel()
    found = number_pixels(where, tuple(map_shape))
    flat = np.arange(np.prod(map_shape))[found]
    np.testing.assert_array_equal(flat, expected)
    assert isinstance(found, slice) or expected[-1] - expected[0] + 1 > len(expected), "one run is a slice"

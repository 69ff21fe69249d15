"""One pass of k-means: against plain NumPy, and the same bytes however the pixels are cut and lie in memory."""

from __future__ import annotations

from fractions import Fraction

import array_api_strict
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niseg_gpu.backend import CPU
from niseg_gpu.kernels import lloyd_xp
from niseg_gpu.kernels.exact import BITS, Sums, choose_quantum

DTYPES = ("float32", "uint16", "int16", "float64", "int32", ">i2")


def make_pixels(n: int, features: int, *, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.uniform(20, 100, (5, features))
    return (centres[rng.integers(0, 5, n)] + rng.normal(0, 9, (n, features))).clip(0, 127).astype(dtype)


def run_pass(pixels: np.ndarray, centroids: np.ndarray, mean: np.ndarray, *, cuts=(), xp=None) -> tuple:
    """Labels, sums, sizes and moves of all pieces between the cuts together."""
    quantum = choose_quantum(float(np.abs(pixels.astype(np.float32) - mean).max()), len(pixels))
    labels = np.full(len(pixels), 99, np.int32)
    edges = [0, *sorted(cuts), len(pixels)]
    found = []
    for a, b in zip(edges, edges[1:], strict=False):
        how = {"centroids": centroids, "mean": mean, "quantum": quantum, "labels": labels[a:b]}
        if b > a:
            found.append(
                CPU.assign_and_sum(pixels[a:b], **how)
                if xp is None
                else lloyd_xp.assign_and_sum_xp(pixels[a:b], xp=xp, **how)
            )
    return labels, sum(f.sums for f in found), sum(f.sizes for f in found), sum(f.moved for f in found)


def start_of(pixels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    mean = pixels.mean(axis=0, dtype=np.float64).astype(np.float32)
    return pixels[np.linspace(0, len(pixels) - 1, k).astype(int)].astype(np.float32) - mean, mean


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n, features, k", [(200, 33, 3), (61, 1, 4), (50, 600, 10), (1, 3, 1), (30, 1100, 66)])
def test_a_pass_is_that_of_plain_numpy(dtype, n, features, k) -> None:
    pixels = make_pixels(n, features, dtype=dtype)
    centroids, mean = start_of(pixels, k)
    labels, sums, sizes, moved = run_pass(pixels, centroids, mean)
    wide = (pixels.astype(np.float32) - mean).astype(np.float64)
    distances = ((wide[:, None] - centroids) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances[np.arange(n), labels], distances.min(axis=1), rtol=1e-5, atol=1e-2)
    np.testing.assert_allclose(sums, [wide[labels == c].sum(axis=0) for c in range(k)], atol=1e-6)
    np.testing.assert_array_equal(sizes, np.bincount(labels, minlength=k))
    assert moved == n


@given(st.data())
def test_cuts_and_layout_are_not_seen_in_the_result(data) -> None:
    n, features, k = (data.draw(st.integers(1, most)) for most in (300, 40, 9))
    pixels = make_pixels(n, features, dtype=data.draw(st.sampled_from(DTYPES)), seed=data.draw(st.integers(0, 9)))
    centroids, mean = start_of(pixels, k)
    whole = run_pass(pixels, centroids, mean)
    cuts = data.draw(st.lists(st.integers(0, n), max_size=6))
    turned = np.ascontiguousarray(pixels.T).T
    spaced = np.zeros((n, 2 * features), pixels.dtype)[:, ::2]
    spaced[...] = pixels
    for other in (pixels, turned, spaced):
        for found, expected in zip(run_pass(other, centroids, mean, cuts=cuts), whole, strict=True):
            assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


def lay_out(pixels: np.ndarray, before: int | None) -> np.ndarray:
    """The same as rows, or as frames so many values behind where an array begins, each with more pixels behind."""
    if before is None:
        return pixels
    n, features = pixels.shape
    frames = np.zeros(before + features * (n + 3), pixels.dtype)[before:].reshape(features, n + 3)[:, :n]
    frames[...] = pixels.T
    return frames.T


@given(st.data())
def test_sums_of_changes_lead_to_the_sums_of_all(data) -> None:
    n, features, k = (data.draw(st.integers(1, most)) for most in (300, 300, 9))
    pixels = make_pixels(n, features, dtype=data.draw(st.sampled_from(DTYPES)), seed=data.draw(st.integers(0, 9)))
    pixels = pixels * np.float32(np.pi) if pixels.dtype == np.float32 else pixels
    pixels = lay_out(pixels, data.draw(st.sampled_from([None, 0, 1, 5, 16])))
    centroids, mean = start_of(pixels, k)
    how = {"mean": mean, "quantum": choose_quantum(float(np.abs(pixels.astype(np.float32) - mean).max()), n)}
    labels, again = np.full((2, n), 99, np.int32)
    labels[::7] = again[::7] = -1
    sums, sizes, before, memory = np.zeros((k, features)), np.zeros(k, np.int64), None, {}
    for step in range(6):
        noise = np.random.default_rng(step).normal(0, data.draw(st.sampled_from([0, 1e-4, 0.1, 9])), centroids.shape)
        centroids = (centroids + noise).astype(np.float32)
        whole = CPU.assign_and_sum(pixels, centroids=centroids, labels=again, **how)
        changes = CPU.assign_and_sum(pixels, centroids=centroids, labels=labels, **how, before=before, memory=memory)
        sums, sizes, before = sums + changes.sums, sizes + changes.sizes, centroids
        np.testing.assert_array_equal(labels, again)
        assert sums.tobytes() == whole.sums.tobytes() and sizes.tolist() == whole.sizes.tolist()
        assert changes.moved == whole.moved and (step or changes.moved == (labels >= 0).sum())


@settings(max_examples=40)
@given(st.data())
def test_any_size_gives_what_plain_numpy_gives(data) -> None:
    """Whole fours of centroids and what is left over, whole runs of features and not."""
    n, features, k = (data.draw(st.integers(1, most)) for most in (150, 700, 300))
    k, dtype = min(k, n), data.draw(st.sampled_from(["float32", "uint16", "int16", "uint8"]))
    pixels = make_pixels(n, features, dtype=dtype, seed=data.draw(st.integers(0, 9)))
    centroids, mean = start_of(pixels, k)
    mean = np.rint(mean)  # whole numbers all: nothing is rounded but products
    pixels, centroids = (
        (np.rint(pixels).astype(dtype), np.rint(centroids)) if dtype == "float32" else (pixels, np.rint(centroids))
    )
    wide = pixels.astype(np.float64) - mean
    distances = ((wide[:, None] - centroids.astype(np.float64)) ** 2).sum(axis=2)
    for layout in (pixels, np.asfortranarray(pixels)):
        labels, sums, sizes, _ = run_pass(layout, centroids, mean)
        own = distances[np.arange(n), labels]
        assert (own - distances.min(axis=1) <= 1e-4 * (1 + distances.max(axis=1))).all()
        np.testing.assert_array_equal(sums, [wide[labels == c].sum(axis=0) for c in range(k)])
        np.testing.assert_array_equal(sizes, np.bincount(labels, minlength=k))


def test_changes_and_layouts_agree_with_many_centroids() -> None:
    pixels = make_pixels(700, 130) * np.float32(np.pi)
    centroids, mean = start_of(pixels, 37)
    quantum, before, memory, sums = choose_quantum(1000.0, 700), None, {}, np.zeros(centroids.shape)
    labels, whole, turned = np.full((3, 700), 99, np.int32)
    for step in range(5):
        how = {"centroids": centroids, "mean": mean, "quantum": quantum}
        expected = CPU.assign_and_sum(pixels, labels=whole, **how)
        across = CPU.assign_and_sum(np.asfortranarray(pixels), labels=turned, **how)
        changes = CPU.assign_and_sum(pixels, labels=labels, before=before, memory=memory, **how)
        sums = sums + changes.sums
        assert expected.sums.tobytes() == sums.tobytes() == across.sums.tobytes()
        np.testing.assert_array_equal(labels, whole)
        np.testing.assert_array_equal(turned, whole)
        before = centroids
        centroids = (centroids + np.random.default_rng(step).normal(0, 0.2, centroids.shape)).astype(np.float32)


def test_the_order_of_the_pixels_is_not_seen_in_the_sums() -> None:
    pixels = make_pixels(3000, 70) * np.float32(np.pi)
    centroids, mean = start_of(pixels, 6)
    _, sums, *_ = run_pass(pixels, centroids, mean)
    shuffled = np.random.default_rng(1).permutation(pixels)
    assert run_pass(shuffled, centroids, mean)[1].tobytes() == sums.tobytes()


def test_sums_of_rounded_values_are_exact() -> None:
    rng = np.random.default_rng(0)
    pixels = (rng.normal(size=(5000, 2)) * 10.0 ** rng.integers(-9, 4, (5000, 1))).astype(np.float32)
    zero, n = np.zeros(2, np.float32), len(pixels)
    quantum = choose_quantum(float(np.abs(pixels).max()), n)
    found = CPU.assign_and_sum(
        pixels, centroids=zero[None], mean=zero, quantum=quantum, labels=np.zeros(n, np.int32)
    ).sums[0]
    rounded = [sum(Fraction(float(np.rint(v / quantum))) for v in column) for column in pixels.T.astype(np.float64)]
    assert [Fraction(float(v)) / Fraction(quantum) for v in found] == rounded
    exact = [float(sum(map(Fraction, map(float, column)))) for column in pixels.T]
    assert np.abs(found - exact).max() <= n * quantum / 2


@given(st.floats(1e-30, 1e30), st.integers(1, 2**31))
def test_the_quantum_leaves_room_for_the_sum_and_little_more(largest, n) -> None:
    quantum = choose_quantum(largest, n)
    assert 2.0 ** (BITS - 1) <= largest * n / quantum < 2.0**BITS


def test_no_centroid_wins_but_the_first_of_equal_ones() -> None:
    pixels = make_pixels(40, 5)
    centroids, mean = start_of(pixels, 1)
    labels, _, sizes, _ = run_pass(pixels, np.repeat(centroids, 7, axis=0), mean)
    assert (labels == 0).all() and sizes.tolist() == [40, 0, 0, 0, 0, 0, 0]


def test_pixels_labelled_as_without_data_are_left_out() -> None:
    pixels = make_pixels(100, 20)
    pixels[::7] = np.nan
    zero = np.zeros(20, np.float32)
    for xp in (None, np):
        labels = np.where(np.isnan(pixels[:, 0]), -1, 5).astype(np.int32)
        how = {"centroids": pixels[[1, 2]], "mean": zero, "quantum": 2.0**-30, "labels": labels}
        found = CPU.assign_and_sum(pixels, **how) if xp is None else lloyd_xp.assign_and_sum_xp(pixels, xp=xp, **how)
        assert (labels[::7] == -1).all() and found.sizes.sum() == found.moved == (labels >= 0).sum() == 85
        assert np.isfinite(found.sums).all()


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_array_calls_give_the_same_sums(dtype, monkeypatch) -> None:
    monkeypatch.setattr(lloyd_xp, "BLOCK_BYTES", 4000)
    pixels = make_pixels(300, 17, dtype=dtype)
    centroids, mean = start_of(pixels, 4)
    for found, expected in zip(
        run_pass(pixels, centroids, mean, cuts=(70, 71), xp=np), run_pass(pixels, centroids, mean), strict=True
    ):
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_bounds_moments_and_distances_agree(dtype, monkeypatch) -> None:
    monkeypatch.setattr(lloyd_xp, "BLOCK_BYTES", 4000)
    pixels = make_pixels(200, 45, dtype=dtype)
    if dtype == "float32":
        pixels[[3, 50], [0, 44]] = np.nan, -np.inf
    ours, theirs = CPU.find_bounds(pixels), lloyd_xp.find_bounds_xp(pixels, xp=np)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    good = pixels[ours.valid].astype(np.float64)
    np.testing.assert_array_equal(ours.low, good.min(axis=0))
    np.testing.assert_array_equal(ours.high, good.max(axis=0))
    labels, centre = np.where(ours.valid, 0, -1).astype(np.int32), np.full(45, 60.5, np.float32)
    how = {"centre": centre, "quantum": 2.0**-30, "square_quantum": 2.0**-20, "labels": labels}
    sums, squares = CPU.sum_moments(pixels, **how)
    np.testing.assert_allclose(sums, (good - centre).sum(axis=0), rtol=1e-6, atol=1e-3)
    assert squares == pytest.approx(((good - centre) ** 2).sum(), rel=1e-6)
    other_sums, other_squares = lloyd_xp.sum_moments_xp(pixels, xp=np, **how)
    assert other_sums.tobytes() == sums.tobytes() and other_squares == pytest.approx(squares, rel=1e-12)
    points = pixels[[0, 100]].astype(np.float32) - centre
    distances = CPU.measure_distances(pixels, points=points, mean=centre)
    assert distances[0, 0] == distances[1, 100] == 0
    expected = lloyd_xp.measure_distances_xp(pixels, points=points, mean=centre, xp=np)
    np.testing.assert_allclose(distances[:, ours.valid], expected[:, ours.valid], rtol=1e-5)


@settings(max_examples=40)
@given(st.data())
def test_layouts_are_not_seen_in_bounds_and_moments(data) -> None:
    n, features = data.draw(st.integers(1, 700)), data.draw(st.sampled_from([1, 7, 8, 50, 767, 769, 1600]))
    pixels = make_pixels(n, features, dtype=data.draw(st.sampled_from(["float32", "uint16", "int16"])))
    if pixels.dtype == np.float32:
        pixels *= np.float32(np.pi)
        lost = data.draw(st.lists(st.integers(0, n - 1), max_size=5))
        pixels[lost, data.draw(st.integers(0, features - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
        if data.draw(st.booleans()):
            pixels[: n // 2, 0] = np.nan  # whole tiles
    frames = lay_out(pixels, data.draw(st.integers(0, 16)))
    bounds, others = CPU.find_bounds(pixels), CPU.find_bounds(frames)
    for one, other in zip(bounds, others, strict=True):
        assert one.tobytes() == other.tobytes()
    labels, centre = np.where(bounds.valid, 7, -1).astype(np.int32), np.full(features, 60.1, np.float32)
    how = {"centre": centre, "quantum": 2.0**-30, "square_quantum": 2.0**-20, "labels": labels}
    (sums, squares), (other_sums, other_squares) = CPU.sum_moments(pixels, **how), CPU.sum_moments(frames, **how)
    assert sums.tobytes() == other_sums.tobytes() and squares == other_squares


def test_array_calls_run_on_a_strict_array_api() -> None:
    xp = array_api_strict
    pixels = make_pixels(90, 6, dtype="uint16")
    centroids, mean = start_of(pixels, 3)
    _, sums, sizes, moved = run_pass(pixels, centroids, mean)
    quantum = choose_quantum(float(np.abs(pixels.astype(np.float32) - mean).max()), len(pixels))
    data, strict, offset, labels = (xp.asarray(a) for a in (pixels, centroids, mean, np.full(90, 99, np.int32)))
    found = lloyd_xp.assign_and_sum_xp(data, centroids=strict, mean=offset, quantum=quantum, labels=labels, xp=xp)
    assert isinstance(found, Sums) and found.moved == moved
    np.testing.assert_array_equal(np.asarray(found.sums), sums)
    np.testing.assert_array_equal(np.asarray(found.sizes), sizes)
    assert bool(xp.all(lloyd_xp.find_bounds_xp(data, xp=xp).valid))
    how = {"centre": offset, "quantum": quantum, "square_quantum": quantum, "labels": labels, "xp": xp}
    assert lloyd_xp.sum_moments_xp(data, **how)[1] > 0
    assert lloyd_xp.measure_distances_xp(data, points=strict, mean=offset, xp=xp).shape == (3, 90)

"""What the twins have in common, called directly on each device, against the CPU's with the library's kernels.

Of every member one call at least is here or named below; with ``-m gpu`` it runs on the GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from niseg_gpu.backend import CPU, Cpu, Gpu

LIBRARY = Cpu("library")
ELSEWHERE = {  # and in which file
    "name, threads, keeps_rows, has_bus, sums_changes, weights_a_pixel, window_bytes": "they are no calls",
    "network, tile_pixels, jax_device": "test_gpu_steps.py, test_unet_predict.py",
    "uses, why_no_own": "test_backend_choose.py",
    "xp, synchronize": "all of these",
    "empty_rows": "that of write_spectra",
    "clean_spots, replace_spots, correct_window": "test_gpu_steps.py, test_spots.py",
    "read_budget, make_room, free_bytes, count_memory": "test_backend_budget.py",
    "run_lloyd, assign_and_sum": "test_gpu_clusters.py",
    "describe": "test_backend_gpu.py",
    "kernels": "test_backend_choose.py",
    "cleans_in_pieces": "test_pipeline_memory.py",
}


def rows_of(dtype: str, *, n: int = 300, features: int = 17) -> np.ndarray:
    rows = np.random.default_rng(2).poisson(900, (n, features)).astype(dtype)
    if rows.dtype.kind == "f" and n > 9:
        rows[7, -1], rows[9, 0], rows[n // 2] = np.nan, np.inf, np.nan
    return rows


ROWS, LABELS = rows_of("uint16").astype(np.float32), np.random.default_rng(1).integers(0, 4, 300).astype(np.int32)
MASK = np.random.default_rng(3).random((2, 30, 40)) < 0.2
FRAMES = np.random.default_rng(4).poisson(50, (3, 15, 22)).astype(np.uint16)
MEMBERS = {
    "gaussian": lambda b: b.gaussian(b.from_host(ROWS), sigma=1.5),
    "sobel": lambda b: b.sobel(b.from_host(ROWS), axis=1),
    "label": lambda b: b.label(b.from_host(MASK))[0],
    "label, nothing": lambda b: b.label(b.from_host(MASK & False))[0],
    "median": lambda b: b.median(b.from_host(FRAMES), size=(1, 3, 3)),
    "median of columns": lambda b: b.median(b.from_host(FRAMES)[:, :, ::2], size=(1, 5, 5)),
    "sum_by_label": lambda b: b.sum_by_label(b.from_host(ROWS), b.from_host(LABELS), n_labels=4),
    "sum_by_label, counts": lambda b: b.sum_by_label(b.from_host(rows_of("uint16")), b.from_host(LABELS), n_labels=5),
    "sum_by_label, nothing": lambda b: b.sum_by_label(b.from_host(ROWS[:0]), b.from_host(LABELS[:0]), n_labels=4),
    "to_jax, from_jax": lambda b: b.from_jax(2 * b.to_jax(b.from_host(ROWS))),
    "to_jax of columns": lambda b: b.from_jax(2 * b.to_jax(b.from_host(ROWS)[:, 1::2])),
    "as_rows": lambda b: b.as_rows(b.from_host(FRAMES), axis=0),
    "as_rows, close": lambda b: b.as_rows(b.from_host(rows_of("uint16", n=70, features=41)), axis=1),
    "as_rows of host": lambda b: b.as_rows(FRAMES, axis=0),
    "as_rows, last axis": lambda b: b.as_rows(b.from_host(FRAMES)[:, ::-1], axis=-1),
    "from_host, to_host": lambda b: b.from_host(FRAMES[:, ::-1, ::2].astype(">u2")),
    "from_host, nothing": lambda b: b.from_host(FRAMES[:0].astype(">u2")),
    "to_host of columns": lambda b: b.from_host(FRAMES)[:, 1:, ::3],
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_gives_what_the_cpus_gives(backend, name: str) -> None:
    found, expected = (np.asarray(twin.to_host(MEMBERS[name](twin))) for twin in (backend, LIBRARY))
    backend.synchronize()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    rounding = 1e-2 if name in ("gaussian", "sobel") else 0
    np.testing.assert_allclose(found, expected, rtol=1e-5 if found.dtype.kind == "f" else 0, atol=rounding)


def test_every_member_is_called_somewhere() -> None:
    here = ", ".join([*MEMBERS, *ELSEWHERE, *(n.removeprefix("test_") for n in globals() if n.startswith("test_"))])
    for twin in (Cpu, Gpu):
        for name in vars(twin):
            assert name.startswith("_") or name in here, f"{name} is called by no test on both devices"


SIZES = [(300, 17), (1, 1), (1, 40), (70_001, 3)]
DTYPES = ["float32", "uint16", "int16", "float64"]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_find_bounds(backend, dtype: str, shape: tuple[int, int]) -> None:
    pixels = rows_of(dtype, n=shape[0], features=shape[1])
    found, expected = backend.find_bounds(backend.from_host(pixels)), CPU.find_bounds(pixels)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(backend.to_host(one), other)
    assert found.low.dtype == np.float32 and expected.valid.any()


def test_bounds_of_nothing(backend) -> None:
    """No pixel has data: they are the wrong way round, on either device."""
    found = backend.find_bounds(backend.from_host(np.full((5, 3), np.nan, np.float32)))
    assert not backend.to_host(found.valid).any()
    assert (backend.to_host(found.low) == np.inf).all() and (backend.to_host(found.high) == -np.inf).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(40, 30, 50), (1, 1, 1), (0, 3, 4), (3000, 2, 7)], ids=str)
def test_sum_frames(backend, dtype: str, shape: tuple[int, ...]) -> None:
    """To the last bit, in whatever order: these sums are exact."""
    frames = (np.random.default_rng(3).integers(0, 2**11, shape) / 8).astype(dtype)
    found = backend.sum_frames(backend.from_host(frames))
    assert found.dtype == np.float64
    np.testing.assert_array_equal(backend.to_host(found), frames.astype(np.float64).sum(axis=0))


def how_of(pixels: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """Centre, quanta and labels; pixels without data are in no cluster, nor is one in eleven."""
    valid = np.isfinite(pixels.astype(np.float32)).all(1)
    labels = np.where(valid, 0, -1).astype(np.int32)
    labels[1::11] = -1
    centre = np.rint(pixels[valid].mean(0)).astype(np.float32)
    return {"centre": centre, "quantum": 2.0**-20, "square_quantum": 2.0**-8}, labels


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_moments(backend, dtype: str, shape: tuple[int, int]) -> None:
    """The sums to the last bit; of the squares each pixel's may be rounded to the next quantum."""
    pixels = rows_of(dtype, n=shape[0], features=shape[1])
    how, labels = how_of(pixels)
    want, squares = CPU.sum_moments(pixels, **how, labels=labels)
    there = {**how, "centre": backend.from_host(how["centre"]), "labels": backend.from_host(labels)}
    found, found_squares = backend.sum_moments(backend.from_host(pixels), **there)
    np.testing.assert_array_equal(backend.to_host(found), want)
    assert found_squares == pytest.approx(squares, rel=1e-6, abs=len(pixels) * how["square_quantum"])
    assert len(pixels) == 1 or squares > 0


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_measure_distances(backend, dtype: str, shape: tuple[int, int]) -> None:
    pixels = rows_of(dtype, n=shape[0], features=shape[1])
    mean = how_of(pixels)[0]["centre"]
    points = pixels[[0, -1, 0]].astype(np.float32) - mean
    want = CPU.measure_distances(pixels, points=points, mean=mean)
    there = {"points": backend.from_host(points), "mean": backend.from_host(mean)}
    found = backend.to_host(backend.measure_distances(backend.from_host(pixels), **there))
    assert found.dtype == want.dtype and found.shape == (3, len(pixels))
    known = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(found), known)
    np.testing.assert_allclose(found[known], want[known], rtol=1e-5, atol=1e-3)
    assert (want[0, 0] == 0) == (found[0, 0] == 0)


@pytest.mark.parametrize("dtype, kept", [("uint16", "uint16"), ("uint16", "float32"), ("float32", "float32")])
@pytest.mark.parametrize("shape", [(12, 546), (1, 5), (9, 1), (40, 0), (3, 70_001)], ids=str)
def test_write_spectra(backend, dtype: str, kept: str, shape: tuple[int, int]) -> None:
    """Into a part of the rows of a table; the others, and its further columns, stay as they are."""
    bins, pixels = shape
    block = np.random.default_rng(6).poisson(300, shape).astype(dtype)
    table = backend.empty_rows(pixels + 3, bins + 2, np.dtype(kept))
    table[...] = 7
    backend.write_spectra(backend.from_host(block), table[2 : pixels + 2, :bins])
    expected = np.full((pixels + 3, bins + 2), 7, kept)
    expected[2 : pixels + 2, :bins] = block.T
    np.testing.assert_array_equal(backend.to_host(table), expected)


@pytest.mark.parametrize("shape", [(500, 17), (1, 1), (3, 40)], ids=str)
def test_pin_rows_and_bring(backend, shape: tuple[int, int]) -> None:
    rows = [rows_of("uint16", n=shape[0] + i, features=shape[1]) for i in range(4)]
    held = [(i, backend.pin_rows(backend.as_rows(backend.from_host(r), axis=-1))) for i, r in enumerate(rows)]
    arrived = [(i, backend.to_host(there)[:, : shape[1]].copy()) for i, there in backend.bring(held)]
    assert [i for i, _ in arrived] == [0, 1, 2, 3]
    for (_, found), expected in zip(arrived, rows, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert list(backend.bring([])) == []


@pytest.mark.parametrize("by_distance", [False, True])
@pytest.mark.parametrize("n_neighbors", [1, 3, 15])
@pytest.mark.parametrize("features", [1, 2, 4])
def test_index_voters_and_find_votes(backend, features: int, n_neighbors: int, by_distance: bool) -> None:
    """Whole numbers, so that many are equally far, and piles of equal points."""
    rng = np.random.default_rng(features)
    points = np.unique(rng.integers(0, 60, (400, features)), axis=0).astype(np.float32)
    size = rng.integers(1, 4, len(points))
    first = np.concatenate([[0], np.cumsum(size)])
    before = np.concatenate([[0], np.cumsum(rng.random(first[-1]) < 0.3)])
    piles = {"first": first, "before": before, "n_neighbors": n_neighbors}
    queries = np.concatenate([points[:50], rng.uniform(-5, 65, (300, features))]).astype(np.float32)
    how = {"n_neighbors": n_neighbors, "by_distance": by_distance, "workers": 2}
    expected = CPU.find_votes(CPU.index_voters(points, **piles), queries, **how)
    voters = backend.index_voters(points, **piles)
    found = [backend.to_host(votes) for votes in backend.find_votes(voters, backend.from_host(queries), **how)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert expected[0].any() and expected[1].any()
    for votes in backend.find_votes(voters, backend.from_host(queries[:0]), **how):
        assert votes.shape == (0,)

"""Arrays whose chunks lie across the parts: gathered once, or said."""

from __future__ import annotations

import logging
import math
import threading

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niseg_gpu.backend import CPU
from niseg_gpu.kmeans.arrays import open_points
from niseg_gpu.kmeans.estimator import KMeans
from niseg_gpu.kmeans.points import cut_map
from niseg_gpu.kmeans.sweep import count_times_read, gather_rows, is_wrapped

DTYPES = ("u2", "i4", "f4", "f8", ">f4")


@st.composite
def arrays(draw: st.DrawFn) -> tuple[np.ndarray, da.Array, int]:
    """An array, the same in chunks, and its axis of features."""
    shape = draw(st.lists(st.integers(1, 20), min_size=2, max_size=3))
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 120, shape).astype(dtype)
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    return values, da.from_array(values, chunks=chunks), draw(st.integers(0, len(shape) - 1))


@given(arrays(), st.data())
def test_rows_are_those_of_the_array(given_arrays, data) -> None:
    values, lazy, axis = given_arrays
    map_shape = values.shape[:axis] + values.shape[axis + 1 :]
    regions = cut_map(map_shape, pixel_bytes=1, part_bytes=data.draw(st.integers(1, 200)))
    labels = [np.full(math.prod(s.stop - s.start for s in region), -1, np.int32) for region in regions]
    points = gather_rows(lazy, regions, axis=axis, backend=CPU, labels=labels, workers=data.draw(st.integers(1, 3)))
    assert (points.map_shape, points.n_features) == (map_shape, values.shape[axis])
    rows = np.moveaxis(values, axis, -1)
    for part, region in zip(points.parts.values(), regions, strict=True):
        assert part.is_near and part.region == region
        np.testing.assert_array_equal(part.read(), rows[region].reshape(-1, rows.shape[-1]))
        assert part.read().dtype.isnative


@settings(max_examples=30)
@given(arrays(), st.data())
def test_how_often_is_counted_chunk_by_chunk(given_arrays, data) -> None:
    values, lazy, axis = given_arrays
    map_shape = values.shape[:axis] + values.shape[axis + 1 :]
    regions = cut_map(map_shape, pixel_bytes=1, part_bytes=data.draw(st.integers(1, 200)))
    computed = 0
    bounds = np.array([[(s.start, s.stop) for s in region] for region in regions])
    for place in np.ndindex(*lazy.numblocks):
        starts = [sum(sizes[:i]) for i, sizes in zip(place, lazy.chunks, strict=True)]
        spans = [(a, a + sizes[i]) for a, i, sizes in zip(starts, place, lazy.chunks, strict=True)]
        spans.pop(axis)
        first, stop = np.array(spans).T
        touched = ((bounds[..., 0] < stop) & (first < bounds[..., 1])).all(1)
        computed += int(touched.sum()) * math.prod(sizes[i] for i, sizes in zip(place, lazy.chunks, strict=True))
    assert count_times_read(lazy, regions, axis=axis) == pytest.approx(computed / values.size)


class Counted:
    """Counts how often each chunk is computed."""

    def __init__(self) -> None:
        self.number, self._lock = 0, threading.Lock()

    def __call__(self, block: np.ndarray) -> np.ndarray:
        with self._lock:
            self.number += 1
        return block * np.float32(0.5)


def made_of_frames(counted: Counted) -> tuple[np.ndarray, da.Array]:
    """Spectra (tof, y, x) of four materials, and the same computed from chunks of 5 frames each."""
    rng = np.random.default_rng(0)
    material = rng.integers(0, 4, (64, 48))
    stack = (rng.random((4, 60))[material] + 0.05 * rng.random((64, 48, 60))).astype(np.float32).transpose(2, 0, 1)
    lazy = da.from_array(np.ascontiguousarray(stack), chunks=(5, -1, -1)).map_blocks(counted, dtype=np.float32)
    return stack * np.float32(0.5), lazy


def test_every_chunk_is_computed_once_where_all_fit() -> None:
    counted = Counted()
    stack, lazy = made_of_frames(counted)
    counted.number = 0  # Dask may have asked for a type
    found = KMeans(4, random_state=0, feature_dim=0, max_iter=5, tol=0).fit(lazy)
    assert counted.number == lazy.npartitions
    there = KMeans(4, random_state=0, feature_dim=0, max_iter=5, tol=0).fit(stack)
    assert found.labels_.tobytes() == there.labels_.tobytes()
    assert found.cluster_centers_.tobytes() == there.cluster_centers_.tobytes()


def test_a_budget_that_cannot_hold_all_is_said_with_what_would(caplog) -> None:
    stack, lazy = made_of_frames(Counted())
    wrapped = da.from_array(stack, chunks=(5, -1, -1))
    assert is_wrapped(wrapped) and not is_wrapped(lazy)
    with caplog.at_level(logging.WARNING, "niseg_gpu"):
        open_points(wrapped, feature_dim=0, memory_budget=600_000, workers=1)
        assert not caplog.records  # slices of what was only wrapped read their own values
        open_points(lazy, feature_dim=0, memory_budget=600_000, workers=1)
        (record,) = caplog.records
        assert "chunks of 5 x 64 x 48 lie across" in record.getMessage()
        enough = float(record.getMessage().split("memory_budget to ")[1].split()[0])
        caplog.clear()
        points = open_points(lazy, feature_dim=0, memory_budget=int(1.01 * enough), workers=1)
        assert not caplog.records
    assert all(part.is_near for part in points.parts.values())

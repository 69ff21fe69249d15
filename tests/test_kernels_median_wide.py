"""Medians in wide windows against SciPy, in tiles of any size."""

from __future__ import annotations

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import median_filter

from niseg_gpu.backend import CPU
from niseg_gpu.kernels import median_wide as wide
from niseg_gpu.kernels.median import DTYPES

odd = st.sampled_from([1, 3, 5, 7, 9, 13])
dtypes = st.sampled_from(sorted(DTYPES, key=str))


def draw(seed: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Values with many ties, the ends of the dtype among them, or over the whole range."""
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        few = rng.choice(np.array([-np.inf, -1e30, -1, -0.0, 0, 1e-40, 1, np.inf], dtype), shape)
        return few if seed % 2 else rng.normal(0, 10.0 ** (seed % 30), shape).astype(dtype)
    ends = np.iinfo(dtype)
    few = rng.choice(np.array([ends.min, ends.max, 0, 1, 2, 3], dtype), shape)
    return few if seed % 2 else rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)


@settings(max_examples=150, deadline=None)
@given(
    shape=npst.array_shapes(min_dims=2, max_dims=4, max_side=14),
    dtype=dtypes,
    sides=st.tuples(odd, odd, odd),
    tile=st.none() | st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 10**6),
)
def test_it_equals_scipy_in_tiles_of_any_size(shape, dtype, sides, tile, seed) -> None:
    image, size = draw(seed, shape, dtype), (1, *sides)[-len(shape) :]
    with pytest.MonkeyPatch.context() as patch:
        if tile is not None:
            patch.setattr(wide, "choose_tile", lambda sides: tile)
        got = wide.median_wide(image, size=size)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, median_filter(image, size, mode="nearest"))


@pytest.mark.parametrize("size", [(1, 9, 9), (1, 101, 101), (5, 5, 5), (21, 21, 21), (1, 3, 25)])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_tiles_as_they_are_chosen_join(size, dtype) -> None:
    shape = (3, 150, 263) if size[0] == 1 else (24, 21, 37)
    image = draw(4, shape, np.dtype(dtype))
    np.testing.assert_array_equal(wide.median_wide(image, size=size)[:, ::13, :], expect(image, size)[:, ::13, :])


def expect(image: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Every 13th row of the medians, of whole windows sorted; SciPy takes minutes for the largest."""
    pads = [(n // 2, n // 2) for n in size]
    padded, out = np.pad(image, pads, mode="edge"), np.zeros_like(image)
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)
    for z, y in np.ndindex(image.shape[0], (image.shape[1] + 12) // 13):
        rows = windows[z, 13 * y].reshape(image.shape[2], -1)
        out[z, 13 * y] = np.partition(rows, rows.shape[1] // 2, axis=1)[:, rows.shape[1] // 2]
    return out


def test_any_strides() -> None:
    frames = draw(2, (8, 19, 40), np.dtype("uint16"))
    for view in (frames[::2, ::-1, 1::3], frames.T, np.asfortranarray(frames), np.broadcast_to(frames[0], (3, 19, 40))):
        np.testing.assert_array_equal(
            wide.median_wide(view, size=(1, 9, 9)), median_filter(view, (1, 9, 9), mode="nearest")
        )
    assert wide.median_wide(frames[:0], size=(1, 9, 9)).shape == (0, 19, 40)


def test_what_it_takes() -> None:
    assert wide.covers_wide("float32", (9, 9)) and wide.covers_wide("int16", (1, 5, 5, 5))
    assert not wide.covers_wide("float64", (9, 9)) and not wide.covers_wide("uint8", (1, 4, 5))
    assert not wide.covers_wide("uint8", (3, 1, 5, 5)) and not wide.covers_wide("uint8", (1, 301, 301))


def test_one_value_that_is_nan_is_one_of_the_values(monkeypatch) -> None:
    image = draw(0, (30, 30), np.dtype("float32"))
    image[4, 5] = np.nan
    got, far = wide.median_wide(image, size=(9, 9)), np.ones((30, 30), bool)
    far[:9, 1:10] = False
    np.testing.assert_array_equal(got[far], median_filter(np.nan_to_num(image), 9, mode="nearest")[far])
    assert np.isin(got, image).all()


def test_the_twin_takes_it_for_wide_windows(monkeypatch) -> None:
    image, called = draw(1, (20, 20), np.dtype("float32")), []
    inside = wide.median_wide
    monkeypatch.setattr(wide, "median_wide", lambda *args, **options: called.append(1) or inside(*args, **options))
    np.testing.assert_array_equal(CPU.median(image, size=(15, 15)), median_filter(image, 15, mode="nearest"))
    assert called == [1]

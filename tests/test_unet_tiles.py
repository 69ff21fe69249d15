"""Tiles cover the image exactly, start on the grid, and are right where they say so."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.unet.tiles import plan_tiles


@st.composite
def images(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int, int]:
    shape = tuple(draw(st.lists(st.integers(1, 90), min_size=1, max_size=3)))
    grid = draw(st.sampled_from([1, 2, 4, 8]))
    return shape, grid * draw(st.integers(0, 3)), grid, draw(st.integers(1, 40)) ** len(shape)


@given(images())
def test_every_pixel_is_right_in_some_tile_of_one_size(drawn: tuple) -> None:
    shape, halo, grid, pixels = drawn
    plan = plan_tiles(shape, halo=halo, grid=grid, pixels=pixels)
    assert all(n <= p < n + grid and p % grid == 0 for n, p in zip(shape, plan.padded, strict=True))
    right = np.zeros(plan.padded, bool)
    for tile in plan.tiles:
        for origin, low, high, side, length in zip(*tile, plan.size, plan.padded, strict=True):
            assert origin % grid == 0 and side % grid == 0
            assert 0 <= origin and origin + side <= length
            assert low == 0 and origin == 0 or low >= halo
            assert high == side and origin + side == length or side - high == halo
        right[tuple(slice(o + a, o + b) for o, a, b in zip(*tile, strict=True))] = True
    assert right.all()
    smallest = all(side in (2 * halo + grid, n) for side, n in zip(plan.size, plan.padded, strict=True))
    assert math.prod(plan.size) <= pixels or smallest


def test_an_image_that_fits_is_one_tile() -> None:
    plan = plan_tiles((1023, 1021), halo=24, grid=4, pixels=2**20)
    assert plan.size == (1024, 1024) and len(plan.tiles) == 1


def test_halves_are_alike_and_waste_little() -> None:
    plan = plan_tiles((2048, 2048), halo=24, grid=4, pixels=1152**2)
    assert plan.size == (1048, 1048) and len(plan.tiles) == 4

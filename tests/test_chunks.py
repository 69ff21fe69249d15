from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.chunks import cut_regions, locate, widen

sizes = st.integers(1, 40)


@given(st.tuples(sizes, sizes, sizes), st.booleans(), st.integers(0, 3), st.integers(1, 9), st.integers(1, 50_000))
def test_regions_cover_every_value_once(shape, whole_tof, halo, parts, block_bytes) -> None:
    whole = frozenset({"tof"}) if whole_tof else frozenset()
    seen = np.zeros(shape, int)
    regions = cut_regions(("tof", "y", "x"), shape, whole=whole, halo=halo, parts=parts, block_bytes=block_bytes)
    for region in regions:
        seen[region] += 1
        if whole_tof:
            assert region[0] == slice(0, shape[0])
        else:
            assert region[1:] == (slice(0, shape[1]), slice(0, shape[2]))
    assert (seen == 1).all()


@given(st.integers(1, 3), st.integers(64, 300))
def test_rows_are_many_times_the_halo(halo, rows) -> None:
    regions = cut_regions(("tof", "y", "x"), (5, rows, 7), whole=frozenset({"tof"}), halo=halo, block_bytes=1)
    heights = [r[1].stop - r[1].start for r in regions]
    assert all(h >= min(8 * halo, rows) for h in heights[:-1])


def test_every_worker_gets_a_part() -> None:
    assert len(cut_regions(("tof", "y", "x"), (100, 64, 64), whole=frozenset({"tof"}), halo=0, parts=8)) == 8


@given(sizes, sizes, st.integers(0, 5), st.data())
def test_a_widened_region_holds_the_region(height, width, halo, data) -> None:
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    frame = np.arange(height * width).reshape(height, width)
    region = (slice(top, bottom), slice(left, right))
    wide = widen(region, frame.shape, halo=(9, halo))
    assert (frame[wide][locate(region, within=wide)] == frame[region]).all()
    assert wide[0].start == max(0, top - halo) and wide[1].stop == min(width, right + halo)


def test_three_axes_widen_along_the_first_too() -> None:
    wide = widen((slice(4, 6), slice(0, 5), slice(2, 3)), (7, 9, 9), halo=(2, 1))
    assert wide == (slice(2, 7), slice(0, 6), slice(1, 4))
    assert locate((slice(4, 6), slice(0, 5), slice(2, 3)), within=wide) == (slice(2, 4), slice(0, 5), slice(1, 2))

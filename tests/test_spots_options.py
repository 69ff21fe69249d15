"""The careful ways of removing spots, against a loop over pixels."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import label, median_filter

from niseg_gpu.backend import CPU
from niseg_gpu.errors import UserError
from niseg_gpu.findings import collect
from niseg_gpu.kernels.spots_xp import replace_spots_xp
from niseg_gpu.pipeline.engine import Engine
from niseg_gpu.pipeline.parse import parse_pipeline, parse_steps
from niseg_gpu.spots import check_remove_spots, remove_spots


def window(frame: np.ndarray, y: int, x: int, size: int, *, outside: bool) -> np.ndarray:
    """The values around a pixel; those outside repeat the border, or are left out."""
    r = size // 2
    ys, xs = np.arange(y - r, y + r + 1), np.arange(x - r, x + r + 1)
    if not outside:
        ys, xs = ys[(ys >= 0) & (ys < frame.shape[0])], xs[(xs >= 0) & (xs < frame.shape[1])]
    return frame[np.clip(ys, 0, frame.shape[0] - 1)][:, np.clip(xs, 0, frame.shape[1] - 1)].ravel()


def loop_median(frame: np.ndarray, size: int) -> np.ndarray:
    out = np.empty_like(frame)
    for y, x in np.ndindex(frame.shape):
        values = window(frame, y, x, size, outside=True)
        values = values[~np.isnan(values)]
        out[y, x] = np.median(values) if values.size else np.nan
    return out


def loop_remove(frame, *, size, threshold, kind, threshold_unit="counts", replacement="median", max_area=None):
    """The definition, one pixel at a time."""
    values = frame.astype(np.float32)
    median = loop_median(values, size)
    noise = np.ones_like(values)
    if threshold_unit == "poisson":
        noise = np.sqrt(np.maximum(median, 1))
    elif threshold_unit == "sigma":
        noise = np.float32(1.4826) * loop_median(np.abs(values - median), 5)
        noise = noise if frame.dtype.kind == "f" else np.maximum(noise, 0.5)
    gap = {"both": np.abs(values - median), "bright": values - median, "dark": median - values}[kind]
    spots = (gap > threshold * noise) & (gap > 0)
    if max_area is not None:
        numbers, n = label(spots, np.ones((3, 3)))
        for k in range(1, n + 1):
            if (numbers == k).sum() > max_area:
                spots[numbers == k] = False
    out = frame.copy()
    for y, x in zip(*spots.nonzero(), strict=True):
        good = window(np.where(spots, np.nan, values), y, x, size, outside=False)
        good = good[~np.isnan(good)]
        if replacement == "nan":
            out[y, x] = np.nan
        elif replacement == "mean" and good.size:
            mean = good.mean(dtype=float)
            out[y, x] = mean if frame.dtype.kind == "f" else np.rint(mean)
        else:
            out[y, x] = median[y, x]
    return out, spots


def spotted(dtype: type, *, seed: int = 0, shape: tuple[int, int] = (17, 23)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    frame = rng.poisson(200, shape).astype(dtype)
    frame[rng.random(shape) < 0.04] += 90
    frame[rng.random(shape) < 0.02] -= 80
    frame[2:5, 3:9] = 400
    return frame


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("kind", ["bright", "dark", "both"])
@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 60, "replacement": "mean"},
        {"threshold": 4.3, "threshold_unit": "sigma"},
        {"threshold": 3.7, "threshold_unit": "poisson", "replacement": "mean", "size": 5},
        {"threshold": 60, "max_area": 4},
        {"threshold": 5.1, "threshold_unit": "sigma", "max_area": 2, "replacement": "mean"},
    ],
)
def test_every_option_is_its_definition(dtype, kind, options) -> None:
    options = {"size": 3, "kind": kind, **options}
    stack = np.stack([spotted(dtype, seed=s) for s in (0, 1)])
    cleaned, spots = remove_spots(stack, **options)
    assert cleaned.dtype == dtype
    for frame, clean, marked in zip(stack, cleaned, spots, strict=True):
        expected, where = loop_remove(frame, **options)
        np.testing.assert_array_equal(marked, where)
        np.testing.assert_allclose(clean, expected, rtol=1e-6)
    assert spots.any()


def test_spots_may_become_nan_where_nan_can_be() -> None:
    frame = spotted(np.float32)
    cleaned, spots = remove_spots(frame, threshold=60, replacement="nan")
    assert (np.isnan(cleaned) == spots).all() and spots.any()
    with pytest.raises(UserError, match="replacement nan needs floats, the image is uint16"):
        remove_spots(spotted(np.uint16), threshold=60, replacement="nan")


@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=st.sampled_from([0, 1, 2, 9, np.nan])
    ),
    st.sampled_from([3, 5]),
    st.sampled_from(["bright", "dark", "both"]),
    st.sampled_from(["median", "mean"]),
)
def test_nan_is_left_out_of_windows_and_stays(frame, size, kind, replacement) -> None:
    cleaned, spots = remove_spots(frame, size=size, threshold=1.5, kind=kind, replacement=replacement)
    expected, where = loop_remove(frame, size=size, threshold=1.5, kind=kind, replacement=replacement)
    np.testing.assert_array_equal(spots, where)
    np.testing.assert_allclose(cleaned, expected, rtol=1e-6)
    assert (np.isnan(cleaned) == np.isnan(frame)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 4, "threshold_unit": "sigma"},
        {"threshold": 60, "max_area": 5, "replacement": "mean"},
        {"threshold": 4, "threshold_unit": "sigma", "max_area": 3, "replacement": "mean", "size": 5},
    ],
)
def test_borders_of_blocks_are_invisible(options) -> None:
    values = np.stack([spotted(np.float32, seed=s, shape=(150, 23)) for s in range(3)])
    values[:, 40:110, 7] = 900  # a structure across many blocks
    values[1, 20:30, 4] = np.nan
    expected = remove_spots(values, **options)
    stack = xr.DataArray(values, dims=("tof", "y", "x")).chunk({"y": 11})
    engine = Engine(CPU, bad_values="keep", block_bytes=1)
    applied = engine.apply(stack, parse_steps([{"remove_spots": options}]), whole=frozenset({"tof"}))
    assert len(applied.image.chunks[1]) > 1
    np.testing.assert_array_equal(applied.masks["spots"].values, expected[1])
    np.testing.assert_array_equal(applied.image.values, expected[0])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_windows_may_reach_over_frames(dtype) -> None:
    volume = np.random.default_rng(0).poisson(300, (9, 12, 14)).astype(dtype)
    volume[4, 5, 6:9] = 900  # a track in one frame: two of three neighbours in the row, none in depth
    median = median_filter(volume, 3, mode="nearest")
    cleaned, spots = remove_spots(volume, threshold=200, neighbourhood="volume")
    np.testing.assert_array_equal(spots, np.abs(volume.astype(float) - median) > 200)
    np.testing.assert_array_equal(cleaned, np.where(spots, median, volume))
    assert spots[4, 5, 6:9].all()


@pytest.mark.parametrize("replacement", ["median", "mean"])
def test_borders_between_groups_of_frames_are_invisible(replacement) -> None:
    volume = np.random.default_rng(0).poisson(300, (23, 70, 8)).astype(np.float32)
    volume[np.random.default_rng(1).random(volume.shape) < 0.03] = 800
    volume[7, 3, 3] = np.nan
    options = {"threshold": 200, "neighbourhood": "volume", "replacement": replacement}
    expected = remove_spots(volume, **options)
    stack = xr.DataArray(volume, dims=("z", "y", "x")).chunk({"z": 4, "y": 9})
    for whole in (frozenset(), frozenset({"z"})):
        engine = Engine(CPU, bad_values="keep", block_bytes=1)
        applied = engine.apply(stack, parse_steps([{"remove_spots": options}]), whole=whole)
        assert max(map(len, applied.image.chunks)) > 1
        image, spots = dask.compute(applied.image.data, applied.masks["spots"].data)
        np.testing.assert_array_equal(spots, expected[1])
        np.testing.assert_array_equal(image, expected[0])
        assert f"remove_spots: {expected[1].sum()} spots replaced" in engine.clock.findings()


def both_ways(image: np.ndarray, **options) -> None:
    """The compiled way and the one of whole-array calls, which the GPU takes too."""
    options = {"kind": "both", "replacement": "median", "max_area": None, "dead": None} | options
    own = (slice(None),) * (image.ndim - 1) + (slice(1, None),)
    ours = CPU.replace_spots(image, own=own, **options)
    theirs = replace_spots_xp(image, backend=CPU, own=own, **options)
    assert ours[0].dtype == theirs[0].dtype == image.dtype
    np.testing.assert_array_equal(ours[1], theirs[1])
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6 if options["replacement"] == "mean" else 0)
    assert ours[2] == theirs[2] == ours[1][own].sum()


@given(
    dtype=st.sampled_from([np.uint16, np.int16, np.float32]),
    shape=hnp.array_shapes(min_dims=2, max_dims=3, max_side=9),
    size=st.sampled_from([3, 5, 7, 9]),
    seed=st.integers(0, 10**6),
    unit=st.sampled_from([("counts", 40.0), ("poisson", 2.7), ("sigma", 3.1)]),
    kind=st.sampled_from(["bright", "dark", "both"]),
    replacement=st.sampled_from(["median", "mean", "nan"]),
    max_area=st.sampled_from([None, None, 2]),
    volume=st.booleans(),
    holes=st.sampled_from(["", "nan", "dead", "nan, dead"]),
)
def test_both_ways_give_the_same(dtype, shape, size, seed, unit, kind, replacement, max_area, volume, holes) -> None:
    rng = np.random.default_rng(seed)
    image = rng.poisson(200, shape).astype(dtype)
    image[rng.random(shape) < 0.05] += 90
    if "nan" in holes and dtype is np.float32:
        image[rng.random(shape) < 0.2] = np.nan
    both_ways(
        image,
        window=(size,) * len(shape) if volume else (1,) * (len(shape) - 2) + (size, size),
        threshold=unit[1],
        threshold_unit=unit[0],
        kind=kind,
        replacement="median" if replacement == "nan" and dtype is not np.float32 else replacement,
        max_area=max_area,
        dead=rng.random(shape[-2:]) < 0.2 if "dead" in holes else None,
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("unit", ["counts", "poisson", "sigma"])
def test_both_ways_give_the_same_for_other_integers(dtype, unit) -> None:
    image = np.random.default_rng(0).poisson(90, (2, 9, 40)).astype(dtype)
    if dtype is np.int32:
        image[0, 3, ::3], image[0, 4, ::3] = (
            np.iinfo(dtype).max,
            np.iinfo(dtype).min,
        )  # no signed type holds the difference
    both_ways(image, window=(1, 3, 3), threshold=2.5, threshold_unit=unit)


def dead_frame(dtype: type) -> tuple[np.ndarray, np.ndarray]:
    frame, dead = spotted(dtype, seed=3), np.random.default_rng(5).random((17, 23)) < 0.1
    dead[8:11, 8:11] = True  # the middle one has no live neighbour
    frame[dead] = 0
    return frame, dead


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("replacement", ["median", "mean"])
def test_dead_pixels_are_no_neighbours_and_are_replaced(dtype, replacement) -> None:
    frame, dead = dead_frame(dtype)
    with collect() as found:
        cleaned, spots = remove_spots(frame, threshold=60, replacement=replacement, dead_pixels=dead)
    expected, where = loop_remove(np.where(dead, np.nan, frame.astype(np.float32)), size=3, threshold=60, kind="both")
    assert not spots[dead].any() and spots.any()
    np.testing.assert_array_equal(spots, where)
    if replacement == "median":
        expected = np.rint(expected) if dtype is np.uint16 else expected
        np.testing.assert_array_equal(cleaned[~dead], expected[~dead])
    for y, x in np.argwhere(dead):
        values = window(np.where(dead, np.nan, frame), y, x, 3, outside=replacement == "median")
        if replacement == "mean":
            values = window(np.where(dead | spots, np.nan, frame), y, x, 3, outside=False)
        values = values[~np.isnan(values)]
        if not values.size:
            assert (y, x) == (9, 9) and (cleaned[y, x] == 0 if dtype is np.uint16 else np.isnan(cleaned[y, x]))
            continue
        value = np.median(values) if replacement == "median" else values.mean()
        np.testing.assert_allclose(cleaned[y, x], np.rint(value) if dtype is np.uint16 else value, rtol=1e-6)
    assert found["values of dead pixels replaced"] == dead.sum() and found["spots replaced"] == spots.sum()


def test_a_mask_without_dead_pixels_changes_nothing_and_nan_goes_where_nan_replaces() -> None:
    frame, dead = dead_frame(np.float32)
    plain = remove_spots(frame, threshold=60)
    for got, want in zip(remove_spots(frame, threshold=60, dead_pixels=np.zeros_like(dead)), plain, strict=True):
        np.testing.assert_array_equal(got, want)
    cleaned, spots = remove_spots(frame, threshold=60, replacement="nan", dead_pixels=dead)
    np.testing.assert_array_equal(np.isnan(cleaned), spots | dead)
    with pytest.raises(UserError, match="dead_pixels has shape .*; give a mask of one frame"):
        remove_spots(frame, threshold=60, dead_pixels=dead[1:])


@pytest.mark.parametrize(
    "options", [{}, {"threshold_unit": "sigma", "threshold": 4}, {"replacement": "mean", "neighbourhood": "volume"}]
)
def test_dead_pixels_from_a_file_in_blocks(tmp_path, options) -> None:
    values = np.stack([spotted(np.uint16, seed=s, shape=(150, 23)) for s in range(9)])
    dead = np.random.default_rng(5).random((150, 23)) < 0.05
    np.save(tmp_path / "dead.npy", dead.astype(np.uint8) * 255)
    options = {"threshold": 60, **options}
    expected = remove_spots(values, **options, dead_pixels=dead)
    pipeline = {"input": "run", "steps": [{"remove_spots": {**options, "dead_pixels": "dead.npy"}}]}
    steps = parse_pipeline(pipeline, base=tmp_path).steps
    for whole in (frozenset(), frozenset({"tof"})):
        engine = Engine(CPU, block_bytes=1)
        stack = xr.DataArray(values, dims=("tof", "y", "x")).chunk({"tof": 3, "y": 11})
        applied = engine.apply(stack, steps, whole=whole)
        assert max(map(len, applied.image.chunks)) > 1
        image, spots = dask.compute(applied.image.data, applied.masks["spots"].data)
        np.testing.assert_array_equal(spots, expected[1])
        np.testing.assert_array_equal(image, expected[0])
        found = engine.clock.findings()
        assert f"remove_spots: {expected[1].sum()} spots replaced" in found
        assert f"remove_spots: {9 * dead.sum()} values of dead pixels replaced" in found


@pytest.mark.parametrize(
    ("mask", "complaint"),
    [
        (np.zeros((5, 6)), r"dead.npy has shape \(5, 6\), the frames \(17, 23\); give a mask of one frame"),
        (np.ones((17, 23)), "dead.npy marks 100% of the pixels; allowed: 50% at most"),
        (None, "dead.npy"),
    ],
)
def test_masks_of_dead_pixels_that_cannot_be_right(tmp_path, mask, complaint) -> None:
    if mask is not None:
        np.save(tmp_path / "dead.npy", mask)
    steps = parse_steps([{"remove_spots": {"threshold": 1, "dead_pixels": "dead.npy"}}], base=tmp_path)
    stack = xr.DataArray(np.zeros((2, 17, 23), np.uint16), dims=("tof", "y", "x")).chunk()
    with pytest.raises(UserError, match=complaint):
        Engine(CPU).fit(stack, steps, reading=False)


class LikeCupy(np.ndarray):
    """Eight bit are compared with Python's floats as CuPy does it: in half precision."""

    def __gt__(self, other):
        if self.dtype.itemsize == 1 and self.dtype.kind in "iu" and type(other) is float:
            return np.asarray(self).astype(np.float16) > np.float16(other)
        return super().__gt__(other)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("threshold", [0.0, 60.0, 60.99, 61.0, 254.999, 1e9])
def test_thresholds_are_exact_for_eight_bit(dtype: str, threshold: float) -> None:
    from niseg_gpu.kernels.spots_xp import clean_spots_xp

    low = np.iinfo(dtype).min
    image = np.full((9, 9), low, dtype)
    image[4, 1], image[4, 4], image[4, 7] = low + 60, low + 61, low + 255

    def median(image, size):
        return median_filter(np.asarray(image), size=size, mode="nearest").view(LikeCupy)

    settings = {"xp": np, "median": median, "size": (3, 3), "threshold": threshold, "kind": "both"}
    spots = clean_spots_xp(image.view(LikeCupy), **settings)[1]
    assert [bool(spots[4, x]) for x in (1, 4, 7)] == [60 > threshold, 61 > threshold, 255 > threshold]
    assert spots.sum() == sum(v > threshold for v in (60, 61, 255))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"size": 4}, "size 4; allowed: odd, 3 or more"),
        ({"size": 103}, "size 103 for windows in 2 dimensions; allowed: odd, 3 to 101"),
        ({"size": 23, "neighbourhood": "volume"}, "size 23 for windows in 3 dimensions; allowed: odd, 3 to 21"),
    ],
)
def test_windows_that_cannot_be(options, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        remove_spots(np.zeros((2, 4, 5), np.uint16), threshold=1, **options)
    with pytest.raises(UserError, match=complaint):
        check_remove_spots(None, threshold=1, **options)


def test_many_spots_are_warned_of_where_nobody_counts(caplog) -> None:
    frame = spotted(np.uint16)
    with caplog.at_level("WARNING", logger="niseg_gpu"):
        remove_spots(frame, threshold=60)
        assert not caplog.records
        _, spots = remove_spots(frame, threshold=1)
        with collect():
            remove_spots(frame, threshold=1)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"remove_spots: {spots.sum()} of {spots.size} values (")

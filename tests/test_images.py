"""Arrays as scientists have them: however they lie in memory the result is the same; what is no image is one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import niseg_gpu as ng
from niseg_gpu.errors import UserError
from niseg_gpu.tof import Group

RNG = np.random.default_rng(5)
COUNTS = RNG.poisson(60, (5, 24, 30))
COUNTS[:, 3, 4] += 90
SPOTS = np.zeros(COUNTS.shape, np.uint8)
SPOTS[:, 3, 4] = 1
MODEL = ng.fit_knn(COUNTS.astype(np.float32), SPOTS)
METHODS: dict[str, Callable[[Any], Any]] = {
    "remove_spots": lambda a: ng.remove_spots(a, threshold=50),
    "remove_spots of volumes": lambda a: ng.remove_spots(a, threshold=50, neighbourhood="volume", replacement="mean"),
    "remove_spots by noise": lambda a: ng.remove_spots(a, threshold=9, threshold_unit="sigma", max_area=3),
    "detect_spots": lambda a: ng.detect_spots(a, model=MODEL),
    "predict_knn": lambda a: ng.predict_knn(a, MODEL),
    "fit_knn": lambda a: ng.fit_knn(a, SPOTS).points,
    "extract_spots": lambda a: ng.extract_spots(a, threshold=20),
    "compute_pixel_features": lambda a: ng.compute_pixel_features(a, ["x", "smooth", "sobel_y"]),
    "normalize": lambda a: ng.normalize(a, open_beam=a[1], dark=a[0]),
    "scale_spectra": lambda a: ng.scale_spectra(a),
    "overlap_correct": lambda a: ng.overlap_correct(a, windows=[(0, 2), (3, 4)], shutter_counts=[5000, 4000]),
    "rebin_tof": lambda a: ng.rebin_tof(a, groups=[Group(0, 1), Group(2, 4, 0.5)], mean=True),
    "select_tof": lambda a: ng.select_tof(a, first=1, last=np.int64(2)),
}
SPECTRA = {"scale_spectra", "overlap_correct", "rebin_tof", "select_tof"}


def lay_out(values: np.ndarray, folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The same values in other orders of axes, steps and bytes, or where nobody may write."""
    yield "in Fortran's order", np.asfortranarray(values)
    yield "with steps", np.repeat(values, 2, axis=-1)[..., ::2]
    yield "backwards", values[:, ::-1].copy()[:, ::-1]
    yield "big-endian", values.astype(values.dtype.newbyteorder(">"))
    shut = values.copy()
    shut.setflags(write=False)
    yield "read-only", shut
    np.save(folder / "values.npy", values)
    yield "memory-mapped", np.load(folder / "values.npy", mmap_mode="r")
    odd = np.ndarray(values.shape, values.dtype, buffer=bytearray(values.nbytes + 1), offset=1)
    odd[...] = values
    yield "at an odd address", odd
    yield "masked nowhere", np.ma.array(values)


def parts_of(result: Any) -> list[np.ndarray]:
    return [np.asarray(part) for part in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u8", "f2", "f4", "f8"])
def test_results_do_not_depend_on_how_an_array_lies_in_memory(method: str, dtype: str, tmp_path: Path) -> None:
    values = COUNTS.astype(dtype)
    expected = parts_of(METHODS[method](values))
    for how, other in lay_out(values, tmp_path):
        for found, wanted in zip(parts_of(METHODS[method](other)), expected, strict=True):
            assert found.dtype == wanted.dtype, how
            np.testing.assert_array_equal(found, wanted, err_msg=how)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_and_masks_are_taken_as_steps_take_them(method: str) -> None:
    for given, same in ((COUNTS.astype(np.float16), np.float32), (COUNTS > 60, np.uint8)):
        for found, wanted in zip(
            parts_of(METHODS[method](given)), parts_of(METHODS[method](given.astype(same))), strict=True
        ):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)


NO_ARRAYS = [None, 3, "a.tif", COUNTS.tolist(), xr.DataArray(COUNTS), da.from_array(COUNTS)]
NO_IMAGES = [
    np.array(3.0),
    COUNTS * 1j,
    *([COUNTS.astype("g")] if np.dtype("g").itemsize > 8 else []),  # on some machines it is float64
    COUNTS.astype(object),
    COUNTS.astype("M8[s]"),
    np.array([["a"]]),
    np.zeros((4, 4), [("a", "f4")]),
    COUNTS[:0],
]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_image_is_told_in_one_line(method: str) -> None:
    call = METHODS[method] if method != "normalize" else lambda a: ng.normalize(COUNTS, open_beam=a)
    for given in NO_ARRAYS if method != "fit_knn" else [COUNTS.tolist(), [xr.DataArray(COUNTS)]]:
        with pytest.raises(UserError, match=r"needed: a NumPy or CuPy array \(.*\), as np.asarray makes of others"):
            call(given)
    for image in [*NO_IMAGES, *([] if method in SPECTRA else [np.arange(5.0)])]:
        with pytest.raises(UserError, match=r"got an array of shape \(.*needed: real numbers \(.*no axis empty"):
            call(image)
    with pytest.raises(UserError, match="got a masked array; needed: one that hides nothing"):
        call(np.ma.masked_greater(COUNTS, 70))


@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"open_beam": COUNTS[0, :-1]}, r"open_beam has shape \(23, 30\), the sample \(5, 24, 30\); allowed"),
        ({"open_beam": COUNTS[0, :1]}, "open_beam has shape"),  # would be taken for every row
        ({"open_beam": COUNTS[0], "dark": COUNTS[:3]}, "dark has shape"),
        ({"open_beam": COUNTS[0], "dose": [1, 2]}, "got a dose of 2 values; allowed: one number, or one a frame"),
        ({"open_beam": COUNTS[0], "dose": "x"}, "got a dose of str; allowed"),
        ({"open_beam": COUNTS[0], "minus_log": "no"}, "normalize got minus_log 'no'; allowed: True, False"),
    ],
)
def test_references_that_do_not_fit_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        ng.normalize(COUNTS, **given)


def test_references_that_are_less_than_the_dark_do_not_wrap() -> None:
    beam, dark = np.full((4, 5), 7, np.uint16), np.full((4, 5), 9, np.uint16)
    assert np.isnan(ng.normalize(beam, open_beam=beam, dark=dark)).all()
    found = ng.normalize(np.full((3, 4, 5), 2), open_beam=beam, dose=[1, 2, np.float32(3)])
    np.testing.assert_allclose(found[:, 0, 0], np.array([2, 4, 6]) / 7, rtol=1e-6)

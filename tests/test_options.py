"""Options from Python are held to their functions' own signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Gt, Le
from hypothesis import given
from hypothesis import strategies as st

import niseg_gpu as ng
from niseg_gpu.errors import UserError
from niseg_gpu.knn_model import fit_knn
from niseg_gpu.options import check_options

IMAGE = np.arange(90.0).reshape(9, 10)


def example(
    *,
    size: Annotated[int, Ge(3)] = 3,
    share: Annotated[float, Gt(0), Le(1)] = 1.0,
    kind: Literal["bright", "dark"] = "dark",
    area: Annotated[int, Ge(1)] | None = None,
    exact: bool = True,
    other: Any = None,
) -> None:
    """One of each kind."""


@given(st.integers(3, 2**40), st.floats(0, 1, exclude_min=True), st.sampled_from([None, 1, 2]))
def test_what_the_signature_allows_is_taken(size: int, share: float, area: int | None) -> None:
    check_options(example, size=size, share=share, kind="bright", area=area, exact=False, other=[None])
    check_options(example, size=np.int64(size), share=np.float64(share), exact=np.bool_(True), area=np.uint8(7))


@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"size": 2}, "example got size 2; allowed: a whole number from 3"),
        ({"size": np.int8(-3)}, "example got size -3; allowed: a whole number from 3"),
        ({"size": 3.0}, "got size 3.0; allowed: a whole number"),
        ({"size": True}, "got size True; allowed: a whole number"),
        ({"size": None}, "got size None; allowed: a whole number"),
        ({"size": [3, 3]}, "got size a list; allowed: a whole number"),
        ({"share": 0}, "got share 0; allowed: a number above 0 up to 1"),
        ({"share": np.nan}, "got share nan; allowed: a number above 0 up to 1"),
        ({"share": np.array([1.0])}, "got share a ndarray; allowed: a number"),
        ({"kind": "dak"}, "got kind 'dak'; allowed: bright, dark"),
        ({"kind": np.array(["dark"])}, "got kind a ndarray; allowed: bright, dark"),
        ({"area": 0}, "got area 0; allowed: a whole number from 1, or None"),
        ({"exact": "no"}, "got exact 'no'; allowed: True, False"),
        ({"exact": "n" * 99}, "got exact a str; allowed: True, False"),
    ],
)
def test_what_it_does_not_allow_is_one_line(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        check_options(example, **given)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ng.remove_spots(IMAGE, threshold=3, size=-3),  # a window of that size ended the process
        lambda: ng.remove_spots(IMAGE, threshold=3, size=1),
        lambda: ng.remove_spots(IMAGE, threshold="3"),
        lambda: ng.remove_spots(IMAGE, threshold=3, kind="brigth"),  # was taken for both
        lambda: ng.remove_spots(IMAGE, threshold=3, replacement="zero"),
        lambda: ng.scale_spectra(IMAGE, method="max"),  # was taken for mean
        lambda: ng.detect_spots(IMAGE, model=fit_knn(IMAGE, IMAGE > 80), replace="zero"),
        lambda: ng.predict_knn(IMAGE, fit_knn(IMAGE, IMAGE > 80), workers=0),
        lambda: ng.extract_spots(IMAGE, size=1, threshold=3),
        lambda: ng.add_spots(IMAGE, IMAGE, seed=-1),
        lambda: ng.compute_pixel_features(IMAGE, "x", smooth_sigma_px=1),
        lambda: ng.compute_pixel_features(IMAGE, ["smooth"], smooth_sigma_px=-1),
        lambda: ng.wavelength_of(np.arange(3.0), flight_path_m=0),
        lambda: ng.select_tof(IMAGE, first=0, last=99),
        lambda: ng.select_tof(IMAGE, first=-2, last=3),  # was empty
        lambda: ng.make_root_sample((32, 32), seed=1, n_plants=None),
        lambda: ng.make_root_sample((32, 32), seed=1, n_cracks=1.5),
        lambda: ng.make_root_sample((32, 32), seed=1, stem={}),
        lambda: ng.make_radiograph_sample((32, 32), seed=1, blur_pixels=None),
        lambda: ng.make_radiograph_frame((32, 32), seed=1, frame=1.5),
        lambda: ng.simulate_tof("run", height=32, width=32, occupancy=None),
        lambda: ng.draw_augmented(IMAGE, IMAGE > 80, settings=ng.Augmentation(), n_samples=-1),
        lambda: ng.evaluate_labels(IMAGE.astype(int), IMAGE.astype(int), no_data="x"),
        lambda: ng.evaluate_scores(IMAGE, IMAGE > 80, exact_pixels=None),
        lambda: ng.compute_pixel_features(IMAGE, []),
        lambda: ng.compute_pixel_features(IMAGE, [None]),
        lambda: ng.wavelength_of(None, flight_path_m=10),
        lambda: ng.overlap_correct(IMAGE, windows=None, shutter_counts=[5]),
        lambda: ng.overlap_correct(IMAGE, windows=[(0,)], shutter_counts=[5]),
        lambda: ng.overlap_correct(IMAGE, windows=[(0, 8)], shutter_counts=5),
        lambda: ng.rebin_tof(IMAGE, groups=[(0, 1)], mean=False),
    ],
)
def test_functions_hold_to_their_signatures(call: Callable[[], Any]) -> None:
    with pytest.raises(UserError, match="got .*(allowed|give)"):
        call()

"""The sample of pixels from which the report draws in what plane spots are told."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.backend import CPU
from niseg_gpu.knn_features import compute_features
from niseg_gpu.plane import Plane, sample_plane
from niseg_gpu.spots import plane_remove_spots, remove_spots


def plane_of(names: tuple[str, str], halo: int = 2) -> Plane:
    return Plane(names, lambda frame: compute_features(frame, names), halo)


@given(st.integers(1, 6), st.integers(5, 60), st.integers(5, 30), st.integers(1, 3000), st.integers(0, 2), st.data())
def test_a_sample_holds_what_the_whole_block_holds(n, height, width, pixels, border, data) -> None:
    stack = np.random.default_rng(0).permutation(n * height * width).reshape(n, height, width).astype(np.float32)
    block = stack[0] if data.draw(st.booleans()) else stack
    plane = plane_of(("value", "residual5"))
    own = slice(border, height - border), slice(border, width - border)
    inner = own if block.ndim == 2 else (slice(0, n), *own)
    sample = np.concatenate(sample_plane(block, plane, inner=inner, pixels=pixels))
    every = {tuple(row) for row in compute_features(block, plane.features)[..., own[0], own[1], :].reshape(-1, 2)}
    assert {tuple(row) for row in sample} <= every
    wide = width - 2 * border
    assert wide <= len(sample) <= max(pixels, 8 * wide)
    if block.ndim == 2 and height - 2 * border >= 8:
        assert len(np.unique(sample[:, 0])) == len(sample), "no pixel counts twice"


def test_an_empty_part_has_no_sample() -> None:
    block = np.zeros((1, 8, 8), np.float32)
    inner = slice(0, 1), slice(4, 4), slice(0, 8)
    assert sample_plane(block, plane_of(("value", "gradient")), inner=inner, pixels=10) == []


def test_the_threshold_parts_the_plane_as_the_step_parts_the_pixels() -> None:
    image = np.random.default_rng(1).poisson(100, (40, 50)).astype(np.uint16)
    image[5, 7], image[20, 30] = 500, 0
    for kind, sign in (("both", 1), ("bright", 1), ("dark", -1)):
        plane = plane_remove_spots(size=5, threshold=30, kind=kind)
        beyond = np.asarray(plane.compute(image))[..., 1] * sign > plane.threshold * sign
        np.testing.assert_array_equal(beyond, remove_spots(image, size=5, threshold=30, kind=kind)[1])
        assert plane.halo == 2 and plane.size == 5
    assert plane_remove_spots(threshold=5, threshold_unit="sigma").threshold is None
    assert plane_remove_spots(threshold=5, neighbourhood="volume") is None


def test_the_step_of_a_model_is_sampled_on_its_device() -> None:
    from niseg_gpu.knn import plane_detect_spots
    from niseg_gpu.knn_model import fit_knn

    image = np.random.default_rng(2).poisson(100, (20, 30)).astype(np.uint16)
    spots = image > 120
    two, three = (fit_knn(image, spots, features=f) for f in (("gradient", "value"), ("value", "residual", "gradient")))
    assert (
        plane_detect_spots(model=two).features == ("gradient", "value") and plane_detect_spots(model=two).model is two
    )
    plane = plane_detect_spots(model=three)
    assert plane.features == ("value", "abs_residual") and plane.model is None
    np.testing.assert_array_equal(CPU.to_host(plane.compute(image)), compute_features(image, plane.features))

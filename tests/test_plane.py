"""The sample of pixels from which the report draws in what plane spots are told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.backend import CPU
from niseg_gpu.knn_features import compute_features
from niseg_gpu.plane import Plane, choose_bands, sample_plane
from niseg_gpu.spots import plane_remove_spots, remove_spots


def plane_of(names: tuple[str, str], halo: int = 2) -> Plane:
    return Plane(names, lambda frame: compute_features(frame, names), halo)


@given(
    st.integers(1, 40),
    st.integers(1, 90),
    st.integers(1, 700),
    st.integers(1, 30_000),
    st.booleans(),
    st.integers(1, 5),
)
def test_a_sample_is_the_same_however_the_stack_is_cut(n, height, width, pixels, flat, parts) -> None:
    shape = (height, width) if flat else (n, height, width)
    bands = choose_bands(shape, pixels=pixels)
    assert len(set(bands)) == len(bands) and bands
    inside = sum(band.stop - band.start for band in bands) * width
    assert inside <= max(pixels, width * max(band.stop - band.start for band in bands))
    if pixels >= np.prod(shape):
        assert inside == np.prod(shape), "so few are all taken"
    stack = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    plane = Plane(("value", "residual"), lambda frame: np.stack([frame, frame], axis=-1), 2)

    def sample(axis: int) -> np.ndarray:
        found = [np.empty((0, 2))]
        for own in np.array_split(np.arange(shape[axis]), parts):
            if not own.size:
                continue
            low, high = max(0, own[0] - 3), own[-1] + 4  # with a border as a block's
            block = np.take(stack, range(low, min(high, shape[axis])), axis)
            inner = [slice(0, length) for length in block.shape]
            inner[axis] = slice(own[0] - low, own[-1] + 1 - low)
            begin = [0, 0]
            begin[0 if axis == 0 and not flat else 1] = int(own[0])
            found += sample_plane(block, plane, bands=bands, inner=tuple(inner), begin=tuple(begin))
        return np.sort(np.concatenate(found)[:, 0])

    expected = [stack.reshape(-1, height, width)[b.frame, b.start : b.stop].ravel() for b in bands]
    for axis in range(len(shape) - 1):
        np.testing.assert_array_equal(sample(axis), np.sort(np.concatenate(expected)))


@pytest.mark.parametrize("shape", [(512, 512, 512), (916, 512, 512), (100, 2048, 2048), (3000, 512, 512), (2048, 2048)])
def test_a_sample_is_spread_over_the_stack(shape: tuple[int, ...]) -> None:
    """Over the frames and within them, also where the number of frames is a multiple of that of bands."""
    bands = choose_bands(shape, pixels=1 << 20)
    assert 600_000 < sum(band.stop - band.start for band in bands) * shape[-1] <= 1 << 20
    frames, starts = ([band[i] for band in bands] for i in (0, 1))
    for numbers, n in ((frames, shape[0]), (starts, shape[-2]))[len(shape) == 2 :]:
        assert (np.histogram(numbers, bins=8, range=(0, n))[0] >= len(bands) // 16).all()


@given(st.integers(1, 6), st.integers(5, 60), st.integers(5, 30), st.integers(0, 2), st.data())
def test_a_sample_holds_what_the_whole_block_holds(n, height, width, border, data) -> None:
    stack = np.random.default_rng(0).permutation(n * height * width).reshape(n, height, width).astype(np.float32)
    block = stack[0] if data.draw(st.booleans()) else stack
    plane = plane_of(("value", "residual5"))
    own = slice(border, height - border), slice(border, width - border)
    inner = own if block.ndim == 2 else (slice(0, n), *own)
    bands = choose_bands(block.shape, pixels=data.draw(st.integers(1, 3000)))
    sample = np.concatenate(
        [np.empty((0, 2)), *sample_plane(block, plane, bands=bands, inner=inner, begin=(0, border))]
    )
    every = {tuple(row) for row in compute_features(block, plane.features)[..., own[0], own[1], :].reshape(-1, 2)}
    assert {tuple(row) for row in sample} <= every
    assert len(np.unique(sample[:, 0])) == len(sample), "no pixel counts twice"


def test_an_empty_part_has_no_sample() -> None:
    block, bands = np.zeros((1, 8, 8), np.float32), choose_bands((1, 8, 8), pixels=10)
    inner = slice(0, 1), slice(4, 4), slice(0, 8)
    assert sample_plane(block, plane_of(("value", "gradient")), bands=bands, inner=inner, begin=(0, 4)) == []


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

"""Sums by label on both devices, and sums of images in any order."""

from __future__ import annotations

import math

import array_api_strict
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.backend import CPU
from niseg_gpu.kernels.sums import sum_by_label_cpu, sum_by_label_xp


@given(hnp.arrays(np.float32, (30, 7), elements=st.floats(-1e3, 1e3, width=32)), st.integers(1, 5))
def test_sums_by_label_agree(rows, n_labels) -> None:
    labels = (np.arange(30, dtype=np.int32) * 7) % n_labels
    expected = np.stack([rows[labels == k].sum(0, dtype=float) for k in range(n_labels)])
    on_device = [array_api_strict.asarray(a, device=array_api_strict.Device("CPU_DEVICE")) for a in (rows, labels)]
    for found in (
        sum_by_label_cpu(rows, labels, n_labels=n_labels),
        sum_by_label_xp(rows, labels, xp=np, n_labels=n_labels, block=7),
        sum_by_label_xp(*on_device, xp=array_api_strict, n_labels=n_labels, block=30),
    ):
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12, atol=1e-9)


# 24 bits each, spread over 60: more than a float64 sum holds
COUNTS = st.builds(lambda bits, down: bits * 2.0**-down, st.integers(-(2**24), 2**24), st.integers(0, 60))


@given(
    parts=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.just(2), st.integers(1, 3)),
        elements=COUNTS,
    ),
    order=st.randoms(use_true_random=False),
)
def test_images_add_up_to_the_same_bits_in_any_order(parts, order) -> None:
    sums = []
    for numbers in (range(len(parts)), order.sample(range(len(parts)), len(parts))):
        total, rest = np.zeros(parts.shape[1:]), np.zeros(parts.shape[1:])
        for i in numbers:
            CPU.add_exactly(total, rest, parts[i])
        sums.append(total + rest)
    exact = [math.fsum(map(float, pixel)) for pixel in parts.reshape(len(parts), -1).T]
    np.testing.assert_array_equal(sums[0].ravel(), exact)
    np.testing.assert_array_equal(sums[1], sums[0])


VALUES = st.builds(lambda bits, down: bits * 2.0**-down, st.integers(-(2**24), 2**24), st.integers(0, 20))


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=7), elements=VALUES), st.data())
def test_frames_add_up_to_the_same_bits_however_they_are_cut(frames, data) -> None:
    whole = CPU.sum_frames(frames)
    exact = [math.fsum(map(float, pixel)) for pixel in frames.reshape(len(frames), -1).T]
    np.testing.assert_array_equal(whole.ravel(), exact)
    cut = data.draw(st.integers(0, len(frames)))
    parts = [CPU.sum_frames(part) for part in (frames[:cut], frames[cut:])]
    np.testing.assert_array_equal(parts[0] + parts[1], whole)
    np.testing.assert_array_equal(CPU.sum_frames(frames[:, 1:, ::2]), whole[1:, ::2])
    half = np.clip(frames, -1000, 1000).astype(np.float16)
    np.testing.assert_array_equal(CPU.sum_frames(half), CPU.sum_frames(half.astype(np.float32)))

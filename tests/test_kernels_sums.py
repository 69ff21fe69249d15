"""Sums by label on both devices."""

from __future__ import annotations

import array_api_strict
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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

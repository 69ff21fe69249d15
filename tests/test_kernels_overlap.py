"""The overlap correction of both devices, against its formula."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.kernels.overlap import correct_window_cpu, correct_window_xp


@given(
    hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.integers(0, 500)),
    st.integers(1, 1000),
)
def test_overlap_kernels_agree_with_the_formula(counts, triggers) -> None:
    first, last = len(counts) // 3, len(counts) - 1
    earlier = np.cumsum(counts[first:], axis=0, dtype=float) - counts[first:]
    live = np.maximum(1 - earlier / triggers, 1 / triggers)
    expected = counts[first:] / live
    window = {"first": first, "last": last, "triggers": triggers, "scale": 1.0}
    for correct in (correct_window_cpu, lambda *a, **k: correct_window_xp(*a, xp=np, **k)):
        out = np.zeros(counts.shape, np.float32)
        spent = correct(counts, out, **window)
        # 1 - P loses digits in float32 as P nears 1
        np.testing.assert_allclose(out[first:], expected, rtol=1e-6 * triggers + 1e-5)
        assert (out[:first] == 0).all()
        assert spent.shape == counts.shape[1:]


def test_the_gpus_overlap_runs_on_a_strict_array_api() -> None:
    xp, counts = array_api_strict, np.random.default_rng(0).integers(0, 9, (12, 4, 5)).astype(np.uint16)
    expected, window = np.zeros(counts.shape, np.float32), {"first": 2, "last": 10, "triggers": 100, "scale": 0.01}
    correct_window_cpu(counts, expected, **window)
    device = xp.Device("device1")  # reading it as a NumPy array raises, as CuPy's do
    out = xp.zeros(counts.shape, dtype=xp.float32, device=device)
    correct_window_xp(xp.asarray(counts, device=device), out, xp=xp, **window)
    with pytest.raises(RuntimeError):
        np.asarray(out)
    np.testing.assert_allclose(np.asarray(out.to_device(xp.Device("CPU_DEVICE"))), expected, rtol=1e-6)

"""Drawing of starting centroids."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.kmeans import seeding


@given(st.integers(1, 400), st.integers(1, 9), st.integers(0, 2**31), st.floats(0, 1))
def test_a_piece_at_a_time_draws_what_the_whole_running_sum_draws(n: int, piece: int, seed: int, zeros: float) -> None:
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random(n) < zeros, 0, rng.gamma(0.3, 1e3, n)).astype(np.float32)
    uniform = np.concatenate([rng.random(20), [0.0, np.nextafter(1.0, 0.0)]])
    whole = np.cumsum(weights, dtype=np.float64)
    expected = np.minimum(np.searchsorted(whole, uniform * whole[-1]), n - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seeding, "PIECE", piece)
        np.testing.assert_array_equal(seeding.draw_by_weight(weights, uniform), expected)

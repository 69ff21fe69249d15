"""Frames to spectra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.backend import CPU


@pytest.mark.parametrize(
    "dtype, kept", [("float32", "float32"), ("float16", "float32"), ("int16", "float32"), ("uint16", "uint16")]
)
@given(st.data())
def test_writing_spectra_is_a_transpose(dtype, kept, data) -> None:
    bins, pixels = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 300))
    block = np.random.default_rng(0).integers(0, 30_000, (bins, pixels)).astype(dtype)
    for rows in (np.zeros((pixels, bins), kept), np.zeros((pixels, bins + 3), kept)[:, 1:-2]):
        CPU.write_spectra(block, rows)
        np.testing.assert_array_equal(rows, block.T)

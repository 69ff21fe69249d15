"""Transmission, against its formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu.backend import CPU
from niseg_gpu.findings import collect
from niseg_gpu.transmission import normalize

frames = hnp.arrays(np.uint16, (3, 4, 5), elements=st.integers(0, 60_000))


@given(
    frames, hnp.arrays(np.float32, (4, 5), elements=st.sampled_from([0.0, 0.5, 99.0, 100.0, 101.0, 6e4])), st.booleans()
)
def test_normalization_is_the_formula(sample, open_beam, with_dark) -> None:
    dark = np.full((4, 5), 100, np.float32) if with_dark else None
    with collect() as tally:
        found = normalize(sample, open_beam=open_beam, dark=dark)
    below = 100.0 if with_dark else 0.0
    lit = open_beam.astype(float) - below > 0
    expected = np.where(lit, (sample - below) / np.where(lit, open_beam - below, 1), np.nan)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert sum(int(n) for n in tally.values()) == 3 * int((~lit).sum())


def test_dose_and_attenuation() -> None:
    sample = np.full((2, 3, 3), 50.0, np.float32)
    sample[1] = 25
    dose = np.array([1.0, 2.0], np.float32)
    transmission = normalize(sample, open_beam=np.full((3, 3), 100.0, np.float32), dose=dose)
    np.testing.assert_allclose(transmission, 0.5)
    sample[0, 0, 0] = 0
    with collect() as tally:
        log = normalize(sample, open_beam=np.full((3, 3), 100.0, np.float32), dose=dose, minus_log=True)
    assert np.isnan(log[0, 0, 0]) and int(tally["values of no positive transmission (NaN)"]) == 1
    np.testing.assert_allclose(log[1], np.log(2), rtol=1e-6)


def test_open_beam_bin_by_bin() -> None:
    beam = np.random.default_rng(0).uniform(10, 20, (5, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(normalize(beam * 0.3, open_beam=beam), 0.3, rtol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, xp: normalize(a, open_beam=a[0, ...] + 1, dark=a[1, ...], minus_log=True),
        lambda a, xp: normalize(a, open_beam=a + 1, dose=xp.asarray([1.0, 2, 3, 4], dtype=xp.float32)),
    ],
)
def test_methods_keep_to_the_array_standard(strict, call) -> None:
    values = np.random.default_rng(0).uniform(1, 9, (4, 3, 2)).astype(np.float32)
    found = call(strict.asarray(values), strict)
    assert found.dtype == strict.float32
    np.testing.assert_allclose(np.asarray(found), call(values, CPU.xp), rtol=1e-5, equal_nan=True)

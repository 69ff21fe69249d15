"""Overlap correction, normalization, scaling of spectra, against their formulas in float64."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu import correct
from niseg_gpu.backend import CPU, TWINS, Cpu
from niseg_gpu.errors import UserError
from niseg_gpu.findings import collect


class Strict(Cpu):
    """NumPy's values behind the strict array API: what a method calls must be in the standard."""

    xp = array_api_strict


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch):
    """Namespace whose arrays the methods take as those of a third device."""
    monkeypatch.setitem(TWINS, "array_api_strict", Strict())
    return array_api_strict


def reference_overlap(counts: np.ndarray, windows, shutter_counts) -> np.ndarray:
    out = np.zeros(counts.shape)
    for (first, last), triggers in zip(windows, shutter_counts, strict=True):
        for i in range(first, last + 1):
            out[i] = counts[i] / (1 - counts[first:i].sum(0) / triggers)
    return out


def test_overlap_correction_is_the_formula_window_by_window(backend) -> None:
    counts = np.random.default_rng(0).poisson(20, (30, 5, 6)).astype(np.int16)
    windows, triggers = [(0, 9), (10, 11), (12, 29)], [2000, 1500, 1800]
    on_device = backend.from_host(counts)
    found = backend.to_host(correct.overlap_correct(on_device, windows=windows, shutter_counts=triggers))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference_overlap(counts, windows, triggers), rtol=1e-5)
    rate = correct.overlap_correct(on_device, windows=windows, shutter_counts=triggers, per_trigger=True)
    np.testing.assert_allclose(backend.to_host(rate)[12:] * 1800, found[12:], rtol=1e-6)


@pytest.mark.parametrize(
    ("windows", "triggers", "complaint"),
    [
        ([(0, 2), (4, 5)], [10, 10], "needed: windows one after another that have all bins, 0 to 5"),
        ([(0, 2), (2, 5)], [10, 10], "of the bins 0 to 2, 2 to 5"),
        ([(0, 4)], [10], "of the bins 0 to 4"),
        ([(0, 6)], [10], "of the bins 0 to 6"),
        ([(1, 5)], [10], "of the bins 1 to 5"),
        ([(0, 5), (6, 5)], [10, 10], "of the bins 0 to 5, 6 to 5"),
        ([], [], "of the bins none"),
        ([(0, 2), (3, 5)], [10], "needed: a number above 0 for each"),
        ([(0, 5)], [0], "needed: a number above 0 for each"),
    ],
)
def test_windows_that_are_not_all_bins_are_refused(windows, triggers, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        correct.overlap_correct(np.ones((6, 2, 2), np.int16), windows=windows, shutter_counts=triggers)


def test_a_pixel_that_fired_in_every_trigger_is_held_and_counted() -> None:
    counts = np.full((4, 1, 2), 10, np.uint16)
    counts[:, 0, 1] = 1
    with collect() as tally:
        found = correct.overlap_correct(counts, windows=[(0, 3)], shutter_counts=[20])
    assert np.isfinite(found).all() and (found > 0).all()
    np.testing.assert_allclose(found[:, 0, 0], [10, 20, 200, 200], rtol=1e-5)
    assert [int(n) for n in tally.values()] == [2]


floats = st.floats(-1e4, 1e4, width=32)
frames = hnp.arrays(np.uint16, (3, 4, 5), elements=st.integers(0, 60_000))


@given(
    frames, hnp.arrays(np.float32, (4, 5), elements=st.sampled_from([0.0, 0.5, 99.0, 100.0, 101.0, 6e4])), st.booleans()
)
def test_normalization_is_the_formula(sample, open_beam, with_dark) -> None:
    dark = np.full((4, 5), 100, np.float32) if with_dark else None
    with collect() as tally:
        found = correct.normalize(sample, open_beam=open_beam, dark=dark)
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
    transmission = correct.normalize(sample, open_beam=np.full((3, 3), 100.0, np.float32), dose=dose)
    np.testing.assert_allclose(transmission, 0.5)
    sample[0, 0, 0] = 0
    with collect() as tally:
        log = correct.normalize(sample, open_beam=np.full((3, 3), 100.0, np.float32), dose=dose, minus_log=True)
    assert np.isnan(log[0, 0, 0]) and int(tally["values of no positive transmission (NaN)"]) == 1
    np.testing.assert_allclose(log[1], np.log(2), rtol=1e-6)


def test_open_beam_bin_by_bin() -> None:
    beam = np.random.default_rng(0).uniform(10, 20, (5, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(correct.normalize(beam * 0.3, open_beam=beam), 0.3, rtol=1e-6)


@given(hnp.arrays(np.float32, (6, 2, 3), elements=st.sampled_from([0.0, 0.5, 3.0, 999.0])))
def test_scaled_spectra_have_mean_one_or_are_nan(spectra) -> None:
    found = correct.scale_spectra(spectra)
    dead = spectra.mean(0, dtype=np.float32) == 0
    assert (np.isnan(found).all(0) == dead).all()
    np.testing.assert_allclose(found[:, ~dead].mean(0), 1, rtol=1e-5)


def test_standardised_spectra() -> None:
    spectra = np.random.default_rng(0).normal(500, 30, (200, 4, 4)).astype(np.float32)
    found = correct.scale_spectra(spectra, method="standard")
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, xp: correct.normalize(a, open_beam=a[0, ...] + 1, dark=a[1, ...], minus_log=True),
        lambda a, xp: correct.normalize(a, open_beam=a + 1, dose=xp.asarray([1.0, 2, 3, 4], dtype=xp.float32)),
        lambda a, xp: correct.scale_spectra(a),
        lambda a, xp: correct.scale_spectra(a, method="standard"),
    ],
)
def test_methods_keep_to_the_array_standard(strict, call) -> None:
    values = np.random.default_rng(0).uniform(1, 9, (4, 3, 2)).astype(np.float32)
    found = call(strict.asarray(values), strict)
    assert found.dtype == strict.float32
    np.testing.assert_allclose(np.asarray(found), call(values, CPU.xp), rtol=1e-5, equal_nan=True)

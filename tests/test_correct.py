"""Overlap correction and scaling of spectra, against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from niseg_gpu import correct
from niseg_gpu.backend import CPU
from niseg_gpu.errors import UserError
from niseg_gpu.findings import collect


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
        lambda a, xp: correct.scale_spectra(a),
        lambda a, xp: correct.scale_spectra(a, method="standard"),
    ],
)
def test_methods_keep_to_the_array_standard(strict, call) -> None:
    values = np.random.default_rng(0).uniform(1, 9, (4, 3, 2)).astype(np.float32)
    found = call(strict.asarray(values), strict)
    assert found.dtype == strict.float32
    np.testing.assert_allclose(np.asarray(found), call(values, CPU.xp), rtol=1e-5, equal_nan=True)

"""Spectra as a picture: gaps between shutter windows, and axes that need not be regular."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.figures_spectra import draw_spectra, find_gaps, level_bins


@given(st.lists(st.tuples(st.integers(2, 20), st.floats(0.2, 5)), min_size=1, max_size=6))
def test_gaps_are_found_between_windows_of_any_bin_width(windows):
    tof, borders, start = [], [], 0.0
    for n_bins, width in windows:
        if tof:
            borders.append(len(tof) - 1)
        tof += list(start + width * np.arange(n_bins))
        start = tof[-1] + width + 20  # longer than any bin
    if len(tof) > 3 and all(n_bins > 2 for n_bins, _ in windows):
        assert find_gaps(np.array(tof)).tolist() == borders


def test_a_change_of_bin_width_is_no_gap():
    assert find_gaps(np.cumsum(np.r_[np.full(10, 1.0), np.full(10, 4.0)])).size == 0
    assert find_gaps(np.arange(2.0)).size == 0


def test_a_narrow_bin_hides_no_gap_where_widths_are_known():
    width = np.array([5.0, 5, 1, 5, 5, 5])
    tof = np.cumsum(np.r_[0, width[:-1]]) + np.array([0, 0, 0, 3, 3, 3])
    assert find_gaps(tof).size == 0 and find_gaps(tof, width).tolist() == [2]
    assert find_gaps(np.cumsum(np.r_[0, width[:-1]]), width).size == 0
    spectra = np.arange(12.0).reshape(2, 6)
    drawn = [draw_spectra(spectra, tof_s=tof, tof_width_s=w, label="counts").light for w in (None, width)]
    assert drawn[0] != drawn[1]


def test_gaps_of_a_measured_run(data_dir):
    (path,) = (data_dir / "tof_mcp_crop").glob("*_Spectra.txt")
    assert find_gaps(np.loadtxt(path)[:, 0]).tolist() == [126, 431, 644]


@pytest.mark.parametrize(("k", "n_bins"), [(1, 2), (12, 50), (13, 3)])
def test_spectra_are_drawn_with_nan_without_tof_and_with_wavelength(k, n_bins):
    spectra = np.ones((k, n_bins))
    spectra[0] = np.nan
    plain = draw_spectra(spectra, tof_s=None if k > 1 else np.zeros(n_bins), label="counts")
    tof = np.arange(n_bins) * 1e-5
    with_axis = draw_spectra(spectra, tof_s=tof, wavelength=1 + tof, label="counts")
    assert with_axis.height > plain.height and plain.light.startswith(b"\x89PNG")


def test_counts_of_bins_of_other_widths_are_levelled():
    width = np.array([2.0, 2.0, 1.0, 2.0, 4.0])
    spectra = np.array([[10.0, 10, 5, 10, 20], [2, 4, 6, 8, np.nan]])
    levelled, common = level_bins(spectra, width)
    assert common == 2.0
    np.testing.assert_array_equal(levelled, [[10, 10, 10, 10, 10], [2, 4, 12, 8, np.nan]])
    for known in (None, np.ones(4), np.zeros(5), np.array([1, 1, 1, 1, 1.005])):
        same, common = level_bins(spectra, known)
        assert same is spectra and common is None

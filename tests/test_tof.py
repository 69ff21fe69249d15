"""Choosing and joining ToF bins, wavelength."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu import tof
from niseg_gpu.errors import UserError
from niseg_gpu.stack import StackInfo


def run_info(n: int = 10, **attrs) -> StackInfo:
    width = np.full(n, 1e-5)
    coords = {"tof": 1e-3 + np.arange(n) * 1e-5, "tof_width": width}
    return StackInfo(("tof", "y", "x"), (n, 2, 3), np.dtype(np.uint16), coords, {"quantity": "counts", **attrs})


def before(info: StackInfo) -> SimpleNamespace:
    return SimpleNamespace(info=info)


def test_wavelength_of_a_thermal_neutron() -> None:
    # 2200 m/s is 1.798 Å by definition of the thermal neutron
    assert tof.wavelength_of(10 / 2200, flight_path_m=10) == pytest.approx(1.7982, abs=1e-4)
    assert tof.wavelength_of(0.0, flight_path_m=1, time_offset_s=1 / 3956.0340) == pytest.approx(1.0)


def test_wavelength_is_that_of_the_middle_of_the_bin() -> None:
    info = tof.describe_assign_wavelength(run_info(), flight_path_m=10.0, time_offset_s=1e-4)
    expected = 3956.0340 * (1e-3 + 0.5e-5 + 1e-4 + np.arange(10) * 1e-5) / 10
    np.testing.assert_allclose(info.coords["wavelength"], expected)


@pytest.mark.parametrize(
    "given_, expected",
    [
        ({"first": 2, "last": 5}, (2, 5)),
        ({"first": 7}, (7, 9)),
        ({"last": 0}, (0, 0)),
        ({"tof_s": (1.015e-3, 1.0501e-3)}, (2, 5)),
        ({"wavelength_angstrom": (0.413, 0.422)}, (4, 6)),
    ],
)
def test_bins_are_chosen_by_number_time_or_wavelength(given_, expected) -> None:
    info = tof.describe_assign_wavelength(run_info(), flight_path_m=10.0)
    state = tof.fit_select_tof(before(info), **given_)
    assert (state["first"], state["last"]) == expected
    stack = np.arange(60).reshape(10, 2, 3)
    kept = tof.select_tof(stack, **state)
    after = tof.describe_select_tof(info, **state)
    assert kept.shape == after.shape
    np.testing.assert_array_equal(after.coords["tof"], info.coords["tof"][expected[0] : expected[1] + 1])
    np.testing.assert_array_equal(kept, stack[expected[0] : expected[1] + 1])


@pytest.mark.parametrize(
    "given_, message",
    [
        ({}, "one of: first and last, tof_s, wavelength_angstrom"),
        ({"first": 1, "tof_s": (0, 1)}, "one of"),
        ({"first": 3, "last": 10}, "first 3 and last 10; allowed: 0 <= first <= last <= 9"),
        ({"tof_s": (2.0, 3.0)}, "no bin lies there; the run has 0.001 to 0.00109 s"),
        ({"wavelength_angstrom": (1.0, 2.0)}, "needs assign_wavelength before it"),
    ],
)
def test_a_wrong_choice_is_told(given_, message) -> None:
    with pytest.raises(UserError, match=message):
        tof.fit_select_tof(before(run_info()), **given_)


@given(st.integers(1, 23), st.integers(1, 23), st.sampled_from([np.uint16, np.int16, np.float32]))
def test_rebinning_by_a_factor_conserves_counts(n, factor, dtype) -> None:
    info = run_info(n)
    factor = min(factor, n)
    stack = np.random.default_rng(n * 31 + factor).integers(0, 1000, info.shape).astype(dtype)
    state = tof.fit_rebin_tof(before(info), factor=factor)
    out, after = tof.rebin_tof(stack, **state), tof.describe_rebin_tof(info, **state)
    left = n % factor
    assert out.shape == after.shape == (n // factor + (2 * left >= factor), 2, 3)
    assert out.sum(dtype=float) == stack.sum(dtype=float)
    assert np.isclose(after.coords["tof_width"].sum(), info.coords["tof_width"].sum())
    np.testing.assert_array_equal(after.coords["tof"], info.coords["tof"][::factor][: len(out)])
    mean = tof.rebin_tof(stack, groups=state["groups"], mean=True)
    np.testing.assert_allclose(mean[0], stack[: state["groups"][0].last + 1].mean(0, dtype=float), rtol=1e-6)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 12))
def test_what_is_left_of_a_window_joins_the_bin_before_or_is_half_of_one(sizes, factor) -> None:
    n, ends = sum(sizes), np.cumsum(sizes)
    factor = min(factor, n)
    info = run_info(n, shutter_windows=[[int(b - a), int(b - 1)] for a, b in zip(sizes, ends, strict=True)])
    info = tof.describe_assign_wavelength(info, flight_path_m=10.0)
    state = tof.fit_rebin_tof(before(info), factor=factor)
    groups = state["groups"]
    assert [i for g in groups for i in range(g.first, g.last + 1)] == list(range(n))
    windows = [np.searchsorted(ends, [g.first, g.last], side="right") for g in groups]
    assert all(a == b for a, b in windows), "none is joined over a closed shutter"
    for size, end in zip(sizes, ends, strict=True):
        found = [g.last - g.first + 1 for g in groups if end - size <= g.first < end]
        assert found[:-1] == [factor] * (len(found) - 1)
        assert factor <= 2 * found[-1] < 3 * factor or found == [size]
    after = tof.describe_rebin_tof(info, **state)
    for i, g in enumerate(groups):
        bins = slice(g.first, g.last + 1)
        assert after.coords["tof"][i] == info.coords["tof"][g.first]
        assert np.isclose(after.coords["tof_width"][i], info.coords["tof_width"][bins].sum())
        assert np.isclose(after.coords["wavelength"][i], info.coords["wavelength"][bins].mean())


def test_few_counts_at_the_end_of_a_window_do_not_raise_the_transmission() -> None:
    rng = np.random.default_rng(0)
    sample, beam = rng.poisson(8, (2, 26, 60, 60)).astype(np.uint16)
    state = tof.fit_rebin_tof(before(run_info(26)), factor=5)
    transmission = np.mean(tof.rebin_tof(sample, **state) / tof.rebin_tof(beam, **state), axis=(1, 2))
    assert transmission.max() < 1.04  # the last raw bin alone: 1.18


@given(st.lists(st.floats(1e-3, 1.1e-3), min_size=0, max_size=5, unique=True))
def test_rebinning_by_edges_shares_cut_bins_by_time(inner) -> None:
    info = run_info()
    edges = sorted({1e-3 - 1e-9, *(e for e in inner if 1.0001e-3 < e < 1.0999e-3), 1.1e-3 + 1e-9})
    if any(b - a < 1e-7 for a, b in zip(edges, edges[1:], strict=False)):
        return
    stack = np.random.default_rng(0).integers(0, 1000, info.shape).astype(np.float32)
    state = tof.fit_rebin_tof(before(info), edges_s=edges)
    out, after = tof.rebin_tof(stack, **state), tof.describe_rebin_tof(info, **state)
    np.testing.assert_allclose(out.sum(dtype=float), stack.sum(dtype=float), rtol=1e-5)
    start, end = info.coords["tof"], info.coords["tof"] + 1e-5
    for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        share = np.clip((np.minimum(end, high) - np.maximum(start, low)) / 1e-5, 0, 1)
        np.testing.assert_allclose(out[i], (stack * share[:, None, None]).sum(0), rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(after.coords["tof"], np.maximum(edges[:-1], 1e-3), rtol=1e-6)


def test_transmission_is_averaged_and_counts_are_summed() -> None:
    for quantity, mean in (("counts", False), ("counts per trigger", False), ("transmission", True), ("scaled", True)):
        state = tof.fit_rebin_tof(before(run_info(quantity=quantity)), factor=3)
        assert state["mean"] is mean, quantity


@pytest.mark.parametrize("known", ["by the time axis", "by the windows"])
def test_no_bin_is_joined_over_a_closed_shutter(known) -> None:
    info = run_info() if known == "by the time axis" else run_info(shutter_windows=[[0, 4], [5, 9]])
    if known == "by the time axis":
        start = np.array(info.coords["tof"])
        start[5:] += 1e-3
        info = info.with_(coords={**info.coords, "tof": start})
    state = tof.fit_rebin_tof(before(info), factor=4)
    after = tof.describe_rebin_tof(info, **state)
    assert [(g.first, g.last) for g in state["groups"]] == [(0, 4), (5, 9)]
    np.testing.assert_allclose(after.coords["tof_width"], [5e-5, 5e-5])
    np.testing.assert_array_equal(after.coords["tof"], info.coords["tof"][[0, 5]])
    narrow = tof.fit_rebin_tof(before(info), factor=3)
    assert [(g.first, g.last) for g in narrow["groups"]] == [(0, 2), (3, 4), (5, 7), (8, 9)]
    stack = np.random.default_rng(0).integers(0, 1000, info.shape).astype(np.uint16)
    assert tof.rebin_tof(stack, **state).sum(dtype=float) == stack.sum(dtype=float)
    few = info.with_(shape=(3, *info.shape[1:]), coords={name: axis[:3] for name, axis in info.coords.items()})
    assert [(g.first, g.last) for g in tof.fit_rebin_tof(before(few), factor=2)["groups"]] == [(0, 1), (2, 2)]
    by_time = tof.fit_rebin_tof(before(info), edges_s=[info.coords["tof"][3], info.coords["tof"][6]])
    assert [(g.first, g.last) for g in by_time["groups"]] == [(3, 5)]  # edges are what was asked for


@pytest.mark.parametrize(
    "given_, message",
    [
        ({}, "one of: factor, edges_s"),
        ({"factor": 11}, "factor 11; allowed: 1 to the number of bins, 10"),
        ({"edges_s": [1, 2]}, "no data between the edges 1 and 2 s"),
        ({"edges_s": [2, 1]}, "growing"),
    ],
)
def test_a_wrong_rebinning_is_told(given_, message) -> None:
    with pytest.raises(UserError, match=message):
        tof.fit_rebin_tof(before(run_info()), **given_)


def test_an_offset_that_leaves_no_time_of_flight_is_refused() -> None:
    info = run_info()
    last = float(info.coords["tof"][-1])
    with pytest.raises(UserError, match="time_offset_s -1, but the last bin is at .* wavelengths would be negative"):
        tof.describe_assign_wavelength(info, flight_path_m=8, time_offset_s=-1)
    assert tof.describe_assign_wavelength(info, flight_path_m=8, time_offset_s=-last).coords["wavelength"][-1] > 0


@pytest.mark.parametrize("given_", [{"flight_path_m": np.inf}, {"flight_path_m": 8, "time_offset_s": np.nan}])
def test_a_flight_path_without_end_is_refused(given_) -> None:
    with pytest.raises(UserError, match="assign_wavelength got .* allowed: a finite number"):
        tof.describe_assign_wavelength(run_info(), **given_)


def test_without_tof_the_step_says_so() -> None:
    info = StackInfo(("angle", "y", "x"), (3, 2, 2), np.dtype(np.uint16))
    for fit in (tof.fit_select_tof, tof.fit_rebin_tof):
        with pytest.raises(UserError, match="needs a ToF axis"):
            fit(before(info), **({"first": 1} if fit is tof.fit_select_tof else {"factor": 2}))


def test_the_shutter_windows_do_not_outlive_the_bins_they_number() -> None:
    info = run_info(shutter_windows=[[0, 9]], shutter_counts=[10], bin_triggers=list(range(10)))
    for after in (
        tof.describe_select_tof(info, first=1, last=3),
        tof.describe_rebin_tof(info, groups=[tof.Group(0, 4), tof.Group(5, 9)], mean=False),
    ):
        assert "shutter_windows" not in after.attrs
        assert len(after.attrs["bin_triggers"]) == after.shape[0]

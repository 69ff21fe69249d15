"""When an MCP detector counts: ToF bins in shutter windows, in whole ticks of its clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.tof import PLANCK_OVER_NEUTRON_MASS, wavelength_of

CLOCK_TICK_S = 1e-8

# Between two shutter windows the chips are read out and see nothing.
READOUT_S = 320e-6

MAX_WINDOWS = 256


@dataclass(frozen=True)
class Timing:
    """ToF bins of one run.

    Attributes
    ----------
    start_ticks : (N,) ndarray of int64
        Start of each bin in ticks of 10 ns; a gap between windows shows as a jump.
    bin_ticks : int
        Width of a bin.
    window_bins : tuple of (first, stop)
        Bins of each shutter window.
    flight_path_m : float
        From the source to the detector.
    time_offset_s : float
        Time of flight is this much longer than what the detector's clock says.
    """

    start_ticks: np.ndarray
    bin_ticks: int
    window_bins: tuple[tuple[int, int], ...]
    flight_path_m: float
    time_offset_s: float

    @property
    def tof_s(self) -> np.ndarray:
        """Start of each bin in s."""
        return self.start_ticks * CLOCK_TICK_S

    @property
    def bin_width_s(self) -> float:
        return self.bin_ticks * CLOCK_TICK_S

    @property
    def wavelength_angstrom(self) -> np.ndarray:
        """Wavelength at the middle of each bin in Å."""
        middle_s = (self.start_ticks + 0.5 * self.bin_ticks) * CLOCK_TICK_S
        return wavelength_of(middle_s, flight_path_m=self.flight_path_m, time_offset_s=self.time_offset_s)

    @property
    def bin_width_angstrom(self) -> float:
        return float(wavelength_of(np.float64(self.bin_width_s), flight_path_m=self.flight_path_m))

    @property
    def windows_s(self) -> list[tuple[float, float]]:
        """Start and stop of each shutter window in s."""
        starts, width = self.start_ticks, self.bin_ticks
        return [(starts[a] * CLOCK_TICK_S, (starts[b - 1] + width) * CLOCK_TICK_S) for a, b in self.window_bins]


def compute_spectrum(wavelength_angstrom: np.ndarray, *, moderator_k: float = 80.0) -> np.ndarray:
    """Return flux per wavelength of a cold moderator, a Maxwellian and an epithermal 1/wavelength tail.

    Parameters
    ----------
    wavelength_angstrom : ndarray
        Å.
    moderator_k : float, optional
        Temperature of the Maxwellian in K.

    Returns
    -------
    ndarray of float64
        Arbitrary units, 1 at the peak of the Maxwellian.
    """
    # h² / (2 m_n k_B) = 949.3 K Å²
    thermal_squared = 949.3 / moderator_k
    peak_squared = 0.4 * thermal_squared
    x = wavelength_angstrom**2 / peak_squared
    return x**-2.5 * np.exp(2.5 - thermal_squared / wavelength_angstrom**2) + 0.05 / wavelength_angstrom


def plan_timing(
    *,
    n_bins: int,
    shutters: int | Sequence[int],
    wavelength_range: tuple[float, float],
    flight_path_m: float,
    time_offset_s: float = 0.0,
) -> Timing:
    """Spread the bins over a wavelength range, with a read-out gap between shutter windows.

    Parameters
    ----------
    n_bins : int
        ToF bins in all.
    shutters : int or sequence of int
        Number of windows, sized so that the open beam counts alike in each as one does at a beamline; or the bins of
        each window.
    wavelength_range : (float, float)
        First and last wavelength in Å.
    flight_path_m : float
        From the source to the detector.
    time_offset_s : float, optional
        Added to the detector's time to get the time of flight: positive where neutrons start before the trigger.
    """
    start_s, stop_s = (w * flight_path_m / PLANCK_OVER_NEUTRON_MASS - time_offset_s for w in wavelength_range)
    if start_s < 0:
        raise UserError(
            f"time_offset_s={time_offset_s:g} puts the first bin at {start_s:g} s, before the trigger; give less, or a "
            "longer first wavelength or flight path"
        )
    start, stop, gap = (round(t / CLOCK_TICK_S) for t in (start_s, stop_s, READOUT_S))
    sizes = _split_bins(n_bins, shutters, wavelength_range)
    bin_ticks = (stop - start - gap * (len(sizes) - 1)) // n_bins
    if bin_ticks < 1:
        raise UserError(
            f"no room for {n_bins} bins and {len(sizes)} shutter windows between {wavelength_range[0]:g} and "
            f"{wavelength_range[1]:g} Å at {flight_path_m:g} m; widen wavelength_range or take fewer bins or shutters"
        )
    window = np.repeat(np.arange(len(sizes)), sizes)
    stops = np.cumsum(sizes).tolist()
    window_bins = tuple(zip([0, *stops[:-1]], stops, strict=True))
    return Timing(
        start + np.arange(n_bins) * bin_ticks + window * gap, bin_ticks, window_bins, flight_path_m, time_offset_s
    )


def _split_bins(n_bins: int, shutters: int | Sequence[int], wavelength_range: tuple[float, float]) -> list[int]:
    if isinstance(shutters, int):
        if not 1 <= shutters <= min(n_bins, MAX_WINDOWS):
            raise UserError(f"shutters={shutters}; give 1 to {min(n_bins, MAX_WINDOWS)} windows for {n_bins} bins")
        flux = compute_spectrum(np.linspace(*wavelength_range, n_bins))
        shares = np.cumsum(flux) / flux.sum()
        stops = np.searchsorted(shares, np.arange(1, shutters) / shutters) + 1
        # Every window keeps at least one bin, however steep the spectrum.
        for i in range(shutters - 1):
            stops[i] = min(max(stops[i], stops[i - 1] + 1 if i else 1), n_bins - (shutters - 1 - i))
        return np.diff([0, *stops, n_bins]).tolist()
    sizes = [int(size) for size in shutters]
    if not 1 <= len(sizes) <= MAX_WINDOWS or min(sizes) < 1 or sum(sizes) != n_bins:
        raise UserError(
            f"shutters={sizes} has {sum(sizes)} bins in {len(sizes)} windows; "
            f"give 1 to {MAX_WINDOWS} windows of at least one bin that add up to n_bins={n_bins}"
        )
    return sizes

"""How an MCP detector counts: Poisson noise, pixels blind after a hit, spots, dead pixels."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from niseg_gpu.simulate.mcp_files import INT16_MAX, write_frame
from niseg_gpu.simulate.timing import Timing

# From this mean on Poisson numbers are drawn from a normal one with the skewness put back; see draw_poisson.
NORMAL_FROM = 30.0


@dataclass(frozen=True)
class Exposure:
    """One acquisition, of the sample or of the open beam.

    Attributes
    ----------
    folder : Path
        Where the frames go.
    stream : int
        Tells the random numbers of one acquisition from another's.
    timing : Timing
        Bins and windows.
    n_triggers : tuple of int
        Triggers of each window.
    rate : (N,) ndarray of float64
        Neutrons per trigger and bin that reach a pixel where ``profile`` is 1.
    profile : (Y, X) ndarray of float32
        Beam profile; 0 where the detector is dead.
    transmission : (N, K) ndarray of float32 or None
        Transmission of each sort of pixel; None without a sample.
    pixel_sort : (Y, X) ndarray of int or None
        Column of ``transmission`` that holds for the pixel.
    """

    folder: Path
    stream: int
    timing: Timing
    n_triggers: tuple[int, ...]
    rate: np.ndarray
    profile: np.ndarray
    transmission: np.ndarray | None
    pixel_sort: np.ndarray | None


@dataclass
class WindowCounts:
    """What one shutter window gave: counts of each frame, spots as (bin, y, x, amplitude), values clipped."""

    n_counts: list[int] = field(default_factory=list)
    spots: list[np.ndarray] = field(default_factory=list)
    n_clipped: int = 0


def draw_poisson(mean: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Draw Poisson counts, about four times as fast as NumPy where the mean is large.

    Below a mean of 30 NumPy's exact Poisson is used. Above it a normal number z gives
    ``floor(m + sqrt(m - 5/36) z + (z² - 1)/6 + 1/2)``, the first two terms of the Cornish-Fisher expansion: mean and
    variance are exactly m, and the largest error of the distribution function is below 0.0005.

    Parameters
    ----------
    mean : ndarray of float32
        Expected counts, not negative.
    rng : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    ndarray of float32
        Whole numbers, shaped as the mean.
    """
    few = mean < NORMAL_FROM
    if few.all():
        return rng.poisson(mean).astype(np.float32)
    z = rng.standard_normal(mean.shape, dtype=np.float32)
    counts = np.sqrt(np.maximum(mean, np.float32(1.0)) - np.float32(5 / 36))
    counts *= z
    counts += mean
    z *= z
    z -= np.float32(1.0)
    z *= np.float32(1 / 6)
    counts += z
    counts += np.float32(0.5)
    np.floor(counts, out=counts)
    counts[few] = rng.poisson(mean[few])
    return counts


def expose_window(
    exposure: Exposure,
    window: int,
    *,
    seed: int,
    overlap: bool,
    spots: float,
    spot_counts: tuple[float, float],
    stop: threading.Event,
) -> WindowCounts:
    """Simulate one shutter window bin by bin and write its frames.

    A pixel hit once in a trigger is blind until the window closes. So of the neutrons that reach it in a bin it
    expects to count the fraction ``1 - P``, with P its counts since the window opened per trigger; dividing by that is
    the standard correction (doi:10.1088/1748-0221/9/05/C05026). Hits within one and the same bin count in full.
    A spot counts as hits, too.

    Parameters
    ----------
    exposure : Exposure
        What is exposed.
    window : int
        Which shutter window.
    seed : int
        With the exposure's stream and the bin's number it fixes the random numbers of each bin.
    overlap : bool
        Whether hit pixels are blind.
    spots : float
        Expected fraction of the pixels that a spot strikes in each bin.
    spot_counts : (float, float)
        Counts of the faintest and the brightest spot; between them the number of spots falls as 1/amplitude².
    stop : threading.Event
        Set from outside to give up early.
    """
    timing, n_triggers = exposure.timing, exposure.n_triggers[window]
    hits = np.zeros(exposure.profile.shape, np.float32)
    result = WindowCounts()
    for i in range(*timing.window_bins[window]):
        if stop.is_set():
            break
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(exposure.stream, 1, i))))
        mean = exposure.profile * np.float32(exposure.rate[i] * n_triggers)
        if exposure.transmission is not None:
            mean *= exposure.transmission[i][exposure.pixel_sort]
        if overlap:
            mean *= np.float32(1.0) - hits / np.float32(n_triggers)
        counts = draw_poisson(mean, rng=rng)
        free = n_triggers - hits if overlap else None  # a pixel can't count more often than it is triggered
        if overlap:
            np.minimum(counts, free, out=counts)
        spot = _add_spots(counts, alive=exposure.profile > 0, free=free, spots=spots, spot_counts=spot_counts, rng=rng)
        result.spots.append(np.column_stack([np.full(len(spot), i), spot]))
        if overlap:
            hits += counts
        over = int(np.count_nonzero(counts > INT16_MAX))
        if over:
            result.n_clipped += over
            np.minimum(counts, np.float32(INT16_MAX), out=counts)
        frame = counts.astype(">i2")
        result.n_counts.append(int(counts.sum(dtype=np.float64)))
        write_frame(
            exposure.folder / f"run_{i:05d}.fits",
            frame,
            tof_s=timing.tof_s[i],
            bin_width_s=timing.bin_width_s,
            n_counts=result.n_counts[-1],
            n_triggers=n_triggers,
        )
    return result


def _add_spots(
    counts: np.ndarray,
    *,
    alive: np.ndarray,
    free: np.ndarray | None,
    spots: float,
    spot_counts: tuple[float, float],
    rng,
) -> np.ndarray:
    """Add spots in place; return (y, x, counts added) of each, rows sorted by place."""
    n_spots = rng.poisson(spots * counts.size)
    place = np.unique(rng.integers(0, counts.size, n_spots))
    place = place[alive.ravel()[place]]
    # Inverse of the distribution function of 1/amplitude² between the faintest and the brightest.
    faintest, brightest = spot_counts
    amplitude = np.floor(faintest / (1.0 - rng.random(len(place)) * (1.0 - faintest / brightest)))
    y, x = np.unravel_index(place, counts.shape)
    before = counts[y, x]
    after = before + amplitude.astype(np.float32)
    counts[y, x] = after if free is None else np.minimum(after, free[y, x])
    return np.column_stack([y, x, (counts[y, x] - before)]).astype(np.int64)

"""How an MCP detector counts: Poisson noise, dark counts, pixels blind after a hit, spots, dead pixels."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from niseg_gpu.simulate.mcp_files import INT16_MAX, write_frame
from niseg_gpu.simulate.streams import make_key, start_rng
from niseg_gpu.simulate.timing import Timing
from niseg_gpu.simulate.transmission import Matter

# Branches of an acquisition's random numbers, see `niseg_gpu.simulate.streams`.
TRIGGER_BRANCH, COUNT_BRANCH, SPOT_BRANCH = range(3)


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
    matter : Matter or None
        What stands in the beam.
    """

    folder: Path
    stream: int
    timing: Timing
    n_triggers: tuple[int, ...]
    rate: np.ndarray
    profile: np.ndarray
    matter: Matter | None


@dataclass(frozen=True)
class Faults:
    """What a detector adds and takes away.

    Attributes
    ----------
    overlap : bool
        Whether a pixel hit in a trigger is blind until the window ends.
    dark_counts : float
        Mean dark counts of a pixel in a bin of a full acquisition without overlap.
    spots : float
        Expected fraction of the pixels that a spot strikes in each bin.
    spot_counts : (float, float)
        Counts of the faintest and the brightest spot; between them the number of spots falls as 1/amplitude².
    """

    overlap: bool
    dark_counts: float
    spots: float
    spot_counts: tuple[float, float]


@dataclass
class WindowCounts:
    """What one shutter window gave: counts of each frame, spots as (bin, y, x, amplitude), values clipped."""

    n_counts: list[int] = field(default_factory=list)
    spots: list[np.ndarray] = field(default_factory=list)
    n_clipped: int = 0


def expose_window(exposure: Exposure, window: int, *, seed: int, faults: Faults, stop: threading.Event) -> WindowCounts:
    """Simulate one shutter window bin by bin and write its frames.

    A pixel hit once in a trigger is blind until the window closes. With P its counts since the window opened per
    trigger, the fraction ``1 - P`` of the triggers finds it awake, and of these ``1 - exp(-m)`` hit it in a bin where m
    neutrons a trigger reach it. Dividing by ``1 - P`` is the standard correction (doi:10.1088/1748-0221/9/05/C05026),
    good to m / 2. Dark counts and spots count as hits, too.

    Parameters
    ----------
    exposure : Exposure
        What is exposed.
    window : int
        Which shutter window.
    seed : int
        With the exposure's stream and the bin's number it fixes the random numbers of each bin.
    faults : Faults
        What the detector adds and takes away.
    stop : threading.Event
        Set from outside to give up early.
    """
    from niseg_gpu.simulate.counting import count_bin
    from niseg_gpu.simulate.noise import BLOCK, pad_blocks

    timing, n_triggers = exposure.timing, exposure.n_triggers[window]
    shape, n_pixels = exposure.profile.shape, exposure.profile.size
    profile = pad_blocks(exposure.profile, np.float32)
    sort = pad_blocks(exposure.matter.sort if exposure.matter else np.zeros(shape), np.int32)
    hits, frame = np.zeros(len(profile), np.float32), np.zeros(len(profile), np.uint16)
    key = make_key(seed, exposure.stream, COUNT_BRANCH)
    dark = np.float32(faults.dark_counts / n_triggers)
    first, stop_bin = timing.window_bins[window]
    rng = start_rng(seed, exposure.stream, SPOT_BRANCH, window)
    spots = _draw_spots(stop_bin - first, profile[:n_pixels], faults=faults, rng=rng)
    result = WindowCounts()
    for i in range(first, stop_bin):
        if stop.is_set():
            break
        passing = exposure.matter.transmit(i) if exposure.matter else np.ones(1)
        n_counts, n_clipped = count_bin(
            profile,
            sort,
            (exposure.rate[i] * passing).astype(np.float32),
            dark,
            np.float32(n_triggers),
            faults.overlap,
            hits,
            frame,
            0,
            len(profile) // BLOCK,
            *key,
            np.uint32(i),
        )
        counts = frame[:n_pixels].view(">i2")
        place, amplitude = spots[i - first]
        added = _add_spots(counts, hits, place, amplitude, n_triggers=n_triggers, overlap=faults.overlap)
        result.spots.append(np.column_stack([np.full(len(place), i), *np.divmod(place, shape[1]), added]))
        result.n_clipped += n_clipped + int(np.count_nonzero((added < amplitude) & (counts[place] == INT16_MAX)))
        result.n_counts.append(int(n_counts + added.sum()))
        write_frame(
            exposure.folder / f"run_{i:05d}.fits",
            counts.reshape(shape),
            tof_s=timing.tof_s[i],
            bin_width_s=timing.bin_width_s,
            n_counts=result.n_counts[-1],
            n_triggers=n_triggers,
        )
    return result


def _draw_spots(
    n_bins: int, profile: np.ndarray, *, faults: Faults, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw the spots of a window: for each bin their pixels, none twice and none dead, and their counts."""
    n_spots = rng.poisson(faults.spots * profile.size * n_bins)
    i, place = np.divmod(np.unique(rng.integers(0, n_bins * profile.size, n_spots)), profile.size)
    alive = profile[place] > 0
    i, place = i[alive], place[alive]
    # Inverse of the distribution function of 1/amplitude² between the faintest and the brightest.
    faintest, brightest = faults.spot_counts
    amplitude = np.floor(faintest / (1.0 - rng.random(len(place)) * (1.0 - faintest / brightest))).astype(np.int64)
    ends = np.searchsorted(i, np.arange(1, n_bins))
    return list(zip(np.split(place, ends), np.split(amplitude, ends), strict=True))


def _add_spots(
    counts: np.ndarray, hits: np.ndarray, place: np.ndarray, amplitude: np.ndarray, *, n_triggers: int, overlap: bool
) -> np.ndarray:
    """Add spots in place to counts and hits of a flat frame; return what each pixel got."""
    room = INT16_MAX - counts[place].astype(np.int64)
    if overlap:
        # A pixel can't count more often than it is triggered.
        room = np.minimum(room, n_triggers - hits[place].astype(np.int64))
    added = np.minimum(amplitude, room)
    counts[place] += added.astype(np.int16)
    if overlap:
        hits[place] += added
    return added

"""Simulate a time-of-flight run of an MCP detector, with the truth beside it."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.backend import count_cores
from niseg_gpu.errors import UserError, suggest
from niseg_gpu.io.paths import read_path
from niseg_gpu.options import check_options
from niseg_gpu.simulate.bragg import LONGEST_WAVELENGTH_ANGSTROM, SHORTEST_WAVELENGTH_ANGSTROM
from niseg_gpu.simulate.detector import TRIGGER_BRANCH, Exposure, Faults, WindowCounts, expose_window
from niseg_gpu.simulate.folders import appear_when_whole, write_summary
from niseg_gpu.simulate.mcp_files import INT16_MAX, write_shutter_count, write_shutter_times, write_spectra
from niseg_gpu.simulate.scenes import Scene, build_scene, shape_beam
from niseg_gpu.simulate.streams import check_limits, start_rng
from niseg_gpu.simulate.texture import Texture, read_textures
from niseg_gpu.simulate.timing import Timing, compute_spectrum, plan_timing
from niseg_gpu.simulate.tof_truth import join_spots, write_spots, write_truth
from niseg_gpu.simulate.transmission import prepare_matter

SAMPLE_STREAM, OPEN_BEAM_STREAM, DEAD_PIXEL_STREAM = 0, 1, 2


def simulate_tof(
    out: str | os.PathLike,
    draw: Callable[[Path], Any] | None = None,
    *,
    seed: int = 2018,
    n_bins: int = 250,
    height: int = 256,
    width: int = 256,
    scene: str | np.ndarray | Scene = "blocks",
    materials: str = "",
    thickness_cm: float = 1.0,
    texture: str = "",
    flight_path_m: float = 10.0,
    time_offset_s: float = 0.0,
    wavelength_range: tuple[float, float] = (1.3, 5.5),
    resolution: float = 0.005,
    shutters: int | Sequence[int] = 3,
    n_triggers: int = 60_000,
    occupancy: float = 0.4,
    overlap: bool = True,
    dark_counts: float = 0.02,
    spots: float = 1e-4,
    dead_pixels: int = 10,
    chip_gap_pixels: int = 0,
    open_beam: bool = True,
    workers: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a ToF run as an MCP/Timepix detector would: sample, open beam and truth.

    ``out/sample`` and ``out/open_beam`` hold ``run_00000.fits`` and so on (big-endian int16), ``run_Spectra.txt``,
    ``run_ShutterCount.txt`` and ``run_ShutterTimes.txt``. ``out/truth`` holds ``labels.tif`` (uint8),
    ``thickness_cm.tif`` (float32, a page for each material), ``dead.tif`` (uint8), ``materials.json`` (names of the
    labels), ``spots.npz`` and ``open_beam_spots.npz`` (``bin``, ``y``, ``x``, ``amplitude`` in counts), the same as
    masks of all bins, ``spots.zarr`` and ``open_beam_spots.zarr`` (uint8), and ``simulation.json`` (parameters and
    totals). The same arguments give the same bytes, whatever the workers.

    Parameters
    ----------
    out : path
        Folder to make. It appears when whole, else nothing is left.
    draw : callable, optional
        Called with the folder before it appears, to put pictures into it.
    seed : int, optional
        Of all random numbers.
    n_bins : int, optional
        ToF bins.
    height, width : int, optional
        Pixels; a plan or a `Scene` brings its own.
    scene : str or (Y, X) ndarray of integers or Scene, optional
        What stands in the beam: blocks, wedge, mixture, or a plan, the file of one or an array (labels, 0: void)
    materials : str, optional
        For a plan: alpha_iron, gamma_iron, austenitic_steel, nickel, aluminium, copper, zirconium; names with commas,
        one for each of its values but 0, in rising order
    thickness_cm : float, optional
        Of the thickest part along the beam; a `Scene` brings its own.
    texture : str, optional
        Preferred orientation along the beam (March-Dollase), MATERIAL:HKL:RATIO with commas, such as
        alpha_iron:110:0.7; a ratio below 1 gathers these planes' normals along the beam
    flight_path_m : float, optional
        From the source to the detector.
    time_offset_s : float, optional
        Added to the detector's time to get the time of flight.
    wavelength_range : (float, float), optional
        First and last wavelength in Å, with a comma between. With the default range and windows no strong edge of
        steel falls into a gap.
    resolution : float, optional
        Full width at half maximum of the wavelengths that arrive at one time, relative to their mean.
    shutters : int or sequence of int, optional
        Number of shutter windows, or the bins of each with commas between.
    n_triggers : int, optional
        Source pulses, about; each window differs by a few percent.
    occupancy : float, optional
        Fraction of triggers in which a pixel at the middle of the open beam has been hit when its fullest window ends;
        with n_triggers it sets the counts.
    overlap : bool, optional
        Whether a pixel hit in a trigger is blind until the window ends.
    dark_counts : float, optional
        Mean dark counts of a pixel in a bin.
    spots : float, optional
        Expected fraction of the pixels struck by a spot in each bin.
    dead_pixels : int, optional
        Pixels that never count.
    chip_gap_pixels : int, optional
        Width of the dead cross between the four chips.
    open_beam : bool, optional
        Whether to simulate the open beam too.
    workers : int, optional
        Threads; default one a core.
    overwrite : bool, optional
        Whether an earlier simulation of that name is replaced.

    Returns
    -------
    dict
        What ``truth/simulation.json`` holds, ``n_clipped`` (values that would not fit into 16 bits) among it.

    Raises
    ------
    UserError
        Where ``out`` exists or can't be written, or an argument is out of range.
    """
    if not isinstance(scene, Scene):
        scene = build_scene(scene, height=height, width=width, thickness_cm=thickness_cm, materials=materials)
    _check_arguments(locals())
    height, width = scene.labels.shape
    timing = plan_timing(
        n_bins=n_bins,
        shutters=shutters,
        wavelength_range=wavelength_range,
        flight_path_m=flight_path_m,
        time_offset_s=time_offset_s,
    )
    rate = _compute_rate(timing, occupancy=occupancy)
    spot_counts = _choose_spot_counts(float(rate.max()) * n_triggers)
    dead = _place_dead(height, width, seed=seed, dead_pixels=dead_pixels, chip_gap_pixels=chip_gap_pixels)
    profile = np.where(dead, np.float32(0), shape_beam(height, width))
    matter = prepare_matter(scene, timing, resolution=resolution, textures=_find_textures(texture, scene))
    faults = Faults(overlap, dark_counts, spots, spot_counts)

    with appear_when_whole(read_path(out, who="simulate_tof"), overwrite=overwrite) as folder:
        beams = {"sample": (SAMPLE_STREAM, matter)} | ({"open_beam": (OPEN_BEAM_STREAM, None)} if open_beam else {})
        exposures = []
        for name, (stream, stands) in beams.items():
            (folder / name).mkdir()
            triggers = _vary_triggers(n_triggers, len(timing.window_bins), seed=seed, stream=stream)
            exposures.append(Exposure(folder / name, stream, timing, triggers, rate, profile, stands))
        results = _expose_all(exposures, workers=workers, seed=seed, faults=faults)
        for exposure, windows in zip(exposures, results, strict=True):
            _write_run_files(exposure, windows)
        summary = {
            "seed": seed,
            "shape": [n_bins, height, width],
            "flight_path_m": flight_path_m,
            "wavelength_range_angstrom": list(wavelength_range),
            "time_offset_s": time_offset_s,
            "resolution": resolution,
            "occupancy": occupancy,
            "overlap": overlap,
            "dark_counts": dark_counts,
            "texture": texture,
            **_sum_up(exposures, results),
        }
        write_truth(folder / "truth", scene, dead=dead)
        for name, windows in zip(beams, results, strict=True):
            stem = "spots" if name == "sample" else f"{name}_spots"
            write_spots(folder / "truth" / stem, join_spots(windows), shape=summary["shape"], workers=workers)
        write_summary(folder, summary)
        if draw is not None:
            draw(folder)
    return summary


def _check_arguments(given: dict[str, Any]) -> None:
    """Refuse what can't be simulated, each with the value, the limits and what to do."""
    limits = {
        "seed": (0, math.inf),
        "n_bins": (1, 99_999),
        "thickness_cm": (1e-4, 100),
        "flight_path_m": (0.1, 1000),
        "time_offset_s": (-1, 1),
        "resolution": (0, 0.2),
        "dark_counts": (0, 1000),
        "n_triggers": (1, 10_000_000),  # counts stay whole numbers in float32
        "occupancy": (1e-6, 0.99),
        "spots": (0, 0.1),
        "dead_pixels": (0, given["scene"].labels.size),
        "chip_gap_pixels": (0, min(given["scene"].labels.shape)),
        "workers": (1, 1024),
    }
    check_limits(given, limits)
    check_options(simulate_tof, **given)
    wanted = given["wavelength_range"]
    if not isinstance(wanted, Sequence | np.ndarray) or not all(isinstance(end, Real) for end in wanted):
        raise UserError(f"wavelength_range={wanted!r} is not a range; give two rising wavelengths in Å")
    wanted = tuple(wanted)
    low, high = SHORTEST_WAVELENGTH_ANGSTROM, LONGEST_WAVELENGTH_ANGSTROM
    if len(wanted) != 2 or not low <= wanted[0] < wanted[1] <= high:
        raise UserError(
            f"wavelength_range=({', '.join(f'{w:g}' for w in wanted)}) Å is not a range; "
            f"give two rising wavelengths from {low:g} to {high:g} Å"
        )


def _find_textures(text: str, scene: Scene) -> dict[str, Texture]:
    textures = read_textures(text)
    for name in textures:
        if name not in scene.materials:
            raise UserError(f"texture names {name!r}, which is not in the scene{suggest(name, scene.materials)}")
    return textures


def _compute_rate(timing: Timing, *, occupancy: float) -> np.ndarray:
    """Return neutrons per trigger and bin at the middle of the open beam, (N,) float64."""
    flux = compute_spectrum(timing.wavelength_angstrom)
    fullest = max(flux[a:b].sum() for a, b in timing.window_bins)
    # Each pixel counts once a trigger at most, so its counts saturate exponentially.
    return flux * (-math.log1p(-occupancy) / fullest)


def _choose_spot_counts(max_counts: float) -> tuple[float, float]:
    """Return counts of the faintest spot, clear of the noise, and the brightest; refuse what 16 bits can't hold."""
    noisiest = max_counts + 8.0 * math.sqrt(max_counts)
    min_spot = 10.0 + 5.0 * math.sqrt(max_counts)
    if noisiest + min_spot > INT16_MAX:
        raise UserError(
            f"about {max_counts:.0f} counts per pixel and bin are expected, a frame holds {INT16_MAX}; "
            f"lower n_triggers or occupancy, or take more bins"
        )
    return min_spot, min(100.0 * min_spot, INT16_MAX - noisiest)


def _place_dead(height: int, width: int, *, seed: int, dead_pixels: int, chip_gap_pixels: int) -> np.ndarray:
    rng = start_rng(seed, DEAD_PIXEL_STREAM)
    dead = np.zeros((height, width), bool)
    dead.ravel()[rng.choice(dead.size, dead_pixels, replace=False)] = True
    for axis, size in enumerate((height, width)):
        first = (size - chip_gap_pixels) // 2
        dead[(slice(None),) * axis + (slice(first, first + chip_gap_pixels),)] = True
    if dead.all():
        raise UserError(
            f"dead_pixels={dead_pixels} and chip_gap_pixels={chip_gap_pixels} leave none of {height} x {width} pixels "
            "alive; give fewer"
        )
    return dead


def _vary_triggers(n_triggers: int, n_windows: int, *, seed: int, stream: int) -> tuple[int, ...]:
    """Return the triggers of each window; as in real runs they differ by a few percent and later ones have more."""
    rng = start_rng(seed, stream, TRIGGER_BRANCH)
    return tuple(np.sort(np.round(n_triggers * rng.uniform(0.97, 1.03, n_windows)).astype(int)).tolist())


def _expose_all(exposures: list[Exposure], *, workers: int | None, **options: Any) -> list[list[WindowCounts]]:
    """Simulate every window of every exposure, side by side: only bins of one window depend on one another."""
    workers = workers or count_cores()
    stop = threading.Event()

    def expose(exposure: Exposure, window: int) -> WindowCounts:
        try:
            return expose_window(exposure, window, stop=stop, **options)
        except BaseException:
            stop.set()  # at once: on a busy machine the others are done before anybody is told
            raise

    with ThreadPoolExecutor(workers) as pool:
        jobs = [[pool.submit(expose, e, w) for w in range(len(e.n_triggers))] for e in exposures]
        try:
            for job in as_completed([job for row in jobs for job in row]):
                job.result()
        finally:  # where all went well, nothing is left to stop
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return [[job.result() for job in row] for row in jobs]


def _write_run_files(exposure: Exposure, windows: list[WindowCounts]) -> None:
    stem = exposure.folder / "run"
    counts = [n for window in windows for n in window.n_counts]
    write_spectra(Path(f"{stem}_Spectra.txt"), tof_s=exposure.timing.tof_s.tolist(), n_counts=counts)
    write_shutter_count(Path(f"{stem}_ShutterCount.txt"), n_triggers=exposure.n_triggers)
    write_shutter_times(Path(f"{stem}_ShutterTimes.txt"), windows_s=exposure.timing.windows_s)


def _sum_up(exposures: list[Exposure], results: list[list[WindowCounts]]) -> dict[str, Any]:
    """Return bins, windows and, by name of the exposure, triggers, counts and spots."""
    by_name = {exposure.folder.name: windows for exposure, windows in zip(exposures, results, strict=True)}
    timing = exposures[0].timing
    return {
        "bin_width_s": timing.bin_width_s,
        "window_bins": [list(bins) for bins in timing.window_bins],
        "n_triggers": {exposure.folder.name: list(exposure.n_triggers) for exposure in exposures},
        "n_counts": {name: sum(sum(window.n_counts) for window in windows) for name, windows in by_name.items()},
        "n_spots": {name: len(join_spots(windows)) for name, windows in by_name.items()},
        "n_clipped": sum(window.n_clipped for windows in results for window in windows),
    }

"""Simulate radiographs with spots, with the truth beside them."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.simulate.folders import appear_when_whole
from niseg_gpu.simulate.radiograph_scene import build_packed_column
from niseg_gpu.simulate.scenes import shape_beam
from niseg_gpu.simulate.spots import draw_spots, expect_marked, measure_spots, place_spots
from niseg_gpu.simulate.streams import check_limits, make_key, start_rng

SAMPLE_STREAM, OPEN_BEAM_STREAM, DARK_STREAM, SCENE_STREAM = range(4)
UINT16_MAX = 65535
# Weakest and strongest peak of a spot, in counts.
SPOT_COUNTS = (20.0, 40_000.0)
# A pixel is a spot in the mask when the spots gave it more than this many standard deviations of its noise.
MARK_SIGMA = 2.0
BIAS_COUNTS = 300.0
DARK_CURRENT_PHOTONS = 40.0
# Branches of a beam's random numbers.
SPOT_BRANCH, NEUTRON_BRANCH, PHOTON_BRANCH = range(3)


@dataclass(frozen=True)
class Camera:
    """How neutrons become counts; see `simulate_radiograph` for the units."""

    counts_per_neutron: float
    photons_per_count: float
    read_noise_counts: float
    kernel: np.ndarray  # (2R + 1,) float32, blur of the scintillator along each axis


@dataclass(frozen=True)
class Beam:
    """What reaches the scintillator in one kind of image.

    ``neutrons`` is the mean of each pixel, (Y + 2R, X + 2R) float32 with a margin for the blur; ``sigma`` is the
    noise of each pixel in counts, (Y, X) float32.
    """

    stream: int
    neutrons: np.ndarray
    sigma: np.ndarray


@dataclass(frozen=True)
class Spots:
    """What strikes each image: spots drawn at random, or those of measured dark frames.

    ``n_spots`` is their mean number, ``exponent`` that of their power law; ``measured`` are the counts that the spots
    of dark frames add, (N, Y', X') float32, which are taken instead.
    """

    n_spots: float
    exponent: float
    measured: np.ndarray | None


@dataclass
class Frame:
    """One image, (Y, X): with spots and without (uint16), what spots added in local sigma (float32)."""

    image: np.ndarray
    clean: np.ndarray
    deposit: np.ndarray
    n_clipped: int


def simulate_radiograph(
    out: str | os.PathLike,
    *,
    seed: int = 2018,
    height: int = 1024,
    width: int = 1024,
    n_frames: int = 1,
    open_beam_counts: float = 10_000.0,
    open_beam_neutrons: float = 10_000.0,
    photons_per_count: float = 10.0,
    read_noise_counts: float = 8.0,
    blur_pixels: float = 0.8,
    spots: float = 0.01,
    exponent: float = 1.73,
    dark_frames: str = "",
    workers: int | None = None,
) -> dict[str, Any]:
    """Write radiographs of a scintillator and camera, struck by gamma rays: images, open beam, dark and truth.

    ``out/images`` holds ``image_00000.tif`` and so on (uint16), ``out`` also ``open_beam.tif`` and ``dark.tif``, with
    spots of their own. ``out/truth`` holds, one page a frame, ``mask.tif`` (uint8, 1 where a pixel got more than 2
    sigma of its noise), ``deposit.tif`` (float32, what spots added in that sigma) and ``clean.tif`` (uint16, the same
    image and noise without spots), and ``simulation.json``. All frames show one scene, a packed column with rods and
    grains; noise and spots differ. The same arguments give the same data, whatever the workers.

    Parameters
    ----------
    out : path
        Folder to make; it must not exist. It appears when whole, else nothing is left.
    seed : int, optional
        Of all random numbers.
    height, width : int, optional
        Pixels, at least 32.
    n_frames : int, optional
        Images to write.
    open_beam_counts : float, optional
        Counts above the dark image where the open beam is brightest.
    open_beam_neutrons : float, optional
        Neutrons detected there in each pixel; with the blur they set the noise of the beam.
    photons_per_count : float, optional
        Photons detected for one count; they set the noise of the light.
    read_noise_counts : float, optional
        Standard deviation of the camera's noise.
    blur_pixels : float, optional
        Standard deviation of the scintillator's blur.
    spots : float, optional
        Fraction of the pixels that the mask marks, about.
    exponent : float, optional
        The number of spots falls as this power of their peak. With the default a threshold of 1000 counts on the
        distance from the 3 x 3 median has precision .998 and recall .08, as on the lecture's radiograph.
    dark_frames : str, optional
        Folder or file of measured dark frames: their spots are added, at random places, and none are drawn.
    workers : int, optional
        Frames at a time; default one a core.

    Returns
    -------
    dict
        What ``truth/simulation.json`` holds, ``n_clipped`` (values that 16 bits don't hold) among it.

    Raises
    ------
    UserError
        Where ``out`` exists or can't be written, or an argument is out of range.
    """
    parameters = {name: value for name, value in locals().items() if name not in ("out", "workers")}
    _check_arguments({**parameters, "workers": workers})
    camera = Camera(
        open_beam_counts / open_beam_neutrons, photons_per_count, read_noise_counts, _shape_blur(blur_pixels)
    )
    profile = shape_beam(height, width) * np.float32(open_beam_neutrons)
    transmission = build_packed_column(height=height, width=width, rng=start_rng(seed, SCENE_STREAM))
    sample = _plan_beam(SAMPLE_STREAM, profile * transmission, camera)
    beams = {
        "open_beam": _plan_beam(OPEN_BEAM_STREAM, profile, camera),
        "dark": _plan_beam(DARK_STREAM, np.zeros_like(profile), camera),
    }
    each = expect_marked(MARK_SIGMA * sample.sigma, exponent=exponent, counts_range=SPOT_COUNTS)
    struck = Spots(spots * height * width / each, exponent, measure_spots(dark_frames) if dark_frames else None)
    options = {"seed": seed, "camera": camera, "spots": struck}
    with appear_when_whole(Path(out)) as folder:
        summary = {
            **parameters,
            **_write_frames(folder, sample, n_frames=n_frames, workers=workers, **options),
            **_write_references(folder, beams, **options),
        }
        (folder / "truth" / "simulation.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def expose_frame(beam: Beam, index: int, *, seed: int, camera: Camera, spots: Spots) -> Frame:
    """Simulate one image; seed, stream of the beam and index fix its random numbers.

    Neutrons (Poisson) light up the scintillator, whose light is blurred; photons (Poisson) and the camera's noise
    (normal) follow. Spots are added to the counts.
    """
    clean, n_clipped = _expose_clean(beam, index, seed=seed, camera=camera)
    rng = start_rng(seed, beam.stream, SPOT_BRANCH, index)
    hit, added = _strike(beam.sigma.shape, spots, rng=rng)
    frame = Frame(clean.copy(), clean, np.zeros(clean.shape, np.float32), n_clipped)
    struck = clean.ravel()[hit] + np.rint(added)
    frame.n_clipped += int(np.count_nonzero((struck > UINT16_MAX) & (clean.ravel()[hit] < UINT16_MAX)))
    frame.image.ravel()[hit] = np.minimum(struck, UINT16_MAX).astype(np.uint16)
    frame.deposit.ravel()[hit] = added / beam.sigma.ravel()[hit]
    return frame


def _expose_clean(beam: Beam, index: int, *, seed: int, camera: Camera) -> tuple[np.ndarray, int]:
    """Return an image without spots, (Y, X) uint16, and how many of its values were clipped."""
    from niseg_gpu.simulate.camera import blur_rows, read_out
    from niseg_gpu.simulate.noise import BLOCK, draw_poisson

    height, width = beam.sigma.shape
    light = draw_poisson(beam.neutrons, key=make_key(seed, beam.stream, NEUTRON_BRANCH), index=index)
    # The compiled parts work on whole blocks, so that images end in some pixels too many.
    n_blocks = -(-height * width // BLOCK)
    photons, counts = np.zeros(n_blocks * BLOCK, np.float32), np.empty(n_blocks * BLOCK, np.uint16)
    gain = np.float32(camera.counts_per_neutron * camera.photons_per_count)
    blur_rows(
        light, camera.kernel, gain, np.float32(DARK_CURRENT_PHOTONS), photons[: height * width].reshape(height, width)
    )
    levels = (1.0 / camera.photons_per_count, camera.read_noise_counts, BIAS_COUNTS)
    key = make_key(seed, beam.stream, PHOTON_BRANCH)
    n_clipped = read_out(photons, counts, *map(np.float32, levels), *key, np.uint32(index))
    return counts[: height * width].reshape(height, width), n_clipped


def _strike(shape: tuple[int, int], spots: Spots, *, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels that spots strike, as flat indices without repeats, and the counts each gets, float32."""
    if spots.measured is not None:
        placed = place_spots(spots.measured, shape, rng=rng).ravel()
        hit = np.flatnonzero(placed)
        return hit, placed[hit]
    height, width = shape
    place, counts = draw_spots(
        int(rng.poisson(spots.n_spots)),
        height=height,
        width=width,
        exponent=spots.exponent,
        counts_range=SPOT_COUNTS,
        rng=rng,
    )
    hit, first = np.unique(place, return_inverse=True)
    return hit, np.bincount(first, weights=counts, minlength=len(hit)).astype(np.float32)


def _check_arguments(given: dict[str, Any]) -> None:
    """Refuse what can't be simulated, each with the value, the limits and what to do."""
    limits = {
        "seed": (0, math.inf),
        "height": (32, 65_536),
        "width": (32, 65_536),
        "n_frames": (1, 100_000),
        "open_beam_counts": (1, 60_000),
        "open_beam_neutrons": (1, 1e6),
        "photons_per_count": (0.01, 1000),
        "read_noise_counts": (0.1, 1000),
        "blur_pixels": (0, 10),
        "spots": (0, 0.1),
        "exponent": (1.01, 5),
        "workers": (1, 1024),
    }
    check_limits(given, limits)


def _shape_blur(blur_pixels: float) -> np.ndarray:
    """Return the weights of a Gaussian cut off at three standard deviations, their sum 1."""
    if blur_pixels == 0:
        return np.ones(1, np.float32)
    x = np.arange(-math.ceil(3 * blur_pixels), math.ceil(3 * blur_pixels) + 1)
    weight = np.exp(-0.5 * (x / blur_pixels) ** 2)
    return (weight / weight.sum()).astype(np.float32)


def _plan_beam(stream: int, neutrons: np.ndarray, camera: Camera) -> Beam:
    """Add the margin and work out the noise: neutrons, blurred with the squared weights; photons; camera; rounding."""
    from niseg_gpu.simulate.camera import blur_rows

    padded = np.pad(neutrons, len(camera.kernel) // 2, mode="edge")
    of_neutrons, of_photons = np.empty_like(neutrons), np.empty_like(neutrons)
    constant = DARK_CURRENT_PHOTONS / camera.photons_per_count**2 + camera.read_noise_counts**2 + 1.0 / 12.0
    blur_rows(padded, camera.kernel**2, np.float32(camera.counts_per_neutron**2), np.float32(constant), of_neutrons)
    gain = np.float32(camera.counts_per_neutron / camera.photons_per_count)
    blur_rows(padded, camera.kernel, gain, np.float32(0), of_photons)
    return Beam(stream, padded, np.sqrt(of_neutrons + of_photons))


def _expose_in_order(beam: Beam, *, n_frames: int, workers: int | None, **options: Any) -> Iterator[Frame]:
    """Simulate frames side by side and give them in order, no more in memory than there are workers and one."""
    workers = min(workers or os.cpu_count() or 1, n_frames)
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for index in range(n_frames):
            waiting.append(pool.submit(expose_frame, beam, index, **options))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _write_frames(folder: Path, sample: Beam, *, n_frames: int, **options: Any) -> dict[str, Any]:
    """Write images and truth frame by frame; return what was counted."""
    from tifffile import TiffWriter, imwrite

    (folder / "images").mkdir()
    (folder / "truth").mkdir()
    counted = {"n_marked": 0, "n_clipped": 0}
    height, width = sample.sigma.shape
    big = n_frames * height * width * 4 > 2**31
    with (
        TiffWriter(folder / "truth" / "mask.tif", bigtiff=big) as masks,
        TiffWriter(folder / "truth" / "deposit.tif", bigtiff=big) as deposits,
        TiffWriter(folder / "truth" / "clean.tif", bigtiff=big) as cleans,
    ):
        for i, frame in enumerate(_expose_in_order(sample, n_frames=n_frames, **options)):
            mask = (frame.deposit > MARK_SIGMA).astype(np.uint8)
            imwrite(folder / "images" / f"image_{i:05d}.tif", frame.image)
            for writer, page in ((masks, mask), (deposits, frame.deposit), (cleans, frame.clean)):
                writer.write(page, contiguous=True)
            counted["n_marked"] += int(mask.sum(dtype=np.int64))
            counted["n_clipped"] += frame.n_clipped
    return counted


def _write_references(folder: Path, beams: dict[str, Beam], **options: Any) -> dict[str, Any]:
    """Write one image of each beam; return how many of its values were clipped."""
    from tifffile import imwrite

    counted = {}
    for name, beam in beams.items():
        frame = expose_frame(beam, 0, **options)
        imwrite(folder / f"{name}.tif", frame.image)
        counted[f"n_clipped_{name}"] = frame.n_clipped
    return counted

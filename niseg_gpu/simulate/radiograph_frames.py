"""One radiograph: what a scintillator and a camera make of a scene in a beam, and of gamma rays that strike them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from niseg_gpu.simulate.radiograph_scene import build_packed_column
from niseg_gpu.simulate.scenes import shape_beam
from niseg_gpu.simulate.spots import draw_spots, expect_marked, measure_spots, place_spots
from niseg_gpu.simulate.streams import make_key, start_rng

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


@dataclass(frozen=True)
class Setup:
    """What all images of a seed share; ``open_beam`` is the mean of the neutrons in each pixel without the scene."""

    seed: int
    camera: Camera
    spots: Spots
    open_beam: np.ndarray
    sample: Beam


@dataclass
class Frame:
    """One image with its truth.

    Attributes
    ----------
    image : (Y, X) ndarray of uint16
    clean : (Y, X) ndarray of uint16
        The same image and noise without spots.
    deposit : (Y, X) ndarray of float32
        What spots added, in standard deviations of the noise there.
    n_clipped : int
        Values that 16 bits don't hold.
    """

    image: np.ndarray
    clean: np.ndarray
    deposit: np.ndarray
    n_clipped: int

    @property
    def mask(self) -> np.ndarray:
        """Where spots are told from noise, (Y, X) uint8."""
        return (self.deposit > MARK_SIGMA).astype(np.uint8)


def set_up(
    *,
    seed: int,
    height: int,
    width: int,
    open_beam_counts: float,
    open_beam_neutrons: float,
    photons_per_count: float,
    read_noise_counts: float,
    blur_pixels: float,
    spots: float,
    exponent: float,
    dark_frames: str,
) -> Setup:
    """Build the scene, the beam and the spots' statistics; the parameters are those of `simulate_radiograph`."""
    camera = Camera(
        open_beam_counts / open_beam_neutrons, photons_per_count, read_noise_counts, _shape_blur(blur_pixels)
    )
    open_beam = shape_beam(height, width) * np.float32(open_beam_neutrons)
    passing = build_packed_column(height=height, width=width, rng=start_rng(seed, SCENE_STREAM))
    passing *= open_beam
    sample = plan_beam(SAMPLE_STREAM, passing, camera)
    del passing  # images may be most of what there is of memory
    each = expect_marked(MARK_SIGMA * sample.sigma, exponent=exponent, counts_range=SPOT_COUNTS)
    struck = Spots(spots * height * width / each, exponent, measure_spots(dark_frames) if dark_frames else None)
    return Setup(seed, camera, struck, open_beam, sample)


def plan_beam(stream: int, neutrons: np.ndarray, camera: Camera) -> Beam:
    """Add the margin and work out the noise: neutrons, blurred with the squared weights; photons; camera; rounding."""
    from niseg_gpu.simulate.camera import blur_rows

    padded = np.pad(neutrons, len(camera.kernel) // 2, mode="edge")
    of_neutrons, of_photons = np.empty_like(neutrons), np.empty_like(neutrons)
    constant = DARK_CURRENT_PHOTONS / camera.photons_per_count**2 + camera.read_noise_counts**2 + 1.0 / 12.0
    blur_rows(padded, camera.kernel**2, np.float32(camera.counts_per_neutron**2), np.float32(constant), of_neutrons)
    gain = np.float32(camera.counts_per_neutron / camera.photons_per_count)
    blur_rows(padded, camera.kernel, gain, np.float32(0), of_photons)
    of_neutrons += of_photons
    return Beam(stream, padded, np.sqrt(of_neutrons, out=of_neutrons))


def expose_frame(beam: Beam, index: int, *, setup: Setup) -> Frame:
    """Simulate one image; seed, stream of the beam and index fix its random numbers.

    Neutrons (Poisson) light up the scintillator, whose light is blurred; photons (Poisson) and the camera's noise
    (normal) follow. Spots are added to the counts.
    """
    clean, n_clipped = _expose_clean(beam, index, seed=setup.seed, camera=setup.camera)
    rng = start_rng(setup.seed, beam.stream, SPOT_BRANCH, index)
    hit, added = _strike(beam.sigma.shape, setup.spots, rng=rng)
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


def _shape_blur(blur_pixels: float) -> np.ndarray:
    """Return the weights of a Gaussian cut off at three standard deviations, their sum 1."""
    if blur_pixels == 0:
        return np.ones(1, np.float32)
    x = np.arange(-math.ceil(3 * blur_pixels), math.ceil(3 * blur_pixels) + 1)
    weight = np.exp(-0.5 * (x / blur_pixels) ** 2)
    return (weight / weight.sum()).astype(np.float32)

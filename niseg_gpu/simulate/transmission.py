"""What passes through a scene in each time bin, with the instrument's resolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from niseg_gpu.simulate.bragg import LONGEST_WAVELENGTH_ANGSTROM, SHORTEST_WAVELENGTH_ANGSTROM, compute_attenuation
from niseg_gpu.simulate.scenes import Scene
from niseg_gpu.simulate.texture import Texture
from niseg_gpu.simulate.timing import Timing

# Wavelengths that a bin is averaged over, spread evenly over its width and over the resolution.
SAMPLES, LATTICE_STEP = 13, 5
FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))


@dataclass(frozen=True)
class Matter:
    """A scene as the neutrons of each bin see it.

    Attributes
    ----------
    attenuation : (N, Q, M) ndarray of float64
        Attenuation coefficient of the M materials in 1/cm at Q wavelengths that make up a bin.
    thickness_cm : (K, M) ndarray of float64
        Pixels with the same thicknesses are one sort; these are the sorts.
    sort : (Y, X) ndarray of int32
        The sort of each pixel.
    """

    attenuation: np.ndarray
    thickness_cm: np.ndarray
    sort: np.ndarray

    def transmit(self, index: int) -> np.ndarray:
        """Return the transmission of each sort in a bin, (K,) float64: the mean over the bin's wavelengths."""
        depth = np.zeros((len(self.attenuation[index]), len(self.thickness_cm)))
        for m in range(self.thickness_cm.shape[1]):
            depth += self.attenuation[index, :, m, None] * self.thickness_cm[:, m]
        return np.exp(-depth).mean(axis=0)


def prepare_matter(
    scene: Scene, timing: Timing, *, resolution: float = 0.0, textures: Mapping[str, Texture] | None = None
) -> Matter | None:
    """Work out what a scene does to each bin; None for a scene without materials.

    Parameters
    ----------
    scene : Scene
    timing : Timing
    resolution : float, optional
        Full width at half maximum of the wavelengths that arrive at one time, relative to their mean.
    textures : mapping of str to Texture, optional
        By material; the others are powders.
    """
    if not scene.materials:
        return None
    wavelength = sample_wavelengths(timing, resolution=resolution)
    attenuation = np.stack(
        [compute_attenuation(name, wavelength, texture=(textures or {}).get(name)) for name in scene.materials], axis=-1
    )
    columns = np.ascontiguousarray(scene.thickness_cm.reshape(len(scene.materials), -1).T)
    # Rows compared as bytes: np.unique of rows would take seconds.
    rows = columns.view(np.dtype((np.void, columns.itemsize * columns.shape[1]))).ravel()
    _, first, sort = np.unique(rows, return_index=True, return_inverse=True)
    shape = scene.labels.shape
    return Matter(attenuation, columns[first].astype(np.float64), sort.reshape(shape).astype(np.int32))


def sample_wavelengths(timing: Timing, *, resolution: float) -> np.ndarray:
    """Return the wavelengths that each bin is averaged over, (N, Q) in Å; all count alike."""
    from scipy.special import ndtri

    middle = timing.wavelength_angstrom[:, None]
    place = (np.arange(SAMPLES) + 0.5) / SAMPLES - 0.5
    deviation = ndtri(((np.arange(SAMPLES) * LATTICE_STEP) % SAMPLES + 0.5) / SAMPLES)
    spread = place * timing.bin_width_angstrom + deviation * resolution / FWHM_PER_SIGMA * middle
    return np.clip(middle + spread, SHORTEST_WAVELENGTH_ANGSTROM, LONGEST_WAVELENGTH_ANGSTROM)

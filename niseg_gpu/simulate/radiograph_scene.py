"""What stands in the beam of a radiograph: a packed column with rods and grains."""

from __future__ import annotations

import numpy as np

N_GRAINS, N_RODS = 160, 6
# Rows worked on at a time.
BAND = 128


def build_packed_column(*, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Return the transmission of an upright column packed with grains, and of rods in front of it.

    Parameters
    ----------
    height, width : int
        Pixels; everything scales with the shorter side.
    rng : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    (Y, X) ndarray of float32
        Fraction of neutrons that pass.
    """
    side = min(height, width)
    # Chord lengths are in shares of the column's diameter, attenuation is per diameter.
    middle, radius = width * rng.uniform(0.42, 0.5), 0.3 * side
    top = rng.uniform(0.08, 0.15) * height
    spheres = []
    for _ in range(N_GRAINS):
        grain = side * rng.uniform(0.006, 0.035)
        centre = height * rng.uniform(0.15, 1.0), middle + rng.uniform(-0.9, 0.9) * (radius - grain)
        spheres.append((centre, grain, rng.uniform(-0.4, 1.2) * grain / (0.035 * side)))
    rods = []
    for _ in range(N_RODS):
        start, end = (rng.uniform(0.0, 1.0, 2) * (height, width) for _ in range(2))
        rods.append((start, end, side * rng.uniform(0.003, 0.02), rng.uniform(0.2, 0.9)))
    chord = 0.7 * np.sqrt(np.maximum(1.0 - ((np.arange(width) + 0.5 - middle) / radius) ** 2, 0.0))
    transmission = np.empty((height, width), np.float32)
    # A few rows at a time: the sums are float64 and would be most of the memory.
    for first in range(0, height, BAND):
        y = np.arange(first, min(first + BAND, height)) + 0.5
        attenuation = chord * (y > top)[:, None]
        for centre, grain, strength in spheres:
            if first - grain - 2 < centre[0] < first + BAND + grain + 2:
                _add_sphere(attenuation, first, centre, grain, strength)
        for rod in rods:
            _add_rod(attenuation, first, *rod)
        transmission[first : first + BAND] = np.exp(-np.clip(attenuation, 0.0, 3.0))
    return transmission


def _add_sphere(
    attenuation: np.ndarray, first: int, centre: tuple[float, float], radius: float, strength: float
) -> None:
    """Add a sphere, or with a negative strength a pore, to rows from `first` on, within the square around it."""
    rows, columns = (
        slice(max(int(c - radius) - 1 - start, 0), max(min(int(c + radius) + 2 - start, n), 0))
        for c, start, n in zip(centre, (first, 0), attenuation.shape, strict=True)
    )
    y = np.arange(first + rows.start, first + rows.stop)[:, None] + 0.5 - centre[0]
    x = np.arange(columns.start, columns.stop)[None, :] + 0.5 - centre[1]
    attenuation[rows, columns] += strength * np.sqrt(np.maximum(1.0 - (y * y + x * x) / radius**2, 0.0))


def _add_rod(
    attenuation: np.ndarray, first: int, start: np.ndarray, end: np.ndarray, radius: float, strength: float
) -> None:
    """Add a straight round rod with round ends to rows from `first` on, within the columns that it crosses there."""
    along = end - start
    length2 = max(float(along @ along), 1.0)
    top, bottom = sorted((start[0], end[0]))
    rows = slice(max(int(top - radius) - first, 0), min(int(bottom + radius) + 1 - first, len(attenuation)))
    if rows.start >= rows.stop:
        return
    reach = np.array([first + rows.start - radius, first + rows.stop + radius])
    shares = np.clip((reach - start[0]) / (along[0] or 1e-9), 0.0, 1.0)
    left, right = sorted(start[1] + shares * along[1])
    columns = slice(max(int(left - radius) - 1, 0), max(int(right + radius) + 2, 0))
    y = np.arange(first + rows.start, first + rows.stop)[:, None] + 0.5 - start[0]
    x = np.arange(attenuation.shape[1])[None, columns] + 0.5 - start[1]
    share = np.clip((y * along[0] + x * along[1]) / length2, 0.0, 1.0)
    distance2 = (y - share * along[0]) ** 2 + (x - share * along[1]) ** 2
    attenuation[rows, columns] += strength * np.sqrt(np.maximum(1.0 - distance2 / radius**2, 0.0))

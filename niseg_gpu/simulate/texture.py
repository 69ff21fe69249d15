"""Preferred orientation of grains and what it does to Bragg edges."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from niseg_gpu.errors import UserError

# Angles round the beam, and shares wavelength / 2 d, that the weights are worked out at.
TURNS, SHARES = 72, 129


@dataclass(frozen=True)
class Texture:
    """Grains that turn one of their directions towards the beam, after March and Dollase.

    Attributes
    ----------
    hkl : (int, int, int)
        Planes whose normal is preferred.
    ratio : float
        Below 1 the normals gather along the beam, above 1 across it; 1 is a powder.
    """

    hkl: tuple[int, int, int]
    ratio: float

    def __post_init__(self) -> None:
        if self.hkl == (0, 0, 0) or not 0.05 <= self.ratio <= 20:
            raise UserError(
                f"texture with planes {self.hkl} and ratio {self.ratio:g}; give planes other than 000 and a ratio from "
                "0.05 to 20 (1: no texture)"
            )


def read_textures(text: str) -> dict[str, Texture]:
    """Read ``material:hkl:ratio``, several with commas, such as ``alpha_iron:110:0.7,nickel:200:1.3``."""
    textures = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        try:
            name, hkl, ratio = part.split(":")
            h, k, l = map(int, hkl)  # noqa: E741 - Miller's own letters
            texture = Texture((h, k, l), float(ratio))
        except ValueError:
            raise UserError(f"texture {part!r} is not MATERIAL:HKL:RATIO, such as alpha_iron:110:0.7") from None
        if name in textures:
            raise UserError(f"texture names {name!r} twice; give one direction for each material")
        textures[name] = texture
    return textures


def march_dollase(cosine: np.ndarray, ratio: float) -> np.ndarray:
    """Return the density of preferred normals at an angle to their axis; its mean over the sphere is 1.

    Dollase 1986, doi:10.1107/S0021889886089458.
    """
    squared = cosine**2
    return (ratio**2 * squared + (1.0 - squared) / ratio) ** -1.5


def weigh_planes(
    hkl: np.ndarray,
    d_angstrom: np.ndarray,
    weight: np.ndarray,
    wavelength_angstrom: np.ndarray,
    texture: Texture,
    *,
    c_over_a: float,
) -> np.ndarray:
    """Return the sum of the weights of planes with ``2 d > wavelength``, each times the share of grains that reflect.

    A plane reflects in grains whose normal stands at the angle arccos(wavelength / 2 d) to the beam. Round that cone
    the preferred direction, at a fixed angle to the normal, turns towards the beam and away from it; the density is
    averaged over the turn and over all equivalent preferred directions.

    Parameters
    ----------
    hkl : (P, 3) ndarray of int
    d_angstrom, weight : (P,) ndarray of float64
        Planes, d falling.
    wavelength_angstrom : ndarray of float64
        Any shape.
    texture : Texture
        The preferred direction lies along the beam.
    c_over_a : float
        1 for a cubic cell, else it is hexagonal.

    Returns
    -------
    ndarray of float64
        Shaped as the wavelengths.
    """
    share = np.linspace(0.0, 1.0, SHARES)
    turn = np.cos(np.pi * (np.arange(TURNS) + 0.5) / TURNS)
    preferred = _to_cartesian(_list_equivalent(texture.hkl, cubic=c_over_a == 1.0), c_over_a)
    normals = _to_cartesian(hkl, c_over_a)
    total = np.zeros(wavelength_angstrom.shape)
    for normal, d, w in zip(normals, d_angstrom, weight, strict=True):
        below = wavelength_angstrom < 2.0 * d
        # Equivalent directions share few angles to one plane.
        cosines, counts = np.unique(np.round(np.abs(preferred @ normal), 9), return_counts=True)
        cosine = np.minimum(cosines, 1.0)[:, None, None]
        along = cosine * share[:, None] + np.sqrt(1 - cosine**2) * np.sqrt(1 - share[:, None] ** 2) * turn
        density = np.average(march_dollase(along, texture.ratio).mean(axis=2), axis=0, weights=counts)
        total[below] += w * np.interp(wavelength_angstrom[below] / (2.0 * d), share, density)
    return total


def _list_equivalent(hkl: tuple[int, int, int], *, cubic: bool) -> np.ndarray:
    """Return all planes equivalent by symmetry, without repeats, (Q, 3)."""
    h, k, l = hkl  # noqa: E741 - Miller's own letters
    if cubic:
        signs = product((1, -1), repeat=3)
        return np.array(
            sorted({tuple(s * i for s, i in zip(sign, p, strict=True)) for sign in signs for p in permutations(hkl)})
        )
    turned = {(a, b) for a, b, _ in permutations((h, k, -h - k))}
    return np.array(sorted({(s * a, s * b, t * l) for a, b in turned for s in (1, -1) for t in (1, -1)}))


def _to_cartesian(hkl: np.ndarray, c_over_a: float) -> np.ndarray:
    """Return unit normals of planes in a cubic or hexagonal cell, (..., 3)."""
    h, k, l = np.moveaxis(np.asarray(hkl, float), -1, 0)  # noqa: E741 - Miller's own letters
    if c_over_a != 1.0:
        h, k, l = h, (h + 2.0 * k) / np.sqrt(3.0), l / c_over_a  # noqa: E741
    normal = np.stack([h, k, l], axis=-1)
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)

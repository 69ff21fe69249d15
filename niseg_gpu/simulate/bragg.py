"""Neutron cross sections of powder materials against wavelength, from tables made with NCrystal.

A polycrystal scatters coherently and elastically only from lattice planes with ``2 d > wavelength``. Each family of
planes that drops out leaves a step, the Bragg edge, in the transmission.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.simulate.texture import Texture, weigh_planes

# The tables hold these wavelengths; below, resonances and planes too many to list take over.
SHORTEST_WAVELENGTH_ANGSTROM, LONGEST_WAVELENGTH_ANGSTROM = 0.5, 20.0

TABLE_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Material:
    """A powder.

    Attributes
    ----------
    a_angstrom, c_angstrom : float
        Edges of its cell, which is cubic or hexagonal.
    number_density : float
        Atoms per Å³, the same number as atoms per (barn cm).
    hkl : (P, 3) ndarray of int64
        One plane of each family that reflects, the longest edge first.
    d_angstrom : (P,) ndarray of float64
        Distance of the planes.
    weight : (P,) ndarray of float64
        Barn per atom and Å² that the family gives, times wavelength², below its edge.
    wavelength_angstrom, smooth_barn : (G,) ndarray of float64
        All but Bragg scattering, per atom, on a grid of wavelengths.
    """

    a_angstrom: float
    c_angstrom: float
    number_density: float
    hkl: np.ndarray
    d_angstrom: np.ndarray
    weight: np.ndarray
    wavelength_angstrom: np.ndarray
    smooth_barn: np.ndarray


@cache
def load_materials() -> Mapping[str, Material]:
    """Read the tables; materials by name."""
    planes: dict[str, list[list[float]]] = {}
    for row in _read_rows("bragg_planes.csv"):
        planes.setdefault(row["material"], []).append([float(value) for value in list(row.values())[1:]])
    smooth = _read_rows("smooth_cross_sections.csv")
    grid = np.array([float(row["wavelength_angstrom"]) for row in smooth])
    materials = {}
    for row in _read_rows("materials.csv"):
        name = row["material"]
        h, k, l, _, d, weight = np.array(planes[name]).T  # noqa: E741 - Miller's own letters
        materials[name] = Material(
            *(float(row[key]) for key in ("a_angstrom", "c_angstrom", "atoms_per_angstrom3")),
            np.stack([h, k, l], axis=1).astype(np.int64),
            d,
            weight,
            grid,
            np.array([float(line[name]) for line in smooth]),
        )
    return materials


def find_material(name: str) -> Material:
    """Return the material of that name; `UserError` naming the nearest one where there is none."""
    materials = load_materials()
    if name not in materials:
        raise UserError(f"unknown material {name!r}{suggest(name, materials)}")
    return materials[name]


def compute_bragg_edges(name: str, *, min_wavelength_angstrom: float = 1.0) -> np.ndarray:
    """Return the Bragg edges 2 d_hkl, longest first.

    Parameters
    ----------
    name : str
        A material, see `load_materials`.
    min_wavelength_angstrom : float, optional
        Shortest edge wanted.

    Returns
    -------
    (N,) ndarray of float64
        Wavelengths in Å.
    """
    edges = np.unique(2.0 * find_material(name).d_angstrom)[::-1]
    return edges[edges >= min_wavelength_angstrom]


def compute_cross_section(name: str, wavelength_angstrom: np.ndarray, *, texture: Texture | None = None) -> np.ndarray:
    r"""Return the total cross section per atom: the tabulated smooth part and Bragg scattering.

    .. math:: \sigma(\lambda) = \sigma_{smooth}(\lambda) + \frac{\lambda^2}{2 V_0 n} \sum_{2 d_{hkl} > \lambda}
              m |F|^2 d \, P_{hkl}(\lambda)

    with n atoms in the cell of volume V0 and P = 1 without texture; no extinction, no magnetic and small-angle
    scattering (doi:10.1016/j.cpc.2019.07.015).

    Parameters
    ----------
    name : str
        A material, see `load_materials`.
    wavelength_angstrom : array_like
        Any shape, Å, 0.5 to 20.
    texture : Texture, optional
        Preferred orientation of the grains.

    Returns
    -------
    ndarray of float64
        Barn per atom, shaped as the wavelengths.

    Raises
    ------
    UserError
        For an unknown material or a wavelength out of range.
    """
    material = find_material(name)
    wavelength = _check_wavelength(wavelength_angstrom)
    smooth = np.interp(wavelength, material.wavelength_angstrom, material.smooth_barn)
    if texture is None:
        sums = np.concatenate(([0.0], np.cumsum(material.weight)))
        bragg = sums[np.searchsorted(-2.0 * material.d_angstrom, -wavelength, side="left")]
    else:
        cell = material.c_angstrom / material.a_angstrom
        bragg = weigh_planes(material.hkl, material.d_angstrom, material.weight, wavelength, texture, c_over_a=cell)
    return smooth + wavelength**2 * bragg


def compute_attenuation(name: str, wavelength_angstrom: np.ndarray, *, texture: Texture | None = None) -> np.ndarray:
    """Return the attenuation coefficient in 1/cm, number density times total cross section; shaped as its input."""
    density = find_material(name).number_density
    return density * compute_cross_section(name, wavelength_angstrom, texture=texture)


def _read_rows(name: str) -> list[dict[str, str]]:
    with (TABLE_FOLDER / name).open(encoding="utf-8") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def _check_wavelength(wavelength_angstrom: np.ndarray) -> np.ndarray:
    wavelength = np.asarray(wavelength_angstrom, dtype=np.float64)
    low, high = SHORTEST_WAVELENGTH_ANGSTROM, LONGEST_WAVELENGTH_ANGSTROM
    if wavelength.size and not (wavelength.min() >= low and wavelength.max() <= high):
        wrong = wavelength.min() if not wavelength.min() >= low else wavelength.max()
        raise UserError(f"wavelength {wrong:g} Å is out of range; give wavelengths from {low:g} to {high:g} Å")
    return wavelength

"""Neutron cross sections of cubic powder materials against wavelength, from first principles.

A polycrystal scatters coherently and elastically only from lattice planes with ``2 d > wavelength``. Each family of
planes that drops out leaves a step, the Bragg edge, in the transmission.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from niseg_gpu.errors import UserError, suggest

# Wavelength of the 2200 m/s neutrons that absorption cross sections are tabulated for.
THERMAL_WAVELENGTH_ANGSTROM = 1.798

# Below this wavelength the sum over planes grows without telling anything: resonances, left out here, take over.
SHORTEST_WAVELENGTH_ANGSTROM = 0.2


@dataclass(frozen=True)
class Element:
    """Bound coherent scattering length (fm), incoherent and 2200 m/s absorption cross section (barn)."""

    b_coh_fm: float
    sigma_inc_barn: float
    sigma_abs_barn: float


@dataclass(frozen=True)
class Material:
    """A cubic powder with one atom per lattice point.

    Attributes
    ----------
    lattice : {"bcc", "fcc"}
        Decides which planes reflect.
    a_angstrom : float
        Edge of the cubic cell at room temperature.
    b_iso_angstrom2 : float
        Isotropic displacement parameter B = 8 pi² <u²> at room temperature.
    composition : mapping of str to float
        Atomic fractions of the elements, randomly mixed over the sites; they add up to 1.
    """

    lattice: str
    a_angstrom: float
    b_iso_angstrom2: float
    composition: Mapping[str, float]


# V. F. Sears, Neutron News 3 (1992) 26, doi:10.1080/10448639208218770
ELEMENTS: Mapping[str, Element] = {
    "Al": Element(b_coh_fm=3.449, sigma_inc_barn=0.0082, sigma_abs_barn=0.231),
    "Cr": Element(b_coh_fm=3.635, sigma_inc_barn=1.83, sigma_abs_barn=3.05),
    "Cu": Element(b_coh_fm=7.718, sigma_inc_barn=0.55, sigma_abs_barn=3.78),
    "Fe": Element(b_coh_fm=9.45, sigma_inc_barn=0.40, sigma_abs_barn=2.56),
    "Mn": Element(b_coh_fm=-3.73, sigma_inc_barn=0.40, sigma_abs_barn=13.3),
    "Ni": Element(b_coh_fm=10.3, sigma_inc_barn=5.2, sigma_abs_barn=4.49),
}

# B of the elements: Sears & Shelley, Acta Cryst. A47 (1991) 441; of fcc iron, taken for the steel:
# Gao & Peng, Acta Cryst. A55 (1999) 926, doi:10.1107/S0108767399005176.
# The steel is of the 18/9 chromium-nickel kind (AISI 304); such steels have 3.59 to 3.60 Å.
MATERIALS: Mapping[str, Material] = {
    "alpha_iron": Material("bcc", 2.8665, 0.34, {"Fe": 1.0}),
    "austenitic_steel": Material("fcc", 3.595, 0.57, {"Fe": 0.70, "Cr": 0.19, "Ni": 0.09, "Mn": 0.02}),
    "nickel": Material("fcc", 3.5238, 0.34, {"Ni": 1.0}),
    "aluminium": Material("fcc", 4.0495, 0.81, {"Al": 1.0}),
    "copper": Material("fcc", 3.6149, 0.56, {"Cu": 1.0}),
}

_ATOMS_PER_CELL = {"bcc": 2, "fcc": 4}


def find_material(name: str) -> Material:
    """Return the material of that name; `UserError` naming the nearest one where there is none."""
    if name not in MATERIALS:
        raise UserError(f"unknown material {name!r}{suggest(name, MATERIALS)}")
    return MATERIALS[name]


def compute_number_density(name: str) -> float:
    """Return atoms per Å³, which is the same number as atoms per (barn cm)."""
    material = find_material(name)
    return _ATOMS_PER_CELL[material.lattice] / material.a_angstrom**3


def compute_bragg_edges(name: str, *, min_wavelength_angstrom: float = 1.0) -> np.ndarray:
    """Return the Bragg edges 2 d_hkl, longest first.

    Parameters
    ----------
    name : str
        A key of `MATERIALS`.
    min_wavelength_angstrom : float, optional
        Shortest edge wanted.

    Returns
    -------
    (N,) ndarray of float64
        Wavelengths in Å.
    """
    material = find_material(name)
    return 2.0 * _find_planes(material.lattice, material.a_angstrom, float(min_wavelength_angstrom))[0]


def compute_coherent_elastic_cross_section(name: str, wavelength_angstrom: np.ndarray) -> np.ndarray:
    r"""Return the Bragg part of the cross section per atom.

    .. math:: \sigma(\lambda) = \frac{\lambda^2}{2 V_0} \sum_{2 d_{hkl} > \lambda} m |F|^2 d \, e^{-2W},
              \quad 2W = B / 2 d^2

    divided by the atoms per cell; powder, no texture, no extinction (doi:10.1107/S0021889812016056).

    Parameters
    ----------
    name : str
        A key of `MATERIALS`.
    wavelength_angstrom : array_like
        Any shape, Å.

    Returns
    -------
    ndarray of float64
        Barn per atom, shaped as the wavelengths.
    """
    material = find_material(name)
    wavelength = _check_wavelength(wavelength_angstrom)
    b_coh, _, _ = _average_elements(name)
    d, multiplicity = _find_planes(material.lattice, material.a_angstrom, float(wavelength.min(initial=10.0)))
    atoms = _ATOMS_PER_CELL[material.lattice]
    structure_factor_squared = (atoms * b_coh) ** 2 / 100.0  # fm² to barn
    terms = multiplicity * structure_factor_squared * d * np.exp(-material.b_iso_angstrom2 / (2.0 * d**2))
    sums = np.concatenate(([0.0], np.cumsum(terms)))
    n_reflecting = np.searchsorted(-2.0 * d, -wavelength, side="left")
    return wavelength**2 / (2.0 * material.a_angstrom**3) * sums[n_reflecting] / atoms


def compute_cross_section(name: str, wavelength_angstrom: np.ndarray) -> np.ndarray:
    r"""Return the total cross section per atom: Bragg + inelastic coherent + incoherent + absorption.

    The incoherent part, including that of elements mixed at random, is constant; absorption grows as the wavelength.
    The coherent scattering that thermal motion takes from the Bragg peaks is kept in the static incoherent
    approximation, :math:`4\pi b^2 [1 - (\lambda^2 / 2B)(1 - e^{-2B/\lambda^2})]`: right at short wavelengths, where
    the sum must tend to :math:`4\pi b^2`, and without the gain of energy by cold neutrons, a few tenths of a barn.
    Magnetic and small-angle scattering are left out.

    Parameters
    ----------
    name : str
        A key of `MATERIALS`.
    wavelength_angstrom : array_like
        Any shape, Å.

    Returns
    -------
    ndarray of float64
        Barn per atom, shaped as the wavelengths.

    Raises
    ------
    UserError
        For an unknown material or a wavelength below 0.2 Å.
    """
    wavelength = _check_wavelength(wavelength_angstrom)
    b_coh, sigma_inc, sigma_abs = _average_elements(name)
    x = 2.0 * find_material(name).b_iso_angstrom2 / wavelength**2
    inelastic = 4.0 * np.pi * b_coh**2 / 100.0 * (1.0 + np.expm1(-x) / x)
    absorption = sigma_abs * wavelength / THERMAL_WAVELENGTH_ANGSTROM
    return compute_coherent_elastic_cross_section(name, wavelength) + inelastic + sigma_inc + absorption


def compute_attenuation(name: str, wavelength_angstrom: np.ndarray) -> np.ndarray:
    """Return the attenuation coefficient in 1/cm, number density times total cross section; shaped as its input."""
    return compute_number_density(name) * compute_cross_section(name, wavelength_angstrom)


def _check_wavelength(wavelength_angstrom: np.ndarray) -> np.ndarray:
    wavelength = np.asarray(wavelength_angstrom, dtype=np.float64)
    if wavelength.size and not (wavelength.min() >= SHORTEST_WAVELENGTH_ANGSTROM and np.isfinite(wavelength).all()):
        raise UserError(
            f"wavelength {wavelength.min():g} Å is out of range; "
            f"give finite wavelengths from {SHORTEST_WAVELENGTH_ANGSTROM} Å"
        )
    return wavelength


def _average_elements(name: str) -> tuple[float, float, float]:
    """Return b_coh (fm), sigma_inc and sigma_abs (barn) of the mean atom; disorder of b scatters incoherently."""
    parts = [(fraction, ELEMENTS[symbol]) for symbol, fraction in find_material(name).composition.items()]
    b_mean = sum(f * e.b_coh_fm for f, e in parts)
    b_variance = sum(f * e.b_coh_fm**2 for f, e in parts) - b_mean**2
    sigma_inc = sum(f * e.sigma_inc_barn for f, e in parts) + 4.0 * np.pi * b_variance / 100.0
    return b_mean, sigma_inc, sum(f * e.sigma_abs_barn for f, e in parts)


@lru_cache(maxsize=32)
def _find_planes(lattice: str, a_angstrom: float, min_wavelength: float) -> tuple[np.ndarray, np.ndarray]:
    """Return d (Å, falling) and multiplicity of the reflecting planes with 2 d >= min_wavelength.

    In a cubic cell d depends on N = h² + k² + l² alone, so planes are counted by N.
    """
    n_max = int((2.0 * a_angstrom / min_wavelength) ** 2)
    index = np.arange(-int(n_max**0.5), int(n_max**0.5) + 1)
    h, k, l = np.meshgrid(index, index, index, indexing="ij", sparse=True)  # noqa: E741 - Miller's own letters
    if lattice == "bcc":
        reflects = (h + k + l) % 2 == 0
    else:
        reflects = ((h + k) % 2 == 0) & ((k + l) % 2 == 0)
    counts = np.bincount((h * h + k * k + l * l)[reflects], minlength=n_max + 1)[: n_max + 1]
    n = np.flatnonzero(counts)[1:]  # without 000
    d, multiplicity = a_angstrom / np.sqrt(n), counts[n]
    d.flags.writeable = multiplicity.flags.writeable = False
    return d, multiplicity

"""Recompute the tables of cross sections with NCrystal: ``python -m niseg_gpu.simulate.tabulate [FOLDER]``.

NCrystal (doi:10.1016/j.cpc.2019.07.015) is needed for this only, not to simulate. The Bragg part is kept plane by
plane, so that its edges stay sharp and texture can weigh them; the rest is smooth and kept on a grid.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from niseg_gpu.simulate.bragg import LONGEST_WAVELENGTH_ANGSTROM, SHORTEST_WAVELENGTH_ANGSTROM, TABLE_FOLDER

TEMPERATURE_K = 293.15
SMOOTH_POINTS = 240

# The steel is of the 18/9 chromium-nickel kind (AISI 304), atoms at random on the sites of gamma iron and as stiff as
# there; such steels have a cell of 3.59 to 3.60 Å.
STEEL_CELL_ANGSTROM = 3.595
STEEL_COMPOSITION = MappingProxyType({"Fe": 0.70, "Cr": 0.19, "Ni": 0.09, "Mn": 0.02})

FILES: Mapping[str, str] = {
    "alpha_iron": "Fe_sg229_Iron-alpha.ncmat",
    "gamma_iron": "Fe_sg225_Iron-gamma.ncmat",
    "austenitic_steel": "Fe_sg225_Iron-gamma.ncmat",
    "nickel": "Ni_sg225.ncmat",
    "aluminium": "Al_sg225.ncmat",
    "copper": "Cu_sg225.ncmat",
    "zirconium": "Zr_sg194.ncmat",
}


def load_material(name: str, *, parts: str = "") -> Any:
    """Return NCrystal's material with ``info``, ``scatter`` and ``absorption``.

    Parameters
    ----------
    name : str
        A key of `FILES`.
    parts : str, optional
        More of NCrystal's configuration, such as ``comp=coh_elas``.
    """
    import NCrystal

    config = f"temp={TEMPERATURE_K}K;dcutoff={SHORTEST_WAVELENGTH_ANGSTROM / 2};{parts}".rstrip(";")
    if name != "austenitic_steel":
        return NCrystal.load(f"{FILES[name]};{config}")
    mixture = ":".join(f"{fraction}:{symbol}" for symbol, fraction in STEEL_COMPOSITION.items())
    lines = NCrystal.createTextData(FILES[name]).rawData.splitlines()
    cell = f"  cubic {STEEL_CELL_ANGSTROM}"
    changed = [cell if re.match(r" *(cubic|lengths) ", line) else line for line in lines]
    assert changed.count(cell) == 1
    return NCrystal.directLoad("\n".join(changed) + "\n", f"atomdb=Fe:is:{mixture};{config}")


def write_tables(folder: Path) -> None:
    """Write ``materials.csv``, ``bragg_planes.csv`` and ``smooth_cross_sections.csv`` into a folder that exists."""
    import NCrystal

    grid = np.geomspace(SHORTEST_WAVELENGTH_ANGSTROM, LONGEST_WAVELENGTH_ANGSTROM, SMOOTH_POINTS)
    materials, planes, smooth = [], [], [grid]
    for name in FILES:
        material = load_material(name)
        cell = material.info.structure_info
        recipe = f"{FILES[name]};temp={TEMPERATURE_K}K"
        if name == "austenitic_steel":
            mixture = " ".join(f"{symbol}={fraction}" for symbol, fraction in STEEL_COMPOSITION.items())
            recipe += f" with a={STEEL_CELL_ANGSTROM} and {mixture}"
        numbers = (cell["spacegroup"], *(f"{cell[k]:.7g}" for k in "ac"), f"{material.info.numberdensity:.7g}")
        materials.append((name, *numbers, recipe))
        rows = _list_planes(material.info)
        planes += [(name, *row[:4], f"{row[4]:.7g}", f"{row[5]:.6g}") for row in rows]
        total = material.scatter.xsect(wl=grid) + material.absorption.xsect(wl=grid)
        d, weight = (np.array([row[i] for row in rows]) for i in (4, 5))
        smooth.append(total - grid**2 * ((2 * d > grid[:, None]) * weight).sum(axis=1))
    origin = f"NCrystal {NCrystal.__version__}, {TEMPERATURE_K} K; recomputed by niseg_gpu.simulate.tabulate"
    _write(
        folder / "materials.csv",
        origin,
        "material,space_group,a_angstrom,c_angstrom,atoms_per_angstrom3,recipe",
        materials,
    )
    columns = "material,h,k,l,multiplicity,d_angstrom,weight_barn_per_angstrom2"
    about = (
        f"{origin}; Bragg part per atom: wavelength² times the sum of the weights of the planes with 2 d > wavelength"
    )
    _write(folder / "bragg_planes.csv", about, columns, planes)
    about = f"{origin}; barn per atom that are not Bragg's: inelastic, incoherent, absorption"
    table = ([f"{value:.6g}" for value in row] for row in np.array(smooth).T)
    _write(folder / "smooth_cross_sections.csv", about, ",".join(("wavelength_angstrom", *FILES)), table)


def _list_planes(info: Any) -> list[tuple[int, int, int, int, float, float]]:
    """Return h, k, l, multiplicity, d and weight of each family of planes, d falling."""
    cell = info.structure_info
    rows = []
    for h, k, l, multiplicity, d, f_squared in info.hklList(all_indices=True):  # noqa: E741 - Miller's own letters
        index = max(zip(h.tolist(), k.tolist(), l.tolist(), strict=True))
        weight = multiplicity * f_squared * d / (2 * cell["volume"] * cell["n_atoms"])
        rows.append((*index, multiplicity, d, weight))
    return sorted(rows, key=lambda row: (-row[4], row[:3]))


def _write(path: Path, about: str, columns: str, rows: Iterable[Iterable[Any]]) -> None:
    lines = [f"# {about}", columns, *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_tables(Path(sys.argv[1]) if len(sys.argv) > 1 else TABLE_FOLDER)

"""The tables in the package are what NCrystal gives."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from niseg_gpu.simulate import bragg, tabulate

pytest.importorskip("NCrystal", reason="NCrystal, which the tables are recomputed with, is not installed")


@pytest.mark.parametrize("name", tabulate.FILES)
def test_tables_give_ncrystals_total_cross_section(name):
    material = tabulate.load_material(name)
    edges = bragg.compute_bragg_edges(name)
    wavelength = np.sort(np.concatenate([np.random.default_rng(1).uniform(0.5, 20, 500), edges - 1e-4, edges + 1e-4]))
    theirs = material.scatter.xsect(wl=wavelength) + material.absorption.xsect(wl=wavelength)
    np.testing.assert_allclose(bragg.compute_cross_section(name, wavelength), theirs, rtol=2e-4)


def test_recomputed_tables_are_those_of_the_package(tmp_path):
    tabulate.write_tables(tmp_path)
    for new in sorted(tmp_path.iterdir()):
        old = bragg.TABLE_FOLDER / new.name
        assert old.stat().st_size < 100_000
        # Releases of NCrystal may differ in the last digits.
        for ours, theirs in zip(read_rows(old), read_rows(new), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert a == b or float(a) == pytest.approx(float(b), rel=1e-3), (new.name, ours, theirs)


def read_rows(path):
    with path.open(encoding="utf-8") as lines:
        return list(csv.reader(line for line in lines if not line.startswith("#")))

import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.simulate import bragg

FIRST_PLANES = {
    "bcc": [(1, 1, 0), (2, 0, 0), (2, 1, 1), (2, 2, 0)],
    "fcc": [(1, 1, 1), (2, 0, 0), (2, 2, 0), (3, 1, 1)],
}


@pytest.mark.parametrize("name", bragg.MATERIALS)
def test_edges_lie_at_twice_the_plane_spacing(name):
    material = bragg.MATERIALS[name]
    expected = [2 * material.a_angstrom / np.sqrt(np.dot(hkl, hkl)) for hkl in FIRST_PLANES[material.lattice]]
    np.testing.assert_allclose(bragg.compute_bragg_edges(name)[:4], expected, rtol=1e-12)


@pytest.mark.parametrize(("name", "edge"), [("alpha_iron", 4.054), ("austenitic_steel", 4.151), ("aluminium", 4.676)])
def test_last_edge_is_where_experiment_sees_it(name, edge):
    assert bragg.compute_bragg_edges(name)[0] == pytest.approx(edge, abs=1e-3)


@pytest.mark.parametrize("name", bragg.MATERIALS)
def test_cross_section_falls_at_every_edge_and_only_there(name):
    wavelength = np.arange(1.5, 6.0, 1e-3)
    step = np.diff(bragg.compute_coherent_elastic_cross_section(name, wavelength))
    edges = bragg.compute_bragg_edges(name, min_wavelength_angstrom=1.5)
    assert np.array_equal(np.flatnonzero(step < 0), np.sort(np.searchsorted(wavelength, edges)) - 1)
    beyond = wavelength > edges[0]
    assert (bragg.compute_coherent_elastic_cross_section(name, wavelength[beyond]) == 0).all()


def test_step_at_last_edge_of_iron_equals_formula():
    a, b_fm = 2.8665, 9.45
    d = a / np.sqrt(2)
    wavelength = 2 * d
    cell = wavelength**2 / (2 * a**3) * 12 * (2 * b_fm) ** 2 / 100 * d * np.exp(-0.34 / (2 * d**2))
    below, above = bragg.compute_cross_section("alpha_iron", np.array([wavelength - 1e-9, wavelength + 1e-9]))
    assert below - above == pytest.approx(cell / 2, rel=1e-6)


@pytest.mark.parametrize("name", bragg.MATERIALS)
def test_coherent_scattering_tends_to_the_bound_atom_at_short_wavelengths(name):
    # Bragg and inelastic scattering together know nothing of the lattice once the wavelength is much shorter than it.
    wavelength = np.linspace(0.25, 0.4, 200)
    b_mean, sigma_inc, sigma_abs = bragg._average_elements(name)
    rest = sigma_inc + sigma_abs * wavelength / 1.798
    coherent = bragg.compute_cross_section(name, wavelength) - rest
    assert coherent.mean() == pytest.approx(4 * np.pi * b_mean**2 / 100, rel=0.01)


def test_absorption_grows_as_the_wavelength_beyond_the_edges():
    values = bragg.compute_cross_section("copper", np.array([20.0, 40.0]))
    assert values[1] - values[0] == pytest.approx(3.78 * 20 / 1.798, rel=5e-3)


def test_disorder_scatters_incoherently():
    steel = bragg._average_elements("austenitic_steel")
    assert steel[0] == pytest.approx(8.158, abs=0.01)
    assert steel[1] == pytest.approx(1.10 + 1.04, abs=0.03)


def test_density_of_iron_agrees_with_the_handbook():
    grams_per_cm3 = bragg.compute_number_density("alpha_iron") * 1e24 * 55.845 / 6.02214076e23
    assert grams_per_cm3 == pytest.approx(7.874, rel=2e-3)


def test_compositions_add_up():
    for material in bragg.MATERIALS.values():
        assert sum(material.composition.values()) == pytest.approx(1.0, abs=1e-12)


def test_shape_is_kept():
    assert bragg.compute_attenuation("nickel", np.full((2, 3), 2.0)).shape == (2, 3)
    assert bragg.compute_cross_section("nickel", 2.0).shape == ()


def test_errors_name_the_value():
    with pytest.raises(UserError, match="did you mean 'aluminium'"):
        bragg.compute_cross_section("aluminum", 2.0)
    with pytest.raises(UserError, match=r"0\.05 Å"):
        bragg.compute_cross_section("nickel", [0.05, 2.0])
    with pytest.raises(UserError, match="nan Å"):
        bragg.compute_cross_section("nickel", [np.nan, 2.0])

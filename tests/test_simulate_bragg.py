import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.simulate import bragg

# Edges of the cells in Å, from the literature: what experiment sees must come out.
LATTICES = {
    "alpha_iron": ("bcc", 2.8665),
    "austenitic_steel": ("fcc", 3.595),
    "nickel": ("fcc", 3.5238),
    "aluminium": ("fcc", 4.0495),
    "copper": ("fcc", 3.6149),
}
FIRST_PLANES = {
    "bcc": [(1, 1, 0), (2, 0, 0), (2, 1, 1), (2, 2, 0)],
    "fcc": [(1, 1, 1), (2, 0, 0), (2, 2, 0), (3, 1, 1)],
}
MATERIALS = sorted(bragg.load_materials())


@pytest.mark.parametrize("name", LATTICES)
def test_edges_lie_at_twice_the_plane_spacing(name):
    lattice, a = LATTICES[name]
    expected = [2 * a / np.sqrt(np.dot(hkl, hkl)) for hkl in FIRST_PLANES[lattice]]
    np.testing.assert_allclose(bragg.compute_bragg_edges(name)[:4], expected, rtol=5e-4)


@pytest.mark.parametrize(
    ("name", "edge"),
    [("alpha_iron", 4.05), ("gamma_iron", 4.22), ("austenitic_steel", 4.15), ("aluminium", 4.68), ("zirconium", 5.60)],
)
def test_last_edge_is_where_it_should_be(name, edge):
    assert bragg.compute_bragg_edges(name)[0] == pytest.approx(edge, abs=0.006)


def test_edges_of_a_hexagonal_cell():
    zirconium = bragg.find_material("zirconium")
    a, c = zirconium.a_angstrom, zirconium.c_angstrom
    h, k, l = zirconium.hkl.T  # noqa: E741 - Miller's own letters
    inverse_squared = 4 / 3 * (h * h + h * k + k * k) / a**2 + l * l / c**2
    np.testing.assert_allclose(zirconium.d_angstrom, inverse_squared**-0.5, rtol=1e-6)


@pytest.mark.parametrize("name", MATERIALS)
def test_cross_section_falls_at_every_edge_and_only_there(name):
    wavelength = np.arange(1.5, 6.0, 1e-3)
    edges = bragg.compute_bragg_edges(name, min_wavelength_angstrom=1.5)
    at_edge = np.unique(np.searchsorted(wavelength, edges)) - 1
    # The smooth part falls slowly in places; edges are steps.
    step = np.diff(bragg.compute_cross_section(name, wavelength))
    rest = np.delete(step, at_edge[at_edge < len(step)])
    assert (step[at_edge[at_edge < len(step)]] < -0.002).all() and np.abs(rest).max() < 0.03


def test_step_at_last_edge_of_iron_equals_the_formula():
    """Scattering length of V. F. Sears (doi:10.1080/10448639208218770), displacements of 0.34 Å² (B)."""
    a, b_fm = 2.8676, 9.45
    d = a / np.sqrt(2)
    wavelength = 2 * d
    cell = wavelength**2 / (2 * a**3) * 12 * (2 * b_fm) ** 2 / 100 * d * np.exp(-0.34 / (2 * d**2))
    below, above = bragg.compute_cross_section("alpha_iron", np.array([wavelength - 1e-5, wavelength + 1e-5]))
    assert below - above == pytest.approx(cell / 2, rel=0.005)


@pytest.mark.parametrize(
    ("name", "barn"),
    [("alpha_iron", 2.56), ("nickel", 4.49), ("copper", 3.78), ("aluminium", 0.231), ("zirconium", 0.185)],
)
def test_absorption_grows_as_the_wavelength_beyond_the_edges(name, barn):
    """Absorption of 2200 m/s neutrons; slow ones also gain energy from the lattice, which grows alike."""
    values = bragg.compute_cross_section(name, np.array([15.0, 20.0]))
    assert barn < (values[1] - values[0]) / 5 * 1.798 < 1.35 * barn + 0.15


def test_density_of_iron_agrees_with_the_handbook():
    grams_per_cm3 = bragg.find_material("alpha_iron").number_density * 1e24 * 55.845 / 6.02214076e23
    assert grams_per_cm3 == pytest.approx(7.874, rel=2e-3)


def test_shape_is_kept():
    assert bragg.compute_attenuation("nickel", np.full((2, 3), 2.0)).shape == (2, 3)
    assert bragg.compute_cross_section("nickel", 2.0).shape == ()


def test_errors_name_the_value():
    with pytest.raises(UserError, match="did you mean 'aluminium'"):
        bragg.compute_cross_section("aluminum", 2.0)
    for wrong, named in ((0.05, "0.05"), (25.0, "25"), (np.nan, "nan")):
        with pytest.raises(UserError, match=f"{named} Å is out of range; give wavelengths from 0.5 to 20 Å"):
            bragg.compute_cross_section("nickel", [2.0, wrong])

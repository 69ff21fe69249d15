import numpy as np
import pytest
from scipy import integrate

from niseg_gpu.errors import UserError
from niseg_gpu.simulate.bragg import compute_bragg_edges, compute_cross_section
from niseg_gpu.simulate.texture import Texture, march_dollase, read_textures

WAVELENGTH = np.linspace(0.6, 6.0, 500)


@pytest.mark.parametrize("ratio", [0.3, 0.8, 1.0, 2.5])
def test_density_of_normals_is_1_on_average(ratio):
    mean, _ = integrate.quad(march_dollase, 0, 1, args=(ratio,))
    assert mean == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("name", ["alpha_iron", "zirconium"])
def test_ratio_1_is_a_powder(name):
    textured = compute_cross_section(name, WAVELENGTH, texture=Texture((1, 1, 0), 1.0))
    np.testing.assert_allclose(textured, compute_cross_section(name, WAVELENGTH), rtol=1e-9)


def measure_step(name, edge, texture):
    below, above = compute_cross_section(name, np.array([edge - 1e-7, edge + 1e-7]), texture=texture)
    return below - above


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.7])
def test_last_edge_of_iron_weighs_by_its_normals_along_the_beam(ratio):
    """At its edge a plane reflects straight back; of six 110 axes one is its normal, four stand at 60°, one at 90°."""
    edge = compute_bragg_edges("alpha_iron")[0]
    expected = np.dot([1, 4, 1], march_dollase(np.array([1.0, 0.5, 0.0]), ratio)) / 6
    texture = Texture((1, 1, 0), ratio)
    assert measure_step("alpha_iron", edge, texture) / measure_step("alpha_iron", edge, None) == pytest.approx(
        expected, rel=1e-4
    )


def test_basal_planes_of_zirconium_turn_towards_the_beam():
    edges = {"002": 5.147, "100": 5.597988}
    texture = Texture((0, 0, 2), 0.6)
    gain = {k: measure_step("zirconium", e, texture) / measure_step("zirconium", e, None) for k, e in edges.items()}
    assert gain["002"] == pytest.approx(0.6**-3, rel=1e-3) and gain["100"] == pytest.approx(0.6**1.5, rel=1e-3)


def test_short_wavelengths_see_less_of_the_texture():
    ratio = compute_cross_section("nickel", WAVELENGTH, texture=Texture((1, 1, 1), 0.5))
    ratio = ratio / compute_cross_section("nickel", WAVELENGTH)
    assert np.abs(ratio - 1)[WAVELENGTH < 1].max() < 0.1 < np.abs(ratio - 1).max()


def test_textures_are_read():
    assert read_textures("alpha_iron:110:0.7, nickel:200:1.3") == {
        "alpha_iron": Texture((1, 1, 0), 0.7),
        "nickel": Texture((2, 0, 0), 1.3),
    }
    assert read_textures("") == {}


@pytest.mark.parametrize("text", ["nickel", "nickel:11:0.7", "nickel:111:much", "nickel:1x1:0.7"])
def test_what_is_no_texture_is_named(text):
    with pytest.raises(UserError, match=r"texture '.*' is not MATERIAL:HKL:RATIO"):
        read_textures(text)


def test_a_material_has_one_texture():
    with pytest.raises(UserError, match="names 'nickel' twice"):
        read_textures("nickel:111:0.7,copper:111:0.7,nickel:200:0.7")


@pytest.mark.parametrize("text", ["nickel:000:0.7", "nickel:111:0", "nickel:111:nan"])
def test_values_out_of_range_are_refused(text):
    with pytest.raises(UserError, match="ratio from 0.05 to 20"):
        read_textures(text)

"""Arithmetic under the pictures: shrinking keeps what matters, limits, palette."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.image import imread

from niseg_gpu import figures

SIDES = st.integers(1, 40)


@given(SIDES, SIDES, st.integers(1, 45))
def test_shrinking_equals_the_mean_and_maximum_of_every_block(height, width, limit):
    image = np.random.default_rng(height * 41 + width).integers(0, 99, (height, width)).astype(np.uint32)
    n = -(-max(image.shape) // limit)
    blocks = [[image[y : y + n, x : x + n] for x in range(0, width, n)] for y in range(0, height, n)]
    mean, top = (figures.shrink(image, limit=limit, how=how) for how in ("mean", "max"))
    np.testing.assert_allclose(mean, [[b.mean() for b in row] for row in blocks], rtol=1e-5)
    np.testing.assert_array_equal(top, [[b.max() for b in row] for row in blocks])
    strided = figures.shrink(image, limit=limit, how="stride")
    assert max(strided.shape) <= limit and np.isin(strided, image).all() and min(strided.shape) >= 1
    assert image.sum() == np.concatenate([b.ravel() for row in blocks for b in row]).sum()


def test_shrinking_leaves_values_that_are_not_finite_out():
    image = np.full((4, 4), 2.0, np.float32)
    image[0, 0], image[2:, 2:] = np.nan, np.inf
    np.testing.assert_array_equal(figures.shrink(image, limit=2), [[2, 2], [2, np.nan]])


def test_limits_are_never_equal_and_ignore_nan():
    assert figures.find_limits(np.array([np.nan, np.inf])) == (0, 1)
    assert figures.find_limits(np.zeros(3)) == (-0.5, 0.5)
    low, high = figures.find_limits(np.r_[np.arange(1000.0), 1e9, np.nan])
    assert 0 < low < 20 and 980 < high < 1000


def test_palette_has_64_colours_and_none_is_no_data():
    assert len(set(figures.PALETTE)) == 64 and figures.NO_DATA_COLOUR not in figures.PALETTE
    assert figures.cluster_colour(64) == figures.PALETTE[0]


def decode(png, tmp_path):
    (tmp_path / "p.png").write_bytes(png)
    pixels = imread(tmp_path / "p.png")
    return pixels[..., :3] if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2)


def test_dark_picture_has_the_same_data_on_another_ground(tmp_path):
    labels = np.zeros((30, 30), np.uint8)
    picture = figures.draw_labels(labels, n_clusters=1, no_data=255)
    light, dark = decode(picture.light, tmp_path), decode(picture.dark, tmp_path)
    assert light[0, 0].min() > 0.99 and dark[0, 0].max() < 0.15
    blue = [int(figures.PALETTE[0][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    of_data = np.isclose(light, blue, atol=0.003).all(axis=2)
    assert of_data.mean() > 0.3
    np.testing.assert_array_equal(of_data, np.isclose(dark, blue, atol=0.003).all(axis=2))


def test_one_spot_in_a_large_map_is_still_drawn(tmp_path):
    count = np.zeros((3000, 3000), np.uint32)
    empty = decode(figures.draw_spots(count, label="times replaced").light, tmp_path)
    count[1234, 777] = 1
    spot = decode(figures.draw_spots(count, label="times replaced").light, tmp_path)
    assert spot.shape == empty.shape and (spot != empty).any()


@pytest.mark.parametrize("shape", [(1, 300), (300, 1)])
def test_any_shape_and_constant_values_can_be_drawn(shape):
    image = np.full(shape, np.nan, np.float32)
    assert figures.draw_map(image, label="counts").light.startswith(b"\x89PNG")  # all NaN
    assert figures.draw_map(np.zeros(shape, np.uint16), label="counts").width == 784
    figures.draw_spots(np.full(shape, 1000, np.uint32), label="times replaced")
    figures.draw_histogram(image.ravel(), label="counts")
    figures.draw_labels(np.full(shape, 255, np.uint8), n_clusters=2, no_data=255)


DRAW = """
import sys
from niseg_gpu import figures

def draw(figure, theme):
    figure.add_subplot().plot([0, 1], [2, 3], label="a")

assert not {"matplotlib", "PIL"} & set(sys.modules)
figures.load_libraries()
known = set(sys.modules)
figures.render(draw, 3, 2)
print([name for name in set(sys.modules) - known if name.split(".")[0] in ("matplotlib", "PIL")])
"""


def test_what_pictures_need_is_loaded_beforehand():
    done = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_line_of_pixels_is_seen_and_nothing_is_counted_in_parts(tmp_path, monkeypatch):
    labels = np.zeros((1, 300), np.uint8)
    light = decode(figures.draw_labels(labels, n_clusters=1, no_data=255).light, tmp_path)
    blue = [int(figures.PALETTE[0][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    assert np.isclose(light, blue, atol=0.003).all(axis=2).mean() > 0.3

    def keep(draw, width_in, height_in):
        figure = Figure(figsize=(width_in, height_in))
        draw(figure, figures.LIGHT)
        figure.canvas.draw()
        kept.append(
            [[tick.get_text() for tick in axis.get_ticklabels()] for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)]
        )

    kept: list = []
    monkeypatch.setattr(figures, "render", keep)
    for most in (0, 1, 3):
        figures.draw_spots(np.array([[0, most]], np.uint32), label="times replaced")
        pixels, bar = kept[-1][:2], kept[-1][3]
        assert {float(text) % 1 for axis in pixels for text in axis} == {0}
        assert len(set(bar)) == len(bar) and {"1", str(max(most, 1))} <= set(bar)

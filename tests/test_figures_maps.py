"""Maps of pixels: what they show, whatever their shape."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from niseg_gpu import figures, figures_maps


def decode(png, tmp_path):
    (tmp_path / "p.png").write_bytes(png)
    pixels = imread(tmp_path / "p.png")
    return pixels[..., :3] if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2)


def test_dark_picture_has_the_same_data_on_another_ground(tmp_path):
    labels = np.zeros((30, 30), np.uint8)
    picture = figures_maps.draw_labels(labels, n_clusters=1, no_data=255)
    light, dark = decode(picture.light, tmp_path), decode(picture.dark, tmp_path)
    assert light[0, 0].min() > 0.99 and dark[0, 0].max() < 0.15
    blue = [int(figures.PALETTE[0][i : i + 2], 16) / 255 for i in (1, 3, 5)]
    of_data = np.isclose(light, blue, atol=0.003).all(axis=2)
    assert of_data.mean() > 0.3
    np.testing.assert_array_equal(of_data, np.isclose(dark, blue, atol=0.003).all(axis=2))


def test_one_spot_in_a_large_map_is_still_drawn(tmp_path):
    count = np.zeros((3000, 3000), np.uint32)
    empty = decode(figures_maps.draw_spots(count, label="times replaced").light, tmp_path)
    count[1234, 777] = 1
    spot = decode(figures_maps.draw_spots(count, label="times replaced").light, tmp_path)
    assert spot.shape == empty.shape and (spot != empty).any()


@pytest.mark.parametrize("shape", [(1, 300), (300, 1)])
def test_any_shape_and_constant_values_can_be_drawn(shape):
    image = np.full(shape, np.nan, np.float32)
    assert figures_maps.draw_map(image, label="counts").light.startswith(b"\x89PNG")  # all NaN
    assert figures_maps.draw_map(np.zeros(shape, np.uint16), label="counts").width == 784
    figures_maps.draw_spots(np.full(shape, 1000, np.uint32), label="times replaced")
    figures_maps.draw_histogram(image.ravel(), label="counts")
    figures_maps.draw_labels(np.full(shape, 255, np.uint8), n_clusters=2, no_data=255)


def test_a_line_of_pixels_is_seen_and_nothing_is_counted_in_parts(tmp_path, monkeypatch):
    labels = np.zeros((1, 300), np.uint8)
    light = decode(figures_maps.draw_labels(labels, n_clusters=1, no_data=255).light, tmp_path)
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
    monkeypatch.setattr(figures_maps, "render", keep)
    for most in (0, 1, 3):
        figures_maps.draw_spots(np.array([[0, most]], np.uint32), label="times replaced")
        pixels, bar = kept[-1][:2], kept[-1][3]
        assert {float(text) % 1 for axis in pixels for text in axis} == {0}
        assert len(set(bar)) == len(bar) and {"1", str(max(most, 1))} <= set(bar)

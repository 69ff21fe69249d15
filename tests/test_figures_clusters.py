"""Pictures of several clusterings: what is drawn where, in which colours."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from niseg_gpu.figures import NO_DATA_COLOUR, cluster_colour
from niseg_gpu.figures_clusters import draw_k_curves, draw_label_maps


def colours_of(png: bytes) -> set[str]:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return {"#{:02X}{:02X}{:02X}".format(*colour) for number, colour in image.getcolors(1 << 24) if number > 200}


def test_every_map_is_drawn_in_the_colours_of_its_clusters() -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[:, 30:] = 1
    more = labels.copy()
    more[:20] = 2
    more[40:] = 255
    picture = draw_label_maps([labels, more], numbers=[2, 3])
    for png in (picture.light, picture.dark):
        assert {cluster_colour(0), cluster_colour(1), cluster_colour(2), NO_DATA_COLOUR} <= colours_of(png)


def test_many_maps_wrap_into_rows() -> None:
    one, five = (draw_label_maps([np.zeros((40, 40), np.uint8)] * n, numbers=range(1, n + 1)) for n in (4, 5))
    assert five.width == one.width and five.height == 2 * one.height


def test_curves_may_have_gaps() -> None:
    picture = draw_k_curves([1, 2, 4], [("inertia", [9.0, 4.0, 1.0]), ("silhouette", [None, 0.4, 0.2])], chosen=2)
    assert Image.open(io.BytesIO(picture.light)).size == (picture.width, picture.height)

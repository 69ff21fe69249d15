"""Pictures of several clusterings: what is drawn where, in which colours."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from niseg_gpu.figures import NO_DATA_COLOUR, cluster_colour
from niseg_gpu.figures_clusters import Clustering, draw_k_curves, draw_label_maps


def colours_of(png: bytes) -> set[str]:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return {"#{:02X}{:02X}{:02X}".format(*colour) for number, colour in image.getcolors(1 << 24) if number > 200}


def test_every_map_is_drawn_in_the_colours_of_its_clusters() -> None:
    labels = np.zeros((60, 80), np.uint8)
    labels[:, 30:] = 1
    more = labels.copy()
    more[:20] = 2
    more[40:] = 255
    picture = draw_label_maps([Clustering(labels, 2), Clustering(more, 3)])
    for png in (picture.light, picture.dark):
        assert {cluster_colour(0), cluster_colour(1), cluster_colour(2), NO_DATA_COLOUR} <= colours_of(png)


def test_many_maps_wrap_into_rows() -> None:
    one, five = (draw_label_maps([Clustering(np.zeros((40, 40), np.uint8), 1)] * n) for n in (4, 5))
    assert five.width == one.width and abs(five.height - 2 * one.height) <= 1  # in whole pixels


def test_spectra_lie_below_their_map_and_outliers_do_not_flatten_them() -> None:
    labels = np.full((40, 40), 255, np.uint8)  # no data: the colours of clusters are the spectra's alone
    rising = np.linspace(1, 2, 50)
    spectra = np.stack([rising, rising[::-1], np.where(np.arange(50) == 7, 1e6, 1.5)])
    without = draw_label_maps([Clustering(labels, 3)])
    for edges in ((), (1,)):
        picture = draw_label_maps([Clustering(labels, 3, spectra, edges, few=[2])], tof_s=np.arange(50) * 1e-5)
        assert picture.height > without.height and picture.width == without.width
        image = np.asarray(Image.open(io.BytesIO(picture.light)).convert("RGB")).astype(int)
        tall = {}
        for cluster in (0, 1):
            wanted = np.array([int(cluster_colour(cluster)[i : i + 2], 16) for i in (1, 3, 5)])
            seen = np.flatnonzero((np.abs(image - wanted).max(axis=2) < 20)[without.height :].any(axis=1))
            tall[cluster] = int(np.ptp(seen))
        assert min(tall.values()) > 0.5 * (picture.height - without.height)


def test_clusters_that_follow_edges_are_named_in_their_colours() -> None:
    labels = np.full((40, 40), 255, np.uint8)
    plain, marked = (draw_label_maps([Clustering(labels, 9, edges=edges)]) for edges in ((), (4, 7)))
    assert marked.light != plain.light
    assert draw_label_maps([Clustering(labels, 64, edges=range(30))]).width == plain.width
    few = [colours_of_few(picture.light) for picture in (plain, marked)]
    assert {cluster_colour(4), cluster_colour(7)} <= few[1] and not {cluster_colour(4), cluster_colour(7)} & few[0]


def colours_of_few(png: bytes) -> set[str]:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return {"#{:02X}{:02X}{:02X}".format(*colour) for _, colour in image.getcolors(1 << 24)}


def test_curves_may_have_gaps() -> None:
    picture = draw_k_curves([1, 2, 4], [("inertia", [9.0, 4.0, 1.0]), ("silhouette", [None, 0.4, 0.2])], chosen=2)
    assert Image.open(io.BytesIO(picture.light)).size == (picture.width, picture.height)

"""Silhouettes against scikit-learn's; edge clusters in maps whose answer is plain."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, silhouette_score

from niseg_gpu.cluster_quality import EDGE_SHARE, measure_edge_share, measure_rand_index, measure_silhouette


@pytest.mark.parametrize("apart", [0.0, 3.0, 30.0])
def test_silhouette_is_scikit_learns(backend, apart: float) -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 4, 300)
    rows = (rng.normal(size=(300, 5)) + apart * labels[:, None] + 1000).astype(np.float32)
    found = measure_silhouette(backend.from_host(rows), backend.from_host(labels), n_clusters=6)
    assert found == pytest.approx(silhouette_score(rows.astype(np.float64), labels), abs=1e-6)


def test_a_row_alone_counts_nothing_and_one_cluster_has_no_silhouette() -> None:
    rows = np.array([[0], [0.1], [5]], np.float32)
    assert measure_silhouette(rows, np.array([0, 0, 1]), n_clusters=2) == pytest.approx(
        silhouette_score(rows, [0, 0, 1])
    )
    assert measure_silhouette(rows, np.zeros(3, int), n_clusters=2) is None


def test_a_stripe_between_two_materials_follows_the_edge_and_they_do_not() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 20:] = 1
    labels[:, 19:21] = 2
    shares = measure_edge_share(labels, n_clusters=3)
    assert shares[2] == 1 and (shares[:2] < EDGE_SHARE).all()


def test_speckles_inside_one_material_follow_no_edge() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[::5, ::5] = 1
    assert measure_edge_share(labels, n_clusters=2).tolist() == [0, 0]


def test_noise_divided_is_one_body_and_its_border_an_edge() -> None:
    labels = np.random.default_rng(0).integers(0, 3, (60, 60)).astype(np.uint8)
    labels[:, 30:] = 3
    labels[:, 29:31] = 4
    shares = measure_edge_share(labels, n_clusters=5)
    assert shares[4] == 1 and (shares[:4] < 0.2).all()


def test_no_data_is_no_cluster_and_an_empty_one_has_no_share() -> None:
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[:, :, 4] = 255
    labels[:, :, 5:] = 1
    shares = measure_edge_share(labels, n_clusters=3)
    assert shares[:2].tolist() == [0, 0] and np.isnan(shares[2])


def test_the_rand_index_knows_no_numbering() -> None:
    one = np.array([0, 0, 1, 1, 2, 2])
    assert measure_rand_index(one, (one + 1) % 3) == 1
    assert measure_rand_index(np.zeros(4, int), np.zeros(4, int)) == 1
    assert measure_rand_index(one, np.array([0, 1, 0, 1, 0, 1])) == pytest.approx(
        adjusted_rand_score(one, [0, 1, 0, 1, 0, 1])
    )

import hashlib

import numpy as np
import pytest
from scipy import stats

from niseg_gpu.simulate import noise
from niseg_gpu.simulate.noise import draw_poisson
from niseg_gpu.simulate.streams import make_key


def words(n_blocks, key, index):
    out = np.empty(n_blocks * noise.BLOCK, np.uint32)
    for b in range(n_blocks):
        noise.fill_words(out[b * noise.BLOCK :], *key, b, np.uint32(index))
    return out


def test_words_are_threefrys():
    """The known answers of Threefry-2x32 with 13 rounds, from Random123 of its authors: key, place, words."""
    for line in (
        "00000000 00000000 00000000 00000000 9d1c5ec6 8bd50731",
        "ffffffff ffffffff ffffffff ffffffff fd36d048 2d17272c",
        "13198a2e 03707344 243f6a88 85a308d3 ba3e4725 f27d669e",
    ):
        *given, first, second = (np.uint32(int(word, 16)) for word in line.split())
        assert noise._hash(*given) == (first, second)


def test_words_are_even_and_independent():
    key = make_key(1, 2, 3)
    u = words(1024, key, 7).astype(np.float64) / 2**32
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    for other in (words(1024, key, 8), words(1024, make_key(2, 2, 3), 7), np.roll(words(1024, key, 7), noise.HALF)):
        assert abs(np.corrcoef(u, other)[0, 1]) < 5 / np.sqrt(u.size)


def test_normal_numbers_are_those_of_the_words():
    ends = np.array([0, 1, 100, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    w = words(64, make_key(5), 0)
    w[: len(ends)] = ends
    work, z = np.empty(noise.WORK, np.float32), []
    for block in w.reshape(-1, noise.BLOCK):
        noise.fill_normal(block, work, noise.COUNT)
        z.append(work[noise.COUNT : noise.COUNT + noise.BLOCK].copy())
    z, expected = np.concatenate(z), stats.norm.ppf((w + 0.5) / 2**32)
    assert np.abs(z - expected)[np.abs(expected) < 5.5].max() < 3e-6 and np.abs(z - expected).max() < 3e-3


@pytest.mark.parametrize("mean", [0.0, 0.3, 3.0, 5.99, 6.01, 29.9, 120.0, 4000.0, 1e6])
def test_counts_have_the_moments_of_poisson(mean):
    counts = draw_poisson(np.full(400_000, mean, np.float32), key=make_key(3)).astype(np.float64)
    assert np.array_equal(counts, np.rint(counts)) and counts.min() >= 0
    assert abs(counts.mean() - mean) <= 5 * np.sqrt(mean / counts.size)
    assert abs(counts.var() - mean) <= 5 * np.sqrt((mean + 2 * mean**2) / counts.size)
    if mean:
        # The smallest means are far from normal: their skewness scatters more.
        assert abs(stats.skew(counts) - mean**-0.5) <= 5 * np.sqrt((6 + 30 / mean) / counts.size)


@pytest.mark.parametrize("mean", [0.01, 1.0, 5.9, 6.0, 8.0, 30.0, 1000.0])
def test_counts_have_the_distribution_of_poisson(mean):
    """A quantile for each of many even shares: the distribution function without the noise of drawing."""
    shares = (np.arange(2**18) + 0.5) / 2**18
    even = (shares * 2**32).astype(np.uint32).reshape(-1, noise.BLOCK)
    work = np.zeros(noise.WORK, np.float32)
    counts = []
    for block in even:
        work[:] = mean
        noise.draw_block(block, work)
        counts.append(work[noise.COUNT : noise.COUNT + noise.BLOCK].copy())
    counts = np.sort(np.concatenate(counts))
    k = np.arange(counts.max() + 1)
    function = np.searchsorted(counts, k, side="right") / counts.size
    assert np.abs(function - stats.poisson.cdf(k, mean)).max() < 3e-4
    assert counts.mean() == pytest.approx(mean, rel=1e-4, abs=4e-6) and counts.var() == pytest.approx(mean, rel=2e-3)


def test_each_pixel_is_drawn_for_itself():
    """Neither the shape nor the neighbours matter to a pixel, only its place."""
    rng = np.random.default_rng(9)
    mean = rng.choice(np.array([0.0, 0.5, 5.0, 50.0, 500.0], np.float32), (37, 61))
    counts = draw_poisson(mean, key=make_key(4), index=2)
    np.testing.assert_array_equal(draw_poisson(mean.ravel()[:1000], key=make_key(4), index=2), counts.ravel()[:1000])
    alike = draw_poisson(np.full(mean.shape, 5, np.float32), key=make_key(4), index=2)
    np.testing.assert_array_equal(alike[mean == 5], counts[mean == 5])
    assert not counts[mean == 0].any()


def test_known_values():
    """Bytes that every machine must give."""
    mean = np.geomspace(1e-3, 1e5, 10_000).astype(np.float32)
    counts = draw_poisson(mean, key=make_key(2018, 1), index=3).astype("<i4")
    assert hashlib.sha256(counts.tobytes()).hexdigest()[:16] == "4a8fc3b23f7b3917"

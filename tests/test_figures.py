"""Arithmetic under the pictures: shrinking keeps what matters, limits, palette."""

import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

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

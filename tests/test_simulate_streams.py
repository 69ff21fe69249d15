"""What generators refuse, and how they are told sizes and options."""

from __future__ import annotations

import math

import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.simulate.streams import check_limits, fill_options, read_shape


@pytest.mark.parametrize("shape", ["64", "64x64x64x64", "16x64", "64xa", (64, None), (64.5, 64), 64, "", "64.5x64"])
def test_shapes_that_make_no_sense_are_refused(shape):
    with pytest.raises(UserError, match="give 2 or 3 sides of 32 to 65536, such as 512x512 or 256x256x256"):
        read_shape(shape)


def test_shapes_are_read():
    assert (
        read_shape("64x48")
        == read_shape("64, 48")
        == read_shape((64, 48))
        == read_shape(np.array([64, 48]))
        == (64, 48)
    )
    with pytest.raises(UserError, match="give 2 sides of 32 to 65536, such as 512x512$"):
        read_shape("64x64x64", n_sides=(2,))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, "age=0.5 is out of range; give 1 to 3"),
        (math.nan, "age=nan is out of range"),
        ("2", "age='2' is no number"),
        (2j, "age=2j is no number"),
    ],
)
def test_values_are_refused_with_what_is_allowed(value, message):
    with pytest.raises(UserError, match=message):
        check_limits({"age": value}, {"age": (1, 3)})


@pytest.mark.parametrize("seed", [-1, 1.0, "3", None])
def test_a_seed_is_a_whole_number(seed):
    """None, above all, would give other data each time."""
    with pytest.raises(UserError, match=r"seed=.*(give 0 or more|no whole number)"):
        check_limits({"seed": seed}, {"seed": (0, math.inf)})


def test_what_is_within_the_limits_passes():
    limits = {"seed": (0, math.inf), "snr": (0.1, math.inf), "workers": (1, 4)}
    check_limits({"seed": np.int64(3), "snr": math.inf, "workers": None}, limits)
    check_limits({"seed": 2**200, "snr": np.float32(2), "workers": np.uint8(4)}, limits)


def test_options_are_those_of_the_generator():
    def simulate(out, draw=None, *, seed=1, age=2.0, workers=None):
        raise AssertionError

    assert fill_options(simulate, {"age": 3.0}, left_out=("seed", "workers")) == {"age": 3.0}
    assert fill_options(simulate, {}, left_out=("workers",)) == {"seed": 1, "age": 2.0}
    for name in ("ages", "workers", "draw"):
        with pytest.raises(UserError, match=f"a sample of simulate has no parameter '{name}'"):
            fill_options(simulate, {name: 1}, left_out=("workers",))

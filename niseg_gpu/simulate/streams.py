"""What all generators share: random numbers that depend on the seed and on what they are for, and checks."""

from __future__ import annotations

import inspect
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError, suggest


def start_rng(seed: int, *branch: int) -> np.random.Generator:
    """Return the random numbers of one branch of a seed, which are independent of all other branches."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=branch)))


def make_key(seed: int, *branch: int) -> tuple[np.uint32, np.uint32]:
    """Return the two words that tell a branch of a seed from all others in `niseg_gpu.simulate.noise`."""
    first, second = np.random.SeedSequence(seed, spawn_key=branch).generate_state(2)
    return first, second


def check_limits(given: Mapping[str, Any], limits: Mapping[str, tuple[float, float]]) -> None:
    """Refuse what can't be simulated with the value, the limits and what to do; only a seed may not be None."""
    for name, (low, high) in limits.items():
        value = given[name]
        if value is None and name != "seed":
            continue
        if not isinstance(value, Integral if name == "seed" else Real):
            raise UserError(f"{name}={value!r} is no {'whole number' if name == 'seed' else 'number'}; give one")
        if not low <= value <= high:
            allowed = f"{low:g} or more" if high == math.inf else f"{low:g} to {high:g}"
            raise UserError(f"{name}={value!r} is out of range; give {allowed}")


def read_shape(shape: str | Sequence[int], *, n_sides: tuple[int, ...] = (2, 3)) -> tuple[int, ...]:
    """Read ``512x512`` or ``64,64,64``, or take a sequence of whole numbers.

    Raises
    ------
    UserError
        What is not as many whole numbers of 32 to 65536 as allowed.
    """
    sides: tuple[int, ...] = ()
    with suppress(TypeError, ValueError):
        if isinstance(shape, str):
            sides = tuple(int(part) for part in re.split(r"[x, ×()\[\]]+", shape) if part)
        else:
            sides = tuple(operator.index(side) for side in shape)
    if len(sides) not in n_sides or not all(32 <= side <= 65_536 for side in sides):
        examples = {2: "512x512", 3: "256x256x256"}
        raise UserError(
            f"shape={shape!r}; give {' or '.join(map(str, n_sides))} sides of 32 to 65536, such as "
            f"{' or '.join(examples[n] for n in n_sides)}"
        )
    return sides


def fill_options(
    simulate: Callable[..., Any], options: Mapping[str, Any], *, left_out: Collection[str]
) -> dict[str, Any]:
    """Return the options of a generator with its defaults where none are given; refuse those it does not know."""
    known = inspect.signature(simulate).parameters.items()
    defaults = {name: p.default for name, p in known if p.kind is p.KEYWORD_ONLY and name not in left_out}
    for name in options:
        if name not in defaults:
            raise UserError(f"a sample of {simulate.__name__} has no parameter {name!r}{suggest(name, defaults)}")
    return {**defaults, **options}

"""What all generators share: random numbers that depend on the seed and on what they are for, and limits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
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
    """Refuse what can't be simulated with the value, the limits and what to do; None is not given."""
    for name, (low, high) in limits.items():
        if given[name] is not None and not low <= given[name] <= high:
            raise UserError(f"{name}={given[name]!r} is out of range; give {low:g} to {high:g}")


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

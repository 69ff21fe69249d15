"""Options of functions, held to what their own signatures say of them, before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import astuple
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
from annotated_types import Ge, Gt, Le

from niseg_gpu.errors import UserError


def check_options(function: Callable[..., Any], *, who: str | None = None, **given: Any) -> None:
    """Refuse options that the annotations of a function do not allow: other words, no numbers, numbers out of range.

    Parameters
    ----------
    function : callable
        Its annotations may be ``Literal``, ``bool``, ``int`` and ``float``, ``Annotated`` with limits, or None; what is
        annotated otherwise is not looked at. Numbers of NumPy are numbers.
    who : str, optional
        What it is called in the complaint.
    **given
        Options by name.

    Raises
    ------
    UserError
    """
    rules = _rules_of(function)
    for name, value in given.items():
        allowed, fits = rules[name]
        if not fits(value):
            raise UserError(f"{who or function.__name__} got {name} {_tell(value)}; allowed: {allowed}")


def _tell(value: Any) -> str:
    """A value in words, of one line and no more than that; numbers and words as they are typed."""
    if isinstance(value, np.generic):
        value = value.item()
    text = repr(value)
    return text if isinstance(value, str | int | float | NoneType) and len(text) < 60 else f"a {type(value).__name__}"


@cache
def _rules_of(function: Callable[..., Any]) -> dict[str, tuple[str, Callable[[Any], bool]]]:
    """What is allowed, in words, and whether a value is, by parameter."""
    return {name: _read_rule(hint) for name, hint in get_type_hints(function, include_extras=True).items()}


def _read_rule(hint: Any) -> tuple[str, Callable[[Any], bool]]:
    if get_origin(hint) in (Union, UnionType):
        inner, *others = [part for part in get_args(hint) if part is not NoneType]
        words, fits = _read_rule(Any if others else inner)
        return f"{words}, or None", lambda value: value is None or fits(value)
    limits: list[Any] = []
    if get_origin(hint) is Annotated:
        hint, *limits = get_args(hint)
    if get_origin(hint) is Literal:
        choices = get_args(hint)
        return ", ".join(choices), lambda value: isinstance(value, str) and value in choices
    if hint is bool:
        return "True, False", lambda value: isinstance(value, bool | np.bool_)
    if hint not in (int, float):
        return "", lambda value: True
    kind, words = (Integral, "a whole number") if hint is int else (Real, "a number")
    words += "".join(_WORDS[type(limit)].format(astuple(limit)[0]) for limit in limits)

    def fits_limits(value: Any) -> bool:
        number = isinstance(value, kind) and not isinstance(value, bool) and not math.isnan(value)
        return number and all(_TESTS[type(limit)](value, limit) for limit in limits)

    return words, fits_limits


_WORDS = {Ge: " from {:g}", Gt: " above {:g}", Le: " up to {:g}"}
_TESTS: dict[type, Callable[[Any, Any], bool]] = {
    Ge: lambda value, limit: value >= limit.ge,
    Gt: lambda value, limit: value > limit.gt,
    Le: lambda value, limit: value <= limit.le,
}

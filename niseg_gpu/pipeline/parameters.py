"""A step's parameters, taken from the signature and docstring of its function: one source for YAML, Python and CLI."""

from __future__ import annotations

import inspect
import os
import re
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from collections.abc import Callable
from functools import cache
from typing import Any, get_type_hints

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.stack import NamesFile

LONGEST_SHOWN = 200  # of a wrong value in a complaint; what is longer is an array or a model


@cache
def parameters_of(step: str) -> type[BaseModel]:
    """Return the model of a step's parameters: the keyword-only arguments of its `fit`, else of its `apply`.

    A `fit` with ``**`` passes on those of `apply` that it doesn't name itself.
    """
    op = OPS[step]
    function = op.fit or op.apply
    assert function is not None
    passes_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    return model_of(*([op.apply] if passes_on and op.apply else []), function, name=step)


def model_of(*functions: Callable[..., Any], name: str) -> type[BaseModel]:
    """Return the model of functions' keyword-only arguments; of one that several have, the last one's."""
    fields: dict[str, Any] = {}
    for function in functions:
        hints, texts = get_type_hints(function, include_extras=True), described(function)
        for key, p in keywords_of(function).items():
            default = ... if p.default is p.empty else p.default
            fields[key] = (hints[key], Field(default, description=texts.get(key, "")))
    return create_model(name, __config__=ConfigDict(extra="forbid"), **fields)


def summary_of(step: str) -> str:
    """Return the first line of what the step's function says of itself."""
    op = OPS[step]
    return (inspect.getdoc(op.apply or op.fit) or "").partition("\n")[0]


def described(function: Callable[..., Any]) -> dict[str, str]:
    """The texts of a numpydoc ``Parameters`` section by parameter name."""
    doc = inspect.getdoc(function) or ""
    section = re.search(r"Parameters\n-+\n(.*?)(?:\n\n\w+\n-+\n|\Z)", doc, re.DOTALL)
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in section[1].splitlines() if section else ():
        if line and not line.startswith(" "):
            names = [n.strip() for n in line.partition(":")[0].split(",")]
        elif line.strip():
            for name in names:
                texts[name] = f"{texts.get(name, '')} {line.strip()}".strip()
    return texts


def keywords_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of a function by name."""
    return {n: p for n, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}


def add_keywords(parser: ArgumentParser, function: Callable[..., Any]) -> None:
    """Add one option for each keyword of a function, described as its docstring does."""
    texts = described(function)
    numbers = {"int | None": int, "float | None": float}
    for name, p in keywords_of(function).items():
        flag, text = f"--{name.replace('_', '-')}", texts.get(name, "").replace("%", "%%")
        shown = f"{text} (default: {p.default})" if p.default != "" else text
        if p.default is False:
            parser.add_argument(flag, action="store_true", help=text)
        elif p.default is True:
            parser.add_argument(flag, action=BooleanOptionalAction, default=True, help=shown)
        else:
            kind = type(p.default) if isinstance(p.default, int | float) else numbers.get(p.annotation, str)
            if isinstance(p.default, tuple):
                kind, shown = _read_numbers, f"{text} (default: {','.join(map(str, p.default))})"
            elif "Sequence[int]" in str(p.annotation):
                kind = _read_counts
            text = text if p.default is None else shown
            parser.add_argument(flag, type=kind, default=p.default, metavar="VALUE", help=text)


def _read_numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no numbers with commas between") from None


def _read_counts(text: str) -> int | list[int]:
    """A whole number, or several with commas between."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no whole number, nor several with commas between") from None
    return counts if len(counts) > 1 else counts[0]


def check_model(model: type[BaseModel], values: Any, *, where: str) -> BaseModel:
    """Validate `values`, turning the first complaint into one line that names the parameter and what is allowed."""
    if not isinstance(values, dict):
        raise UserError(f"{where} got {values!r}; allowed: parameters by name, such as {{{_example(model)}}}")
    values = {name: _as_plain(value) for name, value in values.items()}
    for name, field in model.model_fields.items():
        value, types = values.get(name), set(re.findall(r"\w+", str(field.annotation)))
        if isinstance(value, bool) and types & {"int", "float"} and not types & {"bool", "Any"}:  # pydantic takes it
            raise UserError(f"{where}: {name} is {str(value).lower()}; a number is needed: {_first_sentence(field)}")
        if _names_nothing(field, value):  # "" would be the folder that relative names start from
            leave = "" if field.is_required() else ", or leave it out"
            raise UserError(f"{where}: {name} is {value!r}; give a name{leave}: {_first_sentence(field)}")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        # a misspelt name explains a missing one
        problem = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            raise UserError(f"{where} has no parameter {name!r}{suggest(name, model.model_fields)}") from None
        if problem["type"] == "missing":
            what = f"needs {name}" if name not in values else f"got {name} {values[name]!r}, which is too few"
            raise UserError(f"{where} {what}: {_first_sentence(model.model_fields[name])}") from None
        message = problem["msg"][0].lower() + problem["msg"][1:]
        if problem["type"] == "string_type" and isinstance(problem["input"], int | float):
            message += "; put the name in quotes"  # a folder called 20261127 is a number to YAML
        shown = repr(problem["input"])
        shown = shown if len(shown) <= LONGEST_SHOWN else f"a {type(problem['input']).__name__}"
        raise UserError(f"{where}: {name} is {shown}; {message}") from None


def _as_plain(value: Any) -> Any:
    """A value given from Python as a file would have it: paths as text, arrays of one axis as lists."""
    if isinstance(value, dict):
        return {_as_plain(name): _as_plain(part) for name, part in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) and value.ndim < 2 else value


def _names_nothing(field: FieldInfo, value: Any) -> bool:
    """Whether a parameter that names a file, or several as keys, has an empty name."""
    names = list(value) if isinstance(value, dict) else [value]
    return any(isinstance(mark, NamesFile) for mark in field.metadata) and any(
        isinstance(name, str) and not name.strip() for name in names
    )


def _first_sentence(field: FieldInfo) -> str:
    return (field.description or "").partition(". ")[0].removesuffix(".")


def _example(model: type[BaseModel]) -> str:
    for name, field in model.model_fields.items():
        return f"{name}: {'…' if field.is_required() else field.default}"
    return ""

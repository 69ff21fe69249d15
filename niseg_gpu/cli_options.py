"""What the commands share: how they are made, and how options become checked parameters."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel


def add_command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    """Add a command that calls `run` with its options."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("--quiet", action="store_true", help="say nothing but errors")
    loudness.add_argument("--verbose", action="store_true", help="say what is done, and show tracebacks")
    return parser


def add_fields(parser: argparse.ArgumentParser, model: type[BaseModel], *, leave_out: Sequence[str] = ()) -> None:
    """One option for each field of a pydantic model; values are read as YAML and checked by the model."""
    for name, field in model.model_fields.items():
        if name in leave_out:
            continue
        flag = f"--{name.replace('_', '-')}"
        default = "required" if field.is_required() else f"default: {field.default}"
        text = f"{field.description or ''} ({_tell_choices(field.annotation)}{default})"
        text = text.replace("%", "%%").replace("``", "")
        if field.annotation is bool:
            action = argparse.BooleanOptionalAction if field.default is True else "store_true"
            parser.add_argument(flag, action=action, default=argparse.SUPPRESS, dest=name, help=text)
        else:
            parser.add_argument(flag, default=argparse.SUPPRESS, dest=name, metavar="VALUE", help=text)


def _tell_choices(annotation: Any) -> str:
    """The words that a field takes, where it takes certain ones."""
    kinds = [annotation] if get_origin(annotation) is Literal else list(get_args(annotation))
    words = [str(word) for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    others = [kind for kind in kinds if get_origin(kind) is not Literal and kind is not type(None)]
    return f"{'or' if others else 'one of'} {', '.join(words)}; " if words else ""


def given_fields(options: argparse.Namespace, model: type[BaseModel]) -> dict[str, Any]:
    """The fields that the user named, comma lists as lists."""
    import yaml

    values = {}
    for name in model.model_fields:
        if hasattr(options, name):
            value = getattr(options, name)
            if isinstance(value, str):
                annotation = str(model.model_fields[name].annotation)
                listed = (
                    "list" in annotation.lower() or "tuple" in annotation.lower() or "sequence" in annotation.lower()
                )
                if "dict" in annotation:
                    value = _mapping(value)
                else:
                    value = yaml.safe_load(f"[{value}]") if listed and "," in value else _scalar(value, annotation)
            values[name] = value
    return values


def _mapping(text: str) -> Any:
    """``name: value, name: value``, in YAML's flow style with or without braces; true, false; else the text it is."""
    import yaml

    if text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    try:
        found = yaml.safe_load(text if text.lstrip().startswith("{") else f"{{{text}}}")
    except yaml.YAMLError:
        return text
    return found if isinstance(found, dict) else text


def _scalar(text: str, annotation: str) -> Any:
    """Numbers as numbers where one may stand; all else stays the text it is: the choice nan, a folder 2026."""
    words = set(re.findall(r"\w+", annotation))
    if text.lower() in ("none", "null") and words & {"None", "Optional"} and "str" not in words:
        return text if f"'{text}'" in annotation else None
    if f"'{text}'" in annotation or not words & {"int", "float", "Any", text}:  # text: of Literal[2, 3]
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def say(options: argparse.Namespace, text: str) -> None:
    """Print, unless told to be quiet."""
    if not options.quiet:
        print(text)

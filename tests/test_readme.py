"""The README is the manual: what it shows exists, and what exists is in it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

import niseg_gpu
from niseg_gpu.cli import build_parser
from niseg_gpu.pipeline.parameters import parameters_of
from niseg_gpu.pipeline.parse import parse_pipeline
from niseg_gpu.pipeline.steps import OPS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_every_pipeline_shown_is_a_pipeline(text: str) -> None:
    assert parse_pipeline(yaml.safe_load(text)).steps


def commands_shown() -> list[str]:
    lines = [line.partition(" #")[0] for block in blocks("bash") for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("niseg-gpu")]


@pytest.mark.parametrize("command", commands_shown())
def test_every_command_shown_is_understood(command: str) -> None:
    build_parser().parse_args(shlex.split(command)[1:])


def test_every_command_and_step_is_shown() -> None:
    (subcommands,) = (a for a in build_parser()._actions if a.dest == "command" or a.metavar == "COMMAND")
    for name in subcommands.choices:
        assert f"`niseg-gpu {name}" in README or f"`{name}`" in README, name
    for step in OPS:
        assert f"| `{step}` |" in README, step


@pytest.mark.parametrize("step", OPS)
def test_every_parameter_is_in_the_table(step: str) -> None:
    (row,) = (line for line in README.splitlines() if line.startswith(f"| `{step}` |"))
    assert set(re.findall(r"`(\w+)`", row.rsplit("|", 2)[1])) == set(parameters_of(step).model_fields)


@pytest.mark.parametrize("code", blocks("python"))
def test_every_name_used_in_python_is_public(code: str) -> None:
    for name in re.findall(r"\bng\.(\w+)", code):
        assert name in niseg_gpu.__all__
    compile(code, "README.md", "exec")


def test_every_picture_and_link_inside_the_repository_exists() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_the_test_command_is_where_ci_finds_it() -> None:
    found = re.search(r"<!-- test command -->\n```bash\n(.+)\n```", README)
    assert found and "pytest" in found[1] and "ruff" in found[1]

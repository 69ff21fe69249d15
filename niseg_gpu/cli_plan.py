"""The command ``niseg-gpu plan``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from niseg_gpu.cli_options import add_command, say
from niseg_gpu.errors import UserError


def add_plan(
    commands: Any, *, add_options: Callable[[argparse.ArgumentParser], None], read: Callable[..., Any]
) -> None:
    """Add the command; `add_options` gives it the options of ``run``, `read` makes a pipeline of them."""
    text = "Tell what a run will need: blocks, memory, disk, time. Reads a few blocks and writes nothing."
    plan = add_command(commands, "plan", _plan, text)
    plan.set_defaults(read=read, works_in_blocks=True)
    plan.add_argument("pipeline", metavar="PIPELINE", help="YAML or TOML file")
    add_options(plan)
    plan.add_argument("--json", action="store_true", help="for programs to read")


def _plan(options: argparse.Namespace) -> None:
    from pathlib import Path

    from niseg_gpu.io.folders import check_folder
    from niseg_gpu.pipeline.plan_text import format_plan
    from niseg_gpu.pipeline.planner import plan_pipeline
    from niseg_gpu.pipeline.results import SIGN

    pipeline = options.read(options)
    check_folder(Path(pipeline.output.path), overwrite=options.overwrite, sign=SIGN)
    plan = plan_pipeline(pipeline)
    if options.json:
        print(json.dumps(plan.as_mapping(), indent=2))
    else:
        say(options, format_plan(plan))
    if plan.problems:
        raise UserError("it does not fit: " + "; ".join(plan.problems))
    if not options.json:
        say(options, "it fits")

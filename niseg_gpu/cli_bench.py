"""The command ``niseg-gpu bench``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from niseg_gpu.cli_options import add_command
from niseg_gpu.errors import UserError

INSTALLED, BESIDE = "niseg_gpu.benchmarks", "benchmarks"


def add_bench(commands: Any) -> None:
    """Add the command."""
    text = "Measure the steps against what they replace; every output is checked before its time counts."
    bench = add_command(commands, "bench", _bench, text)
    bench.add_argument("names", metavar="NAMES", nargs="*", help="such as spots or kmeans.Gather; all by default")
    bench.add_argument("--device", metavar="DEVICE", help="cpu, gpu or cpu,gpu (default: what is there)")
    bench.add_argument("--peers", action="store_true", help="others' libraries too, as far as they are installed")
    bench.add_argument("--size", choices=("small", "full"), default="small", help="a trial, or what a detector writes")
    bench.add_argument("--seconds", type=float, default=20, help="for the repeats of each side (default: 20)")
    bench.add_argument("--kernels", choices=("auto", "library", "own"), default="auto", help="see compute.kernels")
    bench.add_argument("--data", metavar="DIR", help="keep the simulated data here (default: a temporary folder)")
    bench.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    bench.add_argument("--markdown", type=Path, metavar="FILE", help="write the table here")
    bench.add_argument("--picture", type=Path, metavar="FILE", help="draw the rows under their limits, .png")
    bench.add_argument(
        "--from", type=Path, dest="stored", metavar="FILE", help="measure nothing, show what --json wrote"
    )


def find_benchmarks() -> ModuleType:
    """Return the package of the measurements.

    It is a folder of its own in the sources, and no other part of the program uses it. An installation carries it as a
    part of this package; in a checkout it lies beside this package.

    Raises
    ------
    UserError
        It is in neither place.
    """
    if importlib.util.find_spec(INSTALLED):
        return importlib.import_module(INSTALLED)
    start = Path(__file__).parents[1] / BESIDE / "__init__.py"
    if BESIDE not in sys.modules:
        if not start.is_file():
            raise UserError(
                f"the benchmarks are not here: neither {INSTALLED} is installed nor is there a folder {start.parent}; "
                "install niseg_gpu from its sources, with benchmarks/ beside niseg_gpu/"
            )
        spec = importlib.util.spec_from_file_location(BESIDE, start, submodule_search_locations=[str(start.parent)])
        sys.modules[BESIDE] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[BESIDE])
    return sys.modules[BESIDE]


def _bench(options: argparse.Namespace) -> int:
    runner = importlib.import_module(f"{find_benchmarks().__name__}.runner")
    how = ("device", "peers", "size", "seconds", "kernels", "data", "quiet", "stored", "markdown", "picture")
    return runner.run_command(options.names, json_file=options.json, **{name: getattr(options, name) for name in how})

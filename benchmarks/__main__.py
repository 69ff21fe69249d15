"""Run measurements: ``python -m benchmarks [NAMES] [--size small|full] [--json FILE]``.

Exit status 1 where a side gave a wrong answer; such a row has no time.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.machine import describe_conditions
from benchmarks.rows import run_benchmark
from benchmarks.table import format_table
from niseg_gpu.errors import UserError, suggest

SUBJECTS = ("read", "overlap", "spots", "spots_gpu", "knn", "kmeans", "kmeans_gpu", "unet", "simulate", "end_to_end")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments name; return the exit status."""
    options = _parser().parse_args(argv)
    try:
        kinds = list(find_benchmarks(options.names))
        if options.json and not options.json.absolute().parent.is_dir():
            raise UserError(f"--json {options.json}: its folder does not exist; make it first")
    except UserError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="niseg-bench-") as temporary:
        os.environ["NISEG_BENCH_DATA"] = str(Path(options.data or temporary).absolute())
        os.environ["NISEG_BENCH_KERNELS"] = options.kernels
        record = {**describe_conditions(kernels=options.kernels), "rows": []}
        for kind in kinds:
            print(f"{kind.__module__}.{kind.__name__} ...", file=sys.stderr)
            record["rows"] += run_benchmark(kind, size=options.size, seconds=options.seconds)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(format_table(record))
    return int(any("failed" in row for row in record["rows"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run measurements, checked before timed.")
    parser.add_argument("names", metavar="NAMES", nargs="*", help=f"of {', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--size", choices=("small", "full"), default="small", help="60x64x64 or 916x512x512 values")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--data", metavar="DIR", help="keep the simulated data here (default: a temporary folder)")
    parser.add_argument("--kernels", choices=("auto", "library", "own"), default="auto", help="as a pipeline has it")
    parser.add_argument("--seconds", type=float, default=20, help="for the repeats of each side (default: 20)")
    return parser


def find_benchmarks(names: Sequence[str]) -> Iterator[type]:
    """Give the benchmark classes of the named subjects (``kmeans``) or the named classes (``kmeans.Gather``)."""
    for name in names or SUBJECTS:
        subject, _, wanted = name.partition(".")
        if subject not in SUBJECTS:
            raise UserError(f"no benchmark is named {subject!r}{suggest(subject, SUBJECTS)}")
        module = importlib.import_module(f"benchmarks.bench_{subject}")
        kinds = {k: v for k, v in vars(module).items() if _is_benchmark(v, module)}
        if wanted and wanted not in kinds:
            raise UserError(f"{subject} has no benchmark {wanted!r}{suggest(wanted, kinds)}")
        yield from [kinds[wanted]] if wanted else kinds.values()


def _is_benchmark(value: object, module: ModuleType) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__ and not value.__name__.startswith("_")


if __name__ == "__main__":
    sys.exit(main())

"""From names on the command line to a record of rows; ``niseg-gpu bench`` ends here."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from niseg_gpu.backend import why_no_gpu
from niseg_gpu.errors import UserError, suggest

from .clock import DEVICES
from .machine import describe_conditions
from .rows import devices_of, run_benchmark
from .table import format_table

SUBJECTS = ("read", "overlap", "spots", "spots_gpu", "knn", "kmeans", "kmeans_gpu", "unet", "simulate", "end_to_end")


def run_command(
    names: Sequence[str],
    *,
    json_file: Path | None = None,
    markdown: Path | None = None,
    quiet: bool = False,
    **how: Any,
) -> int:
    """Measure, write and print.

    Parameters
    ----------
    names : sequence of str
        Of subjects or classes; none means all.
    json_file, markdown : path, optional
        Files to write.
    quiet : bool
        Print no table and no progress.
    **how
        See `measure`.

    Returns
    -------
    int
        1 where a side gave a wrong answer or a false time, else 0.

    Raises
    ------
    UserError
        Unknown names, a device that is not there, or nowhere to write.
    """
    for flag, path in {"--json": json_file, "--markdown": markdown}.items():
        if path and not path.absolute().parent.is_dir():
            raise UserError(f"{flag} {path}: its folder does not exist; make it first")
    record = measure(names, quiet=quiet, **how)
    table = format_table(record)
    if json_file:
        json_file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if markdown:
        markdown.write_text(table + "\n", encoding="utf-8")
    if not quiet:
        print(table)
    return int(any("failed" in row for row in record["rows"]))


def measure(
    names: Sequence[str],
    *,
    device: str | None = None,
    peers: bool = False,
    size: str = "small",
    seconds: float = 20,
    kernels: str = "auto",
    data: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what the names say on each device and return the record, ready for JSON.

    Parameters
    ----------
    device : str, optional
        ``cpu``, ``gpu`` or ``cpu,gpu``; by default the CPU, and the GPU where there is one.
    peers : bool
        Whether others' libraries are measured too.
    size : {"small", "full"}
    seconds : float
        For the repeats of each side.
    kernels : {"auto", "library", "own"}
        As a pipeline has it.
    data : str, optional
        Folder that keeps the simulated data; a temporary one by default.
    """
    devices = choose_devices(device)
    kinds = list(find_benchmarks(names))
    if device is not None:
        kinds = [kind for kind in kinds if devices_of(kind, devices)]
    if not kinds:
        raise UserError(f"nothing of {', '.join(names)} runs on --device {device}; name others or leave --device out")
    with tempfile.TemporaryDirectory(prefix="niseg-bench-") as temporary:
        os.environ["NISEG_BENCH_DATA"] = str(Path(data or temporary).absolute())
        os.environ["NISEG_BENCH_KERNELS"] = kernels
        conditions = describe_conditions(kernels=kernels)
        record = {**conditions, "devices": devices, "size": size, "peers": peers, "rows": []}
        for kind in kinds:
            if not quiet:
                print(f"{kind.__module__.rpartition('.')[2]}.{kind.__name__} ...", file=sys.stderr)
            record["rows"] += run_benchmark(kind, size=size, seconds=seconds, devices=devices, peers=peers)
    return record


def choose_devices(device: str | None) -> list[str]:
    """The devices to measure on; what is asked for must be there."""
    missing = why_no_gpu()
    if device is None:
        return ["cpu"] if missing else ["cpu", "gpu"]
    devices = list(dict.fromkeys(device.split(",")))
    for name in devices:
        if name not in DEVICES:
            raise UserError(f"--device {device}: there is no device {name!r}; allowed: cpu, gpu or cpu,gpu")
    if "gpu" in devices and missing:
        raise UserError(f"--device {device}: no GPU can be used: {missing}; say --device cpu, or go to a GPU node")
    return devices


def find_benchmarks(names: Sequence[str]) -> Iterator[type]:
    """Give the benchmark classes of the named subjects (``kmeans``) or the named classes (``kmeans.Gather``)."""
    for name in names or SUBJECTS:
        subject, _, wanted = name.partition(".")
        if subject not in SUBJECTS:
            raise UserError(f"no benchmark is named {subject!r}{suggest(subject, SUBJECTS)}")
        module = importlib.import_module(f".bench_{subject}", __package__)
        kinds = {k: v for k, v in vars(module).items() if _is_benchmark(v, module)}
        if wanted and wanted not in kinds:
            raise UserError(f"{subject} has no benchmark {wanted!r}{suggest(wanted, kinds)}")
        yield from [kinds[wanted]] if wanted else kinds.values()


def _is_benchmark(value: object, module: ModuleType) -> bool:
    own = isinstance(value, type) and value.__module__ == module.__name__
    return own and not value.__name__.startswith("_") and hasattr(value, "reference")

"""From names on the command line to a record of rows; ``niseg-gpu bench`` ends here."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from niseg_gpu.backend import why_no_gpu
from niseg_gpu.errors import UserError, suggest
from niseg_gpu.pipeline.files import write_file

from .clock import DEVICES
from .limits import measure_limits
from .machine import describe_conditions
from .roofline import draw_roofline
from .rows import devices_of, name_benchmark, run_benchmark, set_variables
from .table import format_table

SUBJECTS = ("read", "overlap", "spots", "spots_gpu", "knn", "kmeans", "kmeans_gpu", "unet", "simulate", "end_to_end")


def run_command(
    names: Sequence[str],
    *,
    stored: Path | None = None,
    json_file: Path | None = None,
    markdown: Path | None = None,
    picture: Path | None = None,
    quiet: bool = False,
    **how: Any,
) -> int:
    """Measure, or read what was measured; write and print it.

    Parameters
    ----------
    names : sequence of str
        Of subjects or classes; none means all.
    stored : path, optional
        Measure nothing and show this file, which an earlier run wrote as `json_file`.
    json_file, markdown, picture : path, optional
        Files to write: the rows, after each benchmark those so far; the table; what `roofline.draw_roofline` draws.
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
    check_targets({"--json": json_file, "--markdown": markdown, "--picture": picture})
    for record in [read_record(stored)] if stored else measure(names, quiet=quiet, **how):
        if json_file:  # after each benchmark: a run of hours that is stopped keeps what it measured
            write_file(json_file, (json.dumps(record, indent=1) + "\n").encode())
    table = format_table(record)
    if not quiet:
        print(table)  # before anything can fail to be written
    if markdown:
        write_file(markdown, (table + "\n").encode())
    if picture:
        write_file(picture, draw_roofline(record))
    return int(any("failed" in row for row in record["rows"]))


def check_targets(targets: Mapping[str, Path | None]) -> None:
    """Refuse, before hours are spent, files that can't be written or of which one would replace another."""
    flags: dict[Path, str] = {}
    for flag, path in targets.items():
        if path is None:
            continue
        folder, place = path.absolute().parent, path.resolve()
        if not folder.is_dir():
            raise UserError(f"{flag} {path}: its folder does not exist; make it first")
        if path.is_dir():
            raise UserError(f"{flag} {path} is a folder; give the name of a file")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{flag} {path}: its folder may not be written to; give another name")
        if place in flags:
            raise UserError(f"{flag} {path} is the file of {flags[place]} too; give each a name of its own")
        flags[place] = flag


def read_record(path: Path) -> dict[str, Any]:
    """Read a record that an earlier run wrote."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--from {path}: cannot be read: {error}; name a file that --json wrote") from error
    if not isinstance(record, dict) or "rows" not in record or "threads" not in record:
        raise UserError(f"--from {path}: holds no rows of niseg-gpu bench; name a file that --json wrote")
    return record


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
) -> Iterator[dict[str, Any]]:
    """Run what the names say on each device; after each benchmark give the record so far, ready for JSON.

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
        folder = Path(data or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with set_variables(NISEG_BENCH_DATA=str(folder), NISEG_BENCH_KERNELS=kernels):
            limits = measure_limits(folder, devices)
            record = {**describe_conditions(kernels=kernels), "devices": devices, "size": size, "peers": peers}
            record |= {"limits": limits, "rows": []}
            how = {"size": size, "seconds": seconds, "devices": devices, "peers": peers, "limits": limits}
            for kind in kinds:
                if not quiet:
                    print(f"{name_benchmark(kind)} ...", file=sys.stderr)
                record["rows"] += run_benchmark(kind, **how)
                yield record


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

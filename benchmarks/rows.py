"""Turning benchmark classes into rows: every side is checked against the reference, and only then timed.

A benchmark class has the shape that asv knows (``params``, ``param_names``, ``setup``, ``time_*``) and tells besides:

``reference``
    Name of the method whose output the others must equal.
``assert_equal(output, expected)``
    Raises AssertionError where they don't, ``equal`` says in words how closely they must. May return what belongs
    into the row.
``included``
    What the seconds hold: disk, start-up.
``warm_up``
    Whether the first run, the checked one, is left out of the time.
``shape``, ``dtype``, ``nbytes``
    Of the data gone through, known after ``setup``; GB/s are these bytes over the seconds.
``why_not()``
    Optional: why nothing of it can be measured here; an empty string where it can.

A method may return a `Ran`, when it took the time itself.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

MAX_REPEATS = 50


@dataclass(frozen=True)
class Ran:
    """A run that was timed where it ran.

    Attributes
    ----------
    output : object
    seconds : float
    details : mapping
        What else goes into the row, such as ``peak_memory_gb``; of the last run.
    others : float
        CPU seconds of other processes meanwhile; NaN where unknown.
    """

    output: Any
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)
    others: float = math.nan


def run_benchmark(kind: type, *, size: str, seconds: float) -> Iterator[dict[str, Any]]:
    """Run one class with all its parameters; give a row for each side.

    Parameters
    ----------
    kind : class
        ``size`` is the first of its parameters.
    size : {"small", "full"}
    seconds : float
        For the repeats of each side; each is run once at least.
    """
    missing = kind.why_not() if hasattr(kind, "why_not") else ""
    for values in product(*kind.params):
        if values[0] != size:
            continue
        if missing:
            yield {"benchmark": name_benchmark(kind), "params": _name(kind, values), "side": "", "skipped": missing}
            continue
        benchmark = kind()
        benchmark.setup(*values)
        yield from _measure(benchmark, values, seconds=seconds)
        del benchmark
        gc.collect()


def _measure(benchmark: Any, values: tuple[Any, ...], *, seconds: float) -> Iterator[dict[str, Any]]:
    sides = _sides(benchmark)
    runs: dict[str, list[Ran]] = {name: [] for name in sides}
    failures: dict[str, str] = {}
    agreements: dict[str, dict[str, Any]] = {}
    expected = None
    for name, method in sides.items():
        try:
            ran = _run(method, values)
            if expected is None:
                expected = ran.output
            else:
                agreements[name] = benchmark.assert_equal(ran.output, expected) or {}
        except Exception as error:
            # the row says why it has no time, and the runner ends with status 1
            failures[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if expected is None:
                failures.update({other: f"the reference {name} failed" for other in sides if other != name})
                break
        else:
            if not benchmark.warm_up:
                runs[name].append(replace(ran, output=None))
            del ran
    expected = None
    gc.collect()
    _repeat({n: m for n, m in sides.items() if n not in failures}, values, runs, seconds=seconds)
    middle = {n: statistics.median(ran.seconds for ran in rans) for n, rans in runs.items() if rans}
    for name in sides:
        if name in failures:
            yield {**_head(benchmark, values, name), "failed": failures[name]}
        else:
            seconds = _seconds(benchmark, name, runs[name], middle)
            yield {**_head(benchmark, values, name), **seconds, **agreements.get(name, {}), **runs[name][-1].details}


def _sides(benchmark: Any) -> dict[str, Callable[..., Any]]:
    """The timed methods by the name of the side, the reference first."""
    names = sorted((n for n in dir(benchmark) if n.startswith("time_")), key=lambda n: (n != benchmark.reference, n))
    return {n.removeprefix("time_"): getattr(benchmark, n) for n in names}


def _run(method: Callable[..., Any], values: tuple[Any, ...]) -> Ran:
    others, start = _others_seconds(), time.perf_counter()
    output = method(*values)
    took, others = time.perf_counter() - start, _others_seconds() - others
    if isinstance(output, Ran):
        # what it did around the timed part, such as reading results, counts for the neighbours alike
        return replace(output, others=others * output.seconds / took)
    return Ran(output, took, others=others)


def _repeat(sides: dict[str, Any], values: tuple[Any, ...], runs: dict[str, list[Ran]], *, seconds: float) -> None:
    """Run the sides in turns, so that a busy minute of the machine meets all of them."""
    left = dict(sides)
    while left:
        for name, method in list(left.items()):
            spent = sum(ran.seconds for ran in runs[name])
            if runs[name] and (spent + runs[name][-1].seconds > seconds or len(runs[name]) >= MAX_REPEATS):
                del left[name]
                continue
            ran = _run(method, values)
            runs[name].append(replace(ran, output=None))
            del ran


def name_benchmark(kind: type) -> str:
    """Its subject and class, as the command line takes them."""
    return f"{kind.__module__.rpartition('.')[2].removeprefix('bench_')}.{kind.__name__}"


def _name(kind: Any, values: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(kind.param_names, values, strict=True))


def _head(benchmark: Any, values: tuple[Any, ...], side: str) -> dict[str, Any]:
    """What the row is about."""
    kind = type(benchmark)
    return {
        "benchmark": name_benchmark(kind),
        "params": _name(kind, values),
        "side": side,
        "reference": benchmark.reference.removeprefix("time_"),
        "equal": benchmark.equal,
        "included": benchmark.included,
        "shape": list(benchmark.shape),
        "dtype": str(benchmark.dtype),
        "bytes": int(benchmark.nbytes),
    }


def _seconds(benchmark: Any, side: str, runs: list[Ran], middle: dict[str, float]) -> dict[str, Any]:
    """What was measured, and how many cores other processes kept busy meanwhile, so that a noisy row can be told."""
    times = [ran.seconds for ran in runs]
    others = sum(ran.others for ran in runs) / sum(times)
    return {
        "seconds": {"median": middle[side], "min": min(times), "max": max(times), "repeats": len(times)},
        "gb_per_s": benchmark.nbytes / middle[side] / 1e9,
        "times_as_fast": middle[benchmark.reference.removeprefix("time_")] / middle[side],
        "cores_used_by_others": None if math.isnan(others) else round(max(0.0, others), 2),
    }


def _others_seconds() -> float:
    """CPU seconds of all other processes since the machine started, in steps of a hundredth; NaN where unknown."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except OSError:
        return math.nan
    own = os.times()
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - own.user - own.system - own.children_user - own.children_system

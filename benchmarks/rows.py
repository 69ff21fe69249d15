"""Turning benchmark classes into rows: every side is checked against the reference, and only then timed.

A benchmark class has the shape that asv knows (``params``, ``param_names``, ``setup``, ``time_*``,
``peakmem_*``) and tells besides:

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

``devices``
    What it can be measured on: ``("cpu",)`` by default. The side that is ours takes the one in ``NISEG_BENCH_DEVICE``.
``on_host``
    Names of the sides that run on the CPU in any case; on a GPU the reference alone of them is run.
``peers``
    Names of the sides that are others' libraries, with the module that each needs.
``copies``
    Names of the sides that copy only: on a GPU no multiprocessor need work for them.
``own_process``
    Whether the sides run in processes of their own, which nobody can hold up from here, see `held`.

``least(side)``
    What the work asks of the machine, see `limits`.

A method may return a `Ran`, when it took the time itself, on a GPU by the functions of `clock`.
"""

from __future__ import annotations

import gc
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

from .clock import DEVICES, Ran, find_fault, is_late, measure_work
from .limits import share_of_limit, take_seconds
from .memory import measure_peak

MAX_REPEATS = 50


def run_benchmark(
    kind: type,
    *,
    size: str,
    seconds: float,
    devices: Sequence[str] = ("cpu",),
    peers: bool = True,
    limits: dict[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run one class with all its parameters on each device that it knows; give a row for each side.

    Parameters
    ----------
    kind : class
        ``size`` is the first of its parameters.
    size : {"small", "full"}
    seconds : float
        For the repeats of each side; each is run once at least.
    devices : sequence of {"cpu", "gpu"}
    peers : bool
        Whether others' libraries are measured too.
    limits : dict, optional
        As `limits.measure_limits` gives them; without them no row says its share.
    """
    missing = kind.why_not() if hasattr(kind, "why_not") else ""
    for values in product(*kind.params):
        if values[0] != size:
            continue
        if missing:
            yield {**_about(kind, values, side=""), "skipped": missing}
            continue
        for device in devices_of(kind, devices):
            with set_variables(NISEG_BENCH_DEVICE=device):
                benchmark = kind()
                try:
                    benchmark.setup(*values)
                except NotImplementedError as reason:  # asv's word for what is to be skipped
                    yield {**_about(kind, values, side=""), "skipped": str(reason)}
                    continue
                sides = _sides(benchmark, device, peers=peers)
                for row in _measure(benchmark, values, seconds=seconds, sides=sides, limits=limits):
                    yield row | _compare_with_limit(benchmark, row, limits) | _look_at_memory(benchmark, row, values)
                del benchmark, sides
            gc.collect()
        if peers:
            yield from _absent_peers(kind, values)


@contextmanager
def set_variables(**variables: str) -> Iterator[None]:
    """Set variables of the environment, for other processes too, and put back afterwards what was there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def devices_of(kind: type, devices: Sequence[str]) -> list[str]:
    """Those of `devices` that a class can be measured on."""
    return [name for name in getattr(kind, "devices", ("cpu",)) if name in devices]


class Side(NamedTuple):
    """One way to do the work: its method, and the device that its row names."""

    method: Callable[..., Any]
    device: Any


def _sides(benchmark: Any, device: str, *, peers: bool) -> dict[str, Side]:
    """The sides to measure by their names, the reference first."""
    names = sorted(
        (n for n in dir(benchmark) if n.startswith("time_") and getattr(benchmark, n)),
        key=lambda n: (n != benchmark.reference, n),
    )
    sides = {}
    for name in names:
        side, is_reference = name.removeprefix("time_"), name == benchmark.reference
        module = getattr(benchmark, "peers", {}).get(side)
        on_host = side in getattr(benchmark, "on_host", ())
        twice = on_host and device == "gpu" and "cpu" in getattr(benchmark, "devices", ())  # the CPU's rows have it
        if is_reference or not (twice or module and not (peers and importlib.util.find_spec(module))):
            sides[side] = Side(getattr(benchmark, name), DEVICES["cpu" if on_host else device])
    return sides


def _absent_peers(kind: type, values: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    for side, module in getattr(kind, "peers", {}).items():
        if importlib.util.find_spec(module) is None:
            yield {**_about(kind, values, side=side), "skipped": f"{module} is not installed"}


def _measure(
    benchmark: Any, values: tuple[Any, ...], *, seconds: float, sides: dict[str, Side], limits: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    runs: dict[str, list[Ran]] = {name: [] for name in sides}
    failures: dict[str, str] = {}
    agreements: dict[str, dict[str, Any]] = {}
    expected = None
    for name, side in sides.items():
        try:
            ran = _run(side, values)
            if expected is None:
                expected = ran.output
            else:
                agreements[name] = benchmark.assert_equal(ran.output, expected) or {}
        except Exception as error:
            # the row says why it has no time, and the runner ends with status 1
            failures[name] = _in_a_line(error)
            if expected is None:
                failures.update({other: f"the reference {name} failed" for other in sides if other != name})
                break
        else:
            if not benchmark.warm_up:
                runs[name].append(replace(ran, output=None))
            del ran
    gc.collect()
    left = {n: s for n, s in sides.items() if n not in failures}
    check = partial(_check, benchmark, expected)
    failures |= _repeat(left, values, runs, seconds=seconds, check=check)
    del check, expected
    for name in [n for n, s in left.items() if n not in failures and s.device.name == "gpu"]:
        try:
            agreements[name] = agreements.get(name, {}) | _hold_up(
                benchmark, name, left[name], values, runs[name], limits
            )
        except Exception as error:
            failures[name] = _in_a_line(error)
    middle = {n: statistics.median(ran.seconds for ran in rans) for n, rans in runs.items() if n not in failures}
    for name, side in sides.items():
        head = _head(benchmark, values, name, device=side.device.name)
        if name in failures:
            yield {**head, "failed": failures[name]}
        else:
            measured = _seconds(benchmark, name, runs[name], middle)
            yield {**head, **measured, **agreements.get(name, {}), **runs[name][-1].details}


def _compare_with_limit(benchmark: Any, row: dict[str, Any], limits: dict[str, Any] | None) -> dict[str, Any]:
    if limits is None or "seconds" not in row or not hasattr(benchmark, "least"):
        return {}
    least = benchmark.least(row["side"])
    share = share_of_limit(least, limits, device=row["device"], seconds=row["seconds"]["median"])
    return {"least": least, **share}


def _look_at_memory(benchmark: Any, row: dict[str, Any], values: tuple[Any, ...]) -> dict[str, Any]:
    """Of full size: small data are lost in what a library takes anyway."""
    known = "seconds" not in row or "peak_memory_gb" in row or values[0] != "full"
    if known or not getattr(benchmark, f"peakmem_{row['side']}", None):
        return {}
    with set_variables(NISEG_BENCH_DEVICE=row["device"]):
        try:
            return measure_peak(name_benchmark(type(benchmark)), row["side"], values)
        except (RuntimeError, ValueError) as error:  # the seconds are good all the same
            return {"memory_unknown": _in_a_line(error)}


class FalseTime(Exception):
    """Seconds that mean nothing; see `clock.find_fault`."""


def _run(side: Side, values: tuple[Any, ...], *, tries: int = 3) -> Ran:
    others, start = _others_seconds(), time.perf_counter()
    ran = measure_work(lambda: side.method(*values), device=side.device)
    took, others = time.perf_counter() - start, _others_seconds() - others
    if is_late(ran) and tries > 1:  # on a busy host a wait for nothing may take long, but not each time
        return _run(side, values, tries=tries - 1)
    if fault := find_fault(ran, device=side.device):
        raise FalseTime(fault)
    # what a side did around the timed part, such as reading results, counts for the neighbours alike
    return replace(ran, others=others * ran.seconds / took)


def _hold_up(
    benchmark: Any, name: str, side: Side, values: tuple[Any, ...], runs: list[Ran], limits: dict[str, Any] | None
) -> dict[str, Any]:
    """Run a side once more while the device is held up, to see that it works there; see `held`."""
    if getattr(benchmark, "own_process", False) or name in getattr(benchmark, "copies", ()):
        return {}
    seconds = max(ran.seconds for ran in runs)
    if reason := side.device.why_not_held(seconds):
        return {"not_held_up": reason}
    hold = side.device.hold_up(seconds)
    try:
        side.method(*values)  # one that takes its times itself is held up while it does
        if not hold.begun:
            measure_work(lambda: side.method(*values), device=side.device)
    finally:
        side.device.hold = None
    least = benchmark.least(name) if limits is not None and hasattr(benchmark, "least") else {}
    if fault := hold.find_fault(least_s=take_seconds(least, limits, name="memory", device="gpu")):
        raise FalseTime(fault)
    return {"after_hold_s": hold.after_s}


def _repeat(
    sides: dict[str, Side],
    values: tuple[Any, ...],
    runs: dict[str, list[Ran]],
    *,
    seconds: float,
    check: Callable[[Any], Any],
) -> dict[str, str]:
    """Run the sides in turns, so that a busy minute of the machine meets all of them; return which failed, and why.

    What the last run of each gives is checked as that of the first was: to be right once is no answer.
    """
    left, failures = {name: side for name, side in sides.items() if not _has_enough(runs[name], seconds)}, {}
    while left:
        for name, side in list(left.items()):
            try:
                ran = _run(side, values)
                runs[name].append(replace(ran, output=None))
                if _has_enough(runs[name], seconds):
                    del left[name]
                    check(ran.output)
            except Exception as error:
                failures[name] = _in_a_line(error)
                left.pop(name, None)
            ran = None
    return failures


def _check(benchmark: Any, expected: Any, found: Any) -> None:
    benchmark.assert_equal(found, expected)


def _has_enough(runs: list[Ran], seconds: float) -> bool:
    spent = sum(ran.seconds for ran in runs)
    return bool(runs) and (spent + runs[-1].seconds > seconds or len(runs) >= MAX_REPEATS)


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def name_benchmark(kind: type) -> str:
    """Its subject and class, as the command line takes them."""
    return f"{kind.__module__.rpartition('.')[2].removeprefix('bench_')}.{kind.__name__}"


def _about(kind: type, values: tuple[Any, ...], *, side: str) -> dict[str, Any]:
    params = dict(zip(kind.param_names, values, strict=True))
    return {"benchmark": name_benchmark(kind), "params": params, "side": side}


def _head(benchmark: Any, values: tuple[Any, ...], side: str, *, device: str) -> dict[str, Any]:
    """What the row is about."""
    return {
        **_about(type(benchmark), values, side=side),
        "device": device,
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
    reference = middle.get(benchmark.reference.removeprefix("time_"))
    return {
        "seconds": {"median": middle[side], "min": min(times), "max": max(times), "repeats": len(times)},
        "gb_per_s": benchmark.nbytes / middle[side] / 1e9,
        "times_as_fast": None if reference is None else reference / middle[side],
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

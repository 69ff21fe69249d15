"""A Markdown table of measured rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .limits import format_limits

HEAD = (
    "what", "side", "on", "seconds (least to most, runs)", "GB/s", "of its limit", "times as fast", "peak memory",
    "others' load",
)  # fmt: skip
PEAKS = "Peak memory: what the work takes beside data that lie ready; of whole processes, all that they take."
COLUMNS = (
    f"GB/s: bytes of the input over the seconds. {PEAKS} Others' load: cores that other processes kept busy meanwhile."
)

MEASURED = "measured"  # names the marks in the README


def format_table(record: dict[str, Any]) -> str:
    """Return one record's conditions, rows and footnotes as Markdown."""
    rows = record["rows"]
    lines = [*format_conditions(record), COLUMNS, "", *format_head(HEAD), *(format_line(_cells(row)) for row in rows)]
    rates = [_tell_rate(row) for row in rows if "voxels_per_second" in row and "seconds" in row]
    return "\n".join([*lines, "", *(f"- {note}." for note in [*tell_what(rows), *rates])])


def tell_what(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the rows of each benchmark have in common, and the sizes of their data."""
    measured = [row for row in rows if "shape" in row]
    sizes: dict[str, dict[str, None]] = {}
    for row in measured:
        sizes.setdefault(row["benchmark"], {})[_size(row)] = None
    last = {row["benchmark"]: row for row in measured}
    return [f"{name}: {' or '.join(sizes[name])}; {row['included']}; {row['equal']}" for name, row in last.items()]


def _tell_rate(row: dict[str, Any]) -> str:
    """How many voxels a second a network went through, and what a large volume would take at that rate."""
    rate = math.prod(row["shape"]) / row["seconds"]["median"]
    what = " ".join([row["benchmark"], *map(str, row["params"].values()), row["side"], row["device"]])
    whole = row.get("voxels_extrapolated_to")
    return f"{what}: {rate:.3g} voxels/s" + (
        f", {round(whole ** (1 / 3))}³ in {whole / rate:.3g} s (extrapolated)" if whole else ""
    )


def format_conditions(record: dict[str, Any]) -> list[str]:
    """Under what a record was measured, and the limits of the machine; ends with an empty line."""
    libraries = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    threads = ", ".join(f"{name} {number}" for name, number in record["threads"].items())
    driver = f", driver {record['driver']}" if record.get("driver") else ""
    hardware = record["cpu"] + (f"; {record['gpu']}{driver}" if record["gpu"] else "")
    return [
        f"{record['date']}, {hardware}, {record['memory_gb']:g} GB, {record['system']}; threads: {threads}; "
        f"revision {record['revision']}; {libraries}.",
        "",
        *_about_limits(record),
    ]


def _about_limits(record: dict[str, Any]) -> list[str]:
    if "limits" not in record:
        return []
    about = "Of its limit: the least seconds that the machine needs, by the limit in brackets, over the median."
    return [f"{format_limits(record['limits'])} {about}", ""]


def _cells(row: dict[str, Any]) -> list[str]:
    parameters = "".join(f" {value}" for value in row["params"].values())
    what = f"{row['benchmark']}{parameters}"
    for outcome in ("failed", "skipped"):
        if outcome in row:
            reason = f"{outcome}: {row[outcome]}".replace("|", "\\|")
            return [what, row["side"], row.get("device", ""), reason, *[""] * (len(HEAD) - 4)]
    seconds, others = row["seconds"], row["cores_used_by_others"]
    relative = "" if row["times_as_fast"] is None else f"{row['times_as_fast']:.2f}"
    return [
        what,
        row["side"],
        row.get("device", ""),
        f"{seconds['median']:.3g} ({seconds['min']:.3g} to {seconds['max']:.3g}, {seconds['repeats']})",
        f"{row['gb_per_s']:.3g}",
        f"{percent(row['of_limit'])} ({row['limited_by']})" if "of_limit" in row else "",
        "1" if row["side"] == row["reference"] else relative,
        _tell_memory(row),
        "" if others is None else f"{others:.2f}",
    ]


def _tell_memory(row: dict[str, Any]) -> str:
    parts = {"": row.get("peak_memory_gb"), " of the gpu's": row.get("peak_device_memory_gb")}
    return ", ".join(f"{peak:.3g} GB{whose}" for whose, peak in parts.items() if peak is not None)


def percent(share: float) -> str:
    """A share as people read it."""
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.1g} %"


def _size(row: dict[str, Any]) -> str:
    return f"{' x '.join(map(str, row['shape']))} {row['dtype']}, {row['bytes'] / 1e6:.3g} MB"


def format_head(names: Sequence[str]) -> list[str]:
    """The lines of a table above its rows."""
    return [format_line(names), format_line(["---"] * len(names))]


def format_line(cells: Sequence[str]) -> str:
    """One row of a table."""
    return f"| {' | '.join(cells)} |"


def put_between_marks(page: str, text: str, *, name: str) -> str:
    """Replace what stands between the marks of a page that bear `name` by `text`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, _, rest = page.partition(begin)
    _, mark, tail = rest.partition(end)
    if not mark:
        raise ValueError(f"the page has no {begin} ... {end}")
    return f"{head}{begin}\n{text}\n{end}{tail}"


def put_into(path: Path, text: str, *, name: str) -> None:
    """Replace what stands between the marks of a file."""
    path.write_text(put_between_marks(path.read_text(encoding="utf-8"), text, name=name), encoding="utf-8")

"""Records in short: each measurement in one row, our side beside the fastest other one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .table import format_head, format_line, percent

HEAD = (
    "what",
    "on",
    "ours",
    "of its limit",
    "fastest other",
    "theirs",
    "times as fast",
    "peak memory, ours and theirs",
)
SIZE = "size"  # the parameter that all rows of a record share


def format_summary(records: Sequence[dict[str, Any]]) -> str:
    """Return the rows of records as a Markdown table; where two have the same, that of the later one."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in records:
        for key, rows in _group(record["rows"]).items():
            found[key] = rows
    subjects = list(dict.fromkeys(key[0].partition(".")[0] for key in found))
    by_subject = sorted(found.items(), key=lambda item: subjects.index(item[0][0].partition(".")[0]))
    lines = [_line(rows, device=key[-1]) for key, rows in by_subject]
    return "\n".join([*format_head(HEAD), *map(format_line, lines)])


def _group(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """The rows of each measurement on each device that our side was measured on."""
    sides: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        sides.setdefault((row["benchmark"], *map(str, row["params"].values())), []).append(row)
    return {
        (*key, device): measured
        for key, measured in sides.items()
        for device in dict.fromkeys(row.get("device", "") for row in measured if _is_ours(row, measured))
    }


def _is_ours(row: dict[str, Any], beside: Iterable[dict[str, Any]]) -> bool:
    """Whether a row is of our side; where none is called so, both are ours, and the reference is the other one."""
    if any(each["side"].startswith("ours") for each in beside):
        return row["side"].startswith("ours")
    return row["side"] != row.get("reference")


def _line(rows: Sequence[dict[str, Any]], *, device: str) -> list[str]:
    ours = [row for row in rows if _is_ours(row, rows) and row.get("device", "") == device]
    ours = min(ours, key=lambda row: row["side"] != "ours")  # and else the first
    what = ", ".join([ours["benchmark"], *_name(ours["params"])])
    for outcome in ("failed", "skipped"):
        if outcome in ours:
            return [what, device, outcome, *[""] * (len(HEAD) - 3)]
    took = ours["seconds"]["median"]
    limit = f"{percent(ours['of_limit'])} ({ours['limited_by']})" if "of_limit" in ours else ""
    others = [row for row in rows if not _is_ours(row, rows) and "seconds" in row]
    others = [row for row in others if row.get("device", "") == device] or others  # on the same device if there is one
    if not others:
        return [what, device, _seconds(took), limit, *[""] * 3, _memory(ours)]
    other = min(others, key=lambda row: row["seconds"]["median"])
    theirs, on = other["seconds"]["median"], other.get("device", "")
    name = other["side"] if on == device else f"{other['side']}, on the {on}"
    memory = " and ".join(filter(None, map(_memory, (ours, other))))
    return [what, device, _seconds(took), limit, name, _seconds(theirs), f"{theirs / took:.2f}", memory]


def _name(parameters: dict[str, Any]) -> list[str]:
    """Parameters as people read them: a number says nothing without its name."""
    told = {name: value for name, value in parameters.items() if name != SIZE}
    return [f"{name} {value}" if isinstance(value, int | float) else str(value) for name, value in told.items()]


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1000 * seconds:.3g} ms"


def _memory(row: dict[str, Any]) -> str:
    peak = row.get("peak_memory_gb")
    return "" if peak is None else f"{peak:.2g} GB"

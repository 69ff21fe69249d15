"""The picture of a record: what the machine allows, and how near to it each row comes.

Above, the roofline (doi:10.1145/1498765.1498785) with the rows whose operations are counted; below, all rows as shares
of their own limits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.figures import PALETTE, Theme, render, style

from .labels import place_labels
from .limits import NAMES

LINE_IN, ROOF_IN, MARGIN_IN, WIDTH_IN = 0.19, 3.1, 0.55, 8.6
LABELS_SHARE = 0.36  # of the width
COLOURS = dict(zip(dict.fromkeys(NAMES.values()), PALETTE, strict=False))
DEVICE_LINES = {"cpu": "-", "gpu": "--"}
KINDS = {"ours": ("o", 30, 1.0), "reference": ("|", 60, 1.0), "others": ("x", 22, 0.8)}  # marker, size, opacity


def draw_roofline(record: dict[str, Any]) -> bytes:
    """Draw a record as a PNG for a light page.

    Raises
    ------
    UserError
        No row of it has a limit.
    """
    rows = [row for row in record["rows"] if "of_limit" in row]
    if not rows:
        raise UserError("the record holds no row with a limit, so there is nothing to draw; measure anew")
    lines = list(dict.fromkeys(_line_of(row) for row in rows))
    counted = [row for row in rows if {"memory", "operations"} <= set(row["least"])]
    lower = LINE_IN * len(lines) + MARGIN_IN + 0.5
    upper = ROOF_IN + MARGIN_IN if counted else 0.0
    height = lower + upper + 0.1

    def draw(figure: Any, theme: Theme) -> None:
        left, right = LABELS_SHARE, 0.97
        box = (left, MARGIN_IN / height, right - left, LINE_IN * len(lines) / height)
        _draw_shares(figure.add_axes(box, facecolor=theme.ground), theme, rows, lines)
        if counted:
            box = (0.1, (lower + MARGIN_IN) / height, right - 0.1, (ROOF_IN - 0.2) / height)
            figure.text(0.1, 1 - 0.22 / height, _title_of(record), color=theme.ink, fontsize=9)
            draw_roofs(figure.add_axes(box, facecolor=theme.ground), theme, counted, record["limits"])

    return render(draw, WIDTH_IN, height).light


def _title_of(record: dict[str, Any]) -> str:
    return ", ".join(filter(None, [record["date"], record["cpu"], record["gpu"], record.get("size")]))


def _line_of(row: dict[str, Any]) -> str:
    parameters = " ".join(str(value) for name, value in row["params"].items() if name != "size")
    device = " (gpu)" if row["device"] == "gpu" else ""
    return f"{row['benchmark']} {parameters}".strip() + device


def _kind_of(row: dict[str, Any]) -> str:
    if row["side"].startswith(("ours", "own")):
        return "ours"
    return "reference" if row["side"] == row["reference"] else "others"


def _draw_shares(ax: Any, theme: Theme, rows: Sequence[dict[str, Any]], lines: Sequence[str]) -> None:
    """A line for each measurement, a mark for each side."""
    places = {line: len(lines) - 1 - i for i, line in enumerate(lines)}
    _scatter(ax, rows, lambda row: (100 * row["of_limit"], places[_line_of(row)]))
    shares = [100 * row["of_limit"] for row in rows]
    ax.set_xscale("log")
    ax.set_xlim(min(shares) / 1.5, max(*shares, 100) * 1.5)
    ax.axvline(100, color=theme.ink, linewidth=1)
    ax.set_ylim(-0.8, len(lines) - 0.2)
    ax.set_yticks(list(places.values()), list(places))
    ax.set_xlabel("share of the row's own limit (%)", color=theme.ink)
    ax.grid(color=theme.grid, linewidth=0.6)
    ax.set_axisbelow(True)
    style(ax, theme, None)
    ax.tick_params(axis="y", labelsize=7.5, length=0)
    _add_legends(ax, theme, rows)


def _add_legends(ax: Any, theme: Theme, rows: Sequence[dict[str, Any]]) -> None:
    """Above the lines: what the marks and their colours stand for."""
    from matplotlib.lines import Line2D

    used = dict.fromkeys(row["limited_by"] for row in rows)
    marks = [Line2D([], [], linestyle="", marker=KINDS[k][0], color=theme.ink, label=k) for k in KINDS]
    marks += [Line2D([], [], linestyle="", marker="s", color=COLOURS[name], label=name) for name in used]
    ax.legend(
        handles=marks, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(marks), frameon=False, fontsize=8,
        labelcolor=theme.ink, handletextpad=0.1, columnspacing=1.0, borderaxespad=0.2,
    )  # fmt: skip


def draw_roofs(ax: Any, theme: Theme, rows: Sequence[dict[str, Any]], limits: dict[str, Any]) -> None:
    """Operations a second over operations a byte, under the roof of each device."""
    density = [row["least"]["operations"] / row["least"]["memory"] for row in rows]
    span = np.geomspace(min(*density, 1) / 2, max(*density, 100) * 2, 200)
    for device in (name for name in DEVICE_LINES if name in limits):
        roof = np.minimum(limits[device]["memory"] * span, limits[device]["operations"])
        ax.plot(span, roof, DEVICE_LINES[device], color=theme.ink, linewidth=1.2, label=device)
    _scatter(ax, rows, _place_in_roofs)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(span[0], span[-1])
    ax.set_xlabel("operations for each byte moved", color=theme.ink)
    ax.grid(color=theme.grid, linewidth=0.6)
    ax.set_axisbelow(True)
    style(ax, theme, "GFLOP/s (float32)")
    ax.legend(frameon=False, fontsize=8, labelcolor=theme.ink, loc="lower right", title_fontsize=8)
    points: dict[str, list[tuple[float, float]]] = {}
    for row in (row for row in reversed(rows) if _kind_of(row) == "ours"):
        points.setdefault(row["benchmark"], []).append(_place_in_roofs(row))
    place_labels(ax, points, color=theme.muted, fontsize=7.5)


def _place_in_roofs(row: dict[str, Any]) -> tuple[float, float]:
    """Operations a byte, and 10^9 operations a second."""
    operations = row["least"]["operations"]
    return operations / row["least"]["memory"], operations / row["seconds"]["median"] / 1e9


def _scatter(ax: Any, rows: Sequence[dict[str, Any]], place: Callable[[dict[str, Any]], tuple[float, float]]) -> None:
    for row in rows:
        marker, size, opacity = KINDS[_kind_of(row)]
        x, y = place(row)
        ax.scatter(x, y, s=size, marker=marker, color=COLOURS[row["limited_by"]], alpha=opacity, linewidths=1.3)

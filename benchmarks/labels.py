"""Names beside the points of a picture, where they touch neither a point, nor a line, nor one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

DISTANCES_PT = np.geomspace(5, 120, 14)  # from a point to the edge of its name
FREE_PT, LONG_PT = 1.5, 12  # what is kept free around all; from where on a line leads to the point
DIRECTIONS = np.deg2rad([0, 180, 270, 90, 315, 225, 45, 135, *range(15, 360, 15)])


class Place(NamedTuple):
    """Where a name is written: its box in pixels, how far from its point, and the ends of a line where that is far."""

    box: np.ndarray
    distance: float
    leader: np.ndarray | None


def place_labels(ax: Any, names: Mapping[str, Sequence[tuple[float, float]]], *, color: str, fontsize: float) -> None:
    """Write each name as near as there is room to one of its points; what there is no room for is left out.

    Parameters
    ----------
    ax : matplotlib axes
        On an Agg canvas, with all its points (collections), lines and its legend drawn; its limits stay as they are.
    names : mapping of str to points
        Points in the units of the axes, the first preferred.
    """
    figure = ax.figure
    figure.draw_without_rendering()  # sets the limits and the place of the legend
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    inside = np.array(ax.get_window_extent(renderer).extents) + np.array([1, 1, -1, -1]) * FREE_PT * pixel
    taken = _find_taken(ax, renderer, pixel)
    style = {"xycoords": "figure pixels", "ha": "center", "va": "center", "fontsize": fontsize, "color": color}
    texts = {name: ax.annotate(name, (0, 0), **style) for name in names}
    asked = {
        name: (
            ax.transData.transform(np.asarray(points, dtype=float)),
            np.array(texts[name].get_window_extent(renderer).size) + 2 * FREE_PT * pixel,
        )
        for name, points in names.items()
    }
    order = list(names)
    orders = [order[i:] + order[:i] for i in range(len(order))]  # who comes first has the choice
    plans = [_plan({name: asked[name] for name in each}, taken, inside, pixel) for each in orders]
    best = min(plans, key=lambda plan: (-len(plan), sum(place.distance for place in plan.values())), default={})
    for name, text in texts.items():
        if name not in best:
            text.remove()
            continue
        box, _, leader = best[name]
        text.set_position(tuple((box[:2] + box[2:]) / 2))
        if leader is not None:
            ax.plot(*ax.transData.inverted().transform(leader).T, color=color, linewidth=0.5, zorder=1.5)


def _plan(
    asked: Mapping[str, tuple[np.ndarray, np.ndarray]], taken: np.ndarray, inside: np.ndarray, pixel: float
) -> dict[str, Place]:
    """Give one name after the other, each with its points and its size in pixels, the nearest place that is left."""
    plan: dict[str, Place] = {}
    for name, (points, size) in asked.items():
        place = _find_room(points, size, taken, [other.box for other in plan.values()], inside, pixel)
        if place is not None:
            plan[name] = place
            lines = [] if place.leader is None else [_boxes_along(place.leader)]
            taken = np.concatenate([taken, place.box[None], *lines])
    return plan


def _find_taken(ax: Any, renderer: Any, pixel: float) -> np.ndarray:
    """Boxes of all that is drawn, in pixels: (N, 4), left, bottom, right, top."""
    boxes = [np.zeros((0, 4))]
    for marks in ax.collections:
        middles = ax.transData.transform(np.asarray(marks.get_offsets()))
        half = (np.sqrt(marks.get_sizes()[0]) + marks.get_linewidths()[0]) / 2 * pixel
        boxes.append(np.hstack([middles - half, middles + half]))
    boxes += [_boxes_along(ax.transData.transform(line.get_xydata())) for line in ax.lines]
    if ax.get_legend() is not None:
        boxes.append(np.array([ax.get_legend().get_window_extent(renderer).extents]))
    return np.concatenate(boxes)


def _boxes_along(line: np.ndarray) -> np.ndarray:
    """Boxes of nothing along a line of (N, 2) points, no more than 3 pixels apart."""
    lengths = np.hypot(*np.diff(line, axis=0).T)
    parts = [np.linspace(a, b, int(n / 3) + 2) for a, b, n in zip(line, line[1:], lengths, strict=False)]
    return np.concatenate([np.hstack([part, part]) for part in parts])


def _find_room(
    places: np.ndarray, size: np.ndarray, taken: np.ndarray, written: list[np.ndarray], inside: np.ndarray, pixel: float
) -> Place | None:
    """The free place nearest to one of the points; where that is far, its line crosses no name."""
    for distance in DISTANCES_PT:
        for angle in DIRECTIONS:
            way = np.array([np.cos(angle), np.sin(angle)])
            for place in places:
                middle = place + way * (size / 2 + distance * pixel)
                box = np.concatenate([middle - size / 2, middle + size / 2])
                if (box[:2] < inside[:2]).any() or (box[2:] > inside[2:]).any() or _touches(box, taken).any():
                    continue
                if distance <= LONG_PT:
                    return Place(box, float(distance), None)
                leader = np.array([place, np.clip(place, box[:2], box[2:])])
                if not any(_touches(name, _boxes_along(leader)).any() for name in written):
                    return Place(box, float(distance), leader)
    return None


def _touches(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    return ((box[:2] <= others[:, 2:]) & (box[2:] >= others[:, :2])).all(1)

"""Grow root systems: axes that wander, bend down and branch, kept inside their container.

The model follows Leitner et al. 2010 (doi:10.1007/s11104-010-0284-7) and Schnepf et al. 2018
(doi:10.1093/aob/mcx221): an axis elongates ever more slowly, ``k (1 - exp(-r t / k))``; it bears laterals between a
bare zone at its base and one behind its tip; gravity and chance turn the tip at every step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.simulate.counter import draw_normal, draw_uniform, make_key
from niseg_gpu.simulate.roots_habits import HABITS, N_MAIN, Habit

MAX_NODES = 5_000_000
MIN_RADIUS_MM = 0.02
BASAL_STREAM, STEP_STREAM, LATERAL_STREAM = range(3)
CYLINDER, BOX = range(2)


@dataclass(frozen=True)
class Container:
    """The inside of a pot or slab in mm, with axes (down, y, x); y is along the beam in a slab.

    Attributes
    ----------
    kind : {CYLINDER, BOX}
    top_mm, bottom_mm : float
        Soil surface and floor.
    y_mm, x_mm : (float, float)
        Walls; a cylinder touches them.
    """

    kind: int
    top_mm: float
    bottom_mm: float
    y_mm: tuple[float, float]
    x_mm: tuple[float, float]

    @property
    def depth_mm(self) -> float:
        return self.bottom_mm - self.top_mm

    def as_vector(self) -> np.ndarray:
        return np.array([self.kind, self.top_mm, self.bottom_mm, *self.y_mm, *self.x_mm])


@dataclass(frozen=True)
class RootSystem:
    """Axes of roots as polylines.

    Attributes
    ----------
    nodes_mm : (N, 3) ndarray of float64
        (down, y, x); a lateral's first node lies on the axis that bears it.
    radius_mm, path_mm : (N,) ndarray of float64
        Radius, and distance from the seed along the roots.
    first : (R + 1,) ndarray of int64
        Axis i has the nodes ``first[i]`` to ``first[i + 1]``.
    order, parent : (R,) ndarray of int64
        1 for main roots, 2 for their laterals and so on; which axis bears it, -1 for main roots.
    """

    nodes_mm: np.ndarray
    radius_mm: np.ndarray
    path_mm: np.ndarray
    first: np.ndarray
    order: np.ndarray
    parent: np.ndarray

    def __iter__(self) -> Iterator[slice]:
        return (slice(a, b) for a, b in zip(self.first[:-1], self.first[1:], strict=True))

    def __len__(self) -> int:
        return len(self.order)


@dataclass(frozen=True)
class _Bud:
    """An axis about to grow."""

    order: int
    start_mm: np.ndarray
    direction: np.ndarray
    age_days: float
    path_mm: float
    parent: int
    radius_mm: float  # of what bears it


def grow_roots(
    container: Container,
    *,
    seed: int,
    habit: str = "taprooted",
    age: float = 1.5,
    n_plants: int = 1,
    n_orders: int = 3,
    thickness: float = 1.0,
    step_mm: float = 0.4,
) -> RootSystem:
    """Grow the roots of one or more plants.

    Parameters
    ----------
    container : Container
        No root leaves it.
    seed : int
        Of all random numbers.
    habit : {"taprooted", "fibrous"}
        One main root, or a tuft of six; lengths grow with the container's depth and radii with its square root.
    age : float
        In times that a straight main root takes to reach the floor.
    n_plants, n_orders : int
        Plants in a row along x; orders of roots, 1 is main roots only.
    thickness : float
        Factor on all radii.
    step_mm : float
        Distance of nodes.

    Raises
    ------
    UserError
        Where the roots would have more than 5 million nodes.
    """
    scale = container.depth_mm / 50.0
    lengths, radii = scale, math.sqrt(scale) * thickness
    main = HABITS[habit][0]
    days = -main.longest_mm / main.rate * math.log(1.0 - 50.0 / main.longest_mm) * age
    plan = {"step_mm": step_mm, "lengths": lengths, "radii": radii}
    buds = deque(_plant(container, habit=habit, seed=seed, n_plants=n_plants, days=days))
    grown: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    order, parent, n_nodes = [], [], 0
    while buds:
        bud = buds.popleft()
        kind = HABITS[habit][bud.order - 1]
        axis = _grow(bud, kind, container, key=make_key(seed, STEP_STREAM, len(grown)), **plan)
        if axis is None:
            continue
        if bud.order < n_orders:
            child = HABITS[habit][bud.order]
            keys = make_key(seed, LATERAL_STREAM, len(grown))
            buds.extend(_branch(axis, bud, kind, child, key=keys, index=len(grown), lengths=lengths))
        grown.append(axis)
        order.append(bud.order)
        parent.append(bud.parent)
        n_nodes += len(axis[0])
        if n_nodes > MAX_NODES:
            raise UserError(
                f"age={age!r} with n_plants={n_plants} makes more than {MAX_NODES} nodes; give a lower age, fewer "
                "plants or n_orders, or a larger voxel_size_um"
            )
    nodes, radius, path = (np.concatenate(parts) for parts in zip(*grown, strict=True))
    first = np.concatenate([[0], np.cumsum([len(axis[0]) for axis in grown])])
    return RootSystem(nodes, radius, path, first, np.array(order), np.array(parent))


def _plant(container: Container, *, habit: str, seed: int, n_plants: int, days: float) -> Iterator[_Bud]:
    """Give the main roots of each plant; seeds lie a little below the soil's surface."""
    (y0, y1), (x0, x1) = container.y_mm, container.x_mm
    main = HABITS[habit][0]
    for plant in range(n_plants):
        key = make_key(seed, BASAL_STREAM, plant)
        u = [draw_uniform(key, i) - 0.5 for i in range(2)]
        pitch = (x1 - x0) / n_plants
        start = np.array(
            [
                container.top_mm + 0.05 * container.depth_mm,
                0.5 * (y0 + y1) + 0.1 * u[0] * (y1 - y0),
                x0 + (plant + 0.5 + 0.3 * u[1]) * pitch,
            ]
        )
        for i in range(N_MAIN[habit]):
            tilt = math.radians(main.angle_deg + main.angle_sd_deg * draw_normal(key, 10 + i))
            turn = 2.0 * math.pi * (i + 0.6 * draw_uniform(key, 100 + i)) / N_MAIN[habit]
            along = np.array(
                [math.cos(tilt), math.sin(tilt) * math.sin(turn), math.sin(tilt) * math.cos(turn)], np.float64
            )
            born = 0.0 if i == 0 else 0.25 * draw_uniform(key, 200 + i)
            yield _Bud(1, start, along, days * (1.0 - born), 0.0, -1, math.inf)


def _grow(
    bud: _Bud, kind: Habit, container: Container, *, key: Any, step_mm: float, lengths: float, radii: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return nodes, radii and path of an axis; None where it is shorter than a step."""
    vigour = math.exp(0.25 * draw_normal(key, 2**40))
    longest = kind.longest_mm * lengths * (1.0 if bud.order == 1 else vigour)
    length = longest * (1.0 - math.exp(-kind.rate * lengths * bud.age_days / longest))
    n_steps = int(length / step_mm)
    if n_steps < 1:
        return None
    spread = 1.0 + 0.15 * draw_normal(key, 2**40 + 1)
    base = max(min(kind.radius_mm * radii * max(spread, 0.5), 0.9 * bud.radius_mm), MIN_RADIUS_MM)
    radius = base * (1.0 - (1.0 - kind.taper) * np.linspace(0.0, 1.0, n_steps + 1))
    turning = kind.gravity / lengths * step_mm, kind.wander / math.sqrt(lengths) * math.sqrt(step_mm)
    nodes = _walk(bud.start_mm, bud.direction, step_mm, radius, turning[0], turning[1], key, container.as_vector())
    path = bud.path_mm + np.concatenate([[0.0], np.cumsum(_lengths_of(np.diff(nodes, axis=0)))])
    return nodes, radius, path


def _branch(
    axis: tuple[np.ndarray, np.ndarray, np.ndarray],
    bud: _Bud,
    kind: Habit,
    child: Habit,
    *,
    key: Any,
    index: int,
    lengths: float,
) -> Iterator[_Bud]:
    """Give the laterals of an axis: each as old as the time since the tip was past it by the bare zone."""
    nodes, radius, path = axis
    along = path - path[0]
    longest = kind.longest_mm * lengths
    place, i = kind.base_mm * lengths, 0
    while place < along[-1] - kind.tip_mm * lengths:
        passed = min((place + kind.tip_mm * lengths) / longest, 0.999)
        age = bud.age_days + longest / (kind.rate * lengths) * math.log(1.0 - passed)
        node = min(int(np.searchsorted(along, place, side="right")) - 1, len(nodes) - 2)
        share = (place - along[node]) / max(along[node + 1] - along[node], 1e-9)
        start = nodes[node] + share * (nodes[node + 1] - nodes[node])
        if age > 0.0:
            heading = _turn_away(nodes[node + 1] - nodes[node], child, key, i)
            yield _Bud(bud.order + 1, start, heading, age, float(path[0] + place), index, float(radius[node]))
        jump = 1.0 + 0.45 * draw_normal(key, 8 * i + 4)
        place += kind.spacing_mm * lengths * min(max(jump, 0.2), 3.0)
        i += 1


def _turn_away(along: np.ndarray, child: Habit, key: Any, i: int) -> np.ndarray:
    """Return the direction of a lateral, at its angle to its bearer and at any angle round it."""
    unit = along / math.sqrt(float(along @ along))
    side = np.array([draw_normal(key, 8 * i + j) for j in range(3)])
    side -= (side @ unit) * unit
    side /= math.sqrt(float(side @ side))
    angle = math.radians(child.angle_deg + child.angle_sd_deg * draw_normal(key, 8 * i + 3))
    return math.cos(angle) * unit + math.sin(angle) * side


def _lengths_of(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(vectors[:, 0] ** 2 + vectors[:, 1] ** 2 + vectors[:, 2] ** 2)


@compiled
def _walk(start, direction, step, radius, gravity, wander, key, box):
    """Follow a tip; the container's walls and floor turn it along them."""
    nodes = np.empty((len(radius), 3))
    nodes[0] = start
    d = direction.copy()
    for i in range(1, len(radius)):
        for j in range(3):
            d[j] += wander * draw_normal(key, 3 * i + j)
        d[0] += gravity
        _normalize(d)
        nodes[i] = nodes[i - 1] + step * d
        if _hold(nodes[i], d, radius[i], box):
            _normalize(d)
            nodes[i] = nodes[i - 1] + step * d
            _hold(nodes[i], d, radius[i], box)
            _normalize(d)
    return nodes


@compiled
def _normalize(d):
    size = math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
    if size < 1e-6:
        d[:] = 0.0
        d[2] = 1.0
    else:
        d /= size


@compiled
def _hold(p, d, radius, box):
    """Keep a tip inside and take from its direction what leads out; return whether it touched."""
    touched = False
    if p[0] < box[1] + radius or p[0] > box[2] - radius:
        p[0] = min(max(p[0], box[1] + radius), box[2] - radius)
        d[0] = 0.0
        touched = True
    if box[0] == CYLINDER:
        y, x = p[1] - 0.5 * (box[3] + box[4]), p[2] - 0.5 * (box[5] + box[6])
        room, size = 0.5 * (box[4] - box[3]) - radius, math.sqrt(y * y + x * x)
        if size > room:
            y, x = y / size, x / size
            p[1] += (room - size) * y
            p[2] += (room - size) * x
            out = max(d[1] * y + d[2] * x, 0.0)
            d[1] -= out * y
            d[2] -= out * x
            touched = True
    else:
        for j in range(1, 3):
            low, high = box[2 * j + 1] + radius, box[2 * j + 2] - radius
            if p[j] < low or p[j] > high:
                p[j] = min(max(p[j], low), high)
                d[j] = 0.0
                touched = True
    return touched

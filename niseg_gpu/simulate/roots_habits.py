"""How the roots of a plant grow, order by order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Habit:
    """How the axes of one order grow; lengths hold for a container 50 mm deep, `grow_roots` scales them.

    Attributes
    ----------
    rate, longest_mm : float
        Initial elongation in mm a day, and the length never exceeded.
    base_mm, tip_mm, spacing_mm : float
        Zones without laterals, and the mean distance between laterals.
    angle_deg, angle_sd_deg : float
        Between the axis and the one that bears it.
    radius_mm, taper : float
        At the base, and what is left of it at the tip.
    gravity, wander : float
        Pull downwards a mm, and standard deviation of the turn in rad after a mm.
    """

    rate: float
    longest_mm: float
    base_mm: float
    tip_mm: float
    spacing_mm: float
    angle_deg: float
    angle_sd_deg: float
    radius_mm: float
    taper: float
    gravity: float
    wander: float


# A main root with laterals (lupin, say), and a tuft of main roots (maize, say): the usual sizes, not fitted to a plant.
HABITS: dict[str, tuple[Habit, ...]] = {
    "taprooted": (
        Habit(20.0, 400.0, 3.0, 9.0, 2.2, 0.0, 4.0, 0.62, 0.45, 0.06, 0.1),
        Habit(9.0, 60.0, 2.5, 5.0, 2.6, 72.0, 12.0, 0.26, 0.6, 0.012, 0.13),
        Habit(4.0, 14.0, 1.5, 3.0, 3.0, 70.0, 15.0, 0.14, 0.7, 0.0, 0.25),
        Habit(2.0, 5.0, 1.0, 2.0, 3.0, 70.0, 20.0, 0.09, 0.8, 0.0, 0.35),
    ),
    "fibrous": (
        Habit(20.0, 300.0, 3.0, 8.0, 3.0, 38.0, 16.0, 0.42, 0.6, 0.022, 0.11),
        Habit(7.0, 30.0, 2.0, 4.0, 2.4, 75.0, 12.0, 0.17, 0.7, 0.006, 0.16),
        Habit(3.0, 10.0, 1.0, 2.5, 2.6, 70.0, 15.0, 0.1, 0.8, 0.0, 0.3),
        Habit(2.0, 5.0, 1.0, 2.0, 3.0, 70.0, 20.0, 0.07, 0.9, 0.0, 0.35),
    ),
}
N_MAIN = {"taprooted": 1, "fibrous": 6}

"""What stands in the beam: material plans and thickness maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from niseg_gpu.errors import UserError, suggest

# Standard deviation of the blur of edges by pixel and beam divergence, in pixels.
EDGE_BLUR_PIXELS = 0.7

SMALLEST_SIDE = 32


@dataclass(frozen=True)
class Scene:
    """Materials side by side or behind one another, seen along the beam.

    Attributes
    ----------
    materials : tuple of str
        M names known to `niseg_gpu.simulate.bragg`; label k is ``materials[k - 1]``, label 0 is the void.
    labels : (Y, X) ndarray of uint8
        The material that covers most of the pixel.
    thickness_cm : (M, Y, X) ndarray of float32
        Thickness of each material along the beam.
    """

    materials: tuple[str, ...]
    labels: np.ndarray
    thickness_cm: np.ndarray

    def __post_init__(self) -> None:
        expected = (len(self.materials), *self.labels.shape)
        if self.labels.ndim != 2 or self.thickness_cm.shape != expected:
            raise UserError(
                f"scene with {len(self.materials)} materials and labels {self.labels.shape} got thickness_cm "
                f"{self.thickness_cm.shape}; give (Y, X) labels and (materials, Y, X) thickness_cm"
            )


def build_blocks(*, height: int, width: int, thickness_cm: float = 1.0) -> Scene:
    """Return six steel blocks in two rows, three of alpha iron and three of austenitic steel, and Al spacers between.

    All are equally thick, so that little but their Bragg edges tells the two steels apart.

    Parameters
    ----------
    height, width : int
        Pixels, at least 32.
    thickness_cm : float, optional
        Thickness of blocks and spacers along the beam.
    """
    if min(height, width) < SMALLEST_SIDE:
        raise UserError(
            f"scene 'blocks' needs at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, got {height} x {width}"
        )
    top, bottom, left, right = 0.14 * height, 0.86 * height, 0.09 * width, 0.91 * width
    spacer = 0.05 * width
    block_height = (bottom - top - spacer) / 2
    block_width = (right - left - 2 * spacer) / 3

    # Spacers stick out of the assembly; what of it is not steel is aluminium.
    steels = np.zeros((2, height, width))
    plates = _cover(top, bottom, height)[:, None] * _cover(left, right, width)
    ends = _cover(0.06 * height, top, height) + _cover(bottom, 0.94 * height, height)
    for column in range(3):
        x = left + column * (block_width + spacer)
        if column:
            plates += ends[:, None] * _cover(x - spacer, x, width)
        for row, order in enumerate(((0, 1, 1), (1, 0, 0))):
            y = top + row * (block_height + spacer)
            steels[order[column]] += _cover(y, y + block_height, height)[:, None] * _cover(x, x + block_width, width)
    cover = np.clip(np.stack([*steels, plates - steels.sum(axis=0)]), 0.0, 1.0)
    labels = np.where(cover.sum(axis=0) < 0.5, 0, 1 + cover.argmax(axis=0)).astype(np.uint8)
    # Far tails of the blur mean nothing; without them most pixels of a region are exactly alike.
    cover[cover < 1e-4] = 0.0
    return Scene(("alpha_iron", "austenitic_steel", "aluminium"), labels, (cover * thickness_cm).astype(np.float32))


SCENES: Mapping[str, Callable[..., Scene]] = {"blocks": build_blocks}


def build_scene(name: str, *, height: int, width: int) -> Scene:
    """Return the built-in scene of that name; `UserError` where there is none."""
    if name not in SCENES:
        raise UserError(f"unknown scene {name!r}{suggest(name, SCENES)}")
    return SCENES[name](height=height, width=width)


def shape_beam(height: int, width: int) -> np.ndarray:
    """Return a smooth beam profile, (Y, X) float32, 1 at its brightest, a little off the middle."""
    y = ((np.arange(height) + 0.5) / height - 0.47)[:, None]
    x = (np.arange(width) + 0.5) / width - 0.54
    return (1.0 / (1.0 + 1.2 * y * y + 0.9 * x * x)).astype(np.float32)


def _cover(start: float, stop: float, n_pixels: int) -> np.ndarray:
    """Return how much of each pixel, 0 to 1, the blurred interval covers; positions count from the edge of pixel 0."""
    from scipy.special import erf

    scale = 1.0 / (np.sqrt(2.0) * EDGE_BLUR_PIXELS)
    centre = np.arange(n_pixels) + 0.5
    return 0.5 * (erf((centre - start) * scale) - erf((centre - stop) * scale))

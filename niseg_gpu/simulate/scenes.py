"""What stands in the beam: material plans and thickness maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.simulate.streams import check_limits

# Standard deviation of the blur of edges by pixel and beam divergence, in pixels.
EDGE_BLUR_PIXELS = 0.7

SIDES = (32, 65_536)
WEDGE_STEPS = 8
THICKNESS_STEPS = 256


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
    cover = np.stack([*steels, plates - steels.sum(axis=0)])
    return fill_scene(("alpha_iron", "austenitic_steel", "aluminium"), cover, thickness_cm=thickness_cm)


def build_wedge(*, height: int, width: int, thickness_cm: float = 1.0) -> Scene:
    """Return a step wedge of alpha iron: eight steps from an eighth of the thickness, on the left, to all of it."""
    steps = np.zeros(width)
    for step in range(WEDGE_STEPS):
        steps += _cover((0.1 + 0.8 * step / WEDGE_STEPS) * width, 0.9 * width, width) / WEDGE_STEPS
    rows = _cover(0.15 * height, 0.85 * height, height)[:, None]
    footprint = rows * _cover(0.1 * width, 0.9 * width, width)
    return fill_scene(("alpha_iron",), (rows * steps)[None], thickness_cm=thickness_cm, footprint=footprint)


def build_mixture(*, height: int, width: int, thickness_cm: float = 1.0) -> Scene:
    """Return a plate that turns from alpha iron, on the left, into austenitic steel, as strain and heat do to steels.

    A pixel's label is the phase that is more than half of it.
    """
    share = np.clip(((np.arange(width) + 0.5) / width - 0.25) / 0.5, 0.0, 1.0)
    plate = _cover(0.15 * height, 0.85 * height, height)[:, None] * _cover(0.1 * width, 0.9 * width, width)
    return fill_scene(
        ("alpha_iron", "austenitic_steel"), np.stack([plate * (1 - share), plate * share]), thickness_cm=thickness_cm
    )


SCENES: Mapping[str, Callable[..., Scene]] = {"blocks": build_blocks, "wedge": build_wedge, "mixture": build_mixture}


def build_scene(
    name: str | np.ndarray, *, height: int, width: int, thickness_cm: float = 1.0, materials: str = ""
) -> Scene:
    """Return the built-in scene of that name, or one from a plan in a file or an array.

    Parameters
    ----------
    name : str or (Y, X) ndarray of integers
        A key of `SCENES`, a file whose name has an ending, or a plan.
    height, width : int
        Pixels, 32 to 65536; a plan brings its own.
    thickness_cm : float, optional
        Of the thickest part along the beam.
    materials : str, optional
        For a plan: names with commas, one for each of its values but 0, in rising order.

    Raises
    ------
    UserError
        An unknown name, too few pixels, or materials that do not fit the plan.
    """
    named = [part.strip() for part in materials.split(",") if part]
    if isinstance(name, np.ndarray):
        return build_plan(name, materials=named, thickness_cm=thickness_cm)
    if Path(name).suffix or Path(name).exists():
        return read_plan(name, materials=named, thickness_cm=thickness_cm)
    if name not in SCENES:
        raise UserError(f"unknown scene {name!r}, which is no file of a plan either{suggest(name, SCENES)}")
    if materials:
        raise UserError(f"materials={materials!r} goes with a plan in a file, scene {name!r} has its own; leave it out")
    check_limits({"height": height, "width": width}, dict.fromkeys(("height", "width"), SIDES))
    return SCENES[name](height=height, width=width, thickness_cm=thickness_cm)


def read_plan(path: str | Path, *, materials: Sequence[str], thickness_cm: float = 1.0) -> Scene:
    """Return the scene of a plan in a file; see `build_plan`."""
    from niseg_gpu.io.open import open_stack

    plan = np.squeeze(np.asarray(open_stack(str(path)).data))
    return build_plan(plan, name=f"plan '{path}'", materials=materials, thickness_cm=thickness_cm)


def build_plan(plan: np.ndarray, *, materials: Sequence[str], thickness_cm: float = 1.0, name: str = "plan") -> Scene:
    """Return a scene from labels, (Y, X): 0 is the void, each other value a material, all equally thick.

    Parameters
    ----------
    plan : (Y, X) ndarray of integers or bool
    materials : sequence of str
        One for each value but 0, in rising order.
    thickness_cm : float, optional
        Along the beam.
    name : str, optional
        What errors call it.

    Raises
    ------
    UserError
        No such plan, or materials that do not fit it.
    """
    if plan.ndim != 2 or plan.dtype.kind not in "biu":
        raise UserError(f"{name} is {plan.shape} of {plan.dtype}; give one grey image of whole numbers")
    values = [value for value in np.unique(plan).tolist() if value]
    if not 1 <= len(values) <= 255:
        raise UserError(f"{name} has {len(values)} values other than 0; allowed: 1 to 255, one for each material")
    if len(values) != len(materials):
        listed = ", ".join(map(str, values[:10]))
        raise UserError(
            f"{name} has {len(values)} values other than 0 ({listed}), but materials names {len(materials)}; "
            "name one material for each value"
        )
    return fill_scene(tuple(materials), np.stack([_blur(plan == value) for value in values]), thickness_cm=thickness_cm)


def fill_scene(
    materials: tuple[str, ...], cover: np.ndarray, *, thickness_cm: float, footprint: np.ndarray | None = None
) -> Scene:
    """Return the scene whose pixels hold each material to a share of the thickness, (M, Y, X) from 0 to 1.

    A pixel belongs to the scene where `footprint`, by default all cover together, is half or more.
    """
    # In steps, so that there are few sorts of pixels; the rounded thickness is the true one.
    cover = np.rint(np.clip(cover, 0.0, 1.0) * THICKNESS_STEPS) / THICKNESS_STEPS
    inside = (cover.sum(axis=0) if footprint is None else footprint) >= 0.5
    labels = np.where(inside, 1 + cover.argmax(axis=0), 0).astype(np.uint8)
    return Scene(materials, labels, (cover * thickness_cm).astype(np.float32))


def shape_beam(height: int, width: int) -> np.ndarray:
    """Return a smooth beam profile, (Y, X) float32, 1 at its brightest, a little off the middle."""
    x = (np.arange(width) + 0.5) / width - 0.54
    profile = np.empty((height, width), np.float32)
    for row, y in zip(profile, (np.arange(height) + 0.5) / height - 0.47, strict=True):
        row[:] = 1.0 / (1.0 + 1.2 * y * y + 0.9 * x * x)
    return profile


def _cover(start: float, stop: float, n_pixels: int) -> np.ndarray:
    """Return how much of each pixel, 0 to 1, the blurred interval covers; positions count from the edge of pixel 0."""
    from scipy.special import erf

    scale = 1.0 / (np.sqrt(2.0) * EDGE_BLUR_PIXELS)
    centre = np.arange(n_pixels) + 0.5
    return 0.5 * (erf((centre - start) * scale) - erf((centre - stop) * scale))


def _blur(mask: np.ndarray) -> np.ndarray:
    """Return the share of each pixel that a mask covers once its edges are blurred."""
    reach = 3
    weight = _cover(reach, reach + 1, 2 * reach + 1)
    padded = np.pad(mask.astype(np.float64), reach, mode="edge")
    for axis in (0, 1):
        n = mask.shape[axis]
        padded = sum(w * padded.take(range(i, i + n), axis=axis) for i, w in enumerate(weight / weight.sum()))
    return padded

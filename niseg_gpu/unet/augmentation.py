"""What augmentation may do to a training sample, as parameters; `niseg_gpu.unet.augment` does it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from niseg_gpu.errors import UserError

# Lowest and highest value of each number.
LIMITS = {
    "rotation_deg": (0, 180),
    "scale": (0.1, 10),
    "elastic_pixels": (0, 1000),
    "elastic_length_pixels": (2, 100_000),
    "crop": (1, 65_536),
    "gamma": (0.1, 10),
    "gain": (0, 100),
    "offset": (0, 100),
    "bias_field": (0, 5),
    "blur_pixels": (0, 20),
    "poisson_counts": (1, 1e9),
    "noise": (0, 100),
}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Ranges that each sample draws from; what is given as (low, high) is drawn evenly between;
    scale, gamma and counts by their logarithm.

    Parameters
    ----------
    flip : bool
        Mirror each axis or not, by chance.
    quarter_turns : bool
        Turn by right angles, in 3-D about any axis; axes of different lengths by half turns only.
    rotation_deg : float
        Largest turn to either side by a free angle, in 3-D about any axis.
    scale : (low, high)
        Magnification.
    elastic_pixels : float
        Standard deviation of a smooth displacement, along each axis.
    elastic_length_pixels : float
        Over which the displacement changes.
    crop : sequence of int, optional
        Size of the piece that is kept, cut out anywhere; default the whole.
    gamma : (low, high)
        Exponent on the values between the sample's lowest and highest.
    gain : (low, high)
        Factor on the values.
    offset : float
        Largest shift of the values either way, in standard deviations of the sample.
    bias_field : float
        Largest deviation from 0 of the logarithm of a smooth factor, such as an uneven beam.
    blur_pixels : (low, high)
        Standard deviation of a Gaussian blur.
    poisson_counts : (low, high), optional
        Counts in the sample's highest value, fewest and most, that set its Poisson noise; default none.
    noise : (low, high)
        Standard deviation of Gaussian noise, in those of the sample.

    Raises
    ------
    UserError
        A value out of range.
    """

    flip: bool = True
    quarter_turns: bool = True
    rotation_deg: float = 15.0
    scale: tuple[float, float] = (0.85, 1.2)
    elastic_pixels: float = 2.0
    elastic_length_pixels: float = 24.0
    crop: tuple[int, ...] | None = None
    gamma: tuple[float, float] = (0.8, 1.25)
    gain: tuple[float, float] = (0.9, 1.1)
    offset: float = 0.1
    bias_field: float = 0.1
    blur_pixels: tuple[float, float] = (0.0, 0.7)
    poisson_counts: tuple[float, float] | None = None
    noise: tuple[float, float] = (0.0, 0.1)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)  # hashable, for it is static in compiled functions
            if field.type == "bool" and not isinstance(value, bool):
                raise UserError(f"{field.name}={value!r}; give true or false")
            if field.type == "float" and isinstance(value, tuple):
                raise UserError(f"{field.name}={value!r} is a range; give one number")
            if field.name in LIMITS and (value is not None or field.default is not None):
                _check(field.name, value, pair="float, float" in str(field.type))
        sides = self.crop if isinstance(self.crop, tuple) else (self.crop,)
        if self.crop is not None and not (len(sides) in (2, 3) and all(isinstance(side, Integral) for side in sides)):
            raise UserError(f"crop={self.crop!r} is no crop of 2 or 3 sides; give whole numbers, such as 128, 128")

    @property
    def moves(self) -> bool:
        """Whether pixels may change their place."""
        still = not (self.flip or self.quarter_turns or self.rotation_deg or self.elastic_pixels)
        return not (still and self.scale == (1.0, 1.0) and self.crop is None)


def _check(name: str, value: Any, *, pair: bool) -> None:
    low, high = LIMITS[name]
    parts = value if isinstance(value, tuple) else (value,)
    numbers = all(isinstance(part, Real) and math.isfinite(part) for part in parts)
    if not numbers or not all(low <= part <= high for part in parts):
        raise UserError(f"{name}={value!r} is out of range; give {low:g} to {high:g}")
    if pair and (len(parts) != 2 or parts[0] > parts[1]):
        raise UserError(f"{name}={value!r} is no range; give the low and the high end, such as {low:g}, {high:g}")


NO_AUGMENTATION = Augmentation(
    flip=False,
    quarter_turns=False,
    rotation_deg=0.0,
    scale=(1.0, 1.0),
    elastic_pixels=0.0,
    gamma=(1.0, 1.0),
    gain=(1.0, 1.0),
    offset=0.0,
    bias_field=0.0,
    blur_pixels=(0.0, 0.0),
    noise=(0.0, 0.0),
)

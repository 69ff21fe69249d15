"""What a U-Net looks like, in numbers: checked, stored with the weights, and free of JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from niseg_gpu.errors import UserError, suggest

BLOCKS = ("plain", "residual", "recurrent-residual")
NORMS = ("none", "batch", "layer")
OUTPUTS = ("logits", "relu")
RECURRENCES = 2  # of a recurrent-residual block, as in R2U-Net


@dataclass(frozen=True)
class UNetConfig:
    """A U-Net (10.1007/978-3-319-24574-4_28) over images or volumes.

    Attributes
    ----------
    spatial_dims : {2, 3}
    in_channels : int
    base_depth : int
        Features at full resolution; each level down has twice as many.
    levels : int
        Resolutions, the full one among them: between two of them lies a max pooling by 2.
    out_classes : int
        1 for spots against background (a sigmoid), else classes that exclude each other (a softmax), 0 first.
    block : {"plain", "residual", "recurrent-residual"}
        Two convolutions of 3 pixels; the same with a shortcut (10.1109/LGRS.2018.2802944); R2U-Net's, two recurrent
        ones with a shortcut (10.1117/1.JMI.6.1.014006).
    attention : bool
        Additive gates on the skip connections (arXiv:1804.03999).
    norm : {"none", "batch", "layer"}
        After each convolution: by running statistics, or over the features of each pixel. Norms over the image
        (group, instance) are not among them: with them a tile would not know what the whole image gives.
    output : {"logits", "relu"}
        What the last layer gives. ReLU as a probability dies in some runs; it is there to repeat history only.
    """

    spatial_dims: int = 2
    in_channels: int = 1
    base_depth: int = 32
    levels: int = 4
    out_classes: int = 1
    block: str = "plain"
    attention: bool = False
    norm: str = "none"
    output: str = "logits"

    def __post_init__(self) -> None:
        for name, allowed in (("block", BLOCKS), ("norm", NORMS), ("output", OUTPUTS)):
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(f"unet has no {name} {value!r}{suggest(str(value), allowed)}")
        ranges = {"spatial_dims": (2, 3), "in_channels": (1, 64), "base_depth": (1, 1024), "levels": (1, 8)}
        for name, (least, most) in {**ranges, "out_classes": (1, 255)}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise UserError(f"unet got {name} {value!r}; allowed: {least} to {most}")
        if not isinstance(self.attention, bool):
            raise UserError(f"unet got attention {self.attention!r}; allowed: true, false")
        if self.output == "relu" and self.out_classes > 1:
            raise UserError(f"unet got output relu and {self.out_classes} out_classes; allowed with relu: 1")

    @property
    def grid(self) -> int:
        """Pixels that the coarsest level sees as one; tiles start at multiples of it."""
        return 2 ** (self.levels - 1)

    @property
    def reach(self) -> int:
        """How far from an output pixel, along an axis, an input pixel can lie and still change it."""
        ends = [self._needs(pixel, pixel) for pixel in range(self.grid)]
        return max(max(pixel - low, high - pixel) for pixel, (low, high) in enumerate(ends))

    @property
    def margin(self) -> int:
        """Input pixels beside a cell of the grid that can change what the cell is given."""
        low, high = self._needs(0, self.grid - 1)
        return max(-low, high - (self.grid - 1))

    def _needs(self, low: int, high: int) -> tuple[int, int]:
        """First and last input pixel, along an axis, that output pixels from `low` to `high` depend on."""
        each = 2 if self.block != "recurrent-residual" else 2 * (RECURRENCES + 1)
        skips = []
        for _ in range(self.levels - 1):
            low, high = low - each, high + each
            skips.append((low, high))
            low, high = low // 2, high // 2
        low, high = low - each, high + each
        for skip in reversed(skips):
            low, high = min(2 * low, skip[0]) - each, max(2 * high + 1, skip[1]) + each
        return low, high

    @property
    def halo(self) -> int:
        """The margin, rounded up to the grid."""
        return -(-self.margin // self.grid) * self.grid

    def depth(self, level: int) -> int:
        """Features of a level, 0 the finest."""
        return self.base_depth * 2**level

    def as_mapping(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> UNetConfig:
        """Build from what `as_mapping` gave; refuse unknown names."""
        names = [f.name for f in fields(cls)]
        for name in mapping:
            if name not in names:
                raise UserError(f"unet has no parameter {name!r}{suggest(str(name), names)}")
        return cls(**mapping)


def spot_config(*, base_depth: int = 24, output: str = "logits") -> UNetConfig:
    """Return the network of A. Kaestner's lecture for spots: three levels, 265,105 parameters at base depth 24."""
    return UNetConfig(base_depth=base_depth, levels=3, output=output)

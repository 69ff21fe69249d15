"""Where the tiles of an image lie: pure arithmetic.

Tiles start on the grid of the coarsest level, all are of one size, and none reaches beyond the image: those at its
border end there, so that the zeros that a convolution sees outside of a tile are those that it sees outside of the
image. Of the others, as much is thrown away at each side as the network reaches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple


class Tile(NamedTuple):
    """One tile, each entry by axis.

    Attributes
    ----------
    origin : tuple of int
        First pixel, in the padded image.
    low, high : tuple of int
        The part of the tile that is right: from `low` on, to before `high`.
    """

    origin: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]


class Plan(NamedTuple):
    """The tiles of an image.

    Attributes
    ----------
    padded : tuple of int
        Sides of the image, made multiples of the grid.
    size : tuple of int
        Sides of every tile.
    tiles : tuple of Tile
    """

    padded: tuple[int, ...]
    size: tuple[int, ...]
    tiles: tuple[Tile, ...]


def plan_tiles(shape: Sequence[int], *, halo: int, grid: int, pixels: int) -> Plan:
    """Cut an image into as few tiles as may be.

    Parameters
    ----------
    shape : sequence of int
    halo : int
        Pixels that are thrown away at a tile's sides inside the image; a multiple of `grid`.
    grid : int
    pixels : int
        Of a tile at most, if that leaves it more than its halo.
    """
    padded = tuple(math.ceil(n / grid) * grid for n in shape)
    least = 2 * halo + grid
    sizes = padded
    for longest in range(max(padded), least - 1, -grid):
        sizes = tuple(_tile_side(n, longest, halo=halo, grid=grid) for n in padded)
        if math.prod(sizes) <= pixels:
            break
    axes = [_cut_axis(n, size, halo=halo) for n, size in zip(padded, sizes, strict=True)]
    tiles = tuple(Tile(*zip(*ends, strict=True)) for ends in product(*axes))
    return Plan(padded, sizes, tiles)


def _tile_side(length: int, longest: int, *, halo: int, grid: int) -> int:
    """The side of tiles that cover `length` in as few as `longest` allows, all alike."""
    if length <= longest:
        return length
    count = math.ceil((length - 2 * halo) / (longest - 2 * halo))
    return math.ceil((length - 2 * halo) / count / grid) * grid + 2 * halo


def _cut_axis(length: int, size: int, *, halo: int) -> list[tuple[int, int, int]]:
    """Origin, low and high of each tile along an axis."""
    cuts, done = [], 0
    while done < length:
        origin = min(max(0, done - halo), length - size)
        high = size if origin + size == length else size - halo
        cuts.append((origin, done - origin, high))
        done = origin + high
    return cuts

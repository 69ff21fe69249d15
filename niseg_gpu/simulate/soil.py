"""Soil by place: grains, moisture, air gaps and cracks, each value from its voxel's place and a key alone.

Blocks have the axes (down, y, x), a slab is one voxel thick along y.
"""

from __future__ import annotations

import math

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.simulate.counter import draw_normal, draw_uniform, hash_place, make_key, to_uniform

# Radius of air gaps as shares of the container's depth, smallest and largest.
GAP_RADIUS = (0.006, 0.025)


def draw_grains(
    low: tuple[int, ...], shape: tuple[int, ...], *, key: np.uint64, grain_voxels: float, out: np.ndarray
) -> None:
    """Fill a block with the texture of packed grains: the cells round scattered points (doi:10.1145/237170.237267).

    Parameters
    ----------
    low, shape : (int, int, int)
        First voxel and size of the block.
    key : uint64
        Of the random numbers.
    grain_voxels : float
        Mean diameter of a grain, 2 or more.
    out : (Z, Y, X) ndarray of float32
        Gets -1.5 (gaps between grains) to 0.8 (the densest grains).
    """
    first = [math.floor((a + 0.5) / grain_voxels - 0.5) for a in low]
    count = [math.floor((a + n - 0.5) / grain_voxels - 0.5) + 2 - f for a, n, f in zip(low, shape, first, strict=True)]
    cells = np.empty((*count, 4), np.float32)
    _scatter(key, np.array(first, np.int64), cells)
    _pack(np.array(low, np.int64), np.array(first, np.int64), cells, grain_voxels, out)


def draw_waves(low: tuple[int, ...], shape: tuple[int, ...], *, key: np.uint64, length_voxels: float) -> np.ndarray:
    """Return smooth random values between -1 and 1 that change over a length.

    Parameters
    ----------
    low, shape : (int, int, int)
        First voxel and size of the block.
    key : uint64
        Of the random numbers.
    length_voxels : float
        Distance of the nodes that are interpolated between.

    Returns
    -------
    (Z, Y, X) ndarray of float32
    """
    first = [math.floor((a + 0.5) / length_voxels) for a in low]
    count = [math.floor((a + n - 0.5) / length_voxels) + 2 - f for a, n, f in zip(low, shape, first, strict=True)]
    nodes, out = np.empty(count, np.float32), np.empty(shape, np.float32)
    _hash_nodes(key, np.array(first, np.int64), nodes)
    _interpolate(np.array(low, np.int64), np.array(first, np.int64), nodes, length_voxels, out)
    return out


def add_gaps(
    low: tuple[int, ...],
    *,
    key: np.uint64,
    share: float,
    radius_voxels: tuple[float, float],
    flat: bool,
    out: np.ndarray,
) -> None:
    """Put round air gaps into a block.

    Parameters
    ----------
    low : (int, int, int)
        First voxel of the block.
    key : uint64
        Of the random numbers.
    share : float
        Of the soil that is air, about; below 0.2.
    radius_voxels : (float, float)
        Smallest and largest radius.
    flat : bool
        Count the share by area instead of volume, for a slab.
    out : (Z, Y, X) ndarray of float32
        Share of air in a voxel; raised where a gap lies.
    """
    if share <= 0.0:
        return
    small, large = radius_voxels
    cell = 4.0 * large
    power = 2 if flat else 3
    mean = (large ** (power + 1) - small ** (power + 1)) / ((power + 1) * (large - small))
    size = math.pi * mean if flat else 4.0 / 3.0 * math.pi * mean
    tries = share * cell**power / size
    _add_gaps(np.array(low, np.int64), key, cell, tries, small, large, flat, out)


def add_crack(
    low: tuple[int, ...],
    *,
    key: np.uint64,
    extent: tuple[float, float, float],
    width_voxels: float,
    flat: bool,
    out: np.ndarray,
) -> None:
    """Put one crack into a block: a wavy sheet, thinning out to its ends.

    Parameters
    ----------
    low : (int, int, int)
        First voxel of the block.
    key : uint64
        Of the crack; fixes where it lies.
    extent : (float, float, float)
        Voxels of the soil along each axis.
    width_voxels : float
        Greatest width.
    flat : bool
        Whether the block is a slab.
    out : (Z, Y, X) ndarray of float32
        Share of air in a voxel; raised where the crack lies.
    """
    u = [draw_uniform(key, i) for i in range(3)]
    # More cracks lie than stand: drying soil settles, too.
    tilt = 0.35 * draw_normal(key, 3) + (math.pi / 2 if u[0] < 0.25 else 0.0)
    turn = 0.0 if flat else 2.0 * math.pi * u[1]
    normal = np.array([math.cos(tilt), math.sin(tilt) * math.sin(turn), math.sin(tilt) * math.cos(turn)])
    spot = np.array([(0.25 + 0.5 * draw_uniform(key, 4 + j)) * extent[j] for j in range(3)])
    half = 0.5 * max(extent) * (0.5 + 0.4 * u[2])
    if flat:
        spot[1] = 0.5
    nearest = np.clip(spot, low, np.add(low, out.shape))
    if np.sum((nearest - spot) ** 2) > (half + width_voxels) ** 2 + (0.7 * max(extent) / 7.0) ** 2:
        return
    length = max(extent) / 7.0
    waves = draw_waves(low, out.shape, key=make_key(int(key), 1), length_voxels=length)
    ripple = draw_waves(low, out.shape, key=make_key(int(key), 2), length_voxels=length / 4.0)
    widths = draw_waves(low, out.shape, key=make_key(int(key), 3), length_voxels=0.8 * length)
    _open_crack(np.array(low, np.int64), normal, spot, half, length, width_voxels, flat, waves, ripple, widths, out)


@compiled
def _scatter(key, first, cells):
    """Give each cell a point, at most 0.4 of a cell from its middle along each axis, and a value from -1 to 1."""
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            for k in range(cells.shape[2]):
                bits = hash_place(key, first[0] + i, first[1] + j, first[2] + k)
                for n in range(3):
                    # 16 bits for each number
                    part = (bits >> np.uint64(16 * n)) & np.uint64(0xFFFF)
                    cells[i, j, k, n] = 0.8 * ((np.float64(part) + 0.5) / 65536.0 - 0.5)
                part = (bits >> np.uint64(48)) & np.uint64(0xFFFF)
                cells[i, j, k, 3] = (np.float64(part) + 0.5) / 32768.0 - 1.0


@compiled
def _pack(low, first, cells, size, out):
    """Find for each voxel the two nearest points, of those in the eight cells whose middles are around it."""
    for z in range(out.shape[0]):
        qz = (z + low[0] + 0.5) / size - 0.5
        cz = int(math.floor(qz))
        pz = np.float32(qz - cz)
        for y in range(out.shape[1]):
            qy = (y + low[1] + 0.5) / size - 0.5
            cy = int(math.floor(qy))
            py = np.float32(qy - cy)
            for x in range(out.shape[2]):
                qx = (x + low[2] + 0.5) / size - 0.5
                cx = int(math.floor(qx))
                px = np.float32(qx - cx)
                nearest, second, value = np.float32(9.0), np.float32(9.0), np.float32(0.0)
                for i in range(2):
                    for j in range(2):
                        for k in range(2):
                            cell = cells[cz - first[0] + i, cy - first[1] + j, cx - first[2] + k]
                            dz, dy, dx = (
                                cell[0] + np.float32(i) - pz,
                                cell[1] + np.float32(j) - py,
                                cell[2] + np.float32(k) - px,
                            )
                            square = dz * dz + dy * dy + dx * dx
                            if square < nearest:
                                second, nearest, value = nearest, square, cell[3]
                            elif square < second:
                                second = square
                # Grains meet where a voxel is as near to the second point as to the first.
                edge = (np.sqrt(second) - np.sqrt(nearest)) / np.float32(0.3)
                gap = max(np.float32(1.0) - edge, np.float32(0.0))
                out[z, y, x] = np.float32(0.7) * value + np.float32(0.12) - np.float32(0.9) * gap


@compiled
def _hash_nodes(key, first, nodes):
    for i in range(nodes.shape[0]):
        for j in range(nodes.shape[1]):
            for k in range(nodes.shape[2]):
                u = to_uniform(hash_place(key, first[0] + i, first[1] + j, first[2] + k))
                nodes[i, j, k] = 2.0 * u - 1.0


@compiled
def _ease(t):
    return np.float32(t * t * (3.0 - 2.0 * t))


@compiled
def _interpolate(low, first, nodes, length, out):
    for z in range(out.shape[0]):
        pz = (z + low[0] + 0.5) / length
        i = int(math.floor(pz))
        a = _ease(pz - i)
        i -= first[0]
        for y in range(out.shape[1]):
            py = (y + low[1] + 0.5) / length
            j = int(math.floor(py))
            b = _ease(py - j)
            j -= first[1]
            for x in range(out.shape[2]):
                px = (x + low[2] + 0.5) / length
                k = int(math.floor(px))
                c = _ease(px - k)
                k -= first[2]
                near = nodes[i, j, k] + c * (nodes[i, j, k + 1] - nodes[i, j, k])
                side = nodes[i, j + 1, k] + c * (nodes[i, j + 1, k + 1] - nodes[i, j + 1, k])
                under = nodes[i + 1, j, k] + c * (nodes[i + 1, j, k + 1] - nodes[i + 1, j, k])
                far = nodes[i + 1, j + 1, k] + c * (nodes[i + 1, j + 1, k + 1] - nodes[i + 1, j + 1, k])
                near += b * (side - near)
                under += b * (far - under)
                out[z, y, x] = near + a * (under - near)


@compiled
def _add_gaps(low, key, cell, tries, small, large, flat, out):
    """Try to put so many gaps into each cell; a whole number of them, the rest by chance."""
    first, last = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for j in range(3):
        if flat and j == 1:
            continue
        first[j] = int(math.floor((low[j] - large - 1.0) / cell))
        last[j] = int(math.floor((low[j] + out.shape[j] + large + 1.0) / cell))
    for i in range(first[0], last[0] + 1):
        for j in range(first[1], last[1] + 1):
            for k in range(first[2], last[2] + 1):
                own = hash_place(key, i, j, k)
                number = int(tries + draw_uniform(own, 0))
                for n in range(number):
                    z = (i + draw_uniform(own, 4 * n + 1)) * cell
                    y = 0.5 if flat else (j + draw_uniform(own, 4 * n + 2)) * cell
                    x = (k + draw_uniform(own, 4 * n + 3)) * cell
                    _add_ball(low, z, y, x, small + draw_uniform(own, 4 * n + 4) * (large - small), flat, out)


@compiled
def _add_ball(low, z, y, x, radius, flat, out):
    first, end = np.empty(3, np.int64), np.empty(3, np.int64)
    for j, centre in enumerate((z, y, x)):
        first[j] = max(int(math.floor(centre - radius - 1.0)) - low[j], 0)
        end[j] = min(int(math.ceil(centre + radius + 1.0)) - low[j], out.shape[j])
    for i in range(first[0], end[0]):
        for j in range(first[1], end[1]):
            for k in range(first[2], end[2]):
                dz, dy, dx = i + low[0] + 0.5 - z, j + low[1] + 0.5 - y, k + low[2] + 0.5 - x
                share = min(radius - math.sqrt(dz * dz + dy * dy + dx * dx) + 0.5, 1.0)
                if flat and share > 0.0:
                    # Soil is left before and behind a gap.
                    share *= 0.8 * math.sqrt(max(1.0 - (dz * dz + dx * dx) / (radius + 0.5) ** 2, 0.0))
                if share > out[i, j, k]:
                    out[i, j, k] = share


@compiled
def _open_crack(low, normal, spot, half, length, width, flat, waves, ripple, widths, out):
    for z in range(out.shape[0]):
        pz = z + low[0] + 0.5 - spot[0]
        for y in range(out.shape[1]):
            py = 0.0 if flat else y + low[1] + 0.5 - spot[1]
            for x in range(out.shape[2]):
                px = x + low[2] + 0.5 - spot[2]
                across = pz * normal[0] + py * normal[1] + px * normal[2]
                along = math.sqrt(max(pz * pz + py * py + px * px - across * across, 0.0)) / half
                if along >= 1.0:
                    continue
                across += length * (0.45 * waves[z, y, x] + 0.1 * ripple[z, y, x])
                open_by = width * (1.0 - along * along) * max(0.55 + 0.75 * widths[z, y, x], 0.0)
                share = 0.5 * open_by - abs(across) + 0.5
                # What is narrower than a voxel is air in part only.
                share = min(share, min(open_by, 1.0))
                if share > out[z, y, x]:
                    out[z, y, x] = share

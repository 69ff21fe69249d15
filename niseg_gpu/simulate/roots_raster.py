"""Draw roots into voxels: capsules with tapering radii, each voxel as full as it is of root.

Every value depends on its voxel's place and the roots alone, so a volume may be drawn block by block. Blocks have the
axes (down, y, x). A slab is drawn as one voxel thick along y, the beam's axis, with the roots projected along it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.simulate.roots_growth import RootSystem

# Voxels more than the radius up to which a capsule fills voxels in part; thinner ones fade instead of shrinking.
_MARGIN = 1.0
NOTHING = -1


@dataclass(frozen=True)
class Capsules:
    """Tapering capsules in voxels, one for each two nodes of a root; voxel i reaches from i to i + 1.

    Attributes
    ----------
    ends : (S, 2, 3) ndarray of float64
        Of the axis.
    radius, path_mm : (S, 2) ndarray of float64
        At both ends.
    root, bearer : (S,) ndarray of int32
        Which root it is of, and which bears that one.
    """

    ends: np.ndarray
    radius: np.ndarray
    path_mm: np.ndarray
    root: np.ndarray
    bearer: np.ndarray

    def __len__(self) -> int:
        return len(self.root)

    def near(self, low: tuple[int, ...], shape: tuple[int, ...], *, reach: float, flat: bool) -> Capsules:
        """Keep those that come within `reach` voxels of a block."""
        thick = self.radius.max(axis=1, initial=0.0)[:, None] + reach
        before = self.ends.max(axis=1) + thick >= np.array(low)
        behind = self.ends.min(axis=1) - thick <= np.array(low) + np.array(shape)
        axes = [0, 2] if flat else [0, 1, 2]
        chosen = (before & behind)[:, axes].all(axis=1)
        return Capsules(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Drawn:
    """Roots in a block of (Z, Y, X) voxels.

    Attributes
    ----------
    filled : ndarray of float32
        Share of the voxel that is root, 0 to 1.
    depth : ndarray of float32
        Voxels from the centre to the nearest root's surface, positive inside; below ``-reach`` where none is near.
    root : ndarray of int32
        The root whose surface is nearest or which holds the voxel the deepest; -1 where none is within reach.
    path_mm : ndarray of float32
        Along that root from the seed to the point nearest to the voxel.
    skeleton : ndarray of bool
        Voxels that hold an axis; a chain of neighbours (by faces, edges or corners) along each root.
    thickness : ndarray of float32 or None
        Voxels of root along the beam, of a slab only; roots that cross add up.
    """

    filled: np.ndarray
    depth: np.ndarray
    root: np.ndarray
    path_mm: np.ndarray
    skeleton: np.ndarray
    thickness: np.ndarray | None

    @property
    def mask(self) -> np.ndarray:
        """Voxels at least half root, and the skeleton, so that roots thinner than a voxel are not cut."""
        return (self.filled >= np.float32(0.5)) | self.skeleton


def cut_capsules(roots: RootSystem, *, voxel_mm: float) -> Capsules:
    """Cut roots into capsules between neighbouring nodes."""
    if not len(roots):
        raise ValueError("no roots")
    inner = np.ones(len(roots.nodes_mm), bool)
    inner[roots.first[1:] - 1] = False
    start = np.flatnonzero(inner)
    owner = np.repeat(np.arange(len(roots), dtype=np.int32), np.diff(roots.first))[start]
    pair = np.stack([start, start + 1], axis=1)
    return Capsules(
        roots.nodes_mm[pair] / voxel_mm,
        roots.radius_mm[pair] / voxel_mm,
        roots.path_mm[pair],
        owner,
        roots.parent.astype(np.int32)[owner],
    )


def draw_capsules(
    capsules: Capsules, low: tuple[int, int, int], shape: tuple[int, int, int], *, reach: float, flat: bool
) -> Drawn:
    """Draw the part of all capsules that lies in a block.

    A voxel's share is found from its centre's distance to the axis, as if the surface were flat: exact on average for
    straight roots of any thickness, in area in a slab and in volume in a pot.

    Parameters
    ----------
    capsules : Capsules
    low, shape : (int, int, int)
        First voxel and size of the block.
    reach : float
        Voxels outside of the roots up to which ``depth``, ``root`` and ``path_mm`` are told.
    flat : bool
        Project along y, for a slab.
    """
    reach = max(reach, _MARGIN)
    near = capsules.near(low, shape, reach=reach, flat=flat)
    filled, thickness = np.zeros(shape, np.float32), np.zeros(shape if flat else (0, 0, 0), np.float32)
    depth, path = np.full(shape, -reach - 1.0, np.float32), np.zeros(shape, np.float32)
    root = np.full(shape, NOTHING, np.int32)
    skeleton = np.zeros(shape, np.bool_)
    corner = np.array(low, np.int64)
    _draw(
        near.ends, near.radius, near.path_mm, near.root, corner, reach, flat, filled, depth, root, path
    )  # fmt: skip
    _trace(near.ends, corner, flat, skeleton)
    if flat:
        _add_thickness(near.ends, near.radius, near.root, near.bearer, corner, thickness)
    return Drawn(filled, depth, root, path, skeleton, thickness if flat else None)


@compiled
def _box(a, b, margin, low, shape, flat):
    """The voxels of a block within a margin of a segment, as first and end along each axis."""
    first, end = np.empty(3, np.int64), np.empty(3, np.int64)
    for j in range(3):
        if flat and j == 1:
            first[j], end[j] = 0, shape[j]
            continue
        first[j] = max(int(math.floor(min(a[j], b[j]) - margin)) - low[j], 0)
        end[j] = min(int(math.ceil(max(a[j], b[j]) + margin)) + 1 - low[j], shape[j])
    return first, end


@compiled
def _fill(radius, distance, flat):
    """Share of a voxel that a root fills; the profile's integral across the root is its width or cross section."""
    if flat:
        ramp, peak = max(radius, 0.5), min(2.0 * radius, 1.0)
    else:
        # A ramp one voxel wide adds 1/12 to the squared radius; below half a voxel the cone keeps its size and fades.
        square = radius * radius - 1.0 / 12.0
        ramp, peak = (math.sqrt(square), 1.0) if square > 0.25 else (0.5, min(3.0 * radius * radius, 1.0))
    return peak * min(max(ramp - distance + 0.5, 0.0), 1.0)


@compiled
def _draw(ends, radii, paths, roots, low, reach, flat, filled, depth, root, path):
    for s in range(len(roots)):
        a, b = ends[s, 0], ends[s, 1]
        v = b - a
        if flat:
            v[1] = 0.0
        square = v[0] * v[0] + v[1] * v[1] + v[2] * v[2]
        furthest = max(radii[s, 0], radii[s, 1]) + reach
        first, end = _box(a, b, furthest, low, filled.shape, flat)
        seen = v[0] * v[0] + v[1] * v[1]
        for z in range(first[0], end[0]):
            pz = z + low[0] + 0.5 - a[0]
            for y in range(first[1], end[1]):
                py = 0.0 if flat else y + low[1] + 0.5 - a[1]
                # How far the row passes the segment, as seen along it; only so much of the row can be within reach.
                t = min(max((pz * v[0] + py * v[1]) / seen, 0.0), 1.0) if seen > 0.0 else 0.0
                room = furthest * furthest - (pz - t * v[0]) ** 2 - (py - t * v[1]) ** 2
                if room < 0.0:
                    continue
                room = math.sqrt(room)
                begin = max(first[2], int(math.floor(min(a[2], b[2]) - room)) - low[2])
                stop = min(end[2], int(math.ceil(max(a[2], b[2]) + room)) + 1 - low[2])
                for x in range(begin, stop):
                    px = x + low[2] + 0.5 - a[2]
                    t = (pz * v[0] + py * v[1] + px * v[2]) / square if square > 0.0 else 0.0
                    t = min(max(t, 0.0), 1.0)
                    dz, dy, dx = pz - t * v[0], py - t * v[1], px - t * v[2]
                    distance = math.sqrt(dz * dz + dy * dy + dx * dx)
                    radius = radii[s, 0] + t * (radii[s, 1] - radii[s, 0])
                    if distance > radius + reach:
                        continue
                    inside = np.float32(radius - distance)
                    if inside > depth[z, y, x]:
                        depth[z, y, x] = inside
                        root[z, y, x] = roots[s]
                        path[z, y, x] = paths[s, 0] + t * (paths[s, 1] - paths[s, 0])
                    share = np.float32(_fill(radius, distance, flat))
                    if share > filled[z, y, x]:
                        filled[z, y, x] = share


@compiled
def _trace(ends, low, flat, skeleton):
    """Mark the voxels along each axis; no step is longer than a voxel along any side, so they form a chain."""
    for s in range(len(ends)):
        a, b = ends[s, 0], ends[s, 1]
        longest = max(abs(b[0] - a[0]), abs(b[2] - a[2]))
        if not flat:
            longest = max(longest, abs(b[1] - a[1]))
        n = int(math.ceil(longest)) + 1
        for k in range(n + 1):
            t = k / n
            z = int(math.floor(b[0] if k == n else a[0] + t * (b[0] - a[0]))) - low[0]
            y = 0 if flat else int(math.floor(b[1] if k == n else a[1] + t * (b[1] - a[1]))) - low[1]
            x = int(math.floor(b[2] if k == n else a[2] + t * (b[2] - a[2]))) - low[2]
            if 0 <= z < skeleton.shape[0] and 0 <= y < skeleton.shape[1] and 0 <= x < skeleton.shape[2]:
                skeleton[z, y, x] = True


@compiled
def _chord(radius, distance):
    """Mean length of the beam's way through a round root over a pixel's width."""
    low, high = max(distance - 0.5, -radius), min(distance + 0.5, radius)
    if low >= high:
        return 0.0
    return _half_disc(radius, high) - _half_disc(radius, low)


@compiled
def _half_disc(radius, t):
    return t * math.sqrt(max(radius * radius - t * t, 0.0)) + radius * radius * math.asin(
        min(max(t / radius, -1.0), 1.0)
    )


@compiled
def _add_thickness(ends, radii, roots, bearers, low, thickness):
    """Add up the roots along the beam; of one root, and of it and its bearer, the thickest counts where they meet."""
    own = np.zeros(thickness.shape, np.float32)
    last = np.full(thickness.shape, -1, np.int32)
    for s in range(len(roots)):
        a, b = ends[s, 0], ends[s, 1]
        vz, vx = b[0] - a[0], b[2] - a[2]
        square = vz * vz + vx * vx
        # A root that runs along the beam is longer in it than it is thick.
        slant = min(math.sqrt(1.0 + (b[1] - a[1]) ** 2 / max(square, 1e-12)), 3.0)
        first, end = _box(a, b, max(radii[s, 0], radii[s, 1]) + 1.0, low, thickness.shape, True)
        for z in range(first[0], end[0]):
            pz = z + low[0] + 0.5 - a[0]
            for x in range(first[2], end[2]):
                px = x + low[2] + 0.5 - a[2]
                t = min(max((pz * vz + px * vx) / square if square > 0.0 else 0.0, 0.0), 1.0)
                distance = math.sqrt((pz - t * vz) ** 2 + (px - t * vx) ** 2)
                chord = np.float32(slant * _chord(radii[s, 0] + t * (radii[s, 1] - radii[s, 0]), distance))
                if chord <= 0.0:
                    continue
                before = own[z, 0, x] if last[z, 0, x] == roots[s] or last[z, 0, x] == bearers[s] else np.float32(0.0)
                if chord > before:
                    thickness[z, 0, x] += chord - before
                    own[z, 0, x] = chord
                    last[z, 0, x] = roots[s]

"""From soil, air and roots to values: what each voxel attenuates, what a camera sees of a slab, artefacts and noise.

Compiled, over blocks with the axes (down, y, x); `roots_scene` calls them.
"""

from __future__ import annotations

import math

import numpy as np

from niseg_gpu.kernels.compiled import compiled
from niseg_gpu.simulate.counter import draw_normal, hash_place, to_normal

# Attenuation per cm for thermal neutrons: water, sand packed dry, aluminium.
WATER, SAND, WALL = 3.6, 0.18, 0.1
ROOT_WATER = 0.8
MOISTURE_CONTRAST = 0.3
# Share of the water that the barrier holds.
BARRIER_WATER = 0.3


@compiled
def _share(distance):
    """Share of a voxel that lies on the positive side of a wall, from its centre's distance in voxels."""
    return min(max(distance + 0.5, 0.0), 1.0)


@compiled
def wet_soil(texture, moisture, depth, low, span, water, gradient, reach, fine, coarse):
    """Attenuation of the soil per cm, from its grains and water; none above its surface."""
    soil = np.empty(texture.shape, np.float32)
    for z in range(soil.shape[0]):
        centre = z + low + 0.5
        below = _share(centre - span[0])
        dry = _share(centre - span[1]) * _share(span[2] - centre) if span[2] > span[1] else 0.0
        contrast = fine + dry * (coarse - fine)
        for y in range(soil.shape[1]):
            for x in range(soil.shape[2]):
                near = min(max(1.0 + depth[z, y, x] / reach, 0.0), 1.0) if reach > 0.0 else 0.0
                wet = water * (1.0 + MOISTURE_CONTRAST * moisture[z, y, x]) * (1.0 + gradient * near * near)
                wet *= 1.0 - dry * (1.0 - BARRIER_WATER)
                packed = max(1.0 + contrast * texture[z, y, x], 0.0)
                soil[z, y, x] = below * packed * (SAND + WATER * wet)
    return soil


@compiled
def see_pot(low, box, wall, soil, air, roots, stem, owner, root_per_cm, with_stem, image):
    radius, cy, cx = 0.5 * (box[4] - box[3]), 0.5 * (box[3] + box[4]), 0.5 * (box[5] + box[6])
    for z in range(image.shape[0]):
        pz = z + low[0] + 0.5
        floor, under, rim = _share(box[2] - pz), _share(box[2] + wall - pz), _share(pz - 0.5 * box[1])
        for y in range(image.shape[1]):
            py = y + low[1] + 0.5 - cy
            for x in range(image.shape[2]):
                px = x + low[2] + 0.5 - cx
                across = math.sqrt(py * py + px * px)
                inside = _share(radius - across) * floor
                outside = _share(radius + wall - across) * under
                value = inside * (1.0 - air[z, y, x]) * soil[z, y, x]
                if with_stem:
                    value += stem[z, y, x] * (WATER * ROOT_WATER - value)
                if roots[z, y, x] > 0.0:
                    value += roots[z, y, x] * (root_per_cm[owner[z, y, x]] - value)
                if wall > 0.0:
                    value += (outside - inside) * rim * WALL
                image[z, y, x] = value


@compiled
def see_slab(low, box, wall, soil, air, roots, stem, owner, root_per_cm, voxel_mm, slab_mm, with_stem, image):
    for z in range(image.shape[0]):
        pz = z + low[0] + 0.5
        floor, under, rim = _share(box[2] - pz), _share(box[2] + wall - pz), _share(pz - 0.5 * box[1])
        for x in range(image.shape[2]):
            px = x + low[2] + 0.5
            inside = _share(px - box[5]) * _share(box[6] - px) * floor
            outside = _share(px - box[5] + wall) * _share(box[6] + wall - px) * under
            root_mm, per_cm = min(roots[z, 0, x] * voxel_mm, slab_mm), WATER * ROOT_WATER
            if owner[z, 0, x] >= 0:
                per_cm = root_per_cm[owner[z, 0, x]]
            if with_stem:
                root_mm = max(root_mm, stem[z, 0, x] * voxel_mm)
            filled = soil[z, 0, x] * (1.0 - air[z, 0, x])
            path = inside * (filled * max(slab_mm - root_mm, 0.0) + per_cm * root_mm)
            if wall > 0.0:
                path += (outside - inside) * rim * WALL * 4.0 * slab_mm
            image[z, 0, x] = math.exp(-0.1 * path)


@compiled
def add_rings(low, size, key, amplitude, image):
    """One number for each radius and slice, interpolated between whole radii."""
    for z in range(image.shape[0]):
        for y in range(image.shape[1]):
            py = y + low[1] + 0.5 - 0.5 * size[1]
            for x in range(image.shape[2]):
                px = x + low[2] + 0.5 - 0.5 * size[2]
                radius = math.sqrt(py * py + px * px)
                i = int(radius)
                here = to_normal(hash_place(key, z + low[0], i, 0))
                there = to_normal(hash_place(key, z + low[0], i + 1, 0))
                image[z, y, x] += amplitude * (here + (radius - i) * (there - here))


@compiled
def add_lines(low, key, amplitude, flat, image):
    """One number for each column of a radiograph, for each row of a slice."""
    for z in range(image.shape[0]):
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                if flat:
                    image[z, y, x] += amplitude * to_normal(hash_place(key, 0, 0, x + low[2]))
                else:
                    image[z, y, x] += amplitude * to_normal(hash_place(key, z + low[0], y + low[1], 0))


@compiled
def add_noise(low, size, key, sigma, counted, image):
    """Add normal noise; where `counted` is positive its variance goes with the signal, sigma**2 at that signal."""
    for z in range(image.shape[0]):
        for y in range(image.shape[1]):
            start = ((z + low[0]) * size[1] + y + low[1]) * size[2] + low[2]
            for x in range(image.shape[2]):
                scale = sigma
                if counted > 0.0:
                    scale *= math.sqrt(max(image[z, y, x], 0.0) / counted)
                image[z, y, x] += scale * draw_normal(key, start + x)

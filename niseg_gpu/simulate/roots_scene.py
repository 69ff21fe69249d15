"""A container of soil with roots, and what a neutron camera or a tomography sees of any block of it."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from niseg_gpu.simulate.counter import draw_normal, draw_uniform, make_key
from niseg_gpu.simulate.roots_growth import BOX, CYLINDER, Container, RootSystem, grow_roots
from niseg_gpu.simulate.roots_image import (
    ROOT_WATER,
    SAND,
    WATER,
    add_lines,
    add_noise,
    add_rings,
    see_pot,
    see_slab,
    wet_soil,
)
from niseg_gpu.simulate.roots_raster import Capsules, Drawn, cut_capsules, draw_capsules
from niseg_gpu.simulate.soil import GAP_RADIUS, add_crack, add_gaps, draw_grains, draw_waves

GRAIN_CONTRAST, COARSE_CONTRAST = 0.35, 1.0
# In the barrier grains are this much larger.
COARSE = 2.0
BARRIER_DEPTH, BARRIER_HEIGHT = (0.3, 0.6), 0.04
GROWTH, NOISE, GRAINS, COARSE_GRAINS, MOISTURE, GAPS, CRACKS, BARRIER, RINGS, LINES, ROOTS = range(11)
BLOCK = {False: (32, 256, 512), True: (256, 1, 2048)}


@dataclass(frozen=True)
class RootScene:
    """What is fixed of a simulated container before any voxel is computed; lengths in voxels but where they say so.

    Attributes
    ----------
    shape : (int, int, int)
        (down, y, x); y is 1 for a slab, the beam's axis.
    flat : bool
        Whether it is a slab, seen as a radiograph.
    roots : RootSystem
    capsules, stem : Capsules
        The roots in voxels, and the stems above them, which are no roots.
    container : Container
    barrier : (float, float)
        From where to where down it reaches; empty without a barrier.
    options : dict
        As `build_scene` got them.
    """

    shape: tuple[int, int, int]
    flat: bool
    roots: RootSystem
    capsules: Capsules
    stem: Capsules
    container: Container
    barrier: tuple[float, float]
    options: dict[str, Any]

    @property
    def voxel_mm(self) -> float:
        return self.options["voxel_size_um"] / 1000.0

    @property
    def soil_per_cm(self) -> float:
        """Mean attenuation of the soil without roots."""
        return SAND + WATER * self.options["soil_water"]

    @property
    def soil_signal(self) -> float:
        """What the image shows of it: transmission of a slab, else attenuation per cm."""
        return math.exp(-0.1 * self.soil_per_cm * self.options["slab_mm"]) if self.flat else self.soil_per_cm

    @property
    def noise_sigma(self) -> float:
        """Standard deviation of the noise where the signal is that of the soil."""
        snr = self.options["snr"]
        return self.soil_signal / (snr if snr is not None else 60.0 if self.flat else 6.0)

    def key(self, *words: int) -> np.uint64:
        return make_key(self.options["seed"], *words)


@dataclass(frozen=True)
class Rendered:
    """A block: the image with noise (float32) and the truth, as `simulate_roots` describes them."""

    image: np.ndarray
    mask: np.ndarray
    skeleton: np.ndarray
    order: np.ndarray
    path_mm: np.ndarray


def build_scene(shape: tuple[int, ...], **options: Any) -> RootScene:
    """Grow the roots and place container, stem and barrier.

    Parameters
    ----------
    shape : (Y, X) or (Z, Y, X)
        Pixels of a slab, voxels of a pot.
    **options
        All of `simulate_roots`, checked.
    """
    flat = len(shape) == 2
    voxel = options["voxel_size_um"] / 1000.0
    size = (shape[0], 1, shape[1]) if flat else tuple(shape)
    container = _place_container(size, options["slab_mm"], voxel_mm=voxel, flat=flat, walls=options["walls"])
    roots = grow_roots(
        container,
        seed=int(make_key(options["seed"], GROWTH)) >> 1,
        habit=options["habit"],
        age=options["age"],
        n_plants=options["n_plants"],
        n_orders=options["n_orders"],
        thickness=options["root_thickness"],
        step_mm=min(max(2.0 * voxel, 0.1), 0.5, 0.05 * container.depth_mm),
    )
    start = draw_uniform(make_key(options["seed"], BARRIER), 0)
    depth = container.depth_mm / voxel
    top = container.top_mm / voxel + (BARRIER_DEPTH[0] + start * (BARRIER_DEPTH[1] - BARRIER_DEPTH[0])) * depth
    height = max(BARRIER_HEIGHT * depth, 2.0) if options["barrier"] else 0.0
    stem = cut_capsules(_raise_stems(roots, container), voxel_mm=voxel)
    return RootScene(
        size, flat, roots, cut_capsules(roots, voxel_mm=voxel), stem, container, (top, top + height), dict(options)
    )


def render_scene(scene: RootScene, *, workers: int = 2) -> Rendered:
    """Render a whole scene in memory, blocks side by side; axes as the shape that `build_scene` got."""
    thick, *rest = BLOCK[scene.flat]
    blocks = list(iter_blocks(scene.shape, (min(thick, -(-scene.shape[0] // 4)), *rest)))
    with ThreadPoolExecutor(workers) as pool:
        parts = list(pool.map(lambda block: render_block(scene, *block), blocks))
    whole = {}
    for name in Rendered.__dataclass_fields__:
        whole[name] = np.empty(scene.shape, getattr(parts[0], name).dtype)
        for (low, shape), part in zip(blocks, parts, strict=True):
            place = tuple(slice(a, a + n) for a, n in zip(low, shape, strict=True))
            whole[name][place] = getattr(part, name)
        if scene.flat:
            whole[name] = whole[name][:, 0]
    return Rendered(**whole)


def iter_blocks(shape: tuple[int, ...], block: tuple[int, ...]) -> Any:
    """Yield first voxel and shape of each block."""
    starts = [range(0, n, b) for n, b in zip(shape, block, strict=True)]
    for low in product(*starts):
        yield low, tuple(min(b, n - a) for a, b, n in zip(low, block, shape, strict=True))


def render_block(scene: RootScene, low: tuple[int, int, int], shape: tuple[int, int, int]) -> Rendered:
    """Render one block; no other block changes it."""
    options = scene.options
    reach = options["water_reach_mm"] / scene.voxel_mm if options["water_gradient"] else 0.0
    drawn = draw_capsules(scene.capsules, low, shape, reach=reach, flat=scene.flat)
    stem = draw_capsules(scene.stem, low, shape, reach=0.0, flat=scene.flat)
    texture, air = _draw_texture(scene, low, shape), _draw_air(scene, low, shape)
    moisture = draw_waves(low, shape, key=scene.key(MOISTURE), length_voxels=max(scene.shape) / 5.0)
    span = (scene.container.top_mm / scene.voxel_mm, *scene.barrier)
    soil = wet_soil(
        texture, moisture, drawn.depth, low[0], span, options["soil_water"], options["water_gradient"], reach,
        GRAIN_CONTRAST * _survive(scene, options["grain_diameter_um"]),
        COARSE_CONTRAST * _survive(scene, COARSE * options["grain_diameter_um"]),
    )  # fmt: skip
    image = _see(scene, low, soil, air, drawn, stem)
    _add_artefacts(scene, low, image)
    if scene.noise_sigma > 0.0:
        add_noise(np.array(low, np.int64), np.array(scene.shape, np.int64), scene.key(NOISE), scene.noise_sigma,
                   scene.soil_signal if scene.flat else 0.0, image)  # fmt: skip
    mask = drawn.mask
    order = np.where(mask, scene.roots.order[drawn.root], 0).astype(np.uint8)
    path = np.where(mask, drawn.path_mm, np.float32(0.0))
    return Rendered(image, mask.astype(np.uint8), drawn.skeleton.astype(np.uint8), order, path)


def _place_container(shape: tuple[int, ...], slab_mm: float, *, voxel_mm: float, flat: bool, walls: bool) -> Container:
    """Leave a margin for the walls and, above the soil, for the stem."""
    depth, (high, wide) = shape[0] * voxel_mm, (n * voxel_mm for n in shape[1:])
    top, bottom = (0.06 * depth, 0.96 * depth) if walls else (0.0, depth)
    if flat:
        edge = 0.03 * wide if walls else 0.0
        return Container(BOX, top, bottom, (0.0, slab_mm), (edge, wide - edge))
    radius = (0.46 if walls else 0.5) * min(high, wide)
    return Container(
        CYLINDER, top, bottom, (0.5 * high - radius, 0.5 * high + radius), (0.5 * wide - radius, 0.5 * wide + radius)
    )


def _raise_stems(roots: RootSystem, container: Container) -> RootSystem:
    """Give each seed a stem up to beyond the top of the image, half as thick again as the root."""
    seeds = np.unique(roots.nodes_mm[roots.first[:-1][roots.order == 1]], axis=0)
    radius = 1.5 * roots.radius_mm[roots.first[:-1]].max()
    nodes = np.repeat(seeds, 2, axis=0)
    nodes[1::2, 0] = -2.0 * container.top_mm - radius
    n = len(seeds)
    return RootSystem(
        nodes, np.full(2 * n, radius), np.zeros(2 * n), np.arange(0, 2 * n + 1, 2), np.ones(n, int), np.full(n, -1)
    )


def _survive(scene: RootScene, grain_um: float) -> float:
    """Share of the grains' contrast that is left where a voxel, or a slab along the beam, averages over several."""
    voxel, grain = 1000.0 * scene.voxel_mm, grain_um
    inside = min(grain / (2.0 * voxel), 1.0) ** 1.5
    layers = 1000.0 * scene.options["slab_mm"] / max(grain, 2.0 * voxel) if scene.flat else 1.0
    return inside / math.sqrt(max(layers, 1.0))


def _draw_texture(scene: RootScene, low: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Grains of the soil, and coarse ones in the barrier."""
    texture = np.empty(shape, np.float32)
    grain = max(scene.options["grain_diameter_um"] / 1000.0 / scene.voxel_mm, 2.0)
    draw_grains(low, shape, key=scene.key(GRAINS), grain_voxels=grain, out=texture)
    first = min(max(math.floor(scene.barrier[0]) - low[0], 0), shape[0])
    end = min(max(math.ceil(scene.barrier[1]) - low[0], 0), shape[0])
    if first < end:
        part, below = (end - first, *shape[1:]), (low[0] + first, *low[1:])
        draw_grains(below, part, key=scene.key(COARSE_GRAINS), grain_voxels=COARSE * grain, out=texture[first:end])
    return texture


def _draw_air(scene: RootScene, low: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    air, depth = np.zeros(shape, np.float32), scene.container.depth_mm / scene.voxel_mm
    radius = tuple(max(share * depth, 0.5 + i) for i, share in enumerate(GAP_RADIUS))
    add_gaps(low, key=scene.key(GAPS), share=scene.options["air_gaps"], radius_voxels=radius, flat=scene.flat, out=air)
    for i in range(scene.options["n_cracks"]):
        add_crack(
            low, key=scene.key(CRACKS, i), extent=scene.shape, width_voxels=0.035 * depth, flat=scene.flat, out=air
        )
    return air


def _see(
    scene: RootScene, low: tuple[int, ...], soil: np.ndarray, air: np.ndarray, drawn: Drawn, stem: Drawn
) -> np.ndarray:
    """Put soil, roots, stem and container together: transmission of a slab, attenuation per cm of a pot."""
    spread = np.array([draw_normal(scene.key(ROOTS), i) for i in range(len(scene.roots))])
    root = (WATER * ROOT_WATER * (1.0 + 0.08 * np.clip(spread, -3.0, 3.0))).astype(np.float32)
    box = scene.container.as_vector()
    box[1:] /= scene.voxel_mm
    wall = 0.02 * min(n for n in scene.shape if n > 1) if scene.options["walls"] else 0.0
    image = np.empty(soil.shape, np.float32)
    corner = np.array(low, np.int64)
    if scene.flat:
        see_slab(corner, box, wall, soil, air, drawn.thickness, stem.thickness, drawn.root, root,
                  scene.voxel_mm, scene.options["slab_mm"], scene.options["stem"], image)  # fmt: skip
    else:
        see_pot(corner, box, wall, soil, air, drawn.filled, stem.filled, drawn.root, root,
                 scene.options["stem"], image)  # fmt: skip
    return image


def _add_artefacts(scene: RootScene, low: tuple[int, ...], image: np.ndarray) -> None:
    """Add rings round the axis of rotation and lines along rows or columns of the detector."""
    size, corner = np.array(scene.shape, np.int64), np.array(low, np.int64)
    signal = scene.soil_signal
    if scene.options["rings"] > 0.0:
        add_rings(corner, size, scene.key(RINGS), scene.options["rings"] * signal, image)
    if scene.options["lines"] > 0.0:
        add_lines(corner, scene.key(LINES), scene.options["lines"] * signal, scene.flat, image)

"""Simulate root systems in soil, in a slab or in a pot, with the truth beside them."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.io.paths import read_path
from niseg_gpu.options import check_options
from niseg_gpu.simulate.folders import appear_when_whole, write_summary
from niseg_gpu.simulate.streams import check_limits, fill_options, read_shape
from niseg_gpu.threads import use_threads

if TYPE_CHECKING:
    import xarray as xr

    from niseg_gpu.simulate.roots_scene import Rendered, RootScene

HABITS = ("taprooted", "fibrous")
Format = Literal["zarr", "tif", "h5", "npy"]
TRUTH = {"mask": "mask", "skeleton": "skeleton", "order": "order", "path_length": "path_mm"}
# Lowest and highest value of each number; what is None is left to the program.
LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, math.inf),
    "voxel_size_um": (1, 10_000),
    "n_plants": (1, 100),
    "age": (0.1, 10),
    "n_orders": (1, 4),
    "root_thickness": (0.1, 10),
    "slab_mm": (0.1, 100),
    "grain_diameter_um": (1, 20_000),
    "soil_water": (0, 0.6),
    "water_gradient": (-1, 3),
    "water_reach_mm": (0, 50),
    "air_gaps": (0, 0.15),
    "n_cracks": (0, 20),
    "snr": (0.1, math.inf),
    "rings": (0, 1),
    "lines": (0, 1),
    "workers": (1, 1024),
}


def simulate_roots(
    out: str | os.PathLike,
    draw: Callable[[Path], Any] | None = None,
    *,
    seed: int = 2018,
    shape: str | tuple[int, ...] = "512x512",
    voxel_size_um: float = 200.0,
    habit: str = "taprooted",
    n_plants: int = 1,
    age: float = 1.5,
    n_orders: int = 3,
    root_thickness: float = 1.0,
    slab_mm: float = 5.0,
    grain_diameter_um: float = 600.0,
    soil_water: float = 0.12,
    water_gradient: float = 0.4,
    water_reach_mm: float = 2.0,
    air_gaps: float = 0.01,
    n_cracks: int = 1,
    barrier: bool = True,
    walls: bool = True,
    stem: bool = True,
    snr: float | None = None,
    rings: float = 0.0,
    lines: float = 0.0,
    format: str = "zarr",
    workers: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write an image of roots in soil with its truth: a radiograph of a slab, or a tomogram of a pot.

    ``out/image`` holds the transmission of the slab, or the attenuation per cm in the pot (float32). ``out/truth``
    holds, of the same shape, ``mask`` (uint8, 1 where a voxel is at least half root or on the skeleton), ``skeleton``
    (uint8, 1 on the axes of the roots, connected), ``order`` (uint8, 1 for main roots, 2 for their laterals and so
    on, 0 outside of the mask) and ``path_length`` (float32, mm from the seed along the roots, 0 outside), further the
    axes as ``roots.csv`` and ``simulation.json``. Stems are in the image and not in the mask. Written block by block,
    so that the memory needed does not grow with the shape. The same arguments give the same data, whatever the
    workers or the format.

    Parameters
    ----------
    out : path
        Folder to make. It appears when whole, else nothing is left.
    draw : callable, optional
        Called with the folder before it appears, to put pictures into it.
    seed : int, optional
        Of all random numbers.
    shape : str or tuple of int, optional
        Such as 512x512 for a slab (down, across) or 256x256x256 for a pot (down, y, x); at least 32 each.
    voxel_size_um : float, optional
        Side of a pixel or voxel.
    habit : {"taprooted", "fibrous"}, optional
        taprooted: one main root with laterals; fibrous: a tuft of main roots.
    n_plants : int, optional
        Plants side by side.
    age : float, optional
        In times that a main root takes to reach the floor.
    n_orders : int, optional
        1 is main roots only, 2 with laterals, up to 4.
    root_thickness : float, optional
        Factor on the radii of the roots.
    slab_mm : float, optional
        Thickness of a slab along the beam.
    grain_diameter_um : float, optional
        Of the soil; grains below two voxels are drawn as two voxels and fainter.
    soil_water : float, optional
        Volume share of water.
    water_gradient : float, optional
        How much wetter the soil is at the roots' surface: 0.4 is by 40 %, below 0 is drier.
    water_reach_mm : float, optional
        Distance at which that has faded.
    air_gaps : float, optional
        Share of the soil that round air gaps take.
    n_cracks : int, optional
        Cracks in the soil.
    barrier : bool, optional
        A horizontal layer of coarse dry grains that the roots cross.
    walls : bool, optional
        Walls and floor of aluminium, open beam around them; without them soil reaches to the sides.
    stem : bool, optional
        Stems above the seeds.
    snr : float, optional
        Signal of the soil over the standard deviation of the noise; inf for none. Default 60 in a slab, 6 in a pot.
    rings : float, optional
        Standard deviation of ring artefacts over the soil's signal; for pots.
    lines : float, optional
        The same of lines: along columns of a radiograph, along rows of slices.
    format : {"zarr", "tif", "h5", "npy"}, optional
        Of the image and the truth: zarr, tif, h5 or npy.
    workers : int, optional
        Blocks at a time; default one a core.
    overwrite : bool, optional
        Whether an earlier simulation of that name is replaced.

    Returns
    -------
    dict
        What ``truth/simulation.json`` holds.

    Raises
    ------
    UserError
        Where ``out`` exists or can't be written, or an argument is out of range.
    """
    parameters = {
        name: value for name, value in locals().items() if name not in ("out", "draw", "workers", "overwrite")
    }
    parameters["shape"] = read_shape(shape)
    _check_arguments({**parameters, "workers": workers})
    from niseg_gpu.io.save import save_together
    from niseg_gpu.simulate.roots_scene import build_scene

    with appear_when_whole(read_path(out, who="simulate_roots"), overwrite=overwrite) as folder:
        (folder / "truth").mkdir()
        scene = build_scene(**parameters)
        stacks = stack_scene(scene)
        targets = {folder / f"image.{format}": stacks.pop("image")}
        targets |= {folder / "truth" / f"{name}.{format}": stack for name, stack in stacks.items()}
        with use_threads(workers):
            save_together(targets, provenance={"simulation": parameters})
        _write_axes(folder / "truth" / "roots.csv", scene)
        summary = {**parameters, **_summarize(scene)}
        write_summary(folder, summary)
        if draw is not None:
            draw(folder)
    return summary


def make_root_sample(shape: Sequence[int], *, seed: int, workers: int = 2, **options: Any) -> tuple[Any, Any]:
    """Return one image of roots in soil and its mask, in memory, for training.

    Parameters
    ----------
    shape : (Y, X) or (Z, Y, X)
        Pixels of a slab or voxels of a pot, at least 32 each.
    seed : int
        Of all random numbers.
    workers : int, optional
        Threads.
    **options
        As those of `simulate_roots`, which gives the same image.

    Returns
    -------
    image : ndarray of float32
    mask : ndarray of uint8
        1 where there is root.
    """
    from niseg_gpu.simulate.roots_scene import build_scene, render_scene

    given = fill_options(simulate_roots, options, left_out=("format", "workers", "overwrite", "seed", "shape"))
    parameters = {**given, "seed": seed, "shape": read_shape(shape)}
    _check_arguments({**parameters, "format": "zarr", "workers": workers})
    rendered = render_scene(build_scene(**parameters), workers=workers)
    return rendered.image, rendered.mask


def stack_scene(scene: RootScene, *, block: tuple[int, int, int] | None = None) -> dict[str, xr.DataArray]:
    """Return the image and its truth as lazy stacks that share their blocks.

    Parameters
    ----------
    scene : RootScene
    block : (int, int, int), optional
        Voxels of a block along (down, y, x).

    Returns
    -------
    dict of str to xarray.DataArray
        ``image``, ``mask``, ``skeleton``, ``order``, ``path_length``.
    """
    import uuid

    import dask.array as da
    import numpy as np
    import xarray as xr
    from dask.highlevelgraph import HighLevelGraph

    from niseg_gpu.simulate.roots_scene import BLOCK, iter_blocks, render_block

    block = block or BLOCK[scene.flat]
    render, names = f"render-{uuid.uuid4().hex}", {"image": "image", **TRUTH}
    tasks: dict[str, dict[tuple, tuple]] = {name: {} for name in names}
    tasks[render] = {}

    def call(low: tuple[int, ...], size: tuple[int, ...]) -> Rendered:
        return render_block(scene, low, size)

    for low, size in iter_blocks(scene.shape, block):
        place = tuple(a // b for a, b in zip(low, block, strict=True))
        tasks[render][(render, *place)] = (call, low, size)
        at = place[::2] if scene.flat else place
        for name, field in names.items():
            tasks[name][(f"{name}-{render}", *at)] = (_take, (render, *place), field, scene.flat)
    layers = {render: tasks.pop(render)} | {f"{name}-{render}": layer for name, layer in tasks.items()}
    needs: dict[str, set[str]] = {name: set() if name == render else {render} for name in layers}
    graph = HighLevelGraph(layers, needs)

    chunks = [tuple(min(b, n - a) for a in range(0, n, b)) for n, b in zip(scene.shape, block, strict=True)]
    chunks = tuple(chunks[::2] if scene.flat else chunks)
    about = {"image": ("transmission", "") if scene.flat else ("attenuation", "1/cm"), "path_length": ("path", "mm")}
    stacks = {}
    for name in names:
        dtype = np.float32 if name in about else np.uint8
        data = da.Array(graph, f"{name}-{render}", chunks, dtype)
        quantity, units = about.get(name, (name, ""))
        attrs = {"quantity": quantity, "pixel_size_um": scene.options["voxel_size_um"]}
        dims = ("y", "x") if scene.flat else ("z", "y", "x")
        stacks[name] = xr.DataArray(data, dims=dims, name=name, attrs=attrs | ({"units": units} if units else {}))
    return stacks


def _take(rendered: Rendered, field: str, flat: bool) -> Any:
    values = getattr(rendered, field)
    return values[:, 0] if flat else values


def _check_arguments(given: dict[str, Any]) -> None:
    """Refuse what can't be simulated, each with the value, the limits and what to do."""
    check_limits(given, LIMITS)
    check_options(simulate_roots, **given)
    for name, allowed in (("habit", HABITS), ("format", get_args(Format))):
        if given[name] not in allowed:
            raise UserError(f"{name}={given[name]!r} is not known{suggest(str(given[name]), allowed)}")
    if given["rings"] and len(given["shape"]) == 2:
        raise UserError(f"rings={given['rings']!r} needs a pot; give a shape of 3 sides, or lines for a slab")


def _summarize(scene: RootScene) -> dict[str, Any]:
    import numpy as np

    lengths = [float(scene.roots.path_mm[axis][-1] - scene.roots.path_mm[axis][0]) for axis in scene.roots]
    orders = scene.roots.order
    return {
        "soil_signal": scene.soil_signal,
        "noise_sigma": scene.noise_sigma,
        "n_roots": {str(order): int(np.sum(orders == order)) for order in np.unique(orders)},
        "length_mm": {str(o): math.fsum(np.array(lengths)[orders == o].tolist()) for o in np.unique(orders)},
        "container_mm": {name: getattr(scene.container, name) for name in ("top_mm", "bottom_mm", "y_mm", "x_mm")},
    }


def _write_axes(path: Path, scene: RootScene) -> None:
    """Write one line a node, axis by axis from its base."""
    roots = scene.roots
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["root", "parent", "order", "down_mm", "y_mm", "x_mm", "radius_mm", "path_mm"])
        for i, axis in enumerate(roots):
            for node, radius, length in zip(
                roots.nodes_mm[axis], roots.radius_mm[axis], roots.path_mm[axis], strict=True
            ):
                numbers = [f"{value:.6g}" for value in (*node, radius, length)]
                writer.writerow([i, int(roots.parent[i]), int(roots.order[i]), *numbers])

"""Pictures of roots: image and truth of a simulation, beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.figures import PALETTE, Picture, Theme, find_limits, render, style
from niseg_gpu.io.open import open_stack

# Main roots, laterals, and theirs; apart from each other and from grey for all kinds of colour vision.
ORDER_COLOURS = (PALETTE[1], PALETTE[3], PALETTE[4], PALETTE[5])
PANEL_IN = 3.3
BLOCK = (32, 256, 512)  # voxels, as `simulate_roots` writes them


class Panel(NamedTuple):
    """One image of a row: grey values with limits, or RGB, its title and its axes."""

    values: np.ndarray
    title: str
    axes: tuple[str, str]
    limits: tuple[float, float] | None = None
    bar: str = ""
    colours: str = "gray"
    ticks: Sequence[int] | None = None


def draw_previews(folder: str | Path) -> list[Path]:
    """Draw what a folder of `simulate_roots` holds into its ``preview``.

    Parameters
    ----------
    folder : path
        With ``image`` and ``truth``.

    Returns
    -------
    list of Path
        ``preview/image.png`` and ``preview/truth.png``.
    """
    folder = Path(folder)
    images = sorted(folder.glob("image.*"))
    if not images:
        raise UserError(f"{folder} holds no image; name a folder that simulate roots wrote")
    suffix = images[0].suffix
    names = ("image", "truth/order", "truth/path_length")
    image, order, path = (open_stack(folder / f"{name}{suffix}") for name in names)
    draw = _panels_of_slab if image.ndim == 2 else _panels_of_pot
    if image.ndim == 3:  # by its blocks: whole frames would unpack each of them again and again
        block = tuple(min(b, n) for b, n in zip(BLOCK, image.shape, strict=True))
        image, order, path = (open_stack(folder / f"{name}{suffix}", chunks=block) for name in names)
    pictures = dict(zip(("image", "truth"), draw(image, order, path), strict=True))
    (folder / "preview").mkdir(exist_ok=True)
    written = []
    for name, panels in pictures.items():
        written.append(folder / "preview" / f"{name}.png")
        written[-1].write_bytes(draw_panels(panels).light)
    return written


def draw_panels(panels: Sequence[Panel], *, width_in: float | None = None) -> Picture:
    """Draw images in a row, each with its own bar where it has a quantity."""
    from matplotlib.colors import ListedColormap

    heights = [PANEL_IN * p.values.shape[0] / p.values.shape[1] for p in panels]
    height = min(max(max(heights), 1.5), 2.0 * PANEL_IN)
    widths = [height * p.values.shape[1] / p.values.shape[0] for p in panels]
    extra = [0.75 if p.bar else 0.15 for p in panels]
    total = sum(widths) + sum(extra) + 0.62 * len(panels)
    tall = height + 0.85

    def draw(figure: Any, theme: Theme) -> None:
        left = 0.0
        for panel, width, beside in zip(panels, widths, extra, strict=True):
            left += 0.62
            ax = figure.add_axes((left / total, 0.5 / tall, width / total, height / tall), facecolor=theme.ground)
            low, high = panel.limits or (None, None)
            colours = panel.colours if panel.ticks is None else ListedColormap(ORDER_COLOURS[: len(panel.ticks)])
            shown = ax.imshow(panel.values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            ax.set_title(panel.title, color=theme.ink, fontsize=10)
            ax.set_xlabel(panel.axes[1], color=theme.ink)
            style(ax, theme, panel.axes[0])
            left += width
            if panel.bar:
                bar = figure.add_axes(((left + 0.08) / total, 0.5 / tall, 0.1 / total, height / tall))
                style(figure.colorbar(shown, cax=bar, ticks=panel.ticks).ax, theme, panel.bar)
            left += beside

    return render(draw, width_in or total, tall if width_in is None else tall * width_in / total)


def colour_orders(order: np.ndarray, image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Lay the orders of roots in colour over a grey image.

    Parameters
    ----------
    order : (Y, X) ndarray of integers
        0 where there is no root.
    image : (Y, X) ndarray
    limits : (bottom, top)
        Values drawn black and white.

    Returns
    -------
    (Y, X, 3) ndarray of float32
        RGB from 0 to 1.
    """
    from matplotlib.colors import to_rgb

    table = np.array([(0.0, 0.0, 0.0), *(to_rgb(c) for c in ORDER_COLOURS)], np.float32)
    grey = np.clip((image - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0).astype(np.float32)[..., None]
    number = np.minimum(order, len(ORDER_COLOURS))
    strength = np.where(number > 0, np.float32(0.8), np.float32(0.0))[..., None]
    return (1.0 - strength) * np.repeat(grey, 3, axis=-1) + strength * table[number]


def _panels_of_slab(image: Any, order: Any, path: Any) -> tuple[list[Panel], list[Panel]]:
    values, orders, lengths = np.asarray(image), np.asarray(order), np.asarray(path)
    limits, axes = find_limits(values), ("y (pixel)", "x (pixel)")
    shown = np.where(orders > 0, lengths, np.nan)
    return (
        [
            Panel(values, "radiograph", axes, limits, "transmission"),
            Panel(colour_orders(orders, values, limits), "with its roots, by order", axes),
        ],
        [
            _panel_of_orders(orders, axes),
            Panel(shown, "path length from the seed", axes, _span(lengths), "mm", "viridis"),
        ],
    )


def _panels_of_pot(image: Any, order: Any, path: Any) -> tuple[list[Panel], list[Panel]]:
    """A slice from the side and one from above; the truth as seen through the pot."""
    middle, level = image.shape[1] // 2, image.shape[0] // 3
    side, above = np.asarray(image[:, middle]), np.asarray(image[level])
    limits = find_limits(np.concatenate([side.ravel(), above.ravel()]), high=99.0)
    upright, flat = ("z (voxel)", "x (voxel)"), ("y (voxel)", "x (voxel)")
    thickest = _look(order)
    lengths = np.asarray(path.max(axis=1))
    shown = np.where(thickest > 0, lengths, np.nan)
    marked = colour_orders(np.asarray(order[:, middle]), side, limits)
    return (
        [
            Panel(side, f"slice y = {middle}", upright, limits),
            Panel(marked, "with its roots, by order", upright),
            Panel(above, f"slice z = {level}", flat, limits, "attenuation (1/cm)"),
        ],
        [
            _panel_of_orders(thickest, upright),
            Panel(shown, "path length from the seed", upright, _span(lengths), "mm", "viridis"),
        ],
    )


def _panel_of_orders(orders: np.ndarray, axes: tuple[str, str]) -> Panel:
    number = max(int(orders.max(initial=0)), 1)
    values = np.where(orders > 0, orders, np.nan)
    ticks = range(1, number + 1)
    return Panel(values, "order of the roots", axes, (0.5, number + 0.5), "1 = main root", ticks=ticks)


def _look(order: Any) -> np.ndarray:
    """The lowest order along y, 0 where there is no root."""
    import xarray as xr

    lowest = np.asarray(xr.where(order > 0, order, 255).min(dim="y"))
    return np.where(lowest == 255, 0, lowest)


def _span(lengths: np.ndarray) -> tuple[float, float]:
    return 0.0, max(float(lengths.max(initial=0.0)), 1e-6)

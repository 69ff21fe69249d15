"""Maps of a detector's pixels and a histogram of their values, the pictures that most reports have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from niseg_gpu.figures import (
    LIGHT,
    NO_DATA_COLOUR,
    PALETTE,
    PIXEL_AXES,
    Picture,
    Theme,
    cluster_colour,
    find_limits,
    render,
    shrink,
    style,
)

BAD_PIXEL_COLOUR = "#E07B39"
LINE = 20  # times as long as wide


def draw_map(
    image: np.ndarray,
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    width_in: float = 5.6,
    axes: tuple[str, str] = PIXEL_AXES,
    shape: tuple[int, ...] | None = None,
    stretch: bool = False,
) -> Picture:
    """Draw an image in grey with a colour bar; pixels without a finite value are orange.

    Parameters
    ----------
    image : (Y, X) ndarray
    label : str
        Quantity and unit, written at the colour bar.
    limits : (bottom, top), optional
        Values drawn black and white; without it the 0.5th and 99.5th percentile.
    axes : (rows, columns)
        What the two axes count.
    shape : (Y, X), optional
        Size of the full image where ``image`` was shrunk before; the axes count its pixels.
    stretch : bool
        Let rows and columns have different scales, for axes that are not both pixels.
    """
    from matplotlib import colormaps

    small = shrink(image)
    bottom, top = limits or find_limits(small)
    grey = colormaps["gray"].with_extremes(bad=BAD_PIXEL_COLOUR)

    shape = shape or image.shape

    def draw(figure: Any, theme: Theme) -> Sequence[Any]:
        ax, bar = _map_axes(figure, theme, axes)
        placed = {**_placed(shape), **({"aspect": "auto"} if stretch else {})}
        shown = ax.imshow(small, cmap=grey, vmin=bottom, vmax=top, **placed)
        style(figure.colorbar(shown, cax=bar).ax, theme, label)
        return ax, bar

    return render(draw, width_in, _map_height(shape, width_in))


def draw_labels(
    labels: np.ndarray,
    *,
    n_clusters: int,
    no_data: int,
    name: str = "cluster",
    width_in: float = 5.6,
    axes: tuple[str, str] = PIXEL_AXES,
    shape: tuple[int, ...] | None = None,
) -> Picture:
    """Draw a label map, each cluster in its own colour and no data in grey, with the numbers beside it.

    Parameters
    ----------
    labels : (Y, X) ndarray of unsigned integers
    no_data : int
        The value that stands for no data.
    name : str
        What a number means.
    axes, shape
        As `draw_map` takes them; axes that are not both pixels are stretched.
    """
    from matplotlib.colors import to_rgb

    # One row more than there are clusters: where a label has no colour of its own, it is no data.
    table = np.array([to_rgb(cluster_colour(i)) for i in range(n_clusters)] + [to_rgb(NO_DATA_COLOUR)])
    small = shrink(labels, how="stride")
    shown = table[np.minimum(small, n_clusters)]
    entries = n_clusters + bool(np.any(labels == no_data))
    shape, stretch = shape or labels.shape, {"aspect": "auto"} if axes != PIXEL_AXES else {}

    def draw(figure: Any, theme: Theme) -> Sequence[Any]:
        ax, bar = _map_axes(figure, theme, axes)
        ax.imshow(shown, **{**_placed(shape), **stretch})
        bar.imshow(table[:entries, None], aspect="auto", interpolation="nearest")
        every = -(-n_clusters // 32)
        ticks = list(range(0, n_clusters, every))
        names = [str(i) for i in ticks]
        if entries > n_clusters:
            ticks, names = [*ticks, n_clusters], [*names, "no data"]
        bar.set_yticks(ticks, names)
        style(bar, theme, name)
        bar.tick_params(axis="y", length=0, labelsize=8 if n_clusters <= 20 else 6.5)
        return ax, bar

    return render(draw, width_in, _map_height(shape, width_in))


def draw_spots(count: np.ndarray, *, label: str, width_in: float = 5.6) -> Picture:
    """Draw how often each pixel was replaced; shrunk by the block's maximum, so that no single spot is lost.

    Parameters
    ----------
    count : (Y, X) ndarray of integers
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm, Normalize
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    small = shrink(count, how="max")
    top = max(int(small.max(initial=0)), 1)
    hit = np.ma.masked_equal(small, 0)

    def draw(figure: Any, theme: Theme) -> None:
        ax, bar = _map_axes(figure, theme, PIXEL_AXES)
        ax.set_facecolor(theme.shade)
        # A spot counted once must already stand out from the ground, whichever page it is on.
        span = np.linspace(0.62, 0.02, 200) if theme is LIGHT else np.linspace(0.55, 1, 200)
        colours = ListedColormap(colormaps["inferno"](span))
        norm = LogNorm(1, top) if top > 20 else Normalize(0.5, top + 0.5)
        shown = ax.imshow(hit, cmap=colours, norm=norm, **_placed(count.shape))
        ticks = None if top > 20 else MaxNLocator(8, integer=True, min_n_ticks=1)
        whole = FuncFormatter(lambda value, _: f"{value:.0f}")
        style(figure.colorbar(shown, cax=bar, ticks=ticks, format=whole).ax, theme, label)

    return render(draw, width_in, _map_height(count.shape, width_in))


def draw_histogram(values: np.ndarray, *, label: str, width_in: float = 5.6) -> Picture:
    """Draw how often each value occurs, on a logarithmic scale, from the 0.1th to the 99.9th percentile and beyond."""
    values = values[np.isfinite(values)]
    low, high = find_limits(values, low=0.1, high=99.9)
    margin = 0.25 * (high - low)
    edges = np.linspace(low - margin, high + margin, 161)
    number = np.histogram(values, edges)[0]

    def draw(figure: Any, theme: Theme) -> None:
        ax = figure.add_axes((0.13, 0.15, 0.83, 0.8), facecolor=theme.ground)
        ax.stairs(number, edges, fill=True, color=PALETTE[0])
        if number.any():
            ax.set_yscale("log")
            ax.set_ylim(bottom=0.7)
        ax.set_xlim(edges[0], edges[-1])
        ax.grid(color=theme.grid, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.set_xlabel(label, color=theme.ink)
        style(ax, theme, "sampled pixels")

    return render(draw, width_in, 3.9)


def _map_height(shape: tuple[int, ...], width_in: float) -> float:
    """Return the figure's height: as the image asks, high enough for the bar's label, no higher than a screen."""
    width = width_in - 1.75
    return min(max(width * shape[0] / shape[1], 2.1), 1.5 * width) + 0.67


def _map_axes(figure: Any, theme: Theme, names: tuple[str, str]) -> tuple[Any, Any]:
    """Return the axes of a map and of the bar at its right; sizes in inches, so that text keeps its size."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes((0.7 / width, 0.55 / height, (width - 1.75) / width, 1 - 0.67 / height))
    bar = figure.add_axes((1 - 0.93 / width, 0.55 / height, 0.15 / width, 1 - 0.67 / height))
    ax.set_facecolor(theme.ground)
    ax.set_xlabel(names[1], color=theme.ink)
    style(ax, theme, names[0])
    for axis in (ax.xaxis, ax.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.yaxis.set_label_position("right")
    return ax, bar


def _placed(shape: tuple[int, ...]) -> dict[str, Any]:
    """Let a shrunk image fill the place of the full one, so that the axes count the detector's pixels.

    What is next to a line is drawn wider than it is, for true to scale nothing would be seen.
    """
    aspect = "auto" if max(shape) > LINE * min(shape) else "equal"
    return {"extent": (-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5), "interpolation": "nearest", "aspect": aspect}

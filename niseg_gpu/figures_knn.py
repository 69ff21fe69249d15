"""Pixels in the plane of two features, and what there is taken for a spot: by a model, or beyond a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.backend import CPU
from niseg_gpu.errors import UserError
from niseg_gpu.figures import LIGHT, Picture, Theme, render, style
from niseg_gpu.knn import classify_points
from niseg_gpu.knn_model import KnnModel

BINS = 192  # a side, at most
NODES = 512  # of the grid on which the model decides, a side
NAMES = {
    "value": "value f",
    "residual": "f − median of 3 × 3",
    "abs_residual": "|f − median of 3 × 3|",
    "residual5": "f − median of 5 × 5",
    "poisson_residual": "(f − median of 5 × 5) / √median",
    "local_mean": "mean of 3 × 3",
    "gradient": "length of the gradient",
}
# most near 0, spots far away: no even scale fits
SPREADING = ("residual", "abs_residual", "residual5", "poisson_residual", "gradient")
REGION_COLOUR = "#E4572E"  # stands out from the greens and blues of the counts in light and dark
TINT = 0.2


class Counted(NamedTuple):
    """How many pixels lie in each cell of a plane.

    Attributes
    ----------
    number : (first, second) uint32 ndarray
    edges : pair of (n + 1,) float64 ndarray
        Of the cells, along the first and the second feature.
    widths : pair of float or None
        Up to which distance from 0 an axis is even, to be logarithmic beyond; None where it is even throughout.
    """

    number: np.ndarray
    edges: tuple[np.ndarray, ...]
    widths: tuple[float | None, ...]

    @property
    def nodes(self) -> list[np.ndarray]:
        """Values along both axes at which a model is asked."""
        return [_space(e[0], e[-1], NODES, width=w) for e, w in zip(self.edges, self.widths, strict=True)]


def count_plane(features: np.ndarray, *, names: Sequence[str]) -> Counted:
    """Count (n, 2) features, named as in `niseg_gpu.knn_features.FEATURES`, in cells that suit their spread."""
    features = features[np.isfinite(features).all(axis=1)]
    widths = tuple(find_width(f) if n in SPREADING else None for n, f in zip(names, features.T, strict=True))
    edges = tuple(find_edges(f, width=w) for f, w in zip(features.T, widths, strict=True))
    return Counted(np.histogram2d(*features.T, edges)[0].astype(np.uint32), edges, widths)


def draw_plane(
    counted: Counted,
    *,
    labels: tuple[str, str],
    region: np.ndarray | None = None,
    threshold: float | None = None,
    legend: str = "",
    width_in: float = 5.6,
) -> Picture:
    """Draw how often each pair of two features occurs, on a logarithmic scale, and what is taken for a spot.

    Parameters
    ----------
    counted : Counted
    labels : pair of str
        Of the axes.
    region : (nodes, nodes) bool ndarray, optional
        As `decide_region` gives it for ``counted.nodes``.
    threshold : float, optional
        Value of the second feature that is drawn as a line.
    legend : str
        What the region or the line is.
    """
    ends = [np.array([e[0], e[-1]]) for e in counted.edges]
    if threshold is not None:
        ends[1] = np.array([min(ends[1][0], 1.15 * threshold), max(ends[1][1], 1.15 * threshold)])

    def draw(figure: Any, theme: Theme) -> None:
        ax = figure.add_axes((0.15, 0.19, 0.66, 0.78), facecolor=theme.ground)
        top = max(2, int(counted.number.max(initial=0)))
        shown = _draw_numbers(ax, counted.number, counted.edges, top=top, theme=theme)
        if region is not None:
            _draw_region(ax, region, counted.nodes)
        if threshold is not None:
            ax.axhline(threshold, color=REGION_COLOUR, linewidth=1.2, zorder=3)
        _set_scales(ax, ends, counted.widths)
        ax.set_xlabel(labels[0], color=theme.ink)
        style(ax, theme, labels[1])
        style(figure.colorbar(shown, cax=figure.add_axes((0.84, 0.19, 0.025, 0.78))).ax, theme, "pixels in a cell")
        if legend:
            _draw_legend(figure, theme, legend, line=region is None)

    return render(draw, width_in, 4.4)


def draw_bivariate(features: np.ndarray, spots: np.ndarray, *, model: KnnModel, width_in: float = 9.6) -> Picture:
    """Draw how often each pair of two features occurs, in background and in spots, and what a model takes for a spot.

    Colour is the number of pixels, on a logarithmic scale and the same in both halves. Axes of residuals and gradients
    are even near 0 and logarithmic beyond.

    Parameters
    ----------
    features : (pixels, 2) float32 ndarray
        In the order of the model's features; pixels with NaN or Inf are left out.
    spots : (pixels,) bool ndarray
    model : KnnModel

    Raises
    ------
    UserError
        A model of more or fewer features than two.
    """
    check_bivariate(model.features)
    finite = np.isfinite(features).all(axis=1)
    features, spots = features[finite], spots[finite]
    every = count_plane(features, names=model.features)
    edges, widths, nodes = every.edges, every.widths, every.nodes
    marked = np.histogram2d(*features[spots].T, edges)[0]
    numbers = {
        f"background, {np.sum(~spots)} pixels": every.number - marked,
        f"marked spots, {np.sum(spots)} pixels": marked,
    }
    region = decide_region(model, nodes)

    def draw(figure: Any, theme: Theme) -> None:
        top = max(2, *(int(n.max(initial=0)) for n in numbers.values()))
        for i, (title, number) in enumerate(numbers.items()):
            ax = figure.add_axes((0.075 + 0.425 * i, 0.21, 0.405, 0.7), facecolor=theme.ground)
            shown = _draw_numbers(ax, number, edges, top=top, theme=theme)
            _draw_region(ax, region, nodes)
            _set_scales(ax, edges, widths)
            ax.set_title(title, color=theme.ink, fontsize=10)
            ax.set_xlabel(NAMES[model.features[0]], color=theme.ink)
            style(ax, theme, NAMES[model.features[1]] if i == 0 else None)
            if i:
                ax.tick_params(labelleft=False)
        bar = figure.add_axes((0.92, 0.21, 0.014, 0.7))
        style(figure.colorbar(shown, cax=bar).ax, theme, "pixels in a cell")
        _draw_legend(figure, theme, tell_region(model.n_neighbors))

    return render(draw, width_in, 4.6)


def check_bivariate(features: Sequence[str]) -> None:
    """Refuse features that span no plane."""
    if len(features) != 2:
        raise UserError(
            f"the picture of a knn model got {len(features)} features ({', '.join(features)}); allowed: 2; leave the "
            "picture out, or choose two"
        )


def find_width(values: np.ndarray) -> float:
    """Return the distance from 0 up to which an axis is even: where 9 of 10 values lie, if need be that are not 0."""
    far = np.abs(values)
    return (float(np.percentile(far, 90)) or float(np.percentile(far[far > 0], 90))) if far.any() else 1.0


def find_edges(values: np.ndarray, *, width: float | None = None) -> np.ndarray:
    """Return the edges of about `BINS` bins over all values.

    Parameters
    ----------
    values : (n,) ndarray
        Where all are whole numbers, edges lie halfway between such.
    width : float, optional
        Bins are even up to this distance from 0 and grow beyond; without it all are even.
    """
    low, high = (float(v) for v in (values.min(), values.max())) if values.size else (0.0, 1.0)
    if values.size and np.array_equal(values, np.rint(values)):
        return _space_whole(low, high, width=width)
    return _space(low, high if high > low else low + 1, BINS + 1, width=width)


def _space_whole(low: float, high: float, *, width: float | None) -> np.ndarray:
    """Edges between whole numbers; widths that went up and down by 1 would show as stripes."""
    if width is None:
        step = np.ceil((high - low + 1) / BINS)
        return low - 0.5 + step * np.arange((high - low) // step + 2)
    share = (np.arcsinh(high / width) - np.arcsinh(low / width)) / BINS
    ahead = [np.ceil(share * width) // 2 + 0.5]
    while ahead[-1] < max(high, -low):
        ahead.append(ahead[-1] + max(1, np.ceil(share * np.hypot(width, ahead[-1]))))  # 0 where all are the same
    edges = np.r_[-np.array(ahead[::-1]), ahead]
    edges = edges[np.searchsorted(edges, low) - 1 : np.searchsorted(edges, high) + 1]
    edges[[0, -1]] = low - 0.5, high + 0.5
    return edges


def _space(low: float, high: float, number: int, *, width: float | None) -> np.ndarray:
    """Numbers from `low` to `high`, even on the axis they are drawn on."""
    if width is None:
        return np.linspace(low, high, number)
    spaced = width * np.sinh(np.linspace(np.arcsinh(low / width), np.arcsinh(high / width), number))
    spaced[[0, -1]] = low, high
    return spaced


def decide_region(model: KnnModel, nodes: Sequence[np.ndarray], *, backend: Any = CPU) -> np.ndarray:
    """Where a model takes a pixel for a spot.

    Parameters
    ----------
    model : KnnModel
        Of two features.
    nodes : pair of (n,) float32 ndarray
        Values of the first and of the second feature.
    backend : Cpu or Gpu
        Where it is computed.

    Returns
    -------
    (n second, n first) bool ndarray
    """
    first, second = np.meshgrid(*nodes)
    points = np.stack([first.ravel(), second.ravel()], axis=1).astype(np.float32)
    return backend.to_host(classify_points(backend.from_host(points), model)).reshape(first.shape) != 0


def _draw_numbers(ax: Any, number: np.ndarray, edges: Sequence[np.ndarray], *, top: int, theme: Theme) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    # a cell of one pixel must already stand out from the ground, whichever page it is on
    span = np.linspace(0.85, 0.1, 200) if theme is LIGHT else np.linspace(0.3, 1, 200)
    colours = ListedColormap(colormaps["viridis"](span))
    return ax.pcolormesh(*edges, np.ma.masked_equal(number.T, 0), cmap=colours, norm=LogNorm(1, top), zorder=2)


def _draw_region(ax: Any, region: np.ndarray, nodes: Sequence[np.ndarray]) -> None:
    """A tint under the numbers, the border over them."""
    if region.any():
        ax.contourf(*nodes, region, [0.5, 1.5], colors=[REGION_COLOUR], alpha=TINT, zorder=1)
    if region.any() and not region.all():
        ax.contour(*nodes, region, [0.5], colors=[REGION_COLOUR], linewidths=0.8, zorder=3)


def _set_scales(ax: Any, edges: Sequence[np.ndarray], widths: Sequence[float | None]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    for name, ends, width in zip("xy", edges, widths, strict=True):
        if width is not None:
            getattr(ax, f"set_{name}scale")("asinh", linear_width=width)
            axis = getattr(ax, f"{name}axis")
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))
            axis.set_minor_locator(NullLocator())
            axis.set_ticks(_choose_ticks(ends[0], ends[-1], width))
        getattr(ax, f"set_{name}lim")(ends[0], ends[-1])


def _choose_ticks(low: float, high: float, width: float) -> list[float]:
    """Return 0, and 1 and 3 times the powers of ten on both sides, none so near 0 that labels would meet."""
    powers = 10.0 ** np.arange(np.floor(np.log10(width)), np.ceil(np.log10(max(high, -low, width))) + 1)
    ahead = np.sort(np.r_[powers, 3 * powers])
    ahead = ahead[ahead >= 0.6 * width]
    return [v for v in (*-ahead[::-1], 0.0, *ahead) if low <= v <= high]


def tell_region(n_neighbors: int) -> str:
    """Return what the region of a model is."""
    return f"taken for a spot by {n_neighbors} neighbour" + "s" * (n_neighbors != 1)


def _draw_legend(figure: Any, theme: Theme, text: str, *, line: bool = False) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    patch = Patch(facecolor=to_rgba(REGION_COLOUR, TINT), edgecolor=REGION_COLOUR, linewidth=0.8)
    handle = Line2D([], [], color=REGION_COLOUR, linewidth=1.2) if line else patch
    figure.legend([handle], [text], loc="lower center", frameon=False, labelcolor=theme.ink, fontsize=9)

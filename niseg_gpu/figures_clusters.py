"""Several numbers of clusters beside each other: label maps, and the measures one chooses by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.figures import (
    NO_DATA_COLOUR,
    PALETTE,
    Picture,
    Theme,
    cluster_colour,
    find_limits,
    render,
    shrink,
    style,
)
from niseg_gpu.figures_spectra import find_gaps

MAPS_A_ROW = 4
EDGES_NAMED = 8  # of more clusters that follow edges only the number is told


class Clustering(NamedTuple):
    """One number of clusters, as it is drawn beside others.

    Attributes
    ----------
    labels : (Y, X) ndarray of unsigned integers
        Values from the number of clusters on are no data.
    n_clusters : int
    spectra : (n_clusters, N) ndarray or None
        Drawn below the map where there are some, of two bins or more.
    edges : sequence of int
        Clusters that follow edges: named above the map, their spectra dashed.
    few : sequence of int
        Clusters of so few pixels that they have no say in how high the spectra are drawn.
    """

    labels: np.ndarray
    n_clusters: int
    spectra: np.ndarray | None = None
    edges: Sequence[int] = ()
    few: Sequence[int] = ()


def draw_label_maps(
    clusterings: Sequence[Clustering],
    *,
    tof_s: np.ndarray | None = None,
    tof_width_s: np.ndarray | None = None,
    width_in: float = 11.0,
) -> Picture:
    """Draw label maps side by side, each with its spectra, in the colours of the label map.

    Parameters
    ----------
    clusterings : sequence of Clustering
    tof_s : (N,) ndarray, optional
        Start of each bin of the spectra in seconds; without it they are drawn over the bin's number.
    tof_width_s : (N,) ndarray, optional
        Width of each bin in seconds; lines end where the shutter was closed.
    """
    columns = min(len(clusterings), MAPS_A_ROW)
    rows = -(-len(clusterings) // columns)
    edge_in, gap_in, title_in = 0.08, 0.12, 0.3
    side_in = min((width_in - gap_in * (columns - 1) - 2 * edge_in) / columns, 3.6)
    shape = clusterings[0].labels.shape
    tall_in = side_in * min(max(shape[0] / shape[1], 0.15), 1.5)
    below_in = 1.6 if any(_has_spectra(each) for each in clusterings) else 0.0
    cell_in = title_in + tall_in + below_in
    width_in, height_in = columns * side_in + (columns - 1) * gap_in + 2 * edge_in, rows * cell_in

    def draw(figure: Any, theme: Theme) -> Sequence[Any]:
        drawn = []
        for i, each in enumerate(clusterings):
            row, column = divmod(i, columns)
            left = (edge_in + column * (side_in + gap_in)) / width_in
            top = 1 - (row * cell_in + title_in + tall_in) / height_in
            ax = figure.add_axes((left, top, side_in / width_in, tall_in / height_in))
            _draw_map(ax, theme, each)
            drawn.append(ax)
            if _has_spectra(each):
                box = (left, top - (below_in - 0.5) / height_in, side_in / width_in, (below_in - 0.6) / height_in)
                _draw_spectra(figure.add_axes(box, facecolor=theme.ground), theme, each, tof_s, tof_width_s)
        return drawn

    return render(draw, width_in, height_in)


def _has_spectra(each: Clustering) -> bool:
    return each.spectra is not None and each.spectra.shape[1] > 1


def _draw_map(ax: Any, theme: Theme, each: Clustering) -> None:
    from matplotlib.colors import to_rgb

    colours = [to_rgb(cluster_colour(c)) for c in range(each.n_clusters)] + [to_rgb(NO_DATA_COLOUR)]
    small = shrink(each.labels, how="stride", limit=420)
    ax.imshow(np.array(colours)[np.minimum(small, each.n_clusters)], aspect="equal", interpolation="nearest")
    ax.set_title(f"k = {each.n_clusters}", loc="left", color=theme.ink, fontsize=10, pad=4)
    if len(each.edges) > EDGES_NAMED:
        ax.set_title(f"{len(each.edges)} follow edges", loc="right", color=theme.muted, fontsize=8, pad=4)
    elif each.edges:
        place = 0.0
        for word in [*map(str, sorted(each.edges, reverse=True)), "edges:"]:  # from the right, in colours of their own
            colour = cluster_colour(int(word)) if word.isdigit() else theme.muted
            ax.annotate(
                word, (1, 1), xycoords="axes fraction", xytext=(place, 4), textcoords="offset points", ha="right",
                fontsize=8, color=colour, fontweight="bold" if word.isdigit() else "normal", annotation_clip=False,
            )  # fmt: skip
            place -= 6 * len(word) + 4
    ax.set_xticks([])
    ax.set_yticks([])
    style(ax, theme, None)


def _draw_spectra(
    ax: Any, theme: Theme, each: Clustering, tof_s: np.ndarray | None, tof_width_s: np.ndarray | None
) -> None:
    spectra, bins = np.asarray(each.spectra, float), np.arange(np.shape(each.spectra)[1], dtype=float)
    unit = "bin"
    if tof_s is not None and tof_s.shape == bins.shape and bool(np.all(np.diff(tof_s) > 0)):
        bins, unit = tof_s * 1e3, "time of flight (ms)"
    timed = unit != "bin" and tof_width_s is not None and tof_width_s.shape == bins.shape
    gaps = find_gaps(bins, tof_width_s * 1e3 if timed else None) + 1
    bins, spectra = np.insert(bins, gaps, np.nan), np.insert(spectra, gaps, np.nan, axis=1)
    for cluster, spectrum in enumerate(spectra):
        dashed = (0, (3, 1.5)) if cluster in each.edges else "solid"
        ax.plot(bins, spectrum, color=cluster_colour(cluster), linewidth=0.9, linestyle=dashed)
    large = np.delete(spectra, list(each.few), axis=0)
    low, high = find_limits(large if len(large) else spectra, low=0, high=100)
    ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.set_xlim(np.nanmin(bins), np.nanmax(bins))
    ax.grid(color=theme.grid, linewidth=0.6)
    ax.set_axisbelow(True)
    style(ax, theme, None)
    ax.tick_params(labelleft=False, labelsize=7, length=2)
    ax.set_xlabel(unit, color=theme.ink, fontsize=7, labelpad=1)


def draw_k_curves(
    numbers: Sequence[int],
    curves: Sequence[tuple[str, Sequence[float | None]]],
    *,
    chosen: int,
    width_in: float = 11.0,
) -> Picture:
    """Draw one measure a panel over the number of clusters, with the chosen number marked.

    Parameters
    ----------
    numbers : sequence of int
    curves : sequence of (str, sequence of float or None)
        Label of each measure, and its values.
    chosen : int
    """
    height_in, left_in, gap_in = 2.7, 0.85, 0.95

    def draw(figure: Any, theme: Theme) -> None:
        panel_in = (width_in - left_in - 0.15 - gap_in * (len(curves) - 1)) / len(curves)
        for i, (label, values) in enumerate(curves):
            left = left_in + i * (panel_in + gap_in)
            ax = figure.add_axes(
                (left / width_in, 0.55 / height_in, panel_in / width_in, 1 - 0.7 / height_in), facecolor=theme.ground
            )
            heights = [np.nan if v is None else v for v in values]
            ax.axvline(chosen, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
            ax.plot(numbers, heights, color=PALETTE[0], marker="o", markersize=4, linewidth=1.3)
            ax.set_xticks(list(numbers)[:: -(-len(numbers) // 12)])
            ax.grid(color=theme.grid, linewidth=0.6)
            ax.set_axisbelow(True)
            ax.set_xlabel("number of clusters", color=theme.ink)
            style(ax, theme, label)

    return render(draw, width_in, height_in)

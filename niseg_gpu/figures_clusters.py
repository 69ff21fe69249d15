"""Several numbers of clusters beside each other: label maps, and the measures one chooses by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from niseg_gpu.figures import NO_DATA_COLOUR, PALETTE, Picture, Theme, cluster_colour, render, shrink, style

MAPS_A_ROW = 4


def draw_label_maps(maps: Sequence[np.ndarray], *, numbers: Sequence[int], width_in: float = 11.0) -> Picture:
    """Draw label maps side by side, each under its number of clusters, in the colours of the label map.

    Parameters
    ----------
    maps : sequence of (Y, X) ndarray of unsigned integers
        Values from the number of clusters on are no data.
    numbers : sequence of int
        Clusters of each map.
    """
    from matplotlib.colors import to_rgb

    columns = min(len(maps), MAPS_A_ROW)
    rows = -(-len(maps) // columns)
    gap_in, title_in = 0.12, 0.3
    side_in = min((width_in - gap_in * (columns - 1)) / columns, 3.6)
    tall_in = side_in * min(max(maps[0].shape[0] / maps[0].shape[1], 0.15), 1.5)
    width_in, height_in = columns * side_in + (columns - 1) * gap_in, rows * (tall_in + title_in)

    def draw(figure: Any, theme: Theme) -> Sequence[Any]:
        drawn = []
        for i, (labels, n_clusters) in enumerate(zip(maps, numbers, strict=True)):
            row, column = divmod(i, columns)
            left, top = column * (side_in + gap_in), row * (tall_in + title_in)
            box = (left / width_in, 1 - (top + title_in + tall_in) / height_in, side_in / width_in, tall_in / height_in)
            ax = figure.add_axes(box)
            colours = [to_rgb(cluster_colour(c)) for c in range(n_clusters)] + [to_rgb(NO_DATA_COLOUR)]
            small = shrink(labels, how="stride", limit=420)
            ax.imshow(np.array(colours)[np.minimum(small, n_clusters)], aspect="equal", interpolation="nearest")
            ax.set_title(f"k = {n_clusters}", color=theme.ink, fontsize=10, pad=4)
            ax.set_xticks([])
            ax.set_yticks([])
            style(ax, theme, None)
            drawn.append(ax)
        return drawn

    return render(draw, width_in, height_in)


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

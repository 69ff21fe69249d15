"""What an evaluation looks like: where a mask hit and missed, and what a threshold trades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from niseg_gpu.figures import MAP_PIXELS, PALETTE, PIXEL_AXES, Picture, Theme, render, shrink, style

# Told apart with normal vision, protanopia, deuteranopia and tritanopia (doi:10.1109/TVCG.2009.113), and in print by
# lightness. In the order of precedence: where a picture is shrunk, a point shows the last of its pixels' kinds.
HIT_COLOURS = {
    "true negative": "#EDEDED",
    "true positive": "#4499DD",
    "false positive": "#EE8822",
    "false negative": "#660044",
}
_LINES = (("precision", PALETTE[0], "--"), ("recall", PALETTE[1], "-."), ("f1", "#222222", "-"))


def draw_hits(predicted: np.ndarray, truth: np.ndarray, *, width_in: float = 6.4) -> Picture:
    """Draw where a mask is right and wrong: true and false positives and negatives, each with its share of pixels.

    Parameters
    ----------
    predicted, truth : (Y, X) ndarray
        What is not 0 is positive. Where the picture is shrunk, misses cover false alarms, and these cover hits.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    predicted, truth = predicted != 0, truth != 0
    kinds = np.where(truth, np.where(predicted, 1, 3), np.where(predicted, 2, 0)).astype(np.uint8)
    shares = np.bincount(kinds.ravel(), minlength=4) / kinds.size
    colours = np.array([to_rgb(colour) for colour in HIT_COLOURS.values()])
    shown = colours[shrink(kinds, how="max")]
    names = [f"{name} {_percent(share)}" for name, share in zip(HIT_COLOURS, shares, strict=True)]
    rows, columns = kinds.shape
    folded = -(-max(kinds.shape) // MAP_PIXELS)
    below = f"{PIXEL_AXES[1]}; a point shows the worst of {folded} × {folded}" if folded > 1 else PIXEL_AXES[1]
    wide = width_in - 0.9
    high = min(max(wide * rows / columns, 1.2), 1.3 * wide)
    height_in = high + 1.22

    def draw(figure: Any, theme: Theme) -> Sequence[Any]:
        ax = figure.add_axes((0.72 / width_in, 1.08 / height_in, wide / width_in, high / height_in))
        ax.imshow(shown, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5), interpolation="nearest")
        ax.set_xlabel(below, color=theme.ink)
        style(ax, theme, PIXEL_AXES[0])
        patches = [Patch(facecolor=c, edgecolor=theme.muted, linewidth=0.4) for c in HIT_COLOURS.values()]
        figure.legend(patches, names, loc="lower center", ncols=2, frameon=False, labelcolor=theme.ink, fontsize=9)
        return (ax,)

    return render(draw, width_in, height_in)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def draw_threshold_curve(
    curve: Mapping[str, np.ndarray], *, best_threshold: float, label: str = "threshold", width_in: float = 6.4
) -> Picture:
    """Draw precision, recall and F1 against the threshold, the best one marked.

    Parameters
    ----------
    curve : mapping of str to (N,) ndarray
        ``threshold`` (ascending), ``precision``, ``recall``, ``f1``.
    best_threshold : float
    label : str
        What the threshold is one of.
    """
    threshold = curve["threshold"]
    kept = np.isfinite(threshold)
    spread = kept.any() and 0 < 20 * best_threshold < threshold[kept].max()
    if spread:  # the part that matters would be a sliver at the left
        kept &= threshold > best_threshold / 1000
    height_in = 3.9

    def draw(figure: Any, theme: Theme) -> None:
        ax = figure.add_axes((0.09, 0.15, 0.71, 0.74), facecolor=theme.ground)
        marker = "o" if kept.sum() < 20 else None
        for name, colour, dashes in _LINES:
            colour = theme.ink if name == "f1" else colour
            ax.plot(threshold[kept], curve[name][kept], dashes, color=colour, marker=marker, markersize=3, label=name)
        if spread:
            ax.set_xscale("log")
        best = int(np.flatnonzero(threshold == best_threshold)[0])
        if np.isfinite(best_threshold):
            ax.axvline(best_threshold, color=theme.muted, linewidth=0.8, linestyle=":")
        ax.set_title(f"best F1 {curve['f1'][best]:.3f} at {best_threshold:.4g}", color=theme.ink, fontsize=10)
        ax.set_ylim(-0.02, 1.02)
        ax.grid(color=theme.grid, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.set_xlabel(label, color=theme.ink)
        style(ax, theme, None)
        legend = figure.legend(loc="center right", frameon=False, labelcolor=theme.ink, fontsize=9)
        legend.get_texts()[-1].set_text("F1")

    return render(draw, width_in, height_in)

"""What an evaluation looks like: where a mask hit and missed, and what a threshold trades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from niseg_gpu.figures import (
    MAP_PIXELS,
    NO_DATA_COLOUR,
    PALETTE,
    PIXEL_AXES,
    Picture,
    Theme,
    cluster_colour,
    render,
    shrink,
    style,
)

# Told apart with normal vision, protanopia, deuteranopia and tritanopia (doi:10.1109/TVCG.2009.113), and in print by
# lightness. In the order of precedence: where a picture is shrunk, a point shows the last of its pixels' kinds.
HIT_COLOURS = {
    "true negative": "#EDEDED",
    "true positive": "#4499DD",
    "false positive": "#EE8822",
    "false negative": "#660044",
}
MOST_NAMED = 32  # of more, the rest has its colour only
_LINES = (("precision", PALETTE[0], "--"), ("recall", PALETTE[1], "-."), ("f1", "#222222", "-"))


def draw_hits(predicted: np.ndarray, truth: np.ndarray, *, width_in: float = 6.4) -> Picture:
    """Draw where a mask is right and wrong: true and false positives and negatives, each with its share of pixels.

    Parameters
    ----------
    predicted, truth : (Y, X) ndarray
        What is not 0 is positive. Where the picture is shrunk, misses cover false alarms, and these cover hits.
    """

    predicted, truth = predicted != 0, truth != 0
    kinds = np.where(truth, np.where(predicted, 1, 3), np.where(predicted, 2, 0)).astype(np.uint8)
    shares = np.bincount(kinds.ravel(), minlength=4) / kinds.size
    names = [f"{name} {_percent(share)}" for name, share in zip(HIT_COLOURS, shares, strict=True)]
    return _draw_kinds(kinds, tuple(HIT_COLOURS.values()), names, columns=2, width_in=width_in)


def draw_wrong(
    predicted: np.ndarray,
    truth: np.ndarray,
    *,
    classes: Sequence[int],
    clusters: Sequence[int | None],
    known: np.ndarray,
    width_in: float = 6.4,
) -> Picture:
    """Draw where a label map is wrong, in the colour of the class that was missed, each with the share it missed.

    Parameters
    ----------
    predicted, truth : (Y, X) ndarray of integers or bool
        Where the picture is shrunk, what is wrong covers what is right.
    classes : sequence of int
        Labels of the truth.
    clusters : sequence of int or None
        The predicted label that stands for each.
    known : (Y, X) ndarray of bool
        Pixels that have data in both maps.
    """
    kinds = np.where(known, 0, 1).astype(np.uint16)
    colours, names = [HIT_COLOURS["true negative"], NO_DATA_COLOUR], ["right", "no data"]
    for i, (number, cluster) in enumerate(zip(classes, clusters, strict=True)):
        at = known & (truth == number)
        missed = at & (predicted != cluster) if cluster is not None else at
        kinds[missed] = 2 + i
        colours.append(cluster_colour(number))
        share = f"{_percent(np.count_nonzero(missed) / np.count_nonzero(at))} missed" if at.any() else "not there"
        names.append(f"class {number}: {share}")
    columns = 2 if len(names) <= 12 else 3
    return _draw_kinds(kinds, colours, names[:MOST_NAMED], columns=columns, width_in=width_in)


def _draw_kinds(
    kinds: np.ndarray, colours: Sequence[str], names: Sequence[str], *, columns: int, width_in: float
) -> Picture:
    """Draw a map of kinds of pixels, the higher number covering the lower where it is shrunk, named below."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    shown = np.array([to_rgb(colour) for colour in colours])[shrink(kinds, how="max")]
    high, wide = kinds.shape
    folded = -(-max(kinds.shape) // MAP_PIXELS)
    below = f"{PIXEL_AXES[1]}; a point shows the worst of {folded} × {folded}" if folded > 1 else PIXEL_AXES[1]
    wide_in = width_in - 0.9
    high_in = min(max(wide_in * high / wide, 1.2), 1.3 * wide_in)
    named_in = 0.6 + 0.24 * -(-len(names) // columns)
    height_in = high_in + named_in + 0.14

    def draw(figure: Any, theme: Theme) -> Sequence[Any]:
        ax = figure.add_axes((0.72 / width_in, named_in / height_in, wide_in / width_in, high_in / height_in))
        ax.imshow(shown, extent=(-0.5, wide - 0.5, high - 0.5, -0.5), interpolation="nearest")
        ax.set_xlabel(below, color=theme.ink)
        style(ax, theme, PIXEL_AXES[0])
        patches = [Patch(facecolor=c, edgecolor=theme.muted, linewidth=0.4) for c in colours[: len(names)]]
        figure.legend(
            patches, names, loc="lower center", ncols=columns, frameon=False, labelcolor=theme.ink, fontsize=9
        )
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

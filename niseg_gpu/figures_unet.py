"""How a training went: the loss and the lecture's nine figures over the epochs, on training and validation images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from niseg_gpu.figures import PALETTE, Picture, Theme, render, style

PANELS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "auc": "ROC AUC",
    "tp": "true positives",
    "fp": "false positives",
    "tn": "true negatives",
    "fn": "false negatives",
    "mae": "mean absolute error",
}


def draw_history(history: Sequence[Mapping[str, Any]], *, best_epoch: int, width_in: float = 13.0) -> Picture:
    """Draw two rows of five panels, one a figure, over the epochs; counts are shares of all pixels.

    Parameters
    ----------
    history : sequence of mapping
        Figures of each epoch, those of validation with ``val_`` before their name.
    best_epoch : int
        Marked in every panel.
    """
    epochs = [row["epoch"] for row in history]
    wide, high, gap, left, top = 1 / 5, 0.54, 0.052, 0.048, 0.99

    def draw(figure: Any, theme: Theme) -> None:
        for i, (name, title) in enumerate(PANELS.items()):
            row, column = divmod(i, 5)
            box = (left + column * wide * 0.985, top - (row + 1) * high * 0.9 + 0.07, wide - gap, high * 0.9 - 0.17)
            ax = figure.add_axes(box, facecolor=theme.ground)
            ax.axvline(best_epoch, color=theme.muted, linewidth=0.8, linestyle=(0, (4, 3)), label="epoch kept")
            for prefix, colour, label in (("", PALETTE[0], "training"), ("val_", PALETTE[1], "validation")):
                values = [_value(entry, prefix, name) for entry in history]
                ax.plot(epochs, values, color=colour, linewidth=1.3, marker="o", markersize=2.5, label=label)
            ax.grid(color=theme.grid, linewidth=0.6)
            ax.set_axisbelow(True)
            ax.set_title(title, color=theme.ink, fontsize=10)
            style(ax, theme, None)
            ax.tick_params(labelsize=8)
            ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            if row:
                ax.set_xlabel("epoch", color=theme.ink, fontsize=9)
            if i == 0:
                handles, labels = ax.get_legend_handles_labels()
                shown = {"fontsize": 8, "labelcolor": theme.ink, "facecolor": theme.ground, "edgecolor": theme.grid}
                ax.legend([*handles[1:], handles[0]], [*labels[1:], labels[0]], **shown)

    return render(draw, width_in, 5.4)


def _value(entry: Mapping[str, Any], prefix: str, name: str) -> float:
    value = entry.get(prefix + name)
    if value is None:
        return float(np.nan)
    if name in ("tp", "fp", "tn", "fn"):
        total = sum(entry[prefix + other] for other in ("tp", "fp", "tn", "fn"))
        return value / total if total else float(np.nan)
    return float(value)

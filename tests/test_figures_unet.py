"""The picture of a training."""

from __future__ import annotations

from typing import Any

import pytest

from niseg_gpu import figures, figures_unet


@pytest.mark.parametrize("n", [1, 2, 3, 20, 500])
def test_epochs_are_whole_numbers(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    from matplotlib.figure import Figure

    drawn = Figure((13, 5.4))
    names = [prefix + name for prefix in ("", "val_") for name in figures_unet.PANELS]
    history: list[dict[str, Any]] = [{"epoch": i, **dict.fromkeys(names, 1 / i)} for i in range(1, n + 1)]
    monkeypatch.setattr(figures_unet, "render", lambda draw, *size: draw(drawn, figures.LIGHT))
    figures_unet.draw_history(history, best_epoch=n)
    assert len(drawn.axes) == len(figures_unet.PANELS)
    for ax in drawn.axes:
        low, high = ax.get_xlim()
        shown = [tick for tick in ax.get_xticks() if low <= tick <= high]
        assert shown and all(tick == round(tick) for tick in shown), shown
        assert [len(line.get_xdata()) for line in ax.lines] == [2, n, n]

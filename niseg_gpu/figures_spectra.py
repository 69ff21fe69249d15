"""The spectra of clusters as a picture: lines over time of flight, and rows of a picture where there are many."""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu.figures import Picture, Theme, cluster_colour, find_limits, render, style

LINES_READABLE = 12  # above this many clusters the spectra are also shown as rows of a picture


def find_gaps(tof: np.ndarray, width: np.ndarray | None = None) -> np.ndarray:
    """Return the indices i where no bin reaches from ``tof[i]`` to ``tof[i + 1]``: the shutter was closed between.

    Parameters
    ----------
    tof : (N,) ndarray
        Start of each bin, increasing.
    width : (N,) ndarray, optional
        Of each bin; without it, gaps are steps far longer than both beside them.
    """
    step = np.diff(tof)
    if width is not None:
        return np.flatnonzero(step - width[:-1] > 0.5 * np.minimum(width[1:], width[:-1]))
    if step.size < 3:
        return np.array([], int)
    before, after = np.r_[step[1], step[:-1]], np.r_[step[1:], step[-2]]
    return np.flatnonzero(step > 1.5 * np.maximum(before, after))


def level_bins(spectra: np.ndarray, width_s: np.ndarray | None) -> tuple[np.ndarray, float | None]:
    """Bring counts of bins of different widths to one: a narrow bin holds fewer, which looks like an edge.

    Parameters
    ----------
    spectra : (K, N) ndarray
        Sums over each bin.
    width_s : (N,) ndarray or None
        In seconds.

    Returns
    -------
    (K, N) ndarray, float or None
        As many counts as a bin of the median width would hold, and that width in seconds; the spectra as they are and
        None where all bins are as wide, to a hundredth, or nothing is known of it.
    """
    if width_s is None or width_s.shape != spectra.shape[1:] or not np.all(width_s > 0):
        return spectra, None
    common = float(np.quantile(width_s, 0.5, method="lower"))  # of a bin that is there
    if np.ptp(width_s) <= 0.01 * common:
        return spectra, None
    return spectra * (common / width_s), common


def draw_spectra(
    spectra: np.ndarray,
    *,
    tof_s: np.ndarray | None,
    tof_width_s: np.ndarray | None = None,
    wavelength: np.ndarray | None = None,
    label: str,
    width_in: float = 11.0,
) -> Picture:
    """Draw one line per cluster against time of flight, broken and shaded where the shutter was closed.

    Parameters
    ----------
    spectra : (K, N) ndarray
    tof_s : (N,) ndarray or None
        Start of each bin in seconds. Without it, or where it does not increase, the axis is the bin's number.
    tof_width_s : (N,) ndarray, optional
        Width of each bin in seconds.
    wavelength : (N,) ndarray, optional
        In Å; drawn as a second axis at the top.
    label : str
        Quantity and unit of the spectra.
    """
    n_clusters, n_bins = spectra.shape
    timed = tof_s is not None and n_bins > 1 and bool(np.all(np.diff(tof_s) > 0))
    start = np.asarray(tof_s, float) * 1e3 if timed else np.arange(n_bins) - 0.5  # a bin's number at its middle
    width = np.asarray(tof_width_s, float) * 1e3 if timed and tof_width_s is not None else None
    gaps = find_gaps(start, width)
    if width is None:
        width = np.diff(start, append=start[-1] + (start[-1] - start[-2] if n_bins > 1 else 1.0))
        width[gaps] = width[np.maximum(gaps - 1, 0)]  # a bin before a gap is as wide as the one before it
    centre = start + width / 2
    closed = [(float(start[i] + width[i]), float(start[i + 1])) for i in gaps]
    broken = np.insert(centre, gaps + 1, np.nan), np.insert(spectra.astype(float), gaps + 1, np.nan, axis=1)
    many = n_clusters > LINES_READABLE
    rows_in = 0.8 + 0.085 * n_clusters if many else 0.0
    head_in = 0.6 if wavelength is not None else 0.12
    height_in = 4.0 + head_in + rows_in
    span = float(start[0]), float(start[-1] + width[-1])

    def draw(figure: Any, theme: Theme) -> None:
        left, right, low = 0.82 / width_in, 1 - 0.62 / width_in, 0.55 / height_in
        ax = figure.add_axes(
            (left, (rows_in + 0.55) / height_in, right - left, 3.45 / height_in), facecolor=theme.ground
        )
        for cluster in range(n_clusters):
            ax.plot(broken[0], broken[1][cluster], color=cluster_colour(cluster), linewidth=0.8 if many else 1.2)
        for a, b in closed:
            ax.axvspan(a, b, color=theme.shade, linewidth=0, zorder=0)
        ax.set_xlim(*span)
        ax.grid(color=theme.grid, linewidth=0.6)
        ax.set_axisbelow(True)
        style(ax, theme, label)
        _name_lines(ax, broken[1][:, -1], n_clusters)
        bottom = ax
        if many:
            ax.tick_params(labelbottom=False)
            bottom = figure.add_axes((left, low, right - left, (rows_in - 0.15) / height_in))
            _draw_rows(figure, bottom, theme, spectra, (start, start + width), span, right)
        if not timed:
            bottom.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        bottom.set_xlabel("time of flight (ms)" if timed else "time-of-flight bin (number)", color=theme.ink)
        if wavelength is not None and np.all(np.diff(wavelength) > 0):
            _add_wavelength(ax, theme, centre, wavelength)

    return render(draw, width_in, height_in)


def _name_lines(ax: Any, ends: np.ndarray, n_clusters: int) -> None:
    """Write each cluster's number at the right end of its line, pushed apart where they would overlap."""
    if n_clusters > LINES_READABLE:
        return
    bottom, top = ax.get_ylim()
    step = (top - bottom) * 0.052
    place = np.nan_to_num(ends, nan=bottom)
    order = np.argsort(place, kind="stable")
    apart = step * np.arange(n_clusters)
    free = place[order] - apart
    up, down = np.maximum.accumulate(free), np.minimum.accumulate(free[::-1])[::-1]
    placed = (up + down) / 2 + apart  # either keeps the distance, so does their mean, and it stays near the lines
    for cluster, y in zip(order, placed, strict=True):
        ax.annotate(
            str(cluster), (1, y), xycoords=("axes fraction", "data"), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=9.5, fontweight="bold", color=cluster_colour(int(cluster)), annotation_clip=False,
        )  # fmt: skip


def _draw_rows(
    figure: Any,
    ax: Any,
    theme: Theme,
    spectra: np.ndarray,
    bins: tuple[np.ndarray, np.ndarray],
    span: tuple[float, float],
    right: float,
) -> None:
    """Show every spectrum as one row of a picture: readable where lines cover one another."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    n_clusters = len(spectra)
    grid = np.linspace(*span, 1200, endpoint=False) + (span[1] - span[0]) / 2400
    at = np.clip(np.searchsorted(bins[0], grid, side="right") - 1, 0, spectra.shape[1] - 1)
    rows = np.where(grid < bins[1][at], spectra[:, at], np.nan)
    low, high = find_limits(spectra)
    colours = colormaps["viridis"].with_extremes(bad=theme.shade)
    place = (*span, n_clusters - 0.5, -0.5)
    shown = ax.imshow(rows, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest", extent=place)
    ax.set_yticks([])
    style(ax, theme, None)
    box = ax.get_position()
    bar = figure.add_axes((right + 0.006, box.y0, 0.008, box.height))
    style(figure.colorbar(shown, cax=bar).ax, theme, "")
    bar.tick_params(labelsize=7.5)
    key = figure.add_axes((box.x0 - 0.016, box.y0, 0.014, box.height))
    key.imshow([[to_rgb(cluster_colour(i))] for i in range(n_clusters)], aspect="auto", interpolation="nearest")
    every = 1 if n_clusters <= 32 else 2
    key.set_xticks([])
    key.set_yticks(range(0, n_clusters, every), [str(i) for i in range(0, n_clusters, every)])
    style(key, theme, "cluster")
    key.tick_params(axis="y", length=0, labelsize=7)


def _add_wavelength(ax: Any, theme: Theme, centre: np.ndarray, wavelength: np.ndarray) -> None:
    """Put round wavelengths on a second axis at the top, each above its time of flight."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(10, steps=[1, 2, 2.5, 5, 10]).tick_values(wavelength[0], wavelength[-1])
    ticks = ticks[(ticks >= wavelength[0]) & (ticks <= wavelength[-1])]
    top = ax.twiny()
    top.set_xlim(ax.get_xlim())
    top.set_xticks(np.interp(ticks, wavelength, centre), [f"{tick:.4g}" for tick in ticks])
    top.set_xlabel("wavelength (Å)", color=theme.ink)
    style(top, theme, None)

"""What was simulated, at a glance: a picture beside the data and their truth."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.figures import PALETTE, Picture, Theme, find_limits, render, shrink, style

# More bins would not show in a line, and reading them all would take as long as simulating them.
BINS_SHOWN = 400
# Side of the part of a radiograph that is shown pixel by pixel.
DETAIL_PIXELS = 128
# Strengths in local sigma, on a scale of tens.
WEAKEST_SHOWN, STRONGEST_SHOWN = 1.0, 300.0
WIDTH_IN = 11.0


def picture_tof(folder: Path) -> Picture:
    """Draw the folder that `simulate_tof` made: materials, mean image, and what each material leaves of the beam."""
    import tifffile

    from niseg_gpu.tof import wavelength_of

    truth = folder / "truth"
    names = list(json.loads((truth / "materials.json").read_text(encoding="utf-8")).values())
    settings = json.loads((truth / "simulation.json").read_text(encoding="utf-8"))
    labels, dead = tifffile.imread(truth / "labels.tif"), tifffile.imread(truth / "dead.tif")
    areas = {name: (labels == k) & (dead == 0) for k, name in enumerate(names)}
    areas = {name: area for name, area in areas.items() if area.any()}
    bins = np.unique(np.linspace(0, settings["shape"][0] - 1, BINS_SHOWN).round().astype(int))
    window = np.searchsorted([stop for _, stop in settings["window_bins"]], bins, side="right")
    spectra, image, tof_s = _average_areas(folder / "sample", bins, areas.values())
    label = "counts of a pixel and bin, as measured"
    if (folder / "open_beam").is_dir():
        of_beam, _, _ = _average_areas(folder / "open_beam", bins, areas.values())
        dose = np.divide(*(np.array(settings["n_triggers"][name]) for name in ("sample", "open_beam")))
        spectra, label = spectra / np.maximum(of_beam, 1e-9) / dose[window], "transmission before overlap correction"
    path = {name: settings[name] for name in ("flight_path_m", "time_offset_s")}
    wavelength = wavelength_of(tof_s + 0.5 * settings["bin_width_s"], **path)
    # Lines end where the shutter closes.
    gaps = np.flatnonzero(np.diff(window)) + 1
    spectra, wavelength = np.insert(spectra, gaps, np.nan, axis=1), np.insert(wavelength, gaps, np.nan)
    return draw_run(labels, image, spectra, names=list(areas), wavelength_angstrom=wavelength, label=label)


def _average_areas(
    folder: Path, bins: np.ndarray, areas: Iterable[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean counts of each area in some bins (K, N), the mean image, and the bins' times in s."""
    from niseg_gpu.io.open import open_stack

    run, areas = open_stack(str(folder)), list(areas)
    run = run if run.ndim == 3 else run.expand_dims("tof")  # a run of one frame is an image
    image, spectra = np.zeros(run.shape[1:]), np.zeros((len(areas), len(bins)))
    for i, number in enumerate(bins):
        counts = run[int(number)].values
        image += counts
        spectra[:, i] = [counts[area].mean() for area in areas]
    return spectra, image / len(bins), run.coords["tof"].values[bins]


def draw_run(
    labels: np.ndarray,
    image: np.ndarray,
    spectra: np.ndarray,
    *,
    names: Sequence[str],
    wavelength_angstrom: np.ndarray,
    label: str,
) -> Picture:
    """Draw a map of materials, an image, and a line for each material against wavelength.

    Parameters
    ----------
    labels, image : (Y, X) ndarray
    spectra : (K, N) ndarray
        NaN breaks a line.
    names : sequence of str
        K materials, in the order of their labels.
    wavelength_angstrom : (N,) ndarray
    label : str
        What the lines show.
    """
    from matplotlib.colors import to_rgb

    colours = [to_rgb(PALETTE[k]) for k in range(len(names))]
    place = np.searchsorted(np.unique(labels), labels)
    shown = np.array(colours)[np.minimum(shrink(place, how="stride"), len(names) - 1)]
    small = shrink(image)
    low, high = find_limits(small)

    def draw(figure: Any, theme: Theme) -> None:
        plan, frame, lines = _add_panels(figure, theme, (2.9, 2.9, 4.0), bottom_in=0.5)
        plan.imshow(shown, interpolation="nearest")
        frame.imshow(small, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        for ax, title in ((plan, "materials (truth)"), (frame, "mean counts of a bin")):
            _show_only(ax, theme, title)
        for name, spectrum, colour in zip(names, spectra, colours, strict=True):
            lines.plot(wavelength_angstrom, spectrum, color=colour, linewidth=1.1, label=name.replace("_", " "))
        lines.set_ylim(bottom=0)
        lines.set_xlabel("wavelength (Å)", color=theme.ink, fontsize=9)
        lines.set_title(label, color=theme.ink, fontsize=10)
        lines.grid(color=theme.grid, linewidth=0.6)
        lines.legend(frameon=False, labelcolor=theme.ink, fontsize=8, loc="best")
        style(lines, theme, None)

    return render(draw, WIDTH_IN, 3.75)


def picture_radiograph(folder: Path) -> Picture:
    """Draw the folder that `simulate_radiograph` made: its first image, part of it, and the spots there."""
    import tifffile

    image = tifffile.imread(folder / "images" / "image_00000.tif")
    deposits = tifffile.memmap(folder / "truth" / "deposit.tif", mode="r")
    return draw_spotty(image, deposits.reshape(-1, *image.shape)[0])


def draw_spotty(image: np.ndarray, deposit: np.ndarray) -> Picture:
    """Draw a radiograph, a detail from its middle, and how strong the spots of the detail are.

    Parameters
    ----------
    image : (Y, X) ndarray
    deposit : (Y, X) ndarray
        What spots added, in sigma of the local noise.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    top, left = (max((n - DETAIL_PIXELS) // 2, 0) for n in image.shape)
    part = slice(top, top + DETAIL_PIXELS), slice(left, left + DETAIL_PIXELS)
    small, fold = shrink(image), -(-max(image.shape) // 600)
    low, high = find_limits(small)
    near_low, near_high = find_limits(image[part], low=0.2, high=99.7)
    detail, strength = image[part], np.ma.masked_less(deposit[part], WEAKEST_SHOWN)

    def draw(figure: Any, theme: Theme) -> None:
        whole, near, spots = _add_panels(figure, theme, (3.1, 3.1, 3.1), bottom_in=0.15)
        whole.imshow(small, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        size = (DETAIL_PIXELS / fold, DETAIL_PIXELS / fold)
        whole.add_patch(Rectangle((left / fold, top / fold), *size, fill=False, edgecolor=PALETTE[1], linewidth=1.0))
        near.imshow(detail, cmap="gray", vmin=near_low, vmax=near_high, interpolation="nearest")
        spots.set_facecolor(theme.shade)
        shown = spots.imshow(
            strength, cmap="inferno_r", norm=LogNorm(WEAKEST_SHOWN, STRONGEST_SHOWN), interpolation="nearest"
        )
        for ax, title in ((whole, "radiograph"), (near, "detail"), (spots, "its spots (truth)")):
            _show_only(ax, theme, title)
        box = spots.get_position()
        bar = figure.add_axes((box.x1 + 0.012, box.y0, 0.011, box.height))
        style(figure.colorbar(shown, cax=bar).ax, theme, "sigma of the local noise")

    return render(draw, WIDTH_IN, 3.6)


def _add_panels(figure: Any, theme: Theme, widths_in: Sequence[float], *, bottom_in: float) -> list[Any]:
    """Return axes side by side, each as wide as asked; a wide one has numbers at its side."""
    panels, x = [], 0.1
    high = float(figure.get_figheight())
    for width in widths_in:
        x += 0.35 if width > 3.5 else 0.0
        panels.append(
            figure.add_axes((x / WIDTH_IN, bottom_in / high, width / WIDTH_IN, (high - bottom_in - 0.3) / high))
        )
        panels[-1].set_facecolor(theme.ground)
        panels[-1].set_anchor("N")
        x += width + 0.2
    return panels


def _show_only(ax: Any, theme: Theme, title: str) -> None:
    """An image under its title, without numbers at its sides."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title, color=theme.ink, fontsize=10)
    style(ax, theme, None)

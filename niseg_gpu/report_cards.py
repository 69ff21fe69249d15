"""What of a finished run becomes a picture of its report: arrays in, titled pictures with captions out.

Stacks are never read whole; see ``SAMPLE_BYTES``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu import figures, figures_knn, figures_maps
from niseg_gpu.cluster_quality import EDGE_SHARE
from niseg_gpu.figures_spectra import LINES_READABLE, draw_spectra, find_gaps, level_bins

SAMPLE_BYTES = 96e6  # how much of a stack may be decoded for the page
FRAME_BYTES = 1.5e9  # a frame that costs more than this to read (stored by pixel, not by frame) is not drawn
CUT_FRAMES = 24  # a cut through fewer frames than this shows nothing

Arrays = Mapping[str, Any]  # zarr arrays by name: indexing reads


class Card(NamedTuple):
    """One picture of the page: its file name without suffix, heading, caption and width class."""

    name: str
    title: str
    picture: figures.Picture
    caption: str
    width: str = "half"


class Cluster(NamedTuple):
    """One row of the legend; ``mean`` only where a cluster is one value, ``note`` where there is one to make."""

    name: str
    colour: str
    pixels: int
    percent: float
    mean: float | None = None
    note: str = ""


class Spots(NamedTuple):
    """What ``spot_count`` holds: the map (Y, X), spots in all, of how many frames; ``replaced`` or only ``found``."""

    count: np.ndarray
    total: int
    n_frames: int
    done: str = "replaced"

    @property
    def percent(self) -> float:
        return 100 * self.total / max(self.count.size * self.n_frames, 1)


def dims(array: Any) -> tuple[str, ...]:
    """Return the names of a Zarr array's axes, as far as they are known."""
    is_v3 = array.metadata.zarr_format == 3
    names = array.metadata.dimension_names if is_v3 else array.attrs.get("_ARRAY_DIMENSIONS")
    return tuple(str(name) for name in names or ())


def axis_name(array: Any) -> str:
    """Return the name of a stack's first axis, "" for a single image."""
    return (dims(array) or ("frame",))[0] if array.ndim == 3 else ""


def read_spectra(arrays: Arrays) -> tuple[str, np.ndarray] | None:
    """Return ("spectra" or "centroids", (clusters, bins) float array); spectra, the pixels' own mean, come first."""
    for name in ("spectra", "centroids"):
        if name in arrays and arrays[name].ndim == 2 and all(arrays[name].shape):
            return name, np.asarray(arrays[name][...])
    return None


def label_cards(arrays: Arrays, *, result: Mapping[str, Any]) -> tuple[list[Card], list[Cluster]]:
    """Return the label map and its legend; of a volume, the map of the middle frame.

    Parameters
    ----------
    result : mapping
        ``n_clusters``, ``pixels`` and ``edge_share`` (per cluster) as the run counted them, where it did.
    """
    if "labels" not in arrays or arrays["labels"].ndim not in (2, 3) or not all(arrays["labels"].shape):
        return [], []
    stored, found = arrays["labels"], read_spectra(arrays)
    middle = stored.shape[0] // 2
    labels = np.asarray(stored[middle] if stored.ndim == 3 else stored[...])
    no_data = int(np.iinfo(stored.dtype).max)
    pixels = np.bincount(labels.ravel(), minlength=no_data + 1)
    highest = int(np.flatnonzero(pixels[:no_data]).max(initial=0))
    n_clusters = max(int(result.get("n_clusters") or 0), len(found[1]) if found else 0, highest + 1)
    pixels, lacking = pixels[:n_clusters], int(pixels[no_data])
    caption = "A cluster number has the same colour in every picture and every report."
    if stored.ndim == 3:
        caption = f"Shown and counted: {axis_name(stored)} {middle} of {stored.shape[0]}."
        whole = result.get("pixels")
        if isinstance(whole, list) and len(whole) == n_clusters:
            pixels, lacking = np.array(whole), int(np.prod(stored.shape, dtype=np.int64)) - sum(whole)
            caption = f"Shown: {axis_name(stored)} {middle} of {stored.shape[0]}. Counted: the whole volume."
    picture = figures_maps.draw_labels(labels, n_clusters=n_clusters, no_data=no_data)
    means = found[1][:, 0].tolist() if found and found[1].shape[1] == 1 else []
    total = max(int(pixels.sum()) + lacking, 1)
    edges = {i for i, share in enumerate(result.get("edge_share") or []) if share is not None and share > EDGE_SHARE}
    legend = [
        Cluster(
            str(i),
            figures.cluster_colour(i),
            int(n),
            100 * n / total,
            means[i] if i < len(means) else None,
            "follows edges" if i in edges else "",
        )
        for i, n in enumerate(pixels)
    ]
    if lacking > 0:
        legend.append(Cluster("no data", figures.NO_DATA_COLOUR, lacking, 100 * lacking / total))
    return [Card("labels", "Label map", picture, caption)], legend


def spectra_cards(arrays: Arrays, *, label: str, summed: bool) -> list[Card]:
    """Return the spectra of the clusters over time of flight, if any; `summed` says that a wide bin holds more."""
    found = read_spectra(arrays)
    if found is None or found[1].shape[1] < 2:
        return []
    name, spectra = found
    axes = {key: np.asarray(arrays[key][...]) for key in ("tof", "tof_width", "wavelength") if key in arrays}
    axes = {key: axis for key, axis in axes.items() if axis.shape == spectra.shape[1:]}
    drawn, width_s = level_bins(spectra, axes.get("tof_width")) if summed else (spectra, None)
    if width_s is not None:
        label += f" in {width_s * 1e3:.3g} ms"
    picture = draw_spectra(
        drawn,
        tof_s=axes.get("tof"),
        tof_width_s=axes.get("tof_width"),
        wavelength=axes.get("wavelength"),
        label=f"mean {label}" if name == "spectra" else f"centroid, {label}",
    )
    caption = "In the colours of the label map."
    if "tof" in axes and find_gaps(axes["tof"], axes.get("tof_width")).size:
        caption += " Where the background is shaded the shutter was closed."
    if width_s is not None:
        caption += f" Bins differ in width: drawn is what {width_s * 1e3:.3g} ms hold; the arrays hold sums of bins."
    if len(spectra) > LINES_READABLE:
        caption += " Below: the same values, one row for each cluster."
    title = "Mean spectrum of each cluster" if name == "spectra" else "Centroid of each cluster"
    return [Card("spectra", title, picture, caption, "wide")]


def mean_cards(arrays: Arrays, *, label: str) -> list[Card]:
    """Return the mean image, if the run has one."""
    if "mean_image" not in arrays:
        return []
    mean = np.asarray(arrays["mean_image"][...])
    caption = "Grey scale from the 0.5th to the 99.5th percentile." + _tell_bad(mean)
    return [Card("mean_image", "Mean image", figures_maps.draw_map(mean, label=f"mean {label}"), caption)]


def frame_cards(arrays: Arrays, *, label: str) -> list[Card]:
    """Return first, middle and last frame, a cut along the first axis and a histogram, from a sample of the frames."""
    if "image" not in arrays:
        return []
    stack = arrays["image"]
    axis, n_frames = axis_name(stack), stack.shape[0] if stack.ndim == 3 else 1
    names = {n_frames - 1: "last", n_frames // 2: "middle", 0: "first"} if axis else {0: "image"}
    kept, rows, values = {}, [], []
    for index, frame in sample_frames(stack, wanted=set(names)):
        if index in names:
            kept[index] = figures.shrink(frame), _tell_bad(frame)
        rows.append(frame[frame.shape[0] // 2])
        values.append(frame.ravel()[:: max(frame.size // 50_000, 1)])
    if not kept:
        return []
    sample = np.concatenate(values)
    width = 4.4 if axis else 5.6
    limits = figures.find_limits(sample)
    cards = []
    for index, (small, bad) in kept.items():
        title = f"{names[index].capitalize()} frame" if axis else "Image"
        picture = figures_maps.draw_map(small, label=label, limits=limits, shape=stack.shape[-2:], width_in=width)
        caption = tell_place(arrays, axis, index) + bad
        cards.append(Card(f"frame_{names[index]}", title, picture, caption, "third" if axis else "half"))
    if len(rows) >= CUT_FRAMES:
        shape, axes = (n_frames, stack.shape[2]), (f"{axis} (frame)", "x (pixel)")
        picture = figures_maps.draw_map(
            np.stack(rows), label=label, limits=limits, axes=axes, shape=shape, stretch=True
        )
        caption = f"Row y = {stack.shape[1] // 2}, from {len(rows)} of {n_frames} frames."
        cards.append(Card("cut", f"Cut through the middle: {axis} and x", picture, caption))
    caption = f"{sample.size:,} pixels" + (f" from {len(rows)} of {n_frames} frames." if axis else ".")
    cards.append(Card("histogram", "Histogram of values", figures_maps.draw_histogram(sample, label=label), caption))
    return cards


def count_spots(arrays: Arrays, *, input_shape: tuple[int, ...], done: str = "replaced") -> Spots | None:
    """Return what was found or replaced as spots, if the run counted it."""
    if "spot_count" not in arrays:
        return None
    shapes = [arrays[name].shape for name in ("spots", "image") if name in arrays] + [input_shape]
    n_frames = next((int(shape[0]) for shape in shapes if len(shape) == 3), 1)
    count = np.asarray(arrays["spot_count"][...])
    return Spots(count, int(count.sum(dtype=np.int64)), n_frames, done)


def spot_cards(spots: Spots | None) -> list[Card]:
    """Return the map of where spots were."""
    if spots is None:
        return []
    hit = int(np.count_nonzero(spots.count))
    share = tell_percent(spots.percent)
    if spots.n_frames > 1:
        often = int(np.count_nonzero(spots.count > spots.n_frames / 2))
        caption = (
            f"{spots.done.capitalize()}: {tell_number(spots.total, 'value')} ({share}), in {tell_number(hit, 'pixel')}."
        )
        if often:
            caption += f" In more than half of the frames, like a hot or dead pixel: {tell_number(often, 'pixel')}."
    else:
        caption = f"{spots.done.capitalize()}: {tell_number(spots.total, 'pixel')} ({share})."
    label = f"times {spots.done}" if spots.n_frames > 1 else spots.done
    picture = figures_maps.draw_spots(spots.count, label=label)
    return [Card("spots", f"Where spots were {spots.done}", picture, caption)]


def plane_cards(arrays: Arrays, *, quantities: Mapping[str, str]) -> list[Card]:
    """Return the plane in which each step told spots, with what it took for one, if the run sampled it."""
    names = [name for name in arrays if re.fullmatch(r"spot_plane(_\d+)?", name)]
    cards = []
    for name in sorted(names, key=len):
        about, features = dict(arrays[name].attrs), arrays[name].attrs["features"]
        edges = tuple(np.asarray(arrays[f"{name}_{feature}_edges"][...]) for feature in features)
        counted = figures_knn.Counted(np.asarray(arrays[name][...]), edges, tuple(about["even_up_to"]))
        total = int(counted.number.sum(dtype=np.int64))
        if not total:
            continue
        unit, side = quantities.get(about["quantity"], about["quantity"]), str(about["median_size"])
        labels = [f"{figures_knn.NAMES[f].replace('3 × 3', f'{side} × {side}')}, {unit}" for f in features]
        caption, given = f"{total:,} pixels as they came to {about['step']}.", {}
        if about["n_neighbors"]:
            given = {"region": np.asarray(arrays[f"{name}_region"][...])}
            given["legend"] = figures_knn.tell_region(about["n_neighbors"])
            caption += " In the orange region a pixel is taken for a spot."
        elif about["threshold"] is not None:
            given = {"threshold": about["threshold"], "legend": f"threshold {about['threshold']:g}"}
            caption += " Beyond the orange line a pixel is taken for a spot."
        else:
            caption += " What decides on spots is no line or region in this plane."
        picture = figures_knn.draw_plane(counted, labels=(labels[0], labels[1]), **given)
        cards.append(Card(name, f"Values and how they stand out: {about['step']}", picture, caption))
    return cards


def tell_percent(percent: float) -> str:
    """Return a share with three digits, never 0 % for something that is there, never 100 % for less than all."""
    if 0 < percent < 0.0001:
        return "< 0.0001 %"
    if 99.95 <= percent < 100:
        return "> 99.9 %"
    return f"{percent:.2g} %" if percent < 1 else f"{percent:.1f} %"


def tell_number(number: int, noun: str) -> str:
    """Return ``1 pixel`` or ``1,234 pixels``."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def sample_frames(stack: Any, *, wanted: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yield, in order, the wanted frames and as many evenly spaced others as ``SAMPLE_BYTES`` allows."""
    if stack.ndim not in (2, 3) or not all(stack.shape):
        return
    if stack.ndim == 2:
        yield 0, np.asarray(stack[...])
        return
    n_frames = stack.shape[0]
    # A frame costs the whole chunks it runs through, not only its own bytes.
    cost = min(stack.chunks[0], n_frames) * stack.shape[1] * stack.shape[2] * stack.dtype.itemsize
    if cost > FRAME_BYTES:
        return
    n_sampled = min(int(SAMPLE_BYTES // cost), n_frames)
    for index in sorted(wanted | set(np.linspace(0, n_frames - 1, n_sampled).round().astype(int).tolist())):
        yield index, np.asarray(stack[index])


def tell_place(arrays: Arrays, axis: str, index: int) -> str:
    """Return where on its axis a frame lies, "" for a single image."""
    if not axis:
        return ""
    if axis in arrays and arrays[axis].ndim == 1 and index < arrays[axis].shape[0]:
        unit = {"angle": "°", "tof": " s"}.get(axis, "")
        return f"Frame {index}, {axis} {float(arrays[axis][index]):.6g}{unit}."
    return f"Frame {index}."


def _tell_bad(image: np.ndarray) -> str:
    bad = image.size - int(np.count_nonzero(np.isfinite(image)))
    return f" Orange: {tell_number(bad, 'pixel')} without a finite value." if bad else ""

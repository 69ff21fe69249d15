"""The page a user looks at first: pictures, spectra, times and findings of a finished run, in one HTML file.

A pure function of the run's folder: it reads ``result.zarr`` and ``run.json`` and may be called again at any time.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu import report_cards
from niseg_gpu.errors import UserError
from niseg_gpu.io.paths import read_path
from niseg_gpu.report_cards import Arrays, Card, Cluster, Spots, tell_number, tell_percent
from niseg_gpu.report_classes import QUANTITIES, class_cards
from niseg_gpu.report_clusters import comparison_cards

_QUANTITIES = {
    "counts": "counts",
    "transmission": "transmission (1)",
    "attenuation": "attenuation −ln T (1)",
    "scaled": "scaled intensity (arb. unit)",
}
_NOTABLE = re.compile(
    r"warning|error|\bnan\b|\binf\b|finite|clip|saturat|wrap|overflow|skip|missing|interpolat|negative|\bbad\b|"
    r"\bdead\b|\blost\b|fell back|fallback|not converge",
    re.IGNORECASE,
)
_NOTHING = re.compile(r"(^|[:;]\s*)(0|no|none)\b(?![.,]\d)", re.IGNORECASE)  # "0 values are NaN", "clipped: none"


def write_report(folder: str | Path) -> Path:
    """Draw the pictures of a finished run and write them as one self-contained page.

    Parameters
    ----------
    folder : str or Path
        The run's folder, with ``result.zarr`` and ``run.json``; ``preview/*.png`` and ``report.html`` go into it.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    UserError
        If the folder holds no finished run.
    """
    folder = read_path(folder, who="write_report")
    run, arrays, attrs = _read_run(folder)
    given = _part(run, "input")
    quantity = str(attrs.get("quantity") or given.get("quantity") or "")
    label = _QUANTITIES.get(quantity, quantity or "value")
    is_tof = "tof" in arrays or any("tof" in report_cards.dims(array) for array in arrays.values())
    cards, legend = report_cards.label_cards(arrays, result=_part(run, "results", "labels"))
    of_mean = str(arrays["mean_image"].attrs.get("units", "")) if "mean_image" in arrays else ""
    mean = report_cards.mean_cards(arrays, label=_QUANTITIES.get(of_mean, of_mean or label))
    classes: list[Cluster] = []
    # A run without time of flight is judged by its frames; one with it has spectra, and frames only for want of a mean.
    frames = []
    if quantity in QUANTITIES and "image" in arrays and arrays["image"].dtype == np.uint8:
        frames, classes = class_cards(arrays)
        mean = [] if frames and quantity == "classes" else mean  # of the classes' numbers it says nothing
    elif not is_tof or not mean:
        frames = report_cards.frame_cards(arrays, label=label)
    single = [card for card in frames if card.width == "third"]
    rest = [card for card in frames if card.width != "third"]
    summed = quantity.startswith("counts") and not _averages_bins(run)
    spectra = report_cards.spectra_cards(arrays, label=label, summed=summed)
    cards += mean + spectra + single + rest if cards else single + mean + spectra + rest
    cards += comparison_cards(arrays, result=_part(run, "results", "labels"), summed=summed)
    shape = tuple(given.get("shape") or ())
    spots = report_cards.count_spots(arrays, input_shape=shape, done=_tell_done(run))
    cards += report_cards.spot_cards(spots) + report_cards.plane_cards(arrays, quantities=_QUANTITIES)
    (folder / "preview").mkdir(exist_ok=True)
    for card in cards:
        _write_whole(folder / "preview" / f"{card.name}.png", card.picture.light)
    kind = "time-of-flight stack" if is_tof else _tell_kind(arrays, given)
    page = _fill_page(folder, run, kind=kind, cards=cards, legend=legend, classes=classes, spots=spots)
    _write_whole(folder / "report.html", page.encode(errors="replace"))  # a file name may be no valid UTF-8
    return folder / "report.html"


def _read_run(folder: Path) -> tuple[dict[str, Any], Arrays, dict[str, Any]]:
    """Return what ``run.json`` says, the arrays by name (nothing of them read yet) and the attributes."""
    import zarr

    for name in ("result.zarr", "run.json"):
        if not (folder / name).exists():
            raise UserError(f"no finished run in '{folder}': {name} is missing; give the folder a run has written")
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        group = zarr.open_group(folder / "result.zarr", mode="r")
        arrays = dict(group.arrays())
    except (ValueError, OSError) as error:  # what json and zarr raise for files that are not what they should be
        raise UserError(f"the run in '{folder}' cannot be read: {error}; run it again") from error
    if not isinstance(run, dict):
        raise UserError(f"'{folder / 'run.json'}' holds a {type(run).__name__}, not a mapping; run it again")
    return run, arrays, dict(group.attrs)


def _part(tree: Any, *keys: str) -> dict[str, Any]:
    """Return the mapping at ``tree[a][b]...``, empty where a level is missing."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}


def _write_whole(path: Path, content: bytes) -> None:
    """Write beside the file and rename, so that a page under its name is a whole page."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


def _fill_page(
    folder: Path,
    run: dict[str, Any],
    *,
    kind: str,
    cards: list[Card],
    legend: list[Cluster],
    classes: list[Cluster],
    spots: Spots | None,
) -> str:
    from jinja2 import Environment, StrictUndefined

    given, device = _part(run, "input"), _part(run, "device")
    path = str(given.get("path") or folder.resolve().name)
    findings = [str(line) for line in run.get("findings") or []]
    warnings = [line for line in findings if _NOTABLE.search(line) and not _NOTHING.search(line)]
    warnings += _warn_of_clusters(legend)
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters.update(data_uri=_data_uri, percent=tell_percent, seconds=tell_seconds)
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=path.rstrip("/").rsplit("/", 1)[-1] or path,
        kind=kind,
        summary=_summarise(run, kind=kind, legend=legend, classes=classes, spots=spots),
        facts=_list_facts(run, path=path),
        warnings=warnings,
        findings=[line for line in findings if line not in warnings],
        cards=cards,
        legend=legend or classes,
        legend_title="Clusters" if legend else "Classes",
        legend_after=_find_place(cards, legend),
        timings=_time_steps(run),
        seconds=run.get("seconds"),
        parameters=_list_parameters(run),
        versions=_part(run, "versions"),
        version=run.get("niseg_gpu"),
        peak=run.get("peak_memory_gb"),
        device=device,
    )


def _find_place(cards: list[Card], legend: list[Cluster]) -> str:
    """The card after which the legend comes: that of clusters in the first row, that of classes after their frames."""
    if legend:
        return next((card.name for card in cards[1:2] if card.width == "half"), "labels")
    return next((card.name for card in reversed(cards) if card.name == "cut" or card.name.startswith("frame_")), "")


def _tell_done(run: dict[str, Any]) -> str:
    """What the first step that looks for spots has done with them, for that is the one whose spots are counted."""
    for step in _part(run, "pipeline").get("steps") or []:
        if isinstance(step, dict) and {"remove_spots", "detect_spots"} & step.keys():
            return "found" if _part(step, "detect_spots").get("replace") == "none" else "replaced"
    return "replaced"


def _averages_bins(run: dict[str, Any]) -> bool:
    steps = [step for step in _part(run, "pipeline").get("steps") or [] if isinstance(step, dict)]
    return any(_part(step, "rebin_tof").get("how") == "mean" for step in steps)


def _tell_kind(arrays: Arrays, given: Mapping[str, Any]) -> str:
    names = tuple(given.get("dims") or ()) or (report_cards.dims(arrays["image"]) if "image" in arrays else ())
    if "angle" in names:
        return "tomography"
    return "volume" if len(names) == 3 or len(given.get("shape") or ()) == 3 else "image"


def _summarise(
    run: dict[str, Any], *, kind: str, legend: list[Cluster], classes: list[Cluster], spots: Spots | None
) -> str:
    """Return one sentence: what went in, what came out, how long it took and on what."""
    given, device = _part(run, "input"), _part(run, "device")
    went_in = [f"a {kind}" if kind[0] not in "aeiou" else f"an {kind}"]
    if given.get("shape"):
        went_in[0] += " of " + " × ".join(f"{side:,}" for side in given["shape"])
        went_in[0] += f" ({', '.join(given['dims'])})" if given.get("dims") else ""
    went_in += [_tell_dtype(str(given["dtype"]))] if given.get("dtype") else []
    went_in += [tell_bytes(given["bytes"])] if given.get("bytes") else []
    n_clusters = sum(cluster.name != "no data" for cluster in legend)
    came_out = [tell_number(n_clusters, "cluster")] if n_clusters else []
    came_out += [f"{len(classes)} classes"] if classes else []
    if spots is not None:
        came_out.append(f"{tell_number(spots.total, 'spot')} {spots.done} ({tell_percent(spots.percent)})")
    text = f"In: {', '.join(went_in)}. Out: {', '.join(came_out) or 'the corrected data'}"
    if run.get("seconds") is not None:
        text += f", in {tell_seconds(run['seconds'])}"
    if device.get("name"):
        text += f" on {str(device['name']).upper()}"
        text += f" ({device['hardware']})" if device.get("hardware") else ""
    return text + "."


def _tell_dtype(name: str) -> str:
    """Return ``int16`` for ``>i2``; a name that NumPy does not know stays as it is."""
    try:
        return np.dtype(name).name
    except TypeError:
        return name


def _list_facts(run: dict[str, Any], *, path: str) -> list[tuple[str, str]]:
    """Return what else one asks of a run before looking at pictures, as (name, value)."""
    given, device = _part(run, "input"), _part(run, "device")
    facts = [("Input", path)]
    n_files = given["files"] if isinstance(given.get("files"), int) else len(given.get("files") or ())
    facts += [("Files", f"{n_files:,}")] if n_files else []
    facts += [("Started", str(run["started"]).replace("T", " "))] if run.get("started") else []
    if given.get("bytes") and run.get("seconds"):
        facts.append(("Overall", f"{tell_bytes(given['bytes'] / run['seconds'])}/s of input"))
    facts += [("Workers", str(device["workers"]))] if device.get("workers") else []
    facts += [("Device chosen", str(device["reason"]))] if device.get("reason") else []
    return facts


def _warn_of_clusters(legend: list[Cluster]) -> list[str]:
    empty = [cluster.name for cluster in legend if cluster.pixels == 0]
    lacking = [cluster for cluster in legend if cluster.name == "no data"]
    lines = [f"Clusters without a pixel: {', '.join(empty)}"] if empty else []
    return lines + [
        f"No data, so no label: {tell_number(c.pixels, 'pixel')} ({tell_percent(c.percent)})" for c in lacking
    ]


def _time_steps(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each step's time, its share of the longest in percent (for the bar), bytes and GB/s, as far as known."""
    steps = [step for step in run.get("steps") or [] if isinstance(step, dict)]
    longest = max((step.get("seconds") or 0 for step in steps), default=0)
    return [
        {
            "name": str(step.get("name", "")),
            "seconds": step.get("seconds"),
            "bar": 100 * (step.get("seconds") or 0) / longest if longest else 0,
            "bytes": tell_bytes(step["bytes"]) if step.get("bytes") else "",
            "rate": f"{step['gb_per_s']:.3g}" if step.get("gb_per_s") is not None else "",
        }
        for step in steps
    ]


def _list_parameters(run: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the resolved pipeline as (step, parameters), the input first and output and compute last."""
    pipeline = _part(run, "pipeline")
    blocks: list[tuple[str, Any]] = [("input", pipeline["input"])] if "input" in pipeline else []
    for step in pipeline.get("steps") or []:
        blocks += list(step.items()) if isinstance(step, dict) else [(str(step), {})]
    blocks += [(name, pipeline[name]) for name in ("output", "compute") if name in pipeline]
    return [
        (str(name), [(str(key), _tell_value(value)) for key, value in values.items()] if values else [])
        if isinstance(values, dict | None)
        else (str(name), [("", _tell_value(values))])
        for name, values in blocks
    ]


def _tell_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def tell_bytes(n_bytes: float) -> str:
    """Return a size in GB, or in MB or kB where that is below a tenth."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if n_bytes >= 0.1 * size:
            return f"{n_bytes / size:,.3g} {unit}" if n_bytes < 1000 * size else f"{n_bytes / size:,.0f} {unit}"
    return f"{n_bytes / 1e3:.3g} kB"


def tell_seconds(seconds: float) -> str:
    """Return a time as one reads it: milliseconds, seconds, minutes or hours."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()

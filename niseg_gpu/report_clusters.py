"""Cards of a run that tried several numbers of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from niseg_gpu.cluster_quality import EDGE_SHARE, FEW
from niseg_gpu.figures_clusters import Clustering, draw_k_curves, draw_label_maps
from niseg_gpu.figures_spectra import level_bins
from niseg_gpu.report_cards import Arrays, Card

CURVES = {"inertia": "inertia", "silhouette": "silhouette", "stability": "stability (adjusted Rand)"}


def comparison_cards(arrays: Arrays, *, result: Mapping[str, Any], summed: bool) -> list[Card]:
    """Return the label maps side by side, and the measures over the number of clusters.

    Parameters
    ----------
    arrays : mapping
    result : mapping
        ``n_clusters`` and ``tried``, as the run recorded them.
    summed : bool
        Whether wide bins of a spectrum hold more.
    """
    tried = [trial for trial in result.get("tried") or [] if isinstance(trial, dict)]
    if len(tried) < 2:
        return []
    chosen, cards = result.get("n_clusters"), []
    drawn = [each for trial in tried if (each := _collect(arrays, trial, chosen=chosen)) is not None]
    if len(drawn) > 1:
        tof_s, width_s = (np.asarray(arrays[k][...]) if k in arrays else None for k in ("tof", "tof_width"))
        if summed:
            drawn = [
                each if each.spectra is None else each._replace(spectra=level_bins(each.spectra, width_s)[0])
                for each in drawn
            ]
        caption = "The same pixels in other numbers of clusters." + _tell_edges(drawn)
        if any(each.spectra is not None and each.spectra.shape[1] > 1 for each in drawn):
            caption += " Below each map the mean spectra of its clusters over "
            caption += "time of flight (ms)." if tof_s is not None else "the bin's number."
        picture = draw_label_maps(drawn, tof_s=tof_s, tof_width_s=width_s)
        cards.append(Card("label_maps", "Label maps of each number of clusters", picture, caption, "wide"))
    numbers = [int(trial["n_clusters"]) for trial in tried]
    curves = [(label, [trial.get(key) for trial in tried]) for key, label in CURVES.items()]
    curves = [(label, values) for label, values in curves if any(v is not None for v in values)]
    caption = (
        f"Dashed: the k taken, {chosen}. Inertia falls with every cluster more; look for the bend. A silhouette near 1 "
        "tells of clusters far apart; stability near 1, of the same clusters from every random start."
    )
    picture = draw_k_curves(numbers, curves, chosen=chosen)
    return [*cards, Card("choosing_k", "Choosing the number of clusters", picture, caption, "wide")]


def _collect(arrays: Arrays, trial: Mapping[str, Any], *, chosen: Any) -> Clustering | None:
    """What is drawn of one number of clusters, of a volume the map of its middle frame; None without labels."""
    number, pixels = int(trial["n_clusters"]), np.array(trial.get("pixels") or [], dtype=float)
    suffix = "" if number == chosen else f"_k{number}"
    labels, spectra = arrays.get(f"labels{suffix}"), arrays.get(f"spectra{suffix}")
    if labels is None:
        return None
    edges = [k for k, share in enumerate(trial.get("edge_share") or []) if share is not None and share > EDGE_SHARE]
    return Clustering(
        np.asarray(labels[labels.shape[0] // 2] if labels.ndim == 3 else labels[...]),
        number,
        None if spectra is None else np.asarray(spectra[...]),
        edges,
        np.flatnonzero(pixels * FEW < pixels.sum()).tolist(),
    )


def _tell_edges(drawn: Sequence[Clustering]) -> str:
    """Which clusters of which map follow edges, in words."""
    found = [f"of k = {each.n_clusters}, {', '.join(map(str, each.edges))}" for each in drawn if each.edges]
    if not found:
        return ""
    return f" These clusters follow edges between others, and are no materials: {'; '.join(found)}."

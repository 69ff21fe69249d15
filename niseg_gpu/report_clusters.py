"""Cards of a run that tried several numbers of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from niseg_gpu.cluster_quality import EDGE_SHARE
from niseg_gpu.figures_clusters import draw_k_curves, draw_label_maps
from niseg_gpu.report_cards import Arrays, Card

CURVES = {"inertia": "inertia", "silhouette": "silhouette", "stability": "stability (adjusted Rand)"}


def comparison_cards(arrays: Arrays, *, result: Mapping[str, Any]) -> list[Card]:
    """Return the label maps side by side, and the measures over the number of clusters.

    Parameters
    ----------
    arrays : mapping
    result : mapping
        ``n_clusters`` and ``tried``, as the run recorded them.
    """
    tried = [trial for trial in result.get("tried") or [] if isinstance(trial, dict)]
    chosen, maps = result.get("n_clusters"), {}
    for trial in tried:
        number = trial.get("n_clusters")
        stored = arrays.get("labels" if number == chosen else f"labels_k{number}")
        if stored is not None:
            maps[int(number)] = np.asarray(stored[stored.shape[0] // 2] if stored.ndim == 3 else stored[...])
    if len(tried) < 2:
        return []
    cards = []
    if len(maps) > 1:
        picture = draw_label_maps(list(maps.values()), numbers=list(maps))
        caption = "The same pixels in other numbers of clusters." + _tell_edges(tried)
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


def _tell_edges(tried: Sequence[Mapping[str, Any]]) -> str:
    """Which clusters of which map follow edges, in words."""
    found = []
    for trial in tried:
        shares = trial.get("edge_share") or []
        edges = [str(k) for k, share in enumerate(shares) if share is not None and share > EDGE_SHARE]
        if edges:
            found.append(f"of k = {trial['n_clusters']}, {', '.join(edges)}")
    if not found:
        return ""
    return f" These clusters follow edges between others, and are no materials: {'; '.join(found)}."

"""What of a run that ends with classes of pixels, or a mask, becomes a picture of its report."""

from __future__ import annotations

from typing import Any

import numpy as np

from niseg_gpu import figures, figures_maps
from niseg_gpu.report_cards import CUT_FRAMES, Arrays, Card, Cluster, axis_name, sample_frames, tell_place

QUANTITIES = ("classes", "mask")
NONE = 256  # a number that no pixel has


def class_cards(arrays: Arrays) -> tuple[list[Card], list[Cluster]]:
    """Return first, middle and last frame in the colours of their classes, and the legend.

    Parameters
    ----------
    arrays : mapping of str to Zarr array
        Of them ``image`` is of unsigned integers of 8 bits.
    """
    stack = arrays["image"]
    axis, n_frames = axis_name(stack), stack.shape[0] if stack.ndim == 3 else 1
    names = {n_frames - 1: "last", n_frames // 2: "middle", 0: "first"} if axis else {0: "image"}
    pixels, kept, rows = np.zeros(NONE, np.int64), {}, []
    for index, frame in sample_frames(stack, wanted=set(names)):
        pixels += np.bincount(frame.ravel(), minlength=NONE)
        rows.append(frame[frame.shape[0] // 2])
        if index in names:
            kept[index] = frame
    if not kept:
        return [], []
    n_classes = max(2, int(np.flatnonzero(pixels).max(initial=0)) + 1)
    how: dict[str, Any] = {"n_clusters": n_classes, "no_data": NONE, "name": "class"}
    cards = []
    for index, frame in kept.items():
        title = f"{names[index].capitalize()} frame" if axis else "Image"
        picture = figures_maps.draw_labels(frame, width_in=4.4 if axis else 5.6, **how)
        width = "third" if axis else "half"
        cards.append(Card(f"frame_{names[index]}", title, picture, tell_place(arrays, axis, index), width))
    if len(rows) >= CUT_FRAMES:
        cut = {"axes": (f"{axis} (frame)", "x (pixel)"), "shape": (n_frames, stack.shape[2])}
        picture = figures_maps.draw_labels(np.stack(rows), **how, **cut)
        caption = f"Row y = {stack.shape[1] // 2}, from {len(rows)} of {n_frames} frames."
        cards.append(Card("cut", f"Cut through the middle: {axis} and x", picture, caption))
    if axis:
        told = (
            f"{cards[-1].caption} Counted below: {len(rows) if len(rows) < n_frames else 'all'} of {n_frames} frames."
        )
        cards[-1] = cards[-1]._replace(caption=told)
    shares = 100 * pixels[:n_classes] / max(pixels.sum(), 1)
    counted = enumerate(zip(pixels[:n_classes].tolist(), shares.tolist(), strict=True))
    return cards, [Cluster(str(i), figures.cluster_colour(i), n, share) for i, (n, share) in counted]

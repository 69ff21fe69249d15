"""Corrections of what the detector wrote, overlap in MCP/Timepix runs, and of the spectra's scale.

Every function takes one block (NumPy or CuPy) first and gives a block of the same kind.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from niseg_gpu.backend import backend_of
from niseg_gpu.chunks import Work
from niseg_gpu.errors import UserError
from niseg_gpu.findings import count
from niseg_gpu.images import read_image
from niseg_gpu.options import check_options
from niseg_gpu.stack import tell_bins_left_out, tell_source


def overlap_correct(
    counts: Any, *, windows: Sequence[tuple[int, int]], shutter_counts: Sequence[int], per_trigger: bool = False
) -> Any:
    """Restore the counts an MCP/Timepix detector lost to its own earlier hits.

    A pixel hit once is blind until its shutter window ends. With P = (earlier counts of this pixel in this
    window) / (triggers of the window), the true counts are I / (1 - P).

    Parameters
    ----------
    counts : (N, ...) array
        Raw counts of N ToF bins, whole windows along the first axis.
    windows : sequence of (int, int)
        First and last bin of each shutter window, inclusive.
    shutter_counts : sequence of int
        Triggers acquired in each window.
    per_trigger : bool
        Divide by the triggers of the window, so that windows of different length of exposure join.

    Returns
    -------
    (N, ...) float32 array
        Where a pixel has fired in every trigger, its live fraction is held at one trigger, and counted.

    Raises
    ------
    UserError
        Windows that are not all bins, one after another, or without a number of triggers each.

    References
    ----------
    Tremsin et al., J. Instrum. 9 (2014) C05026, 10.1088/1748-0221/9/05/C05026.
    """
    counts = read_image(counts, who="overlap_correct", frames=False)
    backend = backend_of(counts)
    _check_windows(windows, shutter_counts, n_bins=len(counts))
    out = backend.xp.empty(counts.shape, dtype=backend.xp.float32)
    for (first, last), triggers in zip(windows, shutter_counts, strict=True):
        scale = 1 / triggers if per_trigger else 1.0
        spent = backend.correct_window(counts, out, first=first, last=last, triggers=triggers, scale=scale)
        count(
            "values of pixels that had fired in every trigger of their shutter window (held at one live trigger)", spent
        )
    return out


def _check_windows(windows: Sequence[tuple[int, int]], shutter_counts: Sequence[int], *, n_bins: int) -> None:
    """Refuse windows that leave a bin out, or count one twice."""
    try:
        windows = [(operator.index(first), operator.index(last)) for first, last in windows]
        lit = all(float(triggers) > 0 for triggers in shutter_counts)
    except (TypeError, ValueError):
        raise UserError(
            f"overlap_correct got windows {windows!r} and shutter_counts {shutter_counts!r}; allowed: the first and "
            "last bin of each window, and a number for each"
        ) from None
    ends = [-1, *(int(last) for _, last in windows)]
    follow = [int(first) for first, _ in windows] == [end + 1 for end in ends[:-1]]
    if not follow or ends[-1] != n_bins - 1 or any(b <= a for a, b in pairwise(ends)):
        told = ", ".join(f"{first} to {last}" for first, last in windows)
        raise UserError(
            f"overlap_correct got shutter windows of the bins {told or 'none'}; needed: windows one after another that "
            f"have all bins, 0 to {n_bins - 1}"
        )
    if len(shutter_counts) != len(windows) or not lit:
        raise UserError(
            f"overlap_correct got triggers {list(shutter_counts)} for {len(windows)} shutter windows; needed: a number "
            "above 0 for each"
        )


def fit_overlap_correct(before: Any, *, per_trigger: bool = False) -> dict[str, Any]:
    """Take the shutter windows from what the files beside the frames said.

    Parameters
    ----------
    per_trigger : bool
        Divide each window by its number of triggers, so that all windows have one scale.
    """
    attrs = before.info.attrs
    if before.info.quantity != "counts":
        raise UserError(
            f"overlap_correct works on raw counts, the stack holds {before.info.quantity}; make it the first step"
        )
    if attrs.get("bins_left_out") and not attrs.get("shutter_counts"):
        raise UserError(
            "overlap_correct needs all bins of a shutter window, for what was counted in one blinds its pixels in the "
            f"later ones; bad_frames: skip left out {tell_bins_left_out(attrs)}: use bad_frames: interpolate"
        )
    if not attrs.get("shutter_windows") or not attrs.get("shutter_counts"):
        raise UserError(
            "overlap_correct needs the whole run with *_ShutterCount.txt and *_Spectra.txt beside its frames; "
            f"{tell_source(attrs)} has none that fit: copy them there, and let no select_tof or rebin_tof come before"
        )
    return {
        "windows": attrs["shutter_windows"],
        "shutter_counts": attrs["shutter_counts"],
        "per_trigger": per_trigger,
    }


def describe_overlap_correct(info: Any, *, per_trigger: bool, **_: Any) -> Any:
    """The stack after `overlap_correct`; it can't be corrected again."""
    quantity = "counts per trigger" if per_trigger else "counts"
    return info.with_(dtype=np.dtype(np.float32), attrs={"quantity": quantity, "shutter_counts": None})


def memory_overlap_correct(info: Any, *, backend: Any, **_: Any) -> Work:
    """What it holds: the result, and what the twin works with."""
    return Work((4 + backend.window_bytes) * math.prod(info.shape))


def scale_spectra(spectra: Any, *, method: Literal["mean", "standard"] = "mean") -> Any:
    """Bring every pixel's spectrum to one scale, so that clustering sees its shape and not its thickness.

    Parameters
    ----------
    spectra : (N, ...) array
        Spectra along the first axis.
    method : {"mean", "standard"}
        ``mean``: divided by its mean. ``standard``: minus its mean, divided by its standard deviation.

    Returns
    -------
    (N, ...) float32 array
        NaN, and counted, for spectra whose mean (or deviation) is zero.
    """
    check_options(scale_spectra, method=method)
    spectra = read_image(spectra, who="scale_spectra", frames=False)
    xp = backend_of(spectra).xp
    values = xp.astype(spectra, xp.float32)
    mean = xp.mean(values, axis=0)
    divisor = mean
    if method == "standard":
        values = values - mean
        divisor = xp.sqrt(xp.mean(values * values, axis=0))
    usable = divisor != 0
    count("spectra that are zero or flat (NaN)", ~usable)
    inverse = xp.where(usable, 1 / xp.where(usable, divisor, xp.asarray(1.0, dtype=xp.float32)), xp.nan)
    return values * inverse


def describe_scale_spectra(info: Any, **_: Any) -> Any:
    """The stack after `scale_spectra`."""
    return info.with_(dtype=np.dtype(np.float32), attrs={"quantity": "scaled"})


def memory_scale_spectra(info: Any, **_: Any) -> Work:
    """What it holds: a copy in float32 and the result."""
    return Work(8 * math.prod(info.shape))


def check_scale_spectra(before: Any, *, method: str = "mean") -> None:
    """Refuse a stack without spectra."""
    if "tof" not in before.info.dims:
        raise UserError(
            f"scale_spectra needs a ToF axis, the stack has {before.info.dims}; name the axes with input.dims"
        )

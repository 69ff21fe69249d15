"""The text files beside a ToF run: Spectra, ShutterCount, ShutterTimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError

KINDS = ("spectra", "shuttercount", "shuttertimes")


def read_sidecars(frames: list[Path], header_tof: np.ndarray | None, *, tof: str = "auto") -> tuple[dict, dict]:
    """Return the coordinates and attributes that the text files beside the frames give.

    Parameters
    ----------
    frames : list of Path
        The frames, in order.
    header_tof : (N,) array or None
        ToF in s of each frame as its own header tells it.
    tof : {"auto", "spectra", "headers"}
        Whose ToF to believe. ``auto`` asks the user where the two differ.

    Returns
    -------
    coords : dict
        ``tof`` and ``tof_width`` in s, where known.
    attrs : dict
        ``shutter_counts`` (triggers of each used window), ``bin_triggers`` (the same, per bin) and
        ``shutter_windows`` (first and last bin of each, inclusive), where known.

    Raises
    ------
    UserError
        A text file that can't be parsed, has another number of lines than there are frames, or
        contradicts the frames' headers.
    """
    files = {kind: _find(frames, kind) for kind in KINDS}
    start, whole = _tof(files["spectra"], frames, header_tof, tof)
    if start is None:
        return {}, {}
    attrs: dict[str, Any] = {}
    windows = None
    if not whole:  # the shutter files tell of the whole run; a part of it has lost the counts before it
        files["shuttertimes"] = files["shuttercount"] = None
    if files["shuttertimes"] is not None:
        windows = _windows_from_times(files["shuttertimes"], start)
    if windows is None:
        windows = _windows_from_gaps(start)
    attrs["shutter_windows"] = [[int(a), int(b)] for a, b in windows]
    if files["shuttercount"] is not None:
        counts = _used(_table(files["shuttercount"], columns=2)[:, 1])
        if len(counts) != len(windows):
            raise UserError(
                f"{files['shuttercount']} lists {len(counts)} used shutters, the time axis has {len(windows)} windows; "
                "it belongs to another run, or frames are missing"
            )
        attrs["shutter_counts"] = [int(c) for c in counts]
        attrs["bin_triggers"] = [int(c) for c, (a, b) in zip(counts, windows, strict=True) for _ in range(a, b + 1)]
    return {"tof": start, "tof_width": _widths(start, windows)}, attrs


def _find(frames: list[Path], kind: str) -> Path | None:
    folder = frames[0].parent
    found = sorted(
        p for p in folder.iterdir() if p.name.lower().endswith(f"_{kind}.txt") or p.name.lower() == f"{kind}.txt"
    )
    if len(found) > 1:
        found = [p for p in found if frames[0].name.startswith(p.name[: -len(f"_{kind}.txt")])] or found
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise UserError(f"{folder} holds {len(found)} {kind} files ({names}); keep the one of this run")
    return found[0] if found else None


def _table(path: Path, *, columns: int) -> np.ndarray:
    try:
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
        table = np.array([[float(v.rstrip(",")) for v in row[:columns]] for row in rows])
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} can't be read as numbers ({error}); allowed: {columns} columns a line") from None
    if table.ndim != 2 or table.shape[1] < columns:
        raise UserError(f"{path} has too few columns or no line; allowed: {columns} columns a line")
    return table


def _used(values: np.ndarray) -> np.ndarray:
    """The entries before the first zero: unused shutters are written as zero rows."""
    zero = np.flatnonzero(values == 0)
    return values[: zero[0]] if len(zero) else values


def _tof(spectra: Path | None, frames: list[Path], header_tof: np.ndarray | None, tof: str) -> tuple:
    """Start of each bin in s (or None), and whether the frames are the whole run."""
    if tof == "headers":
        if header_tof is None:
            raise UserError(f"{frames[0]}: not every frame's header has TOF, so tof: headers can't be used")
        return header_tof, True
    if spectra is None:
        return header_tof, True
    start = _table(spectra, columns=2)[:, 0]
    if len(start) != len(frames):
        if header_tof is not None and len(start) > len(frames) and tof == "auto":
            return header_tof, False  # a part of a run: the frames themselves know their time
        raise UserError(
            f"{spectra} has {len(start)} lines, the run {len(frames)} frames; copy the missing files again"
            + ("" if header_tof is None else ", or take the time from the frames with tof: headers")
        )
    if np.any(np.diff(start) <= 0):
        line = int(np.flatnonzero(np.diff(start) <= 0)[0]) + 2
        raise UserError(f"{spectra} line {line}: ToF {start[line - 1]:g} s does not grow; repair the file")
    if tof == "auto" and header_tof is not None and len(start) > 1:
        off = np.abs(start - header_tof)
        if off.max() > 0.5 * np.median(np.diff(start)):
            i = int(off.argmax())
            raise UserError(
                f"{spectra} says {start[i]:g} s for {frames[i].name}, its header {header_tof[i]:g} s; "
                "choose with tof: headers or tof: spectra"
            )
    return start, True


def _windows_from_times(path: Path, start: np.ndarray) -> list[tuple[int, int]] | None:
    """Bins of each shutter window; a row is: index, delay since the last window's end, width (s)."""
    table = _table(path, columns=3)
    table = table[: len(_used(table[:, 2]))]
    slack = 0.5 * np.median(np.diff(start)) if len(start) > 1 else 0.0
    windows, end, first = [], 0.0, 0
    for _, delay, width in table:
        opens, end = end + delay, end + delay + width
        inside = np.flatnonzero((start >= opens - slack) & (start < end - slack))
        if not len(inside) or inside[0] != first:
            raise UserError(
                f"{path}: the window {opens:g} s to {end:g} s does not fit the time axis "
                f"({start[0]:g} s to {start[-1]:g} s, {len(start)} bins); "
                "it belongs to another run, or frames are missing"
            )
        windows.append((int(inside[0]), int(inside[-1])))
        first = int(inside[-1]) + 1
    if windows and first != len(start):
        raise UserError(
            f"{path}: its windows end at bin {first - 1}, the run has {len(start)} bins; it belongs to another run"
        )
    return windows or None


def _windows_from_gaps(start: np.ndarray) -> list[tuple[int, int]]:
    steps = np.diff(start)
    borders = np.flatnonzero(steps > 1.5 * np.median(steps)) if len(steps) else []
    edges = [0, *(int(b) + 1 for b in borders), len(start)]
    return [(a, b - 1) for a, b in zip(edges, edges[1:], strict=False)]


def _widths(start: np.ndarray, windows: list[tuple[int, int]]) -> np.ndarray:
    """Width of each bin: the step to the next one, the last of a window as wide as the one before it."""
    widths = np.diff(start, append=np.nan)
    usual = np.nanmedian(widths) if len(start) > 1 else 0.0
    for first, last in windows:
        widths[last] = widths[last - 1] if last > first else usual
    return widths

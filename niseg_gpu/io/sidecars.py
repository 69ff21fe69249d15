"""The text files beside a ToF run: Spectra, ShutterCount, ShutterTimes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError

KINDS = ("spectra", "shuttercount", "shuttertimes")


def read_sidecars(
    frames: list[Path], header_tof: np.ndarray | None, *, tof: str = "auto", part: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the coordinates and attributes that the text files beside the frames give.

    Parameters
    ----------
    frames : list of Path
        The frames, in order.
    header_tof : (N,) array or None
        ToF in s of each frame as its own header tells it; NaN for frames whose header can't be read.
    tof : {"auto", "spectra", "headers"}
        Whose ToF to believe. ``auto`` asks the user where the two differ.
    part : bool
        The frames may be fewer than the run has: the time is then their headers', and the shutters stay unknown.

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
    texts = [name for name in os.listdir(frames[0].parent) if name.lower().endswith(".txt") and name[0] != "."]
    files = {kind: _find(frames, texts, kind) for kind in KINDS}
    start, whole = _tof(files["spectra"], frames, header_tof, tof=tof, part=part)
    if start is None:
        return {}, {}
    if not whole:  # the shutter files tell of the whole run; a part of it has lost the counts before it
        return {"tof": start, "tof_width": _widths(start, _windows_from_gaps(start))}, {}
    windows = None
    if files["shuttertimes"] is not None:
        windows = _windows_from_times(files["shuttertimes"], start)
    if windows is None:
        windows = _windows_from_gaps(start)
    attrs: dict[str, Any] = {"shutter_windows": [[int(a), int(b)] for a, b in windows]}
    if files["shuttercount"] is not None:
        counts = _used(_table(files["shuttercount"], columns=2)[:, 1])
        if len(wrong := np.flatnonzero((counts < 0) | (counts % 1 != 0))):
            raise UserError(
                f"{files['shuttercount']} gives shutter {wrong[0]} {counts[wrong[0]]:g} triggers; allowed: whole "
                "numbers above 0, then 0 for shutters that were not used; repair the file"
            )
        if len(counts) != len(windows):
            raise UserError(
                f"{files['shuttercount']} lists {len(counts)} used shutters, the time axis has {len(windows)} windows; "
                "it belongs to another run, or frames are missing"
            )
        attrs["shutter_counts"] = [int(c) for c in counts]
        attrs["bin_triggers"] = [int(c) for c, (a, b) in zip(counts, windows, strict=True) for _ in range(a, b + 1)]
    return {"tof": start, "tof_width": _widths(start, windows)}, attrs


def _find(frames: list[Path], texts: list[str], kind: str) -> Path | None:
    """The file of this run: the only one, else the one whose name begins as the frames' do, the longest of them."""
    folder, ending = frames[0].parent, f"{kind}.txt"
    found = sorted(n for n in texts if n.lower().endswith(ending) and (n[: -len(ending)] or "_")[-1] == "_")
    if len(found) > 1:
        named = [name for name in found if frames[0].name.startswith(name[: -len(ending)])]
        if not named:
            listed = ", ".join(found)
            raise UserError(f"{folder} holds {len(found)} {kind} files ({listed}); keep the one of this run")
        found = [max(named, key=len)]
    return folder / found[0] if found else None


def _table(path: Path, *, columns: int) -> np.ndarray:
    """The first `columns` of a text file; tabs, spaces or commas between them, words allowed in the first line only."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} can't be read ({error}); allowed: a text file, {columns} columns a line") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and not re.search(r"\d", line)):
            continue
        cells = re.split(r"\s*,\s*|\s+", line.strip())
        try:
            if re.search(r"\d,\d", line) and re.search(r"\S\s+\S", line):
                raise ValueError("decimal commas")
            row = [float(cell) for cell in cells[:columns]]
        except ValueError:
            row = []
        if len(row) < columns or not np.isfinite(row).all():
            raise UserError(
                f"{path} line {number} is {line.strip()[:40]!r}; allowed: {columns} numbers with decimal points, "
                "divided by tabs, spaces or commas; repair the file"
            )
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no line; allowed: {columns} numbers a line; copy the file again")
    return np.array(rows)


def _used(values: np.ndarray) -> np.ndarray:
    """The entries before the first zero: unused shutters are written as zero rows."""
    zero = np.flatnonzero(values == 0)
    return values[: zero[0]] if len(zero) else values


def _tof(
    spectra: Path | None, frames: list[Path], header_tof: np.ndarray | None, *, tof: str, part: bool
) -> tuple[np.ndarray | None, bool]:
    """Start of each bin in s (or None), and whether the frames are the whole run."""
    start = None if spectra is None else _table(spectra, columns=2)[:, 0]
    whole = start is None or len(start) == len(frames) or not part
    if tof == "headers":
        if header_tof is None:
            raise UserError(f"{frames[0]}: not every frame's header has TOF, so tof: headers can't be used")
        header_tof = _fill_times(header_tof, frames)
        if len(back := _backward(header_tof)):
            raise UserError(f"{frames[back[0] + 1]}: its header's TOF does not grow, so tof: headers can't be used")
        if start is not None and len(start) != len(frames):  # the shutters' files are of no use where it begins later
            begins = abs(header_tof[0] - start[0]) <= 0.5 * np.diff(header_tof).min(initial=np.inf)
            whole = not part and bool(begins)
        return header_tof, whole
    if start is None:
        grows = header_tof is not None and not len(_backward(header_tof[~np.isnan(header_tof)]))
        return _fill_times(header_tof, frames) if grows else None, True  # repeated images bear one TOF: no time axis
    if len(start) != len(frames):
        if header_tof is not None and part and tof == "auto" and len(start) > len(frames):
            return _fill_times(header_tof, frames), False  # the frames themselves know their time
        raise UserError(
            f"{spectra} has {len(start)} lines, the run {len(frames)} frames; copy the missing files again"
            + ("" if header_tof is None else ", or take the time from the frames with tof: headers")
        )
    if len(back := _backward(start)):
        i = int(back[0])
        raise UserError(f"{spectra}: ToF {start[i + 1]:g} s follows {start[i]:g} s, it must grow; repair the file")
    if tof == "auto" and header_tof is not None and len(start) > 1:
        off = np.nan_to_num(np.abs(start - header_tof))  # what no header tells can't contradict
        if not off.max() <= 0.5 * np.diff(start).min():
            i = int(off.argmax())
            raise UserError(
                f"{spectra} says {start[i]:g} s for {frames[i].name}, its header {header_tof[i]:g} s; "
                "choose with tof: headers or tof: spectra"
            )
    return start, True


def _backward(start: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~(np.diff(start) > 0))


def _fill_times(tof: np.ndarray, frames: list[Path]) -> np.ndarray:
    """Fill in what the headers of bad frames don't tell, where the time goes on evenly around them."""
    known = np.flatnonzero(~np.isnan(tof))
    if len(known) == len(tof):
        return tof
    filled = np.interp(np.arange(len(tof)), known, tof[known])
    steps = np.diff(tof[known]) / np.diff(known)  # of each bin, between known ones
    if len(steps):
        before, after = np.arange(known[0]), np.arange(known[-1] + 1, len(tof))
        filled[before] = tof[known[0]] - steps[0] * (known[0] - before)
        filled[after] = tof[known[-1]] + steps[-1] * (after - known[-1])
    for i in np.flatnonzero(np.diff(known) > 1):
        beside = steps[[j for j in (i - 1, i + 1) if 0 <= j < len(steps)]]
        if not len(beside) or not beside.min() / 1.2 <= steps[i] <= beside.max() * 1.2:
            raise UserError(
                f"{frames[known[i] + 1]}: its time is not known, for its header can't be read and the time does not go "
                "on evenly there; put the run's *_Spectra.txt beside the frames"
            )
    if not len(steps):
        raise UserError(f"{frames[known[0]]}: no other frame's time is known; put the run's *_Spectra.txt beside them")
    return filled


def _windows_from_times(path: Path, start: np.ndarray) -> list[tuple[int, int]] | None:
    """Bins of each shutter window; a row is: index, delay since the last window's end, width (s)."""
    table = _table(path, columns=3)
    table = table[: len(_used(table[:, 2]))]
    slack = 0.5 * np.diff(start).min() if len(start) > 1 else 0.0
    windows, end, first = [], 0.0, 0
    for _, delay, width in table:
        opens, end = end + delay, end + delay + width
        inside = np.flatnonzero((start >= opens - slack) & (start < end - slack))
        late = len(inside) and start[inside[0]] >= opens + slack  # its first bins are missing
        if not len(inside) or inside[0] != first or late:
            raise UserError(
                f"{path}: the window {opens:g} s to {end:g} s does not fit the time axis ({start[0]:g} s to "
                f"{start[-1]:g} s, {len(start)} bins); it belongs to another run, or frames are missing"
            )
        windows.append((int(inside[0]), int(inside[-1])))
        first = int(inside[-1]) + 1
    if windows and first != len(start):
        raise UserError(
            f"{path}: its windows end at bin {first - 1}, the run has {len(start)} bins; it belongs to another run"
        )
    return windows or None


def _windows_from_gaps(start: np.ndarray) -> list[tuple[int, int]]:
    """Bins between jumps of the time axis: steps far longer than both beside them, as widths may change with them."""
    steps = np.pad(np.diff(start), 1)
    borders = np.flatnonzero(steps[1:-1] > 1.5 * np.maximum(steps[:-2], steps[2:])) if len(start) > 2 else []
    edges = [0, *(int(b) + 1 for b in borders), len(start)]
    return [(a, b - 1) for a, b in zip(edges, edges[1:], strict=False)]


def _widths(start: np.ndarray, windows: list[tuple[int, int]]) -> np.ndarray:
    """Width of each bin: the step to the next one, the last of a window as wide as the one before it."""
    widths = np.diff(start, append=np.nan)
    usual = np.nanmedian(widths) if len(start) > 1 else 0.0
    for first, last in windows:
        widths[last] = widths[last - 1] if last > first else usual
    return widths

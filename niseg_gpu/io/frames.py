"""Which files of a folder are the frames of a run, and in what order."""

from __future__ import annotations

import glob
import logging
import os
import re
from itertools import pairwise
from pathlib import Path

from niseg_gpu.errors import UserError
from niseg_gpu.io.bad import BadFrame

FITS = (".fits", ".fit", ".fts")
TIFF = (".tif", ".tiff")

log = logging.getLogger(__name__)


def list_frames(path: str | Path, *, fill_gaps: bool = False) -> list[Path]:
    """Return the frames of a folder or glob, ordered by the number in their names; a file's path comes back alone.

    The number is the last one in the names that is not the same in all of them. Summed images (``*SummedImg*``),
    hidden files and what is neither FITS nor TIFF are left out. A folder that holds both FITS and TIFF, several
    series, a number twice, or (but not for a glob) a series with missing numbers is refused.

    Parameters
    ----------
    path : str or Path
    fill_gaps : bool
        Name the files of missing numbers too, as they would be named, in the place of refusing.

    Raises
    ------
    UserError
        No frame, or more than one reading of what the frames are; it says what to name instead.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    whole_folder = path.is_dir()
    found = _in_folder(path) if whole_folder else _matching(path)
    found = [p for p in found if p.lower().endswith(FITS + TIFF)]
    frames = [p for p in found if "summed" not in os.path.basename(p).lower()]
    if len(frames) < len(found):
        log.info("left out %d summed image(s) of %s", len(found) - len(frames), path)
    if not frames:
        what = "holds" if whole_folder else "matches"
        but = ", only summed images" if found else ""
        raise UserError(f"{path} {what} no FITS or TIFF frame{but}; name a folder, file or glob of such frames")
    names = [re.split(r"(\d+)", os.path.basename(p)) for p in frames]
    place = _counting_place(names)
    ordered = _order(names, place, path)
    frames, numbers = [frames[i] for i, _ in ordered], [number for _, number in ordered]
    _refuse_twice(frames, numbers)
    if not whole_folder:
        return [Path(p) for p in frames]
    missing = _find_gaps(frames, numbers, refuse=not fill_gaps)
    if not missing:
        return [Path(p) for p in frames]
    present = dict(zip(numbers, frames, strict=True))
    parts = names[ordered[0][0]]
    width = len(parts[place])  # of the smallest number: zeros lead it, or none at all
    named = {
        n: os.path.join(path, "".join([*parts[:place], str(n).zfill(width), *parts[place + 1 :]])) for n in missing
    }
    return [Path(p) for _, p in sorted((present | named).items())]


def _matching(path: Path) -> list[str]:
    """Files of a glob; a folder that is there is taken by its name, which may have brackets."""
    folder = str(path.parent)
    return glob.glob(os.path.join(glob.escape(folder) if path.parent.is_dir() else folder, path.name))


def _in_folder(path: Path) -> list[str]:
    try:
        return [os.path.join(path, name) for name in os.listdir(path) if not name.startswith(".")]
    except OSError as error:
        raise UserError(f"can't list {path}: {error.strerror}; ask its owner for read permission") from None


def _order(names: list[list[str]], place: int, path: Path) -> list[tuple[int, int]]:
    """Position and number of each name (cut into text, digits, text, …), ordered by the number at `place`."""
    series: dict[str, int] = {}
    numbers = []
    for parts in names:
        counted = len(parts) > 1
        name = "".join([*parts[:place], "*", *parts[place + 1 :]]) if counted else parts[0]
        series[name] = series.get(name, 0) + 1
        numbers.append(int(parts[place]) if counted else -1)
    if len(series) > 1:
        listed = ", ".join(f"{name} ({n})" for name, n in sorted(series.items(), key=lambda item: -item[1])[:4])
        more = "" if len(series) <= 4 else f" and {len(series) - 4} more"
        best = max(series, key=series.__getitem__)
        raise UserError(f"{path} holds {len(series)} series of frames: {listed}{more}; name one, such as {best!r}")
    return sorted(enumerate(numbers), key=lambda item: item[1])


def _counting_place(names: list[list[str]]) -> int:
    """Where, from the end, the number stands that differs among the names: not the 16 of ``run_0007_16bit.tif``."""
    if len({len(parts) for parts in names}) == 1:
        for place in range(-2, -len(names[0]), -2):
            if len({parts[place] for parts in names}) > 1:
                return place
    return -2


def _refuse_twice(frames: list[str], numbers: list[int]) -> None:
    for i, (number, following) in enumerate(pairwise(numbers)):
        if number == following:
            raise UserError(f"{frames[i]} and {frames[i + 1]} bear the same number; remove one of them")


def _find_gaps(frames: list[str], numbers: list[int], *, refuse: bool) -> list[int]:
    """The numbers that are missing, where the others rise by equal steps."""
    steps = [b - a for a, b in pairwise(numbers)]
    usual, missing = min(steps, default=0), []
    for i, step in enumerate(steps):
        if step == usual:
            continue
        told = (
            f"frames are missing: {frames[i]} is followed by {os.path.basename(frames[i + 1])}, where the numbers "
            f"rise by {usual} elsewhere"
        )
        if refuse:
            raise BadFrame(told, "copy them again, or name the frames to read with a glob")
        if step % usual or len(missing) + step // usual > len(frames):
            raise UserError(f"{told}, too irregular to tell which; name the frames to read with a glob")
        missing += range(numbers[i] + usual, numbers[i + 1], usual)
    return missing

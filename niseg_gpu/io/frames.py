"""Which files of a folder are the frames of a run, and in what order."""

from __future__ import annotations

import glob
import logging
import re
from pathlib import Path

from niseg_gpu.errors import UserError

FITS = (".fits", ".fit", ".fts")
TIFF = (".tif", ".tiff")

log = logging.getLogger(__name__)


def list_frames(path: str | Path) -> list[Path]:
    """Return the frames of a folder or glob, ordered by the last number in their names.

    Summed images (``*SummedImg*``) and hidden files are left out. A folder that holds both FITS and TIFF,
    several series, or a series with missing numbers is refused with what to name instead.

    Raises
    ------
    UserError
        No frame, or more than one reading of what the frames are.
    """
    path = Path(path)
    whole_folder = path.is_dir()
    if whole_folder:
        found = [p for p in path.iterdir() if p.suffix.lower() in FITS + TIFF and not p.name.startswith(".")]
    else:
        found = [Path(p) for p in glob.glob(str(path))]
    frames = [p for p in found if "summed" not in p.name.lower()]
    if len(frames) < len(found):
        log.info("left out %d summed image(s) of %s", len(found) - len(frames), path)
    if not frames:
        what = "holds no FITS or TIFF frame" if whole_folder else "matches no file"
        raise UserError(f"{path} {what}; name a folder, file or glob of .fits or .tif frames")
    _refuse_mixture(frames, path)
    frames.sort(key=lambda p: (_number(p), p.name))
    if whole_folder:
        _refuse_gaps(frames)
    return frames


def _series(path: Path) -> str:
    """The name without its last number: what the frames of one run share."""
    return re.sub(r"\d+(?=\D*$)", "*", path.name)


def _number(path: Path) -> int:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else -1


def _refuse_mixture(frames: list[Path], path: Path) -> None:
    series: dict[str, int] = {}
    for frame in frames:
        series[_series(frame)] = series.get(_series(frame), 0) + 1
    if len(series) > 1:
        listed = ", ".join(f"{name} ({n})" for name, n in sorted(series.items(), key=lambda item: -item[1])[:4])
        more = "" if len(series) <= 4 else f" and {len(series) - 4} more"
        best = max(series, key=series.__getitem__)
        raise UserError(f"{path} holds {len(series)} series of frames: {listed}{more}; name one, such as {best!r}")


def _refuse_gaps(frames: list[Path]) -> None:
    numbers = [_number(p) for p in frames]
    steps = [b - a for a, b in zip(numbers, numbers[1:], strict=False)]
    if not steps:
        return
    usual = min(steps)
    if usual == 0:
        twice = steps.index(0)
        raise UserError(f"{frames[twice]} and {frames[twice + 1].name} bear the same number; remove one of them")
    for i, step in enumerate(steps):
        if step != usual:
            missing = step // usual - 1
            raise UserError(
                f"{missing} frame(s) are missing after {frames[i]} (next is {frames[i + 1].name}); copy them again, "
                "or name the frames to read with a glob"
            )

"""Frames that can't be used: noting them when a run is opened, and leaving them out or filling them in."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.source import Source

CHOICES = ("error", "skip", "interpolate")
SHOWN = 5  # names of bad frames in one line
OURS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what the machine has no more of says nothing of a file


class BadFrame(UserError):
    """What is wrong with one frame of several.

    Attributes
    ----------
    fault : str
        The file and what is wrong with it, without what to do.
    """

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(f"{fault}; {remedy}")
        self.fault = " ".join(fault.split())

    def __reduce__(self) -> tuple[Any, ...]:
        return BadFrame, (self.fault, str(self)[len(self.fault) + 2 :])


def unreadable(path: Any, error: OSError, remedy: str = "check the path and its permissions") -> UserError:
    """What to raise where a file can't be opened or read."""
    what = f"can't read {path}: {error.strerror or error}"
    return UserError(f"{what}; close other programs") if error.errno in OURS else BadFrame(what, remedy)


class Faults:
    """Faults of single frames: raised at once, or noted by the number of the frame.

    Parameters
    ----------
    note : bool
    """

    def __init__(self, *, note: bool = False) -> None:
        self.note = note
        self.found: dict[int, BadFrame] = {}

    def add(self, frame: int, fault: BadFrame) -> None:
        """Note what is wrong with a frame, or raise it; the first fault of a frame stays."""
        if not self.note:
            raise fault
        self.found.setdefault(frame, fault)

    def hold(self, kinds: Sequence[Hashable], files: Sequence[Any], *, first: str) -> Any:
        """Hold every frame's kind (shape, type, ...; None: unknown) against that of the others, and return theirs.

        Against that of the first frame, which is called `first`, where faults are raised; where they are noted, against
        that of most. A kind's text tells the user what it is.
        """
        known = [kind for kind in kinds if kind is not None]
        if not known:
            raise self.found[min(self.found)]
        kind = Counter(known).most_common(1)[0][0] if self.note else known[0]
        others = "most others are" if self.note else f"the first frame {first} is"
        remedy = "all frames must be alike: remove it or name the frames with a glob"
        for i in (i for i, k in enumerate(kinds) if k is not None and k is not kind and k != kind):
            self.add(i, BadFrame(f"{files[i]} is {kinds[i]}, {others} {kind}", remedy))
        return kind

    def check_number(self, path: Any, n_frames: int) -> None:
        """Refuse a run that is bad for the most part."""
        if 2 * len(self.found) > n_frames:
            raise UserError(
                f"{path}: {len(self.found)} of {n_frames} frames are bad, the first: {self.found[min(self.found)]}; at "
                "most half of the frames may be left out or filled in"
            )


def check_choice(choice: str) -> None:
    """Refuse what is not among `CHOICES`."""
    if choice not in CHOICES:
        raise UserError(f"bad_frames is {choice!r}; allowed: {', '.join(CHOICES)}")


def has_frames(source: Source) -> bool:
    """Whether each entry of the first axis has a file of its own."""
    return len(set(source.files)) > 1


def need_frames(choice: str, sources: Iterable[Source]) -> None:
    """Refuse to skip or fill in bad frames where no input has files of its own for them."""
    sources = list(sources)
    if choice != "error" and not any(map(has_frames, sources)):
        raise UserError(
            f"bad_frames is {choice}, but {sources[0].files[0]} is one file, which is good or bad as a whole; allowed "
            "for folders and globs of FITS or TIFF frames: leave it at error"
        )


def treat_bad_frames(source: Source, *, choice: str, beside: Iterable[int] = ()) -> Source:
    """Leave the bad frames of a source out, or put the mean of their neighbours in their place.

    Parameters
    ----------
    source : Source
        With its ``faults``.
    choice : {"skip", "interpolate"}
    beside : iterable of int
        Frames to be left out too, for another stack that goes with this one has lost them.

    Returns
    -------
    Source
        Skipped: without these frames, their coordinates and their part of the shutter windows; ``bins_left_out`` in
        the attributes says which ToF bins went. Interpolated: a frame is the mean of the nearest good frames before and
        after it, in the type of the file, halves rounded to even; where its shutter window has good frames on one side
        only, it is the nearest of them.

    Raises
    ------
    UserError
        No frame would be left, or a shutter window has no good one.
    """
    bad = sorted(source.faults if choice == "interpolate" else {*source.faults, *beside})
    if not bad:
        return source
    told = {"bad_frames": [source.faults[i] for i in sorted(source.faults)]} if source.faults else {}
    treated = _fill_in(source, bad) if choice == "interpolate" else _leave_out(source, bad)
    return replace(treated, attrs={**treated.attrs, **told}, faults={})


def tell_bad_frames(source: Source, *, choice: str, beside: Iterable[int] = ()) -> dict[str, int]:
    """What `treat_bad_frames` does, as findings: how many frames, and the first of their names."""
    if not source.faults and not beside:
        return {}
    did = "left out" if choice == "skip" else "filled in from their neighbours"
    told = {}
    if source.faults:
        faults = [source.faults[i] for i in sorted(source.faults)]
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        told[f"bad frames {did}: {'; '.join(faults[:SHOWN])}{more}"] = len(faults)
    along = sorted(set(beside) - set(source.faults))
    if along:
        numbers = ", ".join(map(str, along[:SHOWN])) + (", ..." if len(along) > SHOWN else "")
        told[f"frames left out, for they are bad in what goes with them: {numbers}"] = len(along)
    return told


def _leave_out(source: Source, bad: Sequence[int]) -> Source:
    n, gone = len(source.files), set(bad)
    kept = [i for i in range(n) if i not in gone]
    if not kept:
        raise UserError(f"{source.files[0]}: no frame would be left; copy the files again")
    attrs = dict(source.attrs)
    if source.dims is not None and source.dims[0] == "tof":
        attrs |= {"bins_left_out": list(bad)} | _shrink_windows(attrs, gone)
    return replace(
        source,
        array=source.array.take(kept),
        files=tuple(source.files[i] for i in kept),
        coords={name: np.asarray(values)[kept] for name, values in source.coords.items()},
        attrs=attrs,
    )


def _shrink_windows(attrs: Mapping[str, Any], gone: set[int]) -> dict[str, Any]:
    """The shutter windows without some bins; no triggers where a lost bin came before others of its window.

    Its counts blinded pixels in the later ones, and overlap correction would not know.
    """
    counts, windows, kept_counts, start, whole = attrs.get("shutter_counts"), [], [], 0, True
    for number, (first, last) in enumerate(attrs.get("shutter_windows") or ()):
        inside = [i for i in range(first, last + 1) if i not in gone]
        if not inside:
            continue
        whole = whole and inside == list(range(first, inside[-1] + 1))
        windows.append([start, start + len(inside) - 1])
        start += len(inside)
        kept_counts += counts[number : number + 1] if counts else []
    found: dict[str, Any] = {"shutter_windows": windows} if windows else {}
    if counts:
        found["shutter_counts"] = kept_counts if whole else None
    if triggers := attrs.get("bin_triggers"):
        found["bin_triggers"] = [t for i, t in enumerate(triggers) if i not in gone]
    return found


def _fill_in(source: Source, bad: Sequence[int]) -> Source:
    n, gone = len(source.files), set(bad)
    windows = source.attrs.get("shutter_windows") or [[0, n - 1]]
    good, fills = list(range(n)), {}
    for first, last in windows:
        inside = np.array([i for i in range(first, last + 1) if i not in gone])
        for i in (i for i in bad if first <= i <= last):
            if not len(inside):
                raise UserError(
                    f"bad_frames: interpolate finds no good frame in the shutter window of bins {first} to {last}: "
                    f"{source.faults[i]}; copy its files again, or use bad_frames: skip"
                )
            before, after = inside[inside < i], inside[inside > i]
            good[i] = int(before[-1] if len(before) else after[0])
            if len(before) and len(after):
                fills[i] = int(after[0])
    return replace(source, array=FilledFrames(source.array.take(good), fills))


class FilledFrames:
    """Frames of which some are the mean of two others.

    Parameters
    ----------
    frames : LazyArray
        With the good frame before each of the bad ones, or the only near one, in its place.
    after : mapping of int to int
        By bad frame, the good one whose mean with it is taken.
    """

    def __init__(self, frames: Any, after: Mapping[int, int]) -> None:
        self.frames, self.after = frames, dict(after)
        self.shape, self.ndim, self.dtype = frames.shape, len(frames.shape), np.dtype(frames.dtype)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        frames = range(self.shape[0])[key[0]]
        out = self.frames[key]
        for target, frame in enumerate(frames):
            if frame in self.after:
                other = self.after[frame]
                out[target] = mean_of(out[target], self.frames[(slice(other, other + 1), *key[1:])][0])
        return out


def mean_of(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the mean of two arrays in their own type: of integers without overflow, halves rounded to even."""
    if a.dtype.kind == "f":
        return a * a.dtype.type(0.5) + b * b.dtype.type(0.5)
    low = (a & b) + ((a ^ b) >> 1)
    return low + (low & (a ^ b) & 1)

"""The file that lets a run go on: how far it was, what it had counted, and of which run it is."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.pipeline.results import to_json

if TYPE_CHECKING:
    from niseg_gpu.pipeline.parse import Pipeline
    from niseg_gpu.pipeline.run import Session

CHECKPOINT = "checkpoint.npz"
RESULTS = "result.zarr"  # beside it
BLOCKWISE = re.compile(r"image|spots(_\d+)?")  # arrays in it that blocks are written to
SHUTTERS = ("shutter_windows", "shutter_counts", "bin_triggers")
ADVICE = "resume with what it began with, or begin anew with --overwrite"


class BrokenRun(UserError):
    """What an unfinished run has left can't be gone on with."""


class Checkpoint:
    """A file with arrays and what is said about them, replaced whole.

    Parameters
    ----------
    path : Path
    of : mapping
        What tells this run from another, by words for it; JSON must know it. Stamps of files stand under ``files``.
    frames : int
        How many frames lie in files of their own, the first under ``files``; 0 where they share files.

    Raises
    ------
    UserError
        The file is there and broken, or of another run, or what blocks have written is no more as it was.
    """

    def __init__(self, path: Path, *, of: Mapping[str, Any], frames: int = 0) -> None:
        self.path, self.results = path, path.with_name(RESULTS)
        self.of = json.loads(json.dumps(of, default=to_json), parse_constant=str)  # NaN is like NaN
        self._cut: dict[str, Any] = {}
        self.about, self._arrays = self._read()
        if self.about is not None:
            self._check(self.about, frames)
            _check_written(self.results, self.about.get("written", {}))

    def exists(self) -> bool:
        return self.path.exists()

    def describe(self, *, parts: int, axis: int, halo: int, starts: list[int]) -> None:
        """Say how the stack is cut; refuse to go on with blocks that were cut otherwise."""
        self._cut = {"parts": parts, "axis": axis, "halo": halo, "starts": starts}
        if self.about is not None and any(self.about[name] != value for name, value in self._cut.items()):
            raise UserError(f"the unfinished run is cut into other blocks; {ADVICE}")

    def load(self) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """What the last `save` of an earlier run said, and its arrays; None where there was none."""
        return None if self.about is None else (self.about, self._arrays)

    def save(self, arrays: Mapping[str, np.ndarray], **about: Any) -> None:
        """Write the state in the place of the one before."""
        whole = {"of": self.of, "written": _list_written(self.results), **self._cut, **about}
        text = json.dumps(whole, default=to_json)
        partial = self.path.with_name(f"{self.path.name}.partial")
        try:
            with open(partial, "wb") as file:
                np.savez(file, about=np.frombuffer(text.encode(), np.uint8), **arrays)
            os.replace(partial, self.path)
        except OSError:
            partial.unlink(missing_ok=True)  # of a full disk
            raise

    def _read(self) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
        if not self.exists():
            return None, {}
        try:
            with open(self.path, "rb") as file, np.load(file) as stored:  # NumPy leaves a broken one open
                arrays = {name: stored[name] for name in stored.files}
            about = json.loads(arrays.pop("about").tobytes(), parse_constant=str)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{self.path} is broken (no checkpoint can be read from it); begin anew with --overwrite"
            ) from error
        return about, arrays

    def _check(self, about: Mapping[str, Any], frames: int) -> None:
        before, now = dict(about["of"]), dict(self.of)
        stamps_before, stamps = before.pop("files"), now.pop("files")
        for word in now:
            if before.get(word) != now[word]:
                raise UserError(f"the unfinished run began with {_tell(word, before.get(word), now[word])}; {ADVICE}")
        if frames and about["axis"] == -3:  # what was not read may have been mended since
            starts, halo, names = about["starts"], about["halo"], list(stamps)
            stops = [*starts[1:], frames]
            seen = {name for i in about["done"] for name in names[max(0, starts[i] - halo) : stops[i] + halo]}
            stamps = {name: stamp for name, stamp in stamps.items() if name in seen or name in names[frames:]}
        changed = [name for name, stamp in stamps.items() if stamps_before.get(name) != stamp]
        if changed:
            more = f" and {len(changed) - 1} more files" if len(changed) > 1 else ""
            raise UserError(f"{changed[0]}{more} changed after the run began; begin anew with --overwrite")


def identify_run(session: Session, uses: Mapping[str, str]) -> dict[str, Any]:
    """Tell what the results of a run depend on; `uses` says by what each step is computed."""
    mapping = session.pipeline.as_mapping()
    return {
        "niseg-gpu": importlib.metadata.version("niseg-gpu"),
        "input": _settle(mapping["input"], Path.cwd()),
        "steps": _settle(mapping["steps"], Path.cwd()),
        "output arrays": sorted(mapping["output"]["arrays"]),
        "kernels": dict(uses),
        "times and shutters": _tell_axes(session),
        "files": {os.path.abspath(name): _stamp(Path(name)) for name in _files_of(session)},
    }


def _tell_axes(session: Session) -> dict[str, Any]:
    """What the text files beside the frames, or the frames themselves, say of the axes."""
    stacks, told = {"sample": session.inputs.sample, **session.inputs.references}, {}
    for name, stack in stacks.items():
        if stack is not None:
            axes = {str(axis): values.values.tolist() for axis, values in stack.coords.items()}
            told[name] = axes | {key: stack.attrs[key] for key in SHUTTERS if stack.attrs.get(key)}
    return told


def stamp_step_files(pipeline: Pipeline) -> dict[str, list[int] | None]:
    """Size and time of the last change of each file that steps name, as the record of a run keeps them."""
    return {os.path.abspath(name): _stamp(Path(name)) for name in _files_of_steps(pipeline) if Path(name).is_file()}


def check_finished(record: Path, pipeline: Pipeline) -> None:
    """Refuse to take a finished run for that of a pipeline which is another one, or of models that changed since.

    Files that are gone meanwhile are not missed: nothing is to be computed.
    """
    advice = "give another name, or replace it with --overwrite"
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        before, folder = found["pipeline"], Path(found["working_folder"])
        kept, stamps = set(before["output"]["arrays"]), dict(found.get("step_files", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{record.parent} exists, and {record.name} in it does not tell of which run; {advice}"
        ) from None
    asked = json.loads(json.dumps(pipeline.as_mapping(), default=to_json))
    for word in ("input", "steps"):
        one, other = _settle(before.get(word), folder), _settle(asked[word], Path.cwd())
        if one != other:
            raise UserError(f"{record.parent} exists and is of a pipeline with {_tell(word, one, other)}; {advice}")
    if not set(asked["output"]["arrays"]) <= kept:
        raise UserError(f"{record.parent} exists and keeps fewer arrays; {advice}")
    for name, stamp in stamps.items():
        if _stamp(Path(name)) not in (None, stamp):
            raise UserError(f"{record.parent} exists, and {name} changed after that run began; {advice}")


def _settle(value: Any, folder: Path) -> Any:
    """The same with the names of what there is, relative to a folder, made whole."""
    if isinstance(value, dict):
        value = {key: _settle(each, folder) for key, each in value.items()}
        if isinstance(value.get("images"), dict):  # by their names
            value["images"] = {_settle(name, folder): weight for name, weight in value["images"].items()}
        return value
    if isinstance(value, list):
        return [_settle(each, folder) for each in value]
    if isinstance(value, str) and value and os.path.exists(folder / value):
        return os.path.abspath(folder / value)
    return value


def _tell(word: str, before: Any, now: Any) -> str:
    """The first value below `word` that differs, and both."""
    while isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        key = next(key for key in now if before[key] != now[key])
        word, before, now = f"{word}.{key}", before[key], now[key]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pair = next((b, n) for b, n in zip(before, now, strict=True) if b != n)
        return _tell(word, *pair)
    return f"{word} {_shorten(before)}, not {_shorten(now)}"


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _files_of(session: Session) -> Iterator[str]:
    """Files that are read, those of the sample's frames first and in their order; and those that steps name."""
    for stack in (session.inputs.sample, session.inputs.open_beam, session.inputs.dark):
        if stack is not None:
            yield from map(str, dict.fromkeys(stack.attrs.get("files", ())))
    yield from _files_of_steps(session.pipeline)


def _files_of_steps(pipeline: Pipeline) -> Iterator[str]:
    """Models, masks and images that steps name, and what is in those that are folders."""
    for step in pipeline.steps:
        for value in step.parameters.values():
            for name in value if isinstance(value, dict) else [value]:
                if isinstance(name, str | Path) and Path(name).exists():
                    yield str(name)
                    yield from map(str, sorted(p for p in Path(name).rglob("*") if p.is_file()))


def _list_written(results: Path) -> dict[str, int]:
    """The sizes of the files that hold what blocks have written, by their names in the folder of arrays."""
    sizes = {}
    names = os.listdir(results) if results.is_dir() else []
    for name in filter(BLOCKWISE.fullmatch, names):
        for folder, _, files in os.walk(results / name):
            for file in (Path(folder, each) for each in files if not each.endswith(".partial")):
                sizes[file.relative_to(results).as_posix()] = file.stat().st_size
    return sizes


def _check_written(results: Path, sizes: Mapping[str, int]) -> None:
    """Refuse to go on where a file that blocks have written is gone or broken, as after a crash of a disk."""
    for name, size in {"zarr.json": None, **sizes}.items():
        found = _stamp(results / name)
        if found is None or size not in (None, found[0]):
            what = "is missing" if found is None else f"has {found[0]} bytes, not {size}"
            raise UserError(f"{results / name} of the unfinished run {what}; begin anew with --overwrite")
        if name.endswith(".json") and not _is_json(results / name):
            raise UserError(f"{results / name} of the unfinished run is broken; begin anew with --overwrite")


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _stamp(path: Path) -> list[int] | None:
    """Size and time of the last change."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]

"""Opening what a pipeline reads: the sample, the open beam and the dark current."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from niseg_gpu.errors import UserError
from niseg_gpu.io.ahead import read_ahead
from niseg_gpu.io.bad import BadFrame, has_frames, need_frames, tell_bad_frames, treat_bad_frames
from niseg_gpu.io.open import HDF5, as_stack, open_source, split_inner
from niseg_gpu.pipeline.clock import Clock, Clocked
from niseg_gpu.pipeline.parse import Input

if TYPE_CHECKING:
    import xarray as xr

    from niseg_gpu.io.source import Source

REMEDY = "bad_frames: skip or interpolate (--bad-frames interpolate)"

log = logging.getLogger("niseg_gpu")


@dataclass(frozen=True)
class Inputs:
    """Lazy stacks; a reference that was not given is None. Of what stays in memory once read, `kept` has the bytes."""

    sample: xr.DataArray
    open_beam: xr.DataArray | None = None
    dark: xr.DataArray | None = None
    kept: Mapping[str, int] = field(default_factory=dict)

    @property
    def references(self) -> dict[str, Any]:
        return {"open_beam": self.open_beam, "dark": self.dark}

    @property
    def nbytes(self) -> int:
        """Of all of them together."""
        return sum(stack.nbytes for stack in self._given)

    @property
    def bad_frames(self) -> list[str]:
        """File and fault of all frames that were skipped or filled in."""
        return [told for stack in self._given for told in stack.attrs.get("bad_frames", ())]

    @property
    def _given(self) -> list[xr.DataArray]:
        return [stack for stack in (self.sample, self.open_beam, self.dark) if stack is not None]


def open_inputs(spec: Input, *, clock: Clock, reading: bool = False) -> Inputs:
    """Open all inputs; an NXtomo file brings its own open beam and dark current.

    No data are read (but for compressed frames that may be bad); where they soon will be, the system is told
    (`reading`). What is done about bad frames is among the findings of `clock`.
    """
    with _advising():
        sources = _open_sources(spec)
    if reading:
        read_ahead(dict.fromkeys(name for source in sources.values() for name in source.files))
    stacks, kept = {}, dict[str, int]()
    for name, source in _treat(sources, spec, clock=clock).items():
        dims = spec.dims if name == "sample" or len(spec.dims or ()) == len(source.array.shape) else None
        read = _Advised if spec.bad_frames == "error" and has_frames(source) else Clocked
        clocked = replace(source, array=read(source.array, clock))
        # one chunk: each block then reads its own part, and nothing twice
        stack = as_stack(clocked, dims=dims, chunks=(-1,) * len(source.array.shape))
        stacks[name] = stack.assign_attrs(role=name)
        if how := getattr(source.array, "kept", ""):
            kept[how] = kept.get(how, 0) + stack.nbytes
    return Inputs(**stacks, kept=kept)


def _open_sources(spec: Input) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    file, inner = split_inner(spec.path)
    if file.suffix.lower() in HDF5:
        from niseg_gpu.io.hdf5 import is_nxtomo, open_nxtomo

        if is_nxtomo(file, inner):
            sources = open_nxtomo(file, inner)
    if "sample" not in sources:
        sources["sample"] = _open(spec.path, spec)
    for name in ("open_beam", "dark"):
        path = getattr(spec, name)
        if path is not None:
            sources[name] = _open(path, spec)
    return sources


def _open(path: str, spec: Input) -> Source:
    return open_source(path, unsigned=spec.unsigned, tof=spec.tof, bad_frames=spec.bad_frames)


def _treat(sources: Mapping[str, Source], spec: Input, *, clock: Clock) -> dict[str, Source]:
    """Do about bad frames what was chosen; a ToF bin that one run has lost is left out of those beside it too."""
    choice = spec.bad_frames
    need_frames(choice, sources.values())
    if choice == "error":
        return dict(sources)
    runs = [name for name, source in sources.items() if _has_bins(source, sources["sample"], spec)]
    lost = {frame for name in runs for frame in sources[name].faults} if choice == "skip" else set()
    treated = {}
    for name, source in sources.items():
        beside = lost if name in runs else ()
        step = "input" if name == "sample" else f"{name.replace('_', ' ')}: input"
        clock.add_findings(step, found := tell_bad_frames(source, choice=choice, beside=beside))
        for what, number in found.items():
            log.warning("%s: %d %s", step, number, what)
        treated[name] = treat_bad_frames(source, choice=choice, beside=beside)
    return treated


def _has_bins(source: Source, sample: Source, spec: Input) -> bool:
    """Whether the frames of a source are the ToF bins of the sample."""
    return (
        (spec.dims or source.dims or ("",))[0] == "tof"
        and len(source.array.shape) == 3
        and source.array.shape[0] == sample.array.shape[0]
        and has_frames(source)
    )


@contextmanager
def _advising() -> Iterator[None]:
    """Tell of the choice one has where a frame is bad."""
    try:
        yield
    except BadFrame as fault:
        raise UserError(f"{fault}; or go on without it with {REMEDY}") from None


class _Advised(Clocked):
    """A clocked array that tells of the choice one has where a frame turns out to be bad."""

    def __getitem__(self, key: Any) -> Any:
        with _advising():
            return super().__getitem__(key)

"""Opening what a pipeline reads: the sample, the open beam and the dark current."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from niseg_gpu.io.ahead import read_ahead
from niseg_gpu.io.open import HDF5, as_stack, open_source, split_inner
from niseg_gpu.pipeline.clock import Clock, Clocked
from niseg_gpu.pipeline.parse import Input

if TYPE_CHECKING:
    import xarray as xr

    from niseg_gpu.io.source import Source


@dataclass(frozen=True)
class Inputs:
    """Lazy stacks; a reference that was not given is None."""

    sample: xr.DataArray
    open_beam: xr.DataArray | None = None
    dark: xr.DataArray | None = None

    @property
    def references(self) -> dict[str, Any]:
        return {"open_beam": self.open_beam, "dark": self.dark}

    @property
    def nbytes(self) -> int:
        """Of all of them together."""
        return sum(stack.nbytes for stack in (self.sample, self.open_beam, self.dark) if stack is not None)


def open_inputs(spec: Input, *, clock: Clock, reading: bool = False) -> Inputs:
    """Open all inputs; an NXtomo file brings its own open beam and dark current.

    No data are read; where they soon will be, the system is told (`reading`).
    """
    sources: dict[str, Source] = {}
    file, inner = split_inner(spec.path)
    if file.suffix.lower() in HDF5:
        from niseg_gpu.io.hdf5 import is_nxtomo, open_nxtomo

        if is_nxtomo(file, inner):
            sources = open_nxtomo(file, inner)
    if "sample" not in sources:
        sources["sample"] = open_source(spec.path, unsigned=spec.unsigned, tof=spec.tof)
    for name in ("open_beam", "dark"):
        path = getattr(spec, name)
        if path is not None:
            sources[name] = open_source(path, unsigned=spec.unsigned, tof=spec.tof)
    if reading:
        read_ahead(dict.fromkeys(name for source in sources.values() for name in source.files))
    stacks = {}
    for name, source in sources.items():
        dims = spec.dims if name == "sample" or len(spec.dims or ()) == len(source.array.shape) else None
        clocked = replace(source, array=Clocked(source.array, clock))
        # one chunk: each block then reads its own part, and nothing twice
        stack = as_stack(clocked, dims=dims, chunks=(-1,) * len(source.array.shape))
        stacks[name] = stack.assign_attrs(role=name)
    return Inputs(**stacks)

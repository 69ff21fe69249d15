"""TIFF frames and multi-page TIFF: raw bytes where they are uncompressed, Tifffile's decoders elsewhere."""

from __future__ import annotations

import itertools
import json
import math
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.backend import count_cores
from niseg_gpu.errors import UserError
from niseg_gpu.io.bad import BadFrame, Faults, unreadable
from niseg_gpu.io.raw import RawFrames
from niseg_gpu.io.source import Source
from niseg_gpu.stack import UNITS

# what Tifffile and its decoders raise on broken files (TiffFileError is a ValueError)
BROKEN = (ValueError, IndexError, KeyError, TypeError, RuntimeError, struct.error, zlib.error)


class DecodedFrames:
    """Compressed or tiled TIFF frames; each is decoded whole whenever part of it is asked for."""

    def __init__(self, paths: list[str], *, pages: list[int], frame_shape: tuple[int, int], dtype: np.dtype) -> None:
        self.paths, self.pages = tuple(paths), tuple(pages)
        self.shape, self.ndim, self.dtype = (len(paths), *frame_shape), 3, np.dtype(dtype)

    def take(self, frames: Sequence[int]) -> DecodedFrames:
        """Return an array of some frames, in that order."""
        paths, pages = ([all_[i] for i in frames] for all_ in (self.paths, self.pages))
        return DecodedFrames(paths, pages=pages, frame_shape=self.shape[1:], dtype=self.dtype)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        frames = range(self.shape[0])[key[0]]
        out = np.empty([len(range(n)[k]) for n, k in zip(self.shape, key, strict=True)], self.dtype)
        for path, group in itertools.groupby(zip(out, frames, strict=True), key=lambda pair: self.paths[pair[1]]):
            self._decode(path, group, key[1:])
        return out

    def _decode(self, path: str, group: Any, part: tuple[slice, ...]) -> None:
        import tifffile

        try:
            with tifffile.TiffFile(path) as tiff:
                for target, frame in group:
                    page = tiff.pages[self.pages[frame]]
                    _check_end(page, Path(path))
                    if page.shape != self.shape[1:]:
                        raise BadFrame(f"{path} has changed since it was opened", "open it again")
                    target[...] = page.asarray(maxworkers=1)[part]  # Dask's threads decode side by side already
        except OSError as error:
            raise unreadable(path, error, "was it moved since the run began?") from None
        except ImportError as error:  # some decoders are looked for only when they are used
            raise UserError(
                f"{path} needs imagecodecs ({error}); install it, or save the frames uncompressed"
            ) from None
        except BROKEN as error:
            raise BadFrame(f"{path} can't be decoded ({error})", "copy the file again") from None


def open_tiff(paths: list[Path], *, faults: Faults | None = None) -> Source:
    """Open a folder's TIFF frames, or the pages of one TIFF, lazily.

    Parameters
    ----------
    paths : list of Path
    faults : Faults, optional
        Where to note what is wrong with one of several frames; it is raised by default. To find what only shows then,
        compressed frames are decoded once.

    Raises
    ------
    UserError
        A file that is missing, empty, no TIFF, truncated, coloured, or different from the first frame.
    """
    faults, alone = faults or Faults(), len(paths) == 1
    files, pages, found = [], [], []
    for i, path in enumerate(paths):
        layouts: list[Any] = [None]
        try:
            layouts = _read_pages(path, alone=alone)
        except BadFrame as fault:
            faults.add(i, fault)
        files += [str(path)] * len(layouts)
        pages += range(len(layouts))
        found += layouts
    names = [f"{path} page {page}" for path, page in zip(files, pages, strict=True)] if alone else files
    kinds = [layout and _describe(layout) for layout in found]
    faults.hold(kinds, names, first="" if alone else paths[0].name)
    good = [layout for i, layout in enumerate(found) if i not in faults.found]
    shape, dtype = good[0]["alike"]
    raw = all(layout["offset"] is not None and layout["stored"] == good[0]["stored"] for layout in good)
    if raw:
        offsets = [0 if layout is None else layout["offset"] for layout in found]
        array = RawFrames(files, offsets=offsets, frame_shape=shape, stored=good[0]["stored"])
    else:
        array = DecodedFrames(files, pages=pages, frame_shape=shape, dtype=np.dtype(dtype))
        if faults.note:
            _decode_all(array, faults)
    kept = good[0]["kept"]
    block = (1, 1, shape[1]) if raw else (1, *shape)
    dims = tuple(kept["dims"]) if len(kept.get("dims", ())) == 3 else None
    coords = {
        name: np.asarray(coord["values"], dtype=float)
        for name, coord in kept.get("coords", {}).items()
        if name in UNITS and len(coord["dims"]) == 1
    }
    return Source(array, tuple(files), dims=dims, block=block, coords=coords, attrs=kept.get("attrs", {}))


def _decode_all(array: DecodedFrames, faults: Faults) -> None:
    """Note which frames can't be decoded."""

    def decode(frame: int) -> None:
        try:
            array[frame : frame + 1, :, :]
        except BadFrame as fault:
            faults.add(frame, fault)

    with ThreadPoolExecutor(count_cores()) as threads:
        list(threads.map(decode, [i for i in range(array.shape[0]) if i not in faults.found]))


def _describe(layout: dict[str, Any]) -> str:
    shape, dtype = layout["alike"]
    return f"{'x'.join(map(str, shape))} {dtype}"


def _read_pages(path: Path, *, alone: bool) -> list[dict[str, Any]]:
    import tifffile

    try:
        if path.stat().st_size == 0:
            raise BadFrame(f"{path} is empty (0 bytes)", "copy the file again or remove it")
        with tifffile.TiffFile(path) as tiff:
            if not alone:
                if len(tiff.pages) > 1:
                    raise BadFrame(f"{path} holds {len(tiff.pages)} pages among single frames", "read it on its own")
                return [_page_layout(tiff.pages[0], {}, path)]
            _check_chain(tiff, path)
            kept = _own_description(tiff)
            first = _page_layout(tiff.pages[0], kept, path)
            series = tiff.series[0]
            if series.ndim > 3:
                raise UserError(
                    f"{path} holds a stack of {series.ndim} axes ({series.axes}, {series.shape}); allowed: 3; "
                    "save one of its stacks to a file of its own"
                )
            if len(tiff.pages) == 1 and (count := _count_unlisted(tiff, series)) > 1:
                return _contiguous_pages(first, count, path)
            return [first, *(_page_layout(page, kept, path) for page in tiff.pages[1:])]
    except OSError as error:
        raise unreadable(path, error) from None
    except BROKEN as error:
        raise BadFrame(f"{path} is not a whole TIFF file ({error})", "copy it again or remove it") from None


def _page_layout(page: Any, kept: dict[str, Any], path: Path) -> dict[str, Any]:
    import tifffile

    if len(page.shape) != 2 or page.dtype is None or page.dtype.kind not in "uif":
        raise BadFrame(
            f"{path} holds {page.shape} images of {page.dtype}",
            "allowed: grey ones, a number for each pixel; convert it",
        )
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression] if page.compression != 1 else None
        tifffile.TIFF.UNPREDICTORS[page.predictor] if page.predictor != 1 else None
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}; install it, or save the frames uncompressed") from None
    _check_end(page, path)
    raw = page.is_contiguous and page.predictor == 1 and page.fillorder == 1
    return {
        "alike": (page.shape, str(page.dtype)),
        "stored": page.dtype.newbyteorder(page.parent.byteorder),
        "offset": page.dataoffsets[0] if raw else None,
        "kept": kept,
    }


def _check_end(page: Any, path: Path) -> None:
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if page.is_contiguous:
        ends.append(page.dataoffsets[0] + page.nbytes)
    size = page.parent.filehandle.size
    if max(ends) > size:
        raise BadFrame(f"{path} is truncated: {size} bytes, its directory asks for {max(ends)}", "copy the file again")


def _check_chain(tiff: Any, path: Path) -> None:
    """Refuse a file whose list of pages breaks off: Tifffile only logs it, and frames would be missing."""
    count = len(tiff.pages)
    tiff.filehandle.seek(tiff.pages.next_page_offset)
    pointer = tiff.filehandle.read(tiff.tiff.offsetsize)
    if pointer.strip(b"\0") or len(pointer) < tiff.tiff.offsetsize:
        raise UserError(f"{path} is truncated: its list of pages breaks off after {count}; copy the file again")


def _count_unlisted(tiff: Any, series: Any) -> int:
    """Images of a file that lists one page: ImageJ lists no more of a stack over 4 GB."""
    told = tiff.imagej_metadata or {}
    return max(series.shape[0] if series.ndim == 3 else 1, math.prod(told.get(k, 1) for k in ("slices", "frames")))


def _contiguous_pages(first: dict[str, Any], count: int, path: Path) -> list[dict[str, Any]]:
    if first["offset"] is None:
        raise UserError(f"{path} lists 1 of its {count} images and is compressed; save it again, uncompressed")
    step = int(np.prod(first["alike"][0])) * first["stored"].itemsize
    need, size = first["offset"] + count * step, path.stat().st_size
    if size < need:
        raise UserError(f"{path} is truncated: {size} bytes, its {count} images ask for {need}; copy the file again")
    return [{**first, "offset": first["offset"] + i * step} for i in range(count)]


def _own_description(tiff: Any) -> dict[str, Any]:
    """Dims, coordinates and attributes that our own writer left in the file."""
    text = (tiff.imagej_metadata or {}).get("Info") or tiff.pages[0].description
    try:
        kept = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and kept.get("program") == "niseg_gpu" else {}

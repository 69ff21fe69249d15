"""TIFF frames and multi-page TIFF: raw bytes where they are uncompressed, Tifffile's decoders elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.raw import RawFrames
from niseg_gpu.io.source import Source
from niseg_gpu.stack import UNITS


class DecodedFrames:
    """Compressed or tiled TIFF frames; each is decoded whole whenever part of it is asked for."""

    def __init__(self, paths: list[str], *, pages: list[int], frame_shape: tuple[int, int], dtype: np.dtype) -> None:
        self.paths, self.pages = tuple(paths), tuple(pages)
        self.shape, self.ndim, self.dtype = (len(paths), *frame_shape), 3, np.dtype(dtype)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        import tifffile

        key = (*key, *[slice(None)] * (3 - len(key)))
        frames = range(self.shape[0])[key[0]]
        pieces = []
        for i in frames:
            try:
                pieces.append(tifffile.imread(self.paths[i], key=self.pages[i])[key[1:]])
            except (OSError, ValueError, RuntimeError) as error:
                raise UserError(f"{self.paths[i]} can't be decoded ({error}); copy the file again") from None
        return np.stack(pieces).astype(self.dtype, copy=False)


def open_tiff(paths: list[Path], *, unsigned: bool = False) -> Source:
    """Open a folder's TIFF frames, or the pages of one TIFF, lazily.

    Raises
    ------
    UserError
        A file that is missing, empty, no TIFF, truncated, coloured, or different from the first frame.
    """
    files, pages, found = [], [], []
    for path in paths:
        layouts = _read_pages(path, first_only=len(paths) > 1)
        for number, layout in enumerate(layouts):
            if found and layout["alike"] != found[0]["alike"]:
                raise UserError(
                    f"{path} page {number} is {_describe(layout)}, the first frame {Path(files[0]).name} is "
                    f"{_describe(found[0])}; all frames must be alike: remove it or name the frames with a glob"
                )
            files.append(str(path))
            pages.append(number)
            found.append(layout)
    shape, dtype = found[0]["alike"]
    raw = all(layout["offset"] is not None and layout["stored"] == found[0]["stored"] for layout in found)
    if raw:
        array = RawFrames(
            files,
            offsets=[layout["offset"] for layout in found],
            frame_shape=shape,
            stored=found[0]["stored"],
            unsigned=unsigned,
        )
    else:
        array = DecodedFrames(files, pages=pages, frame_shape=shape, dtype=np.dtype(dtype))
    kept = found[0]["kept"]
    block = (1, 1, shape[1]) if raw else (1, *shape)
    dims = tuple(kept["dims"]) if len(kept.get("dims", ())) == 3 else None
    coords = {
        name: np.asarray(coord["values"], dtype=float)
        for name, coord in kept.get("coords", {}).items()
        if name in UNITS and len(coord["dims"]) == 1
    }
    return Source(array, tuple(files), dims=dims, block=block, coords=coords, attrs=kept.get("attrs", {}))


def _describe(layout: dict[str, Any]) -> str:
    shape, dtype = layout["alike"]
    return f"{'x'.join(map(str, shape))} {dtype}"


def _read_pages(path: Path, *, first_only: bool) -> list[dict[str, Any]]:
    import tifffile

    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); copy the file again or remove it")
        with tifffile.TiffFile(path) as tiff:
            if first_only and len(tiff.pages) > 1:
                raise UserError(f"{path} holds {len(tiff.pages)} pages among single frames; read it on its own")
            kept = _own_description(tiff)
            series = tiff.series[0]
            if len(series.pages) < int(np.prod(series.shape[:-2])) and series.dataoffset is not None:
                return _contiguous_series(series, tiff.byteorder, kept, path)  # ImageJ stacks over 4 GB list one page
            return [_page_layout(page, tiff.byteorder, kept, path) for page in tiff.pages]
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from None
    except (tifffile.TiffFileError, ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} is not a whole TIFF file ({error}); copy it again or remove it") from None


def _page_layout(page: Any, byteorder: str, kept: dict[str, Any], path: Path) -> dict[str, Any]:
    if len(page.shape) != 2 or page.dtype is None or page.dtype.kind not in "uif":
        raise UserError(f"{path} holds {page.shape} {page.dtype} pages; allowed: grey images, one value a pixel")
    stored = page.dtype.newbyteorder(byteorder)
    size, offset = page.parent.filehandle.size, None
    if page.is_contiguous and page.compression == 1 and page.fillorder == 1:
        offset = page.dataoffsets[0]
        end = offset + int(np.prod(page.shape)) * stored.itemsize
    else:
        end = max(o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True))
    if end > size:
        raise UserError(f"{path} is truncated: {size} bytes, its directory asks for {end}; copy the file again")
    return {"alike": (page.shape, str(page.dtype)), "stored": stored, "offset": offset, "kept": kept}


def _contiguous_series(series: Any, byteorder: str, kept: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    frame, stored = tuple(series.shape[-2:]), series.dtype.newbyteorder(byteorder)
    step, count = int(np.prod(frame)) * stored.itemsize, int(np.prod(series.shape[:-2]))
    if series.dataoffset + count * step > path.stat().st_size:
        raise UserError(f"{path} is truncated: {count} frames of {step} bytes do not fit in it; copy the file again")
    return [
        {"alike": (frame, str(series.dtype)), "stored": stored, "offset": series.dataoffset + i * step, "kept": kept}
        for i in range(count)
    ]


def _own_description(tiff: Any) -> dict[str, Any]:
    """Dims, coordinates and attributes that our own writer left in the file."""
    text = (tiff.imagej_metadata or {}).get("Info") or tiff.pages[0].description
    try:
        kept = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and kept.get("program") == "niseg_gpu" else {}

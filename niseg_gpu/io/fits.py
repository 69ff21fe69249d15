"""FITS frames: one header layout verified for all of them, then the raw bytes."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.raw import RawFrames
from niseg_gpu.io.source import Source

CARD = 80  # bytes of one line of a header
DTYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
COORDS = {b"TOF     ": "tof", b"TIMEBIN ": "tof_width"}
# equal cards of these at equal places mean that the image lies and reads alike
STRUCTURAL = {
    f"{name:<8}".encode()
    for name in (
        *("SIMPLE", "XTENSION", "BITPIX", "NAXIS", *(f"NAXIS{i}" for i in range(1, 10)), "END"),
        *("PCOUNT", "GCOUNT", "GROUPS", "ZIMAGE", "BSCALE", "BZERO", "BLANK"),
    )
}


@dataclass(frozen=True)
class Layout:
    """Where and how a file's image lies; equal for all frames but for the offset."""

    offset: int
    shape: tuple[int, ...]
    stored: str
    scale: float
    zero: float
    blank: int | None

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.stored).itemsize

    def describe(self) -> str:
        scaling = "" if (self.scale, self.zero) == (1, 0) else f", BSCALE {self.scale:g}, BZERO {self.zero:g}"
        blank = "" if self.blank is None else f", BLANK {self.blank}"
        return f"{'x'.join(map(str, self.shape))} {np.dtype(self.stored).newbyteorder('=')}{scaling}{blank}"


def open_fits(paths: list[Path]) -> Source:
    """Open FITS frames (or one FITS cube) lazily; ``BSCALE``, ``BZERO`` and ``BLANK`` are applied as Astropy does.

    Parameters
    ----------
    paths : list of Path
        The first image of each is a frame, all of the same size, type and scaling; or a single file with a 3-D image.

    Raises
    ------
    UserError
        A file that is missing, empty, no FITS, truncated, or laid out differently from the first.
    """
    first = read_layout(paths[0])
    if len(first.shape) == 3 and len(paths) == 1:
        n, *frame = first.shape
        step = first.nbytes // n
        files, offsets = [str(paths[0])] * n, [first.offset + i * step for i in range(n)]
        _check_size(paths[0], first, os.stat(paths[0]).st_size)
        coords: dict[str, np.ndarray] = {}
    elif len(first.shape) == 2:
        frame = first.shape
        files = [str(p) for p in paths]
        offsets, coords = _verify(paths, first)
    else:
        raise UserError(f"{paths[0]} holds a {len(first.shape)}-D image; allowed: 2-D frames, or one 3-D cube")
    array = RawFrames(
        files,
        offsets=offsets,
        frame_shape=tuple(frame),
        stored=np.dtype(first.stored),
        scale=first.scale,
        zero=first.zero,
        blank=first.blank,
    )
    return Source(array, tuple(files), block=(1, 1, frame[1]), coords=coords)


def read_layout(path: Path) -> Layout:
    """Parse one file's headers with Astropy and say where its first image of two or more axes lies."""
    from astropy.io import fits

    _check_magic(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Astropy's, a truncated file is an error here, the rest is harmless
            with fits.open(path, memmap=False, lazy_load_hdus=True) as hdus:
                for hdu in hdus:
                    if isinstance(hdu, fits.CompImageHDU):
                        raise UserError(f"{path} is tile-compressed FITS; unpack it first (funpack)")
                    if hdu.is_image and hdu.header["NAXIS"] >= 2:
                        return _layout(hdu, path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: its FITS header can't be read ({error}); copy the file again") from None
    raise UserError(f"{path} holds no image; name the frames with a glob that leaves it out")


def _layout(hdu, path: Path) -> Layout:
    header, blank = hdu.header, hdu.header.get("BLANK")
    shape = tuple(header[f"NAXIS{i}"] for i in range(header["NAXIS"], 0, -1))
    if 0 in shape:
        raise UserError(f"{path} holds an image without pixels {shape}; remove it or name the frames with a glob")
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return Layout(
        offset=hdu.fileinfo()["datLoc"],
        shape=shape,
        stored=DTYPES[header["BITPIX"]],
        scale=float(header.get("BSCALE", 1)),
        zero=float(header.get("BZERO", 0)),
        # Astropy leaves values alone where BLANK is 0 or no whole number, and a count of 0 is better kept, indeed
        blank=blank if header["BITPIX"] > 0 and isinstance(blank, int) and blank != 0 else None,
    )


def _check_magic(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}; check the path and its permissions") from None
    if not start:
        raise UserError(f"{path} is empty (0 bytes); copy the file again or remove it")
    if not start.startswith(b"SIMPLE  ="):
        raise UserError(
            f"{path} is not a FITS file: it begins with {start!r}; remove it or name the frames with a glob"
        )


def _check_size(path: Path, layout: Layout, size: int) -> None:
    need = layout.offset + layout.nbytes
    if size < need:
        raise UserError(f"{path} is truncated: {size} bytes, its header asks for {need}; copy the file again")


def _verify(paths: list[Path], first: Layout) -> tuple[list[int], dict[str, np.ndarray]]:
    """Hold every header against the first: card by card where they are alike, with Astropy where they are not."""
    offsets, structure = [], None
    found: dict[str, list[float]] = {name: [] for name in COORDS.values()}
    for path in paths:
        layout = first
        cards, size = _read_cards(path, first.offset)
        if structure is None:
            structure = cards[0]
        elif cards[0] != structure:
            layout = read_layout(path)
            if replace(layout, offset=first.offset) != first:
                raise UserError(
                    f"{path} is {layout.describe()}, the first frame {paths[0].name} is {first.describe()}; "
                    "all frames must be alike: remove it or name the frames with a glob"
                )
            cards, size = _read_cards(path, layout.offset)
        _check_size(path, layout, size)
        offsets.append(layout.offset)
        for name, value in cards[1].items():
            found[name].append(value)
    return offsets, {name: np.array(values) for name, values in found.items() if len(values) == len(paths)}


def _read_cards(path: Path, length: int) -> tuple[tuple[list[tuple[int, bytes]], dict[str, float]], int]:
    """The structural cards with their places and the ToF (s) in the first `length` bytes, and the file's size."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            header, size = os.pread(handle, length, 0), os.fstat(handle).st_size
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}; check the path and its permissions") from None
    structure, values = [], {}
    for i in range(0, len(header), CARD):
        keyword = header[i : i + 8]
        if keyword in STRUCTURAL:
            structure.append((i, header[i : i + CARD]))
        elif keyword in COORDS:
            try:
                text = header[i + 10 : i + CARD].partition(b"/")[0]
                values[COORDS[keyword]] = float(text.upper().replace(b"D", b"E"))
            except ValueError:
                continue  # a text is no time: the run then has none in its headers
    return (structure, values), size

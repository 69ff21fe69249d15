"""FITS frames: one header layout verified for all of them, then the raw bytes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.raw import RawFrames
from niseg_gpu.io.source import Source

BLOCK = 2880  # bytes; FITS headers and data come in multiples of it
DTYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
STRUCTURE = re.compile(rb"(?:BITPIX|NAXIS\d?|BSCALE|BZERO|XTENSION) *=[^/]{1,70}")
END = b"END" + b" " * 77
TOF = re.compile(rb"TOF     =\s*([-+.\dEeDd]+)")
TIMEBIN = re.compile(rb"TIMEBIN =\s*([-+.\dEeDd]+)")


@dataclass(frozen=True)
class Layout:
    """Where and how a file's image lies; equal for all frames but for the offset."""

    offset: int
    shape: tuple[int, ...]
    stored: str
    scale: float
    zero: float

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.stored).itemsize

    def describe(self) -> str:
        scaling = "" if (self.scale, self.zero) == (1, 0) else f", BSCALE {self.scale:g}, BZERO {self.zero:g}"
        return f"{'x'.join(map(str, self.shape))} {np.dtype(self.stored).newbyteorder('=')}{scaling}"


def open_fits(paths: list[Path], *, unsigned: bool = False) -> Source:
    """Open FITS frames (or one FITS cube) lazily.

    Parameters
    ----------
    paths : list of Path
        One image each, all of the same size, type and scaling; or a single file with a 3-D image.
    unsigned : bool
        Read signed integers that wrapped as unsigned ones.

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
        headers: list[bytes] = []
    elif len(first.shape) == 2:
        frame = first.shape
        files = [str(p) for p in paths]
        offsets, headers = _verify(paths, first)
    else:
        raise UserError(f"{paths[0]} holds a {len(first.shape)}-D image; allowed: 2-D frames, or one 3-D cube")
    array = RawFrames(
        files,
        offsets=offsets,
        frame_shape=tuple(frame),
        stored=np.dtype(first.stored),
        scale=first.scale,
        zero=first.zero,
        unsigned=unsigned,
    )
    coords = _header_tof(headers)
    return Source(array, tuple(files), block=(1, 1, frame[1]), coords=coords)


def read_layout(path: Path) -> Layout:
    """Parse one file's header with Astropy and say where its image lies."""
    from astropy.io import fits

    _check_magic(path)
    try:
        with fits.open(path, memmap=False, lazy_load_hdus=True) as hdus:
            for hdu in hdus:
                if isinstance(hdu, fits.CompImageHDU):
                    raise UserError(f"{path} is tile-compressed FITS; unpack it first (funpack)")
                if hdu.is_image and hdu.header["NAXIS"] >= 2:
                    h = hdu.header
                    shape = tuple(h[f"NAXIS{i}"] for i in range(h["NAXIS"], 0, -1))
                    scale, zero = float(h.get("BSCALE", 1)), float(h.get("BZERO", 0))
                    return Layout(hdu.fileinfo()["datLoc"], _drop_ones(shape), DTYPES[h["BITPIX"]], scale, zero)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path}: its FITS header can't be read ({error}); copy the file again") from None
    raise UserError(f"{path} holds no image; name the frames with a glob that leaves it out")


def _drop_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _check_magic(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
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


def _verify(paths: list[Path], first: Layout) -> tuple[list[int], list[bytes]]:
    """Hold every header against the first: byte by byte where it is alike, with Astropy where it is not."""
    offsets, headers, structure, end = [], [], None, -1
    for path in paths:
        try:
            with open(path, "rb", buffering=0) as file:
                header, size = file.read(first.offset), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise UserError(f"can't read {path}: {error.strerror}") from None
        if structure is None:
            structure, end = STRUCTURE.findall(header), header.find(END)
        layout = first
        if STRUCTURE.findall(header) != structure or header.find(END) != end:
            layout = read_layout(path)
            if (layout.shape, layout.stored, layout.scale, layout.zero) != (
                first.shape,
                first.stored,
                first.scale,
                first.zero,
            ):
                raise UserError(
                    f"{path} is {layout.describe()}, the first frame {paths[0].name} is {first.describe()}; "
                    "all frames must be alike: remove it or name the frames with a glob"
                )
        _check_size(path, layout, size)
        offsets.append(layout.offset)
        headers.append(header)
    return offsets, headers


def _header_tof(headers: list[bytes]) -> dict[str, np.ndarray]:
    """ToF (s) and bin width (s) from the frames' own headers, where every frame has them."""
    coords = {}
    for name, pattern in (("tof", TOF), ("tof_width", TIMEBIN)):
        found = [pattern.search(h) for h in headers]
        if found and all(found):
            coords[name] = np.array([float(m[1].replace(b"D", b"E")) for m in found])
    return coords

"""FITS frames: one header layout verified for all of them, then the raw bytes."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.bad import BadFrame, Faults, unreadable
from niseg_gpu.io.raw import RawFrames
from niseg_gpu.io.source import Source

CARD = 80  # bytes of one line of a header
DTYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
COORDS = {"tof": b"TOF     =", "tof_width": b"TIMEBIN ="}
# equal cards of these at equal places mean that the image lies and reads alike
STRUCTURAL = np.array(
    [
        f"{name:<8}".encode()
        for name in (
            *("SIMPLE", "XTENSION", "BITPIX", "NAXIS", *(f"NAXIS{i}" for i in range(1, 10)), "END"),
            *("PCOUNT", "GCOUNT", "GROUPS", "ZIMAGE", "BSCALE", "BZERO", "BLANK"),
        )
    ]
)


@dataclass(frozen=True)
class Layout:
    """Where and how a file's image lies; equal for all frames but for the offset, which is not compared."""

    offset: int = field(compare=False)
    shape: tuple[int, ...]
    stored: str
    scale: float
    zero: float
    blank: int | None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.stored).itemsize

    def __str__(self) -> str:
        scaling = "" if (self.scale, self.zero) == (1, 0) else f", BSCALE {self.scale:g}, BZERO {self.zero:g}"
        blank = "" if self.blank is None else f", BLANK {self.blank}"
        return f"{'x'.join(map(str, self.shape))} {np.dtype(self.stored).newbyteorder('=')}{scaling}{blank}"


def open_fits(paths: list[Path], *, faults: Faults | None = None) -> Source:
    """Open FITS frames (or one FITS cube) lazily; ``BSCALE``, ``BZERO`` and ``BLANK`` are applied as Astropy does.

    Parameters
    ----------
    paths : list of Path
        The first image of each is a frame, all of the same size, type and scaling; or a single file with a 3-D image.
    faults : Faults, optional
        Where to note what is wrong with one of several frames; it is raised by default.

    Raises
    ------
    UserError
        A file that is missing, empty, no FITS, truncated, or laid out differently from the first.
    """
    faults = faults or Faults()
    known, first = _first_layout(paths, faults)
    if len(paths) == 1 and len(first.shape) == 3:
        n, *frame = first.shape
        step = first.nbytes // n
        files, offsets = [str(paths[0])] * n, [first.offset + i * step for i in range(n)]
        if (size := os.stat(paths[0]).st_size) < (need := first.offset + first.nbytes):
            raise _truncated(paths[0], size, need)
        coords: dict[str, np.ndarray] = {}
    else:
        files = [str(p) for p in paths]
        offsets, first, coords = _verify(paths, known, first, faults)
        frame = first.shape
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
        raise BadFrame(f"{path}: its FITS header can't be read ({error})", "copy the file again") from None
    raise BadFrame(f"{path} holds no image", "name the frames with a glob that leaves it out")


def _layout(hdu, path: Path) -> Layout:
    header, blank = hdu.header, hdu.header.get("BLANK")
    shape = tuple(header[f"NAXIS{i}"] for i in range(header["NAXIS"], 0, -1))
    if 0 in shape:
        raise BadFrame(f"{path} holds an image without pixels {shape}", "remove it or name the frames with a glob")
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
        raise unreadable(path, error) from None
    if not start:
        raise BadFrame(f"{path} is empty (0 bytes)", "copy the file again or remove it")
    if not start.startswith(b"SIMPLE  ="):
        raise BadFrame(
            f"{path} is not a FITS file: it begins with {start!r}", "remove it or name the frames with a glob"
        )


def _truncated(path: Path, size: int, need: int) -> BadFrame:
    return BadFrame(f"{path} is truncated: {size} bytes, its header asks for {need}", "copy the file again")


def _verify(
    paths: list[Path], known: int, first: Layout, faults: Faults
) -> tuple[list[int], Layout, dict[str, np.ndarray]]:
    """Hold every header against the first that can be read, `known`: card by card, with Astropy where they differ."""
    layouts: list[Layout | None] = [None] * known + [first] * (len(paths) - known)
    headers, sizes = [b""] * len(paths), [0] * len(paths)
    for i in range(known, len(paths)):
        try:
            headers[i], sizes[i] = _read_header(paths[i], first.offset)
        except BadFrame as fault:
            faults.add(i, fault)
            layouts[i] = None
    for i in np.flatnonzero(~_alike(headers, like=headers[known])):
        if layouts[i] is None:
            continue
        try:
            layout = layouts[i] = read_layout(paths[i])
            headers[i], sizes[i] = _read_header(paths[i], layout.offset)
        except BadFrame as fault:
            faults.add(int(i), fault)
            layouts[i] = None
    common = faults.hold(layouts, paths, first=paths[0].name)
    for i in faults.found:  # nor are they believed what they say of the time
        headers[i] = b""
    if len(common.shape) != 2:
        raise UserError(f"{paths[known]} holds a {len(common.shape)}-D image; allowed: 2-D frames, or one 3-D cube")
    nbytes, offsets = common.nbytes, [layout.offset if layout else 0 for layout in layouts]
    for i, (size, layout) in enumerate(zip(sizes, layouts, strict=True)):
        if layout is not None and size < layout.offset + nbytes:
            faults.add(i, _truncated(paths[i], size, layout.offset + nbytes))
    return offsets, common, _times(headers, faults)


def _first_layout(paths: list[Path], faults: Faults) -> tuple[int, Layout]:
    """Number and layout of the first frame that can be read."""
    for i, path in enumerate(paths):
        try:
            return i, read_layout(path)
        except BadFrame as fault:
            faults.add(i, fault)
    raise faults.found[0]


def _times(headers: list[bytes], faults: Faults) -> dict[str, np.ndarray]:
    """What all headers tell of the time; NaN for bad frames."""
    coords = {}
    for name, keyword in COORDS.items():
        values = [_find_number(header, keyword) for header in headers]
        if not any(value is None and i not in faults.found for i, value in enumerate(values)):
            coords[name] = np.array([np.nan if value is None else value for value in values])
    return coords


def _read_header(path: Path, length: int) -> tuple[bytes, int]:
    """The first `length` bytes of a file and its size."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            return os.pread(handle, length, 0), os.fstat(handle).st_size
        finally:
            os.close(handle)
    except OSError as error:
        raise unreadable(path, error) from None


def _alike(headers: list[bytes], *, like: bytes) -> np.ndarray:
    """Which of N headers say of their image what the header `like` says: (N,) bool."""
    length = len(like)
    whole = np.array([len(header) == length for header in headers])
    padded = b"".join(header.ljust(length) for header in (like, *headers))
    cards = np.frombuffer(padded, f"S{CARD}").reshape(1 + len(headers), -1)
    structural = np.isin(np.frombuffer(padded, "S8").reshape(*cards.shape, -1)[..., 0], STRUCTURAL)
    places = np.flatnonzero(structural[0])
    same = (structural == structural[0]).all(1) & (cards[:, places] == cards[0, places]).all(1)
    return whole & same[1:]


def _find_number(header: bytes, keyword: bytes) -> float | None:
    """The finite number of the last card with `keyword`, if there is one."""
    at = header.rfind(keyword)
    while at > 0 and at % CARD:  # it was in the text of another card
        at = header.rfind(keyword, 0, at)
    if at < 0:
        return None
    try:
        number = float(header[at + 10 : at + CARD].partition(b"/")[0].upper().replace(b"D", b"E"))
    except ValueError:
        return None
    return number if math.isfinite(number) else None

"""One grey PNG, such as a mask painted by hand, decoded by Pillow when it is asked for."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.check import check_file
from niseg_gpu.io.source import Source

_START = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">8s4x4sIIBB")  # signature, chunk length, IHDR, width, height, bits, colour type
_COLOURS = {2: "colour", 3: "palette", 4: "grey with transparency", 6: "colour with transparency"}


class PngImage:
    """A grey PNG as a stack of one frame; it is decoded whole whenever part of it is asked for."""

    def __init__(self, path: str, *, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.path, self.shape, self.ndim, self.dtype = path, (1, *shape), 3, np.dtype(dtype)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        from PIL.PngImagePlugin import PngImageFile

        try:
            with PngImageFile(self.path) as image:  # Image.open would refuse what is large
                values = np.asarray(image)
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise UserError(f"{self.path} can't be decoded ({error}); copy the file again") from None
        return values.astype(self.dtype, copy=False)[None][key].copy()  # 16 bits come as 32 from older Pillows


def open_png(path: Path) -> Source:
    """Open a PNG of one grey value a pixel, 8 or 16 bits; nothing but its header is read.

    Returns
    -------
    Source
        (1, Y, X) uint8 or uint16.

    Raises
    ------
    UserError
        A file that is missing, empty, no PNG, coloured, with transparency or a palette, or of fewer than 8 bits.
    """
    check_file(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEADER.size)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror or error}") from None
    if not head:
        raise UserError(f"{path} is empty (0 bytes); copy the file again or remove it")
    if len(head) < _HEADER.size or not head.startswith(_START):
        raise UserError(f"{path} is not a whole PNG file; copy it again or remove it")
    _, chunk, width, height, bits, colour = _HEADER.unpack(head)
    if chunk != b"IHDR" or 0 in (width, height):
        raise UserError(f"{path} is not a whole PNG file; copy it again or remove it")
    if colour != 0 or bits not in (8, 16):
        kind = _COLOURS.get(colour, "grey")
        raise UserError(f"{path} is a {bits}-bit {kind} PNG; allowed: grey of 8 or 16 bits; save it as such")
    array = PngImage(str(path), shape=(height, width), dtype=np.dtype(f"u{bits // 8}"))
    return Source(array, files=(str(path),), block=(1, height, width))

"""Read ``.npy`` and ``.npz`` files lazily."""

from __future__ import annotations

import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.io.check import check_file, check_stack
from niseg_gpu.io.source import Source

_NPZ_MEMBER = re.compile(r"^(?P<file>.*\.npz):/*(?P<name>.+)$", re.IGNORECASE | re.DOTALL)
_LOCAL_HEADER_BYTES = 30  # of a zip member, before its name and extra field


class NpyArray:
    """An array inside a file as it lies there; indexing copies out of a memory map.

    The map is opened on first use and stays out of the pickled state, for a pickled map would carry all its data.
    """

    kept = "mapped"

    def __init__(self, path: str, *, shape: tuple[int, ...], dtype: np.dtype, offset: int, order: str) -> None:
        self.path = path
        self.shape = shape
        self.dtype = dtype.newbyteorder("=")
        self._stored = {"dtype": dtype, "shape": shape, "offset": offset, "order": order}
        self._map: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        if self._map is None:  # two threads may both open it; either map will do
            self._map = np.memmap(self.path, mode="r", **self._stored)
        return np.array(self._map[key], dtype=self.dtype, subok=False)


class CompressedNpyArray:
    """An array in a compressed ``.npz``, which can only be unpacked whole: done once, on first use, then kept."""

    kept = "unpacked"

    def __init__(self, path: str, member: str, *, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path = path
        self.member = member
        self.shape = shape
        self.dtype = dtype.newbyteorder("=")
        self._values: np.ndarray | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_values", "_lock")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _values=None, _lock=threading.Lock())

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        with self._lock:
            if self._values is None:
                self._values = self._unpack()
        return self._values[key].copy()

    def _unpack(self) -> np.ndarray:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                values = np.lib.format.read_array(stream, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"{self.path}: array {self.member!r} cannot be unpacked ({error}); copy the file again"
            ) from error
        return values.astype(self.dtype, copy=False)


def open_npy(path: Path) -> Source:
    """Open a ``.npy`` or ``.npz`` file without reading its values.

    Parameters
    ----------
    path : Path
        ``file.npy``, ``file.npz`` holding one array, or ``file.npz:/name``.

    Returns
    -------
    Source
        Real numbers or bool of 2 or more dimensions, native-endian; ``dims`` None, for the file does not name its
        axes. A compressed ``.npz`` is unpacked whole on first use and held in memory; all else is memory-mapped.

    Raises
    ------
    UserError
        If the file is missing, is no npy file, is truncated, or holds objects, complex numbers, no values or fewer
        than 2 dimensions; if a ``.npz`` holds several arrays and none is named.
    """
    named = _NPZ_MEMBER.match(str(path))
    name = None
    if named and not path.exists():
        path, name = Path(named["file"]), named["name"]
    check_file(path)
    try:
        with path.open("rb") as stream:
            zipped = stream.read(2) == b"PK"
        return _open_npz(path, name) if zipped else _open_plain(path)
    except PermissionError as error:
        raise UserError(f"{path}: may not be read; ask its owner for read permission") from error


def _open_plain(path: Path) -> Source:
    with path.open("rb") as stream:
        shape, fortran, dtype = _read_header(stream, path)
        offset = stream.tell()
    return _mapped(path, shape=shape, fortran=fortran, dtype=dtype, offset=offset)


def _open_npz(path: Path, name: str | None) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:
            member = _choose_member(path, archive, name)
            with archive.open(member) as stream:
                shape, fortran, dtype = _read_header(stream, path)
                header_bytes = stream.tell()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise UserError(f"{path}: broken .npz archive ({error}); copy the file again") from error
    if member.compress_type == zipfile.ZIP_STORED:
        offset = _member_offset(path, member) + header_bytes
        return _mapped(path, shape=shape, fortran=fortran, dtype=dtype, offset=offset)
    array = CompressedNpyArray(str(path), member.filename, shape=shape, dtype=dtype)
    return Source(array=array, files=(str(path),), block=(*(1,) * (len(shape) - 1), shape[-1]))


def _choose_member(path: Path, archive: zipfile.ZipFile, name: str | None) -> zipfile.ZipInfo:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if name is not None:
        if name not in members:
            raise UserError(f"{path}: holds no array {name!r}{suggest(name, members)}")
        return members[name]
    if len(members) != 1:
        listed = ", ".join(members) or "none"
        raise UserError(f"{path}: holds {len(members)} arrays ({listed}); name one: {path.name}:/NAME")
    return next(iter(members.values()))


def _member_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member start; its local header may differ from the archive's directory."""
    with path.open("rb") as stream:
        stream.seek(member.header_offset)
        name_bytes, extra_bytes = struct.unpack("<HH", stream.read(_LOCAL_HEADER_BYTES)[26:])
    return member.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes


def _read_header(stream: BinaryIO, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:  # 3.0 differs from 2.0 in the encoding of field names alone, and those are refused below
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: not a npy file ({error}); save it with numpy.save") from error
    check_stack(str(path), shape=shape, dtype=dtype)
    return shape, fortran, dtype


def _mapped(path: Path, *, shape: tuple[int, ...], fortran: bool, dtype: np.dtype, offset: int) -> Source:
    needed = offset + dtype.itemsize * int(np.prod(shape, dtype=object))
    size = path.stat().st_size
    if size < needed:
        raise UserError(f"{path}: truncated: {size} of {needed} bytes; copy the file again")
    array = NpyArray(str(path), shape=shape, dtype=dtype, offset=offset, order="F" if fortran else "C")
    ones = (1,) * (len(shape) - 1)
    return Source(array=array, files=(str(path),), block=(shape[0], *ones) if fortran else (*ones, shape[-1]))

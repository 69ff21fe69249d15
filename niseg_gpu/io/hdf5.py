"""Read HDF5 and NeXus files lazily; split tomographies by the ``image_key`` of NXtomo."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.errors import UserError, suggest
from niseg_gpu.io.check import check_file, check_stack
from niseg_gpu.io.nexus import default_plot, in_our_units, is_class, nxdata_axes, text
from niseg_gpu.io.source import Source

if TYPE_CHECKING:
    import h5py

_FIRST_FOREIGN_FILTER, _LZF = 256, 32000  # numbers of filters; h5py brings LZF along
IMAGE_KEYS = {"sample": 0, "open_beam": 1, "dark": 2}  # NXtomo; 3 marks an invalid frame
RECORD = "niseg_gpu"  # group beside the NXdata group in which `save` notes names, dims and attributes


class H5Array:
    """A dataset, or some of its rows; each reading opens the file and closes it again.

    So no handle is open in a fork, in a pickle, or while another program wants the file. Opening takes well under a
    millisecond; HDF5 itself lets one thread read at a time.
    """

    def __init__(
        self, path: str, dataset: h5py.Dataset, *, rows: np.ndarray | None = None, plugins: bool = False
    ) -> None:
        self.path = path
        self.name = dataset.name
        self.rows = rows
        self.plugins = plugins
        self.shape = dataset.shape if rows is None else (len(rows), *dataset.shape[1:])
        self.dtype = np.dtype(dataset.dtype.newbyteorder("=").str)  # without h5py's notes on the type

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        spans = [range(*part.indices(length)) for part, length in zip(key, self.shape, strict=True)]
        values = np.empty([len(span) for span in spans], self.dtype)
        if values.size == 0:
            return values
        if self.plugins:
            _load_plugins()
        rest = tuple(slice(span.start, span.stop) for span in spans[1:])
        rows = np.arange(spans[0].start, spans[0].stop) if self.rows is None else self.rows[key[0]]
        try:
            with _open(self.path) as file:
                dataset = file[self.name]
                for into, run in _contiguous_runs(rows):
                    dataset.read_direct(values[into], source_sel=(run, *rest))
        except (OSError, KeyError) as error:
            raise UserError(
                f"{self.path}:{self.name}: cannot be read ({error}); copy the file again, or leave it out"
            ) from error
        return values


def open_hdf5(path: Path, dataset: str | None = None) -> Source:
    """Open one array of an HDF5 or NeXus file without reading its values.

    Parameters
    ----------
    path : Path
        The file.
    dataset : str, optional
        Path of the dataset in the file, or of a group to look in. Without it: the sample frames of an NXtomo entry,
        else the plot that a NeXus file names as its default, else the only 2-D or 3-D dataset.

    Returns
    -------
    Source
        With ``dims``, ``coords`` and ``attrs`` where the file tells them, as those written by `save` do. Chunked
        datasets have their chunk as ``block``.

    Raises
    ------
    UserError
        If the file is missing or no HDF5 file, if the dataset does not exist, cannot be chosen, holds no real numbers
        or needs a filter that is not installed.
    """
    check_file(path)
    with _open(path) as file:
        found = _look_up(file, dataset, path)
        if _is_dataset(found):
            return _source_of(found, path)
        if _tomographies(found):
            sources = _split_tomography(found, path)
            if "sample" not in sources:
                raise UserError(
                    f"{path}: has {' and '.join(sources)} frames but none of the sample (image_key 0); name a dataset"
                )
            return sources["sample"]
        return _source_of(default_plot(found) or _only_dataset(found, path), path)


def is_nxtomo(path: Path, dataset: str | None = None) -> bool:
    """Return whether a file, or a group of it, holds frames sorted by an ``image_key``."""
    check_file(path)
    with _open(path) as file:
        return bool(_tomographies(_look_up(file, dataset, path)))


def open_nxtomo(path: Path, dataset: str | None = None) -> dict[str, Source]:
    """Split a tomography by its ``image_key`` (NXtomo), reading no frames.

    Parameters
    ----------
    path : Path
        The file.
    dataset : str, optional
        Path in the file of the entry, or anything in it, where the file holds several.

    Returns
    -------
    dict of str to Source
        ``sample`` (image_key 0), ``open_beam`` (1) and ``dark`` (2), those present; dims ``(angle, y, x)``, coordinate
        ``angle`` in degrees where the file has ``rotation_angle``. The number of other frames (3, invalid) is in
        ``attrs["frames_left_out"]``.

    Raises
    ------
    UserError
        If there is no ``image_key``, more than one tomography, or not one key per frame.
    """
    check_file(path)
    with _open(path) as file:
        found = _look_up(file, dataset, path)
        while not _tomographies(found) and found.name != "/" and not is_class(found, "NXentry"):
            found = found.parent
        return _split_tomography(found, path)


@contextmanager
def _open(path: str | Path) -> Iterator[h5py.File]:
    import h5py

    try:
        file = h5py.File(path, "r", locking="best-effort")  # some cluster file systems have no locks
    except PermissionError as error:
        raise UserError(f"{path}: may not be read; ask its owner for read permission") from error
    except OSError as error:
        raise UserError(f"{path}: not a whole HDF5 file ({error}); copy the file again") from error
    with file:
        yield file


def _contiguous_runs(rows: np.ndarray) -> Iterator[tuple[slice, slice]]:
    """Cut sorted row numbers into (where they go, where they lie) pairs of slices: HDF5 reads those fast."""
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True):
        yield slice(start, stop), slice(rows[start], rows[stop - 1] + 1)


def _is_dataset(found: Any) -> bool:
    import h5py

    return isinstance(found, h5py.Dataset)


def _datasets(group: h5py.Group) -> list[h5py.Dataset]:
    found: list[h5py.Dataset] = []
    group.visititems(lambda _, item: found.append(item) if _is_dataset(item) else None)
    return found


def _look_up(file: h5py.File, dataset: str | None, path: Path) -> h5py.Dataset | h5py.Group:
    if dataset is None:
        return file
    if dataset not in file:
        names = [item.name for item in _datasets(file) if item.ndim >= 2]
        raise UserError(f"{path}: holds no dataset {dataset!r}{suggest(dataset, names)}")
    try:
        return file[dataset]
    except KeyError as error:  # a link to another place or file
        raise UserError(
            f"{path}: {dataset!r} is a link to what is not there ({error.args[0]}); copy the file it leads to beside it"
        ) from error


def _only_dataset(group: h5py.Group, path: Path) -> h5py.Dataset:
    candidates = [item for item in _datasets(group) if item.ndim in (2, 3) and item.dtype.kind in "biuf"]
    if len(candidates) != 1:
        listed = ", ".join(f"{item.name} {item.shape}" for item in candidates) or "none"
        raise UserError(
            f"{path}: {len(candidates)} datasets of 2 or 3 dimensions ({listed}); name one: {path.name}:/NAME"
        )
    return candidates[0]


def _source_of(dataset: h5py.Dataset, path: Path) -> Source:
    array = _array_of(dataset, path)
    dims, coords, attrs = _recorded(dataset) or nxdata_axes(dataset)
    return Source(array=array, files=(str(path),), dims=dims, block=_block(dataset), coords=coords, attrs=attrs)


def _array_of(dataset: h5py.Dataset, path: Path, *, rows: np.ndarray | None = None) -> H5Array:
    where = f"{path}:{dataset.name}"
    check_stack(where, shape=dataset.shape or (), dtype=dataset.dtype)
    return H5Array(str(path), dataset, rows=rows, plugins=_needs_plugins(dataset, where))


def _block(dataset: h5py.Dataset) -> tuple[int, ...]:
    return dataset.chunks or (*(1,) * (dataset.ndim - 1), dataset.shape[-1])


def _needs_plugins(dataset: h5py.Dataset, where: str) -> bool:
    """Whether a compression filter outside HDF5 itself is needed; an error if it is not to be had."""
    import h5py

    created = dataset.id.get_create_plist()
    codes = {code: name for code, _, _, name in map(created.get_filter, range(created.get_nfilters()))}
    if not all(map(h5py.h5z.filter_avail, codes)):
        _load_plugins()
    for code, name in codes.items():
        if not h5py.h5z.filter_avail(code):
            name = text(name) or "a filter"
            raise UserError(f"{where}: compressed with {name} ({code}), not installed here; install hdf5plugin")
    return any(code >= _FIRST_FOREIGN_FILTER and code != _LZF for code in codes)


def _load_plugins() -> None:
    from importlib.util import find_spec

    if find_spec("hdf5plugin"):
        __import__("hdf5plugin")


def _recorded(dataset: h5py.Dataset) -> tuple[tuple[str, ...], dict[str, np.ndarray], dict[str, Any]] | None:
    """Return dims, coords and attrs as `save` noted them, None for the files of others."""
    note = dataset.parent.parent.get(f"{RECORD}/data")
    if note is None:
        return None
    record = json.loads(text(note[()]))
    if record.get("name") != dataset.name.rpartition("/")[2]:
        return None
    coords = {
        name: dataset.parent[name][()]
        for name, coord in record["coords"].items()
        if len(coord["dims"]) == 1 and coord["dtype"] != "str"
    }
    return tuple(record["dims"]), coords, record["attrs"]


def _tomographies(group: h5py.Group) -> list[h5py.Group]:
    """Return the groups that hold an ``image_key`` and the frames it sorts, one for each set of frames."""
    import h5py

    if _is_dataset(group):
        return []
    found: dict[tuple[int, int], h5py.Group] = {}

    def visit(_: str, item: Any) -> None:
        if not _is_dataset(item) and "image_key" in item and _is_dataset(item.get("data")):
            info = h5py.h5o.get_info(item["data"].id)  # links lead to the same frames more than once
            found.setdefault((info.fileno, info.addr), item)

    visit("", group)
    group.visititems(visit)
    return list(found.values())


def _split_tomography(group: h5py.Group, path: Path) -> dict[str, Source]:
    found = _tomographies(group)
    if len(found) != 1:
        listed = ", ".join(item.name for item in found) or "none"
        raise UserError(f"{path}: {len(found)} groups with data and image_key ({listed}); needed: one; name its path")
    data, keys = found[0]["data"], np.atleast_1d(found[0]["image_key"][()])
    if data.ndim != 3 or keys.shape != data.shape[:1]:
        raise UserError(
            f"{path}:{data.name}: shape {data.shape}, image_key of {keys.size}; needed: 3 dimensions, one key a frame"
        )
    angle, attrs = _rotation_angle(found[0], len(keys))
    attrs |= {"quantity": "counts", "frames_left_out": int(np.isin(keys, list(IMAGE_KEYS.values()), invert=True).sum())}
    sources = {}
    for name, key in IMAGE_KEYS.items():
        rows = np.flatnonzero(keys == key)
        if rows.size:
            sources[name] = Source(
                array=_array_of(data, path, rows=rows),
                files=(str(path),),
                dims=("angle", "y", "x"),
                block=_block(data),
                coords={} if angle is None else {"angle": angle[rows]},
                attrs=attrs,
            )
    return sources


def _rotation_angle(group: h5py.Group, frames: int) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Return the angle of each frame in degrees, from beside the frames or from the entry's sample."""
    entry = group
    while entry.name != "/" and not is_class(entry, "NXentry"):
        entry = entry.parent
    places = (group, *(entry[name] for name in ("sample", "data") if name in entry))
    for place in places:
        if "rotation_angle" in place:
            angle = np.atleast_1d(in_our_units("angle", place["rotation_angle"]))
            if angle.shape == (frames,):
                return angle, {}
            return None, {"rotation_angle": f"{angle.size} values for {frames} frames, left out"}
    return None, {}

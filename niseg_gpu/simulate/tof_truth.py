"""The truth beside a simulated time-of-flight run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from niseg_gpu.simulate.detector import WindowCounts
from niseg_gpu.simulate.scenes import Scene
from niseg_gpu.threads import use_threads

# Of a mask of spots, made and written at a time.
BLOCK_BYTES = 4 * 2**20


def join_spots(windows: list[WindowCounts]) -> np.ndarray:
    """Return the spots of all windows, (S, 4) int64: bin, y, x, amplitude in counts; bins rise."""
    return np.concatenate([spots for window in windows for spots in window.spots])


def write_truth(folder: Path, scene: Scene, *, dead: np.ndarray) -> None:
    """Make the folder and write what stands in the beam, and where the detector is dead."""
    import tifffile

    folder.mkdir()
    tifffile.imwrite(folder / "labels.tif", scene.labels)
    thickness = scene.thickness_cm if scene.materials else np.zeros((1, *scene.labels.shape), np.float32)
    tifffile.imwrite(folder / "thickness_cm.tif", thickness, photometric="minisblack")
    tifffile.imwrite(folder / "dead.tif", dead.astype(np.uint8))
    names = {str(label): name for label, name in enumerate(("void", *scene.materials))}
    (folder / "materials.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")


def write_spots(stem: Path, spots: np.ndarray, *, shape: Sequence[int], workers: int | None) -> None:
    """Write the spots as a list, ``.npz``, and as a mask of all bins, ``.zarr``.

    Parameters
    ----------
    stem : Path
        Without an ending.
    spots : (S, 4) ndarray of int64
        From `join_spots`.
    shape : (int, int, int)
        Of the run, (tof, y, x).
    workers : int or None
        Blocks of the mask at a time; default one a core.
    """
    import dask.array as da
    import xarray as xr

    from niseg_gpu.io.save import save

    number, y, x, amplitude = spots.T
    np.savez(stem.with_suffix(".npz"), bin=number, y=y, x=x, amplitude=amplitude)
    n_bins, *frame = (int(n) for n in shape)
    step = max(1, BLOCK_BYTES // (frame[0] * frame[1]))
    chunks = (tuple(min(step, n_bins - first) for first in range(0, n_bins, step)), *((n,) for n in frame))

    def mark(block_info: dict) -> np.ndarray:
        first, stop = block_info[None]["array-location"][0]
        here = slice(*np.searchsorted(number, (first, stop)))
        mask = np.zeros((stop - first, *frame), np.uint8)
        mask[number[here] - first, y[here], x[here]] = 1
        return mask

    mask = da.map_blocks(mark, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    with use_threads(workers):
        save(xr.DataArray(mask, dims=("tof", "y", "x"), name="spots"), stem.with_suffix(".zarr"))

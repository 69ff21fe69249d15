"""Images with marked spots, parted into what a method learns from and what it is scored on."""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from niseg_gpu.io.open import open_stack

BANDS, GAP_ROWS = 8, 4
TRAINING_SEEDS, TEST_SEEDS = (951, 952), (901, 902, 903)
SIMULATOR = "niseg_gpu.simulate.radiograph"


class Marked(NamedTuple):
    """Images (N, Y, X) and masks (N, Y, X) of bool, True for spots."""

    images: np.ndarray
    masks: np.ndarray


class Fold(NamedTuple):
    """What is learnt from, and what is scored."""

    training: Marked
    test: Marked


class DataSet(NamedTuple):
    """Folds of one kind of images, their test parts alike in shape.

    Attributes
    ----------
    name, about : str
    fixed_threshold : float
        Of abs(f - median), set beforehand, in the unit of the images.
    folds : tuple of Fold
    """

    name: str
    about: str
    fixed_threshold: float
    folds: tuple[Fold, ...]


def find_data_dir() -> Path:
    """Folder of measured data: ``NISEG_DATA``, else ``../shared/data`` beside the repository."""
    return Path(os.environ.get("NISEG_DATA") or Path(__file__).parents[2] / "shared" / "data")


def load_measured(data_dir: Path) -> DataSet | str:
    """Return a measured radiograph in two folds, or why there is none.

    Its rows are cut into bands; those of even number learn and those of odd number are scored, then the other way
    round. Rows at the borders of bands are left out, so that no window sees both and tracks are shared by few.
    """
    folder = data_dir / "spots_annotated"
    if not folder.is_dir():
        return f"measured: {folder.name} is not in the folder of measured data; set NISEG_DATA"
    image, mask = (np.squeeze(open_stack(folder / f"{name}.png").values) for name in ("image", "mask"))
    even, odd = (Marked(cut_bands(image, first), cut_bands(mask != 0, first)) for first in (0, 1))
    about = (
        f"measured: `spots_annotated` ({' x '.join(map(str, image.shape))}, {image.dtype}, of "
        f"ImagingLectures/MLSegmentation4NI), spots marked by hand; {BANDS} bands of rows with {GAP_ROWS} rows left "
        "out between them, the even ones learn and the odd ones are scored, then the other way round, all scored as one"
    )
    return DataSet("measured", about, 20.0, (Fold(even, odd), Fold(odd, even)))


def cut_bands(image: np.ndarray, first: int) -> np.ndarray:
    """Every second band of rows from number `first` on, as (bands, rows, X)."""
    rows = image.shape[0] // BANDS
    bands = image[: rows * BANDS].reshape(BANDS, rows, *image.shape[1:])
    return bands[first::2, GAP_ROWS // 2 : rows - GAP_ROWS // 2]


def load_simulated(*, height: int, width: int) -> DataSet | str:
    """Return simulated radiographs, or why there are none."""
    if importlib.util.find_spec(SIMULATOR) is None:
        return f"simulated: this version of the package has no {SIMULATOR}"
    simulate = importlib.import_module(SIMULATOR).simulate_radiograph
    return simulate_set(simulate, height=height, width=width)


def simulate_set(simulate: Callable[..., object], *, height: int, width: int) -> DataSet:
    """Return radiographs that learn and others that are scored, of different seeds.

    Parameters
    ----------
    simulate : callable
        ``simulate(out, seed=, height=, width=, n_frames=)`` writes ``image_00000.tif``, in `out` or a folder of it, and
        ``truth/mask.tif``.
    """
    size = {"height": height, "width": width}
    training, test = (
        _gather([_simulate(simulate, s, **size) for s in seeds]) for seeds in (TRAINING_SEEDS, TEST_SEEDS)
    )
    about = (
        f"simulated: radiographs of {height} x {width}, {test.images.dtype}, raw counts; seeds "
        f"{', '.join(map(str, TRAINING_SEEDS))} learn, {', '.join(map(str, TEST_SEEDS))} are scored"
    )
    return DataSet("simulated", about, 1000.0, (Fold(training, test),))


def _gather(parts: list[Marked]) -> Marked:
    return Marked(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _simulate(simulate: Callable[..., object], seed: int, *, height: int, width: int) -> Marked:
    with tempfile.TemporaryDirectory(prefix="niseg-detection-") as temporary:
        out = Path(temporary) / str(seed)
        simulate(out, seed=seed, height=height, width=width, n_frames=1)
        (frame,) = out.rglob("image_00000.tif")
        image, mask = (open_stack(path).values for path in (frame, out / "truth" / "mask.tif"))
    return Marked(image.reshape(1, height, width), mask.reshape(1, height, width) != 0)

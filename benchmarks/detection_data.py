"""Images with marked spots, parted into what a method learns from, what it is tuned on and what it is scored on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from niseg_gpu.io.open import open_stack
from niseg_gpu.simulate.radiograph import make_radiograph_frame

BANDS, GAP_ROWS = 8, 4
TRAINING_SEEDS, VALIDATION_SEEDS, TEST_SEEDS = tuple(range(951, 959)), (971, 972), (901, 902, 903, 904, 905)


class Marked(NamedTuple):
    """Images (N, Y, X) with their masks (N, Y, X) of bool, True for spots.

    Attributes
    ----------
    deposits : (N, Y, X) float32 array or None
        What spots added to a pixel, in sigma of its noise, where it is known.
    """

    images: np.ndarray
    masks: np.ndarray
    deposits: np.ndarray | None = None


class Fold(NamedTuple):
    """What is learnt from, what thresholds are chosen on, and what is scored."""

    training: Marked
    validation: Marked
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
    Thresholds are chosen on what is learnt from, for there is too little to part once more.
    """
    folder = data_dir / "spots_annotated"
    if not folder.is_dir():
        return f"measured: {folder.name} is not in the folder of measured data; set NISEG_DATA"
    image, mask = (np.squeeze(open_stack(folder / f"{name}.png").values) for name in ("image", "mask"))
    even, odd = (Marked(cut_bands(image, first), cut_bands(mask != 0, first)) for first in (0, 1))
    about = (
        f"measured: `spots_annotated` ({' x '.join(map(str, image.shape))}, {image.dtype}, of "
        f"ImagingLectures/MLSegmentation4NI), spots marked by hand; {BANDS} bands of rows with {GAP_ROWS} rows left "
        "out between them, the even ones learn and the odd ones are scored, then the other way round, all scored as "
        "one; thresholds are chosen on the bands that learn; too small for a network"
    )
    return DataSet("measured", about, 20.0, (Fold(even, even, odd), Fold(odd, odd, even)))


def cut_bands(image: np.ndarray, first: int) -> np.ndarray:
    """Every second band of rows from number `first` on, as (bands, rows, X)."""
    rows = image.shape[0] // BANDS
    bands = image[: rows * BANDS].reshape(BANDS, rows, *image.shape[1:])
    return bands[first::2, GAP_ROWS // 2 : rows - GAP_ROWS // 2]


def simulate_set(*, side: int) -> DataSet:
    """Return radiographs of different seeds to learn from, to choose thresholds on and to score."""
    parts = [_simulate(seeds, side=side) for seeds in (TRAINING_SEEDS, VALIDATION_SEEDS, TEST_SEEDS)]
    told = [_tell(seeds) for seeds in (TRAINING_SEEDS, VALIDATION_SEEDS, TEST_SEEDS)]
    about = (
        f"simulated: radiographs of {side} x {side}, {parts[0].images.dtype}, raw counts, true where spots added more "
        f"than 2 sigma of the noise; seeds {told[0]} learn, thresholds are chosen on {told[1]}, {told[2]} are scored"
    )
    return DataSet("simulated", about, 1000.0, (Fold(*parts),))


def _simulate(seeds: tuple[int, ...], *, side: int) -> Marked:
    frames = [make_radiograph_frame((side, side), seed=seed) for seed in seeds]
    masks = np.stack([frame.mask for frame in frames]) != 0
    return Marked(np.stack([f.image for f in frames]), masks, np.stack([f.deposit for f in frames]))


def _tell(seeds: tuple[int, ...]) -> str:
    return f"{seeds[0]} to {seeds[-1]}"

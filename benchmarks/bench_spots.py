"""Running medians in frames and volumes, and replacing spots by them."""

from __future__ import annotations

import numpy as np

from niseg_gpu.backend import CPU, count_cores
from niseg_gpu.spots import remove_spots

from . import ours, plain
from .data import SEED, THRESHOLD, prepare_run
from .memory import with_memory

FRAMES = 100


@with_memory("scipy", "ours", "opencv", "dask_image")
class Spots:
    """The first frames of a run, as raw counts or corrected for overlap."""

    params = (["small", "full"], ["float32", "int16"])
    param_names = ["size", "dtype"]
    reference = "time_scipy"
    equal = "frames and masks identical"
    included = "memory to memory; no disk, no start-up"
    warm_up = True
    devices = ("cpu", "gpu")
    on_host = ("scipy", "ours_one_thread", "opencv", "skimage", "dask_image")
    peers = {"opencv": "cv2", "skimage": "skimage", "dask_image": "dask_image"}
    sides = (1, 3, 3)

    def setup(self, size: str, dtype: str) -> None:
        run = prepare_run(size)
        frames = plain.read_stack(run)
        if dtype == "float32":
            frames = plain.correct_overlap(frames, *plain.read_windows(run))
        self.frames = frames[:FRAMES].copy()
        self.shape, self.dtype, self.nbytes = self.frames.shape, self.frames.dtype, self.frames.nbytes

    def time_scipy(self, size: str, dtype: str) -> tuple[np.ndarray, ...]:
        return plain.remove_spots(self.frames, THRESHOLD)

    def time_ours_one_thread(self, size: str, dtype: str) -> tuple[np.ndarray, ...]:
        return remove_spots(self.frames, size=3, threshold=THRESHOLD)

    def time_ours(self, size: str, dtype: str) -> tuple[np.ndarray, ...]:
        return ours.apply_step(self.frames, {"remove_spots": {"size": 3, "threshold": THRESHOLD}})

    def time_opencv(self, size: str, dtype: str) -> tuple[np.ndarray, ...]:
        import cv2

        cleaned, spots = np.empty_like(self.frames), np.empty(self.shape, bool)
        for i, frame in enumerate(self.frames):
            median = cv2.medianBlur(frame, 3)
            spots[i] = np.abs(frame.astype(np.float32) - median) > THRESHOLD
            cleaned[i] = np.where(spots[i], median, frame)
        return cleaned, spots

    def time_skimage(self, size: str, dtype: str) -> tuple[np.ndarray, ...]:
        return replace_by(median_by_skimage(self.frames, self.sides), self.frames)

    def time_dask_image(self, size: str, dtype: str) -> tuple[np.ndarray, ...]:
        return replace_by(median_by_dask_image(self.frames, self.sides, scheduler="threads"), self.frames)

    def least(self, side: str) -> dict[str, float]:
        """Frames read, frames and mask written."""
        name = "memory" if side in ("ours", "dask_image") else "memory, one thread"
        return {name: 2 * self.nbytes + self.frames.size}

    def assert_equal(self, found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
        assert expected[1].any(), "no spot in these frames, so the masks prove nothing"
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(found[0], expected[0])


class Projections(Spots):
    """Radiographs of a tomography: 100 of 2048 x 2048, each with a spot in a hundred pixels."""

    params = (["small", "full"], ["uint16"])
    stacks = {"small": (3, 64, 80), "full": (100, 2048, 2048)}
    neighbourhood = "frame"

    def setup(self, size: str, dtype: str) -> None:
        self.frames = draw_counts(self.stacks[size]).astype(dtype)
        self.shape, self.dtype, self.nbytes = self.frames.shape, self.frames.dtype, self.frames.nbytes

    def time_ours(self, size: str, dtype: str) -> tuple[np.ndarray, ...]:
        step = {"size": 3, "threshold": THRESHOLD, "neighbourhood": self.neighbourhood}
        return ours.apply_step(self.frames, {"remove_spots": step})

    def time_ours_one_thread(self, size: str, dtype: str) -> tuple[np.ndarray, ...]:
        return remove_spots(self.frames, size=3, threshold=THRESHOLD, neighbourhood=self.neighbourhood)


class Volume(Projections):
    """A tomogram of 512 x 512 x 512, windows of 3 x 3 x 3."""

    stacks = {"small": (5, 20, 24), "full": (512, 512, 512)}
    neighbourhood, sides = "volume", (3, 3, 3)
    on_host = ("scipy", "ours_one_thread", "skimage", "dask_image")
    peers = {"skimage": "skimage", "dask_image": "dask_image"}
    time_opencv = peakmem_opencv = None

    def time_scipy(self, size: str, dtype: str) -> tuple[np.ndarray, ...]:
        from scipy.ndimage import median_filter

        return replace_by(median_filter(self.frames, 3, mode="nearest"), self.frames)


def replace_by(median: np.ndarray, frames: np.ndarray) -> tuple[np.ndarray, ...]:
    spots = np.abs(frames.astype(np.float32) - median) > THRESHOLD
    return np.where(spots, median, frames), spots


def median_by_skimage(frames: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    from skimage.filters import median

    return median(frames, np.ones(sides), mode="nearest")


def median_by_dask_image(frames: np.ndarray, sides: tuple[int, ...], *, scheduler: str) -> np.ndarray:
    """Its blocks are groups of frames, several for each core."""
    import dask.array as da
    from dask_image.ndfilters import median_filter

    blocks = da.from_array(frames, chunks=(max(1, len(frames) // (4 * count_cores())), *frames.shape[1:]))
    return median_filter(blocks, size=sides, mode="nearest").compute(scheduler=scheduler)


def draw_counts(shape: tuple[int, int, int]) -> np.ndarray:
    """Counts with a spot in a hundred, uint16; only some frames are drawn, the others are those, moved along."""
    rng = np.random.default_rng(SEED)
    drawn = rng.poisson(400, (min(8, shape[0]), *shape[1:])).astype(np.uint16)
    drawn[rng.random(drawn.shape) < 0.01] += 2 * THRESHOLD
    frames = np.empty(shape, np.uint16)
    for i, frame in enumerate(frames):
        frame[...] = np.roll(drawn[i % len(drawn)], (7 * i, 11 * i), axis=(0, 1))
    return frames


def read_counts(size: str, dtype: str, frames: int) -> np.ndarray:
    """The first frames of a run; they hold no negative counts."""
    return plain.read_stack(prepare_run(size))[:frames].astype(dtype)


def clean(frames: np.ndarray, *, window: tuple[int, int, int]) -> np.ndarray:
    """Frames with each value replaced that is not its median, which `remove_spots` would warn of."""
    rule = {"kind": "both", "threshold": 0.0, "threshold_unit": "counts", "replacement": "median"}
    nothing_else = {"max_area": None, "dead": None, "own": (slice(None),) * 3}
    return CPU.replace_spots(frames, window=window, **rule, **nothing_else)[0]


def check_medians(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


class Medians:
    """The medians alone, and cleaning, one thread each; at threshold 0 the cleaned frames are the medians."""

    params = (["small", "full"], ["float32", "uint16"], [3, 5], [1, FRAMES])
    param_names = ["size", "dtype", "window", "frames"]
    reference = "time_scipy"
    equal = "medians identical"
    included = "memory to memory, one thread; no disk, no start-up"
    warm_up = True
    peers = {"opencv": "cv2", "skimage": "skimage", "dask_image": "dask_image"}

    def setup(self, size: str, dtype: str, window: int, frames: int) -> None:
        self.frames = read_counts(size, dtype, frames)
        self.shape, self.dtype, self.nbytes = self.frames.shape, self.frames.dtype, self.frames.nbytes

    def time_scipy(self, size: str, dtype: str, window: int, *_: int) -> np.ndarray:
        from scipy.ndimage import median_filter

        return median_filter(self.frames, (1, window, window), mode="nearest")

    def time_ours(self, size: str, dtype: str, window: int, *_: int) -> np.ndarray:
        return CPU.median(self.frames, size=(1, window, window))

    def time_ours_cleaning(self, size: str, dtype: str, window: int, *_: int) -> np.ndarray:
        return clean(self.frames, window=(1, window, window))

    def time_opencv(self, size: str, dtype: str, window: int, *_: int) -> np.ndarray:
        import cv2

        threads, medians = cv2.getNumThreads(), np.empty_like(self.frames)
        cv2.setNumThreads(1)
        for frame, median in zip(self.frames, medians, strict=True):
            cv2.medianBlur(frame, window, dst=median)
        cv2.setNumThreads(threads)
        return medians

    def time_skimage(self, size: str, dtype: str, window: int, *_: int) -> np.ndarray:
        return median_by_skimage(self.frames, (1, window, window))

    def time_dask_image(self, size: str, dtype: str, window: int, *_: int) -> np.ndarray:
        return median_by_dask_image(self.frames, (1, window, window), scheduler="synchronous")

    def least(self, side: str) -> dict[str, float]:
        return {"memory, one thread": 2 * self.nbytes}

    def assert_equal(self, found: np.ndarray, expected: np.ndarray) -> None:
        check_medians(found, expected)


class LargeFrame(Medians):
    """The same of one radiograph of 2048 x 2048."""

    params = (["small", "full"], ["float32", "uint16"], [3, 5])
    param_names = ["size", "dtype", "window"]

    def setup(self, size: str, dtype: str, window: int) -> None:
        self.frames = draw_counts((1, *Projections.stacks[size][1:])).astype(dtype)
        self.shape, self.dtype, self.nbytes = self.frames.shape, self.frames.dtype, self.frames.nbytes


WINDOWS = {"7x7": (1, 7, 7), "9x9": (1, 9, 9), "15x15": (1, 15, 15), "3x3x3": (3, 3, 3), "5x5x5": (5, 5, 5)}


class WideMedians:
    """The same for windows that OpenCV has not: 7 x 7 and wider in frames, and in volumes."""

    params = (["small", "full"], ["float32", "uint16"], list(WINDOWS))
    param_names = ["size", "dtype", "window"]
    reference = "time_scipy"
    equal = "medians identical"
    included = Medians.included
    warm_up = True
    peers = {"skimage": "skimage", "dask_image": "dask_image"}

    def setup(self, size: str, dtype: str, window: str) -> None:
        self.frames = read_counts(size, dtype, FRAMES // 10)
        self.sides = WINDOWS[window]
        self.shape, self.dtype, self.nbytes = self.frames.shape, self.frames.dtype, self.frames.nbytes

    def time_scipy(self, size: str, dtype: str, window: str) -> np.ndarray:
        from scipy.ndimage import median_filter

        return median_filter(self.frames, self.sides, mode="nearest")

    def time_ours(self, size: str, dtype: str, window: str) -> np.ndarray:
        return CPU.median(self.frames, size=self.sides)

    def time_ours_cleaning(self, size: str, dtype: str, window: str) -> np.ndarray:
        return clean(self.frames, window=self.sides)

    def time_skimage(self, size: str, dtype: str, window: str) -> np.ndarray:
        return median_by_skimage(self.frames, self.sides)

    def time_dask_image(self, size: str, dtype: str, window: str) -> np.ndarray:
        return median_by_dask_image(self.frames, self.sides, scheduler="synchronous")

    def least(self, side: str) -> dict[str, float]:
        return {"memory, one thread": 2 * self.nbytes}

    def assert_equal(self, found: np.ndarray, expected: np.ndarray) -> None:
        check_medians(found, expected)


class Options:
    """Cleaning by other rules, against the same in whole-array calls of NumPy and SciPy; one thread each."""

    params = (["small", "full"], ["poisson", "sigma", "mean", "NaN in the frames", "dead pixels"])
    param_names = ["size", "option"]
    reference = "time_numpy"
    equal = "frames to 1e-6, masks identical"
    included = Medians.included
    warm_up = True

    def setup(self, size: str, option: str) -> None:
        self.frames = read_counts(size, "float32", FRAMES // 10)
        holes = np.random.default_rng(0).random(self.frames.shape[1:]) < 0.01
        if option == "NaN in the frames":
            self.frames[:, holes] = np.nan
        self.options = {
            "kind": "both",
            "window": (1, 3, 3),
            "threshold": float(THRESHOLD if option not in ("poisson", "sigma") else 4),
            "threshold_unit": option if option in ("poisson", "sigma") else "counts",
            "replacement": "mean" if option == "mean" else "median",
            "max_area": None,
            "dead": holes if option == "dead pixels" else None,
            "own": (slice(None),) * 3,
        }
        self.shape, self.dtype, self.nbytes = self.frames.shape, self.frames.dtype, self.frames.nbytes

    def time_numpy(self, size: str, option: str) -> tuple[np.ndarray, ...]:
        from niseg_gpu.kernels.spots_xp import replace_spots_xp

        return replace_spots_xp(self.frames, backend=CPU, **self.options)[:2]

    def time_ours(self, size: str, option: str) -> tuple[np.ndarray, ...]:
        return CPU.replace_spots(self.frames, **self.options)[:2]

    def least(self, side: str) -> dict[str, float]:
        return {"memory, one thread": 2 * self.nbytes + self.frames.size}

    def assert_equal(self, found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)

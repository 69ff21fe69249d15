"""Replacing spots by the median of their 3x3 surroundings."""

from __future__ import annotations

import importlib.util

import numpy as np

from benchmarks import ours, plain
from benchmarks.data import THRESHOLD, prepare_run
from niseg_gpu.spots import remove_spots

FRAMES = 100


class Spots:
    """The first frames of a run, as raw counts or corrected for overlap."""

    params = (["small", "full"], ["float32", "int16"])
    param_names = ["size", "dtype"]
    reference = "time_scipy"
    equal = "frames and masks identical"
    included = "memory to memory; no disk, no start-up"
    warm_up = True

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

    if importlib.util.find_spec("cv2"):

        def time_opencv(self, size: str, dtype: str) -> tuple[np.ndarray, ...]:
            import cv2

            cleaned, spots = np.empty_like(self.frames), np.empty(self.shape, bool)
            for i, frame in enumerate(self.frames):
                median = cv2.medianBlur(frame, 3)
                spots[i] = np.abs(frame.astype(np.float32) - median) > THRESHOLD
                cleaned[i] = np.where(spots[i], median, frame)
            return cleaned, spots

    def assert_equal(self, found: tuple[np.ndarray, ...], expected: tuple[np.ndarray, ...]) -> None:
        assert expected[1].any(), "no spot in these frames, so the masks prove nothing"
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(found[0], expected[0])

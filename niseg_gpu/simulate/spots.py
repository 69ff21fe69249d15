"""Spots of many shapes and strengths: drawn at random, or taken from measured dark frames."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.images import read_image
from niseg_gpu.options import check_options
from niseg_gpu.simulate.streams import start_rng

# How often each footprint occurs: single pixels, blobs, clusters, tracks.
SHARES = (0.42, 0.4, 0.08, 0.1)
# Less than this is no part of a spot.
LEAST_COUNTS = 0.1
BLOB_REACH, LONGEST_CLUSTER, LONGEST_TRACK = 4, 8, 30


def draw_spots(
    n_spots: int,
    *,
    height: int,
    width: int,
    exponent: float,
    counts_range: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw spots whose peaks follow a power law, scattered evenly over a frame.

    The number of spots falls as ``peak ** -exponent`` between the limits. Two in five are single pixels; the others
    are Gaussian blobs, random walks (clusters) and straight lines (tracks).

    Parameters
    ----------
    n_spots : int
        How many.
    height, width : int
        Pixels of the frame.
    exponent : float
        Of the power law, above 1.
    counts_range : (float, float)
        Weakest and strongest peak, in counts.
    rng : numpy.random.Generator
        Source of random numbers.

    Returns
    -------
    place : (P,) ndarray of int64
        Flat index of each pixel hit; one hit by two spots occurs twice.
    counts : (P,) ndarray of float32
        What it gets.
    """
    low, high = (c ** (1.0 - exponent) for c in counts_range)
    peak = (low - rng.random(n_spots) * (low - high)) ** (1.0 / (1.0 - exponent))
    centre = rng.random((n_spots, 2)) * (height, width)
    last = np.cumsum(rng.multinomial(n_spots, SHARES))
    parts = np.split(np.arange(n_spots), last[:-1])
    places, counts = [], []
    for chosen, shape in zip(parts, (_draw_points, _draw_blobs, _draw_clusters, _draw_tracks), strict=True):
        y, x, weight = shape(centre[chosen], rng)
        added = peak[chosen, None] * weight
        kept = (added > LEAST_COUNTS) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        places.append((y * width + x)[kept])
        counts.append(added[kept].astype(np.float32))
    return np.concatenate(places), np.concatenate(counts)


def expect_marked(limit: np.ndarray, *, exponent: float, counts_range: tuple[float, float]) -> float:
    """Return how many pixels with more than `limit` (an array, in counts) one spot of `draw_spots` leaves on average.

    A spot whose pixels have the weights w leaves the sum of P(peak > limit / w), which for a power law is
    P(peak > limit) times the sum of ``w ** (exponent - 1)``; the mean of that sum depends on the footprints only.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    centre = np.full((2000, 2), 0.5) + rng.random((2000, 2))
    shapes = (_draw_points, _draw_blobs, _draw_clusters, _draw_tracks)
    pixels = [(shape(centre, rng)[2] ** (exponent - 1.0)).sum(axis=1).mean() for shape in shapes]
    low, high = (c ** (1.0 - exponent) for c in counts_range)
    exceeding = np.clip(limit, *counts_range)
    np.power(exceeding, 1.0 - exponent, out=exceeding)
    exceeding -= high
    exceeding /= low - high
    return float(np.dot(SHARES, pixels) * exceeding.mean(dtype=np.float64))


def extract_spots(dark: Any, *, size: Annotated[int, Ge(3)] = 3, threshold: float) -> Any:
    """Return what the spots of measured dark frames add to them: where a pixel exceeds its median by the threshold.

    A dark frame holds little but spots, so they can be added to clean images to train or test on
    (doi:10.3847/1538-4357/ad1602). A spot that fills half of the window or more is lost: take a larger `size` then.

    Parameters
    ----------
    dark : (..., Y, X) array
        One dark frame, or several.
    size : int, optional
        Side of the median's window in pixels, odd.
    threshold : float
        In the units of the frame; some 5 times its noise.

    Returns
    -------
    (..., Y, X) array of float32
        ``dark - median`` where that is above the threshold, else 0, also where it is NaN or Inf.
    """
    check_options(extract_spots, size=size, threshold=threshold)
    if size % 2 == 0:
        raise UserError(f"extract_spots got size {size}; allowed: odd, 3 or more")
    dark = read_image(dark, who="extract_spots")
    backend = backend_of(dark)
    xp = backend.xp
    median = backend.median(dark, size=(1,) * (dark.ndim - 2) + (size, size))
    excess = xp.astype(dark, xp.float32) - xp.astype(median, xp.float32)
    return xp.where((excess > threshold) & xp.isfinite(excess), excess, xp.asarray(0, dtype=xp.float32))


def measure_spots(path: str) -> np.ndarray:
    """Return what the spots of the dark frames in a folder or file add, (N, Y, X) float32; see `extract_spots`.

    The threshold is 5 times the scatter of ``dark - median``, robustly taken.
    """
    from niseg_gpu.io.open import open_stack

    frames = np.asarray(open_stack(path).data)
    if frames.ndim < 2 or frames.size == 0:
        raise UserError(f"dark_frames '{path}' is of shape {frames.shape}; give images")
    frames = frames.reshape(-1, *frames.shape[-2:])
    n_bad = np.count_nonzero(~np.isfinite(frames))
    if n_bad:
        raise UserError(f"dark_frames '{path}' holds {n_bad} values that are NaN or Inf; replace them first")
    residual = frames - backend_of(frames).median(frames, size=(1, 3, 3)).astype(np.float32)
    scatter = 1.4826 * float(np.median(np.abs(residual[:: max(1, len(frames) // 8)])))
    threshold = 5.0 * max(scatter, 0.5)
    deposits = extract_spots(frames, threshold=threshold)
    if not deposits.any():
        raise UserError(f"dark_frames '{path}' has no pixel {threshold:g} above its neighbours; give frames with spots")
    return deposits


def add_spots(image: np.ndarray, deposits: np.ndarray, *, seed: Annotated[int, Ge(0)]) -> tuple[np.ndarray, np.ndarray]:
    """Add measured spots to an image: one frame of deposits, shifted round its edges and mirrored at random.

    Parameters
    ----------
    image : (Y, X) ndarray
        Image to add to; integers are rounded and stay within their type.
    deposits : (Y', X') or (N, Y', X') ndarray of float32
        From `extract_spots`; a frame smaller than the image is repeated.
    seed : int
        Of the choice of frame, shift and mirroring.

    Returns
    -------
    with_spots : (Y, X) ndarray
        In the dtype of `image`.
    placed : (Y, X) ndarray of float32
        What was added; its pixels above 0 are the truth.
    """
    check_options(add_spots, seed=seed)
    image, deposits = (read_image(given, who="add_spots") for given in (image, deposits))
    if image.ndim != 2 or deposits.ndim not in (2, 3):
        raise UserError(
            f"add_spots got an image {image.shape} and deposits {deposits.shape}; give (Y, X) and (Y, X) or (N, Y, X)"
        )
    placed = place_spots(deposits, image.shape, rng=start_rng(seed))
    total = image.astype(np.float64) + placed
    if image.dtype.kind in "iu":
        limits = np.iinfo(image.dtype)
        total = np.clip(np.rint(total), limits.min, limits.max)
    return total.astype(image.dtype), placed


def place_spots(deposits: np.ndarray, shape: tuple[int, int], *, rng: np.random.Generator) -> np.ndarray:
    """Return one frame of deposits, shifted round its edges and mirrored at random, (Y, X) float32 of that shape."""
    frame = deposits[int(rng.integers(len(deposits)))] if deposits.ndim == 3 else deposits
    rows, columns = (
        (int(rng.integers(period)) + int(rng.choice((-1, 1))) * np.arange(n)) % period
        for n, period in zip(shape, frame.shape, strict=True)
    )
    return frame[np.ix_(rows, columns)].astype(np.float32)


def _draw_points(centre: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and weights of the pixels of each spot, (n, pixels); the largest weight is 1."""
    y, x = np.floor(centre).astype(np.int64).T[:, :, None]
    return y, x, np.ones(y.shape)


def _draw_blobs(centre: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    reach = np.arange(-BLOB_REACH, BLOB_REACH + 1)
    dy, dx = (d.ravel() for d in np.meshgrid(reach, reach, indexing="ij"))
    pixel = np.floor(centre).astype(np.int64)
    y, x = pixel[:, :1] + dy, pixel[:, 1:] + dx
    width = rng.uniform(0.5, 1.3, (len(centre), 1))
    distance = (y + 0.5 - centre[:, :1]) ** 2 + (x + 0.5 - centre[:, 1:]) ** 2
    weight = np.exp(-0.5 * distance / width**2)
    return y, x, weight / weight.max(axis=1, initial=0, keepdims=True)


def _draw_clusters(centre: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = (len(centre), LONGEST_CLUSTER)
    steps = rng.integers(-1, 2, (2, *shape))
    steps[:, :, 0] = 0
    y, x = np.floor(centre).astype(np.int64).T[:, :, None] + np.cumsum(steps, axis=2)
    return y, x, _draw_weights(shape, shortest=2, rng=rng)


def _draw_tracks(centre: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shape = (len(centre), LONGEST_TRACK)
    # Steps of one pixel along the longer axis and less along the other: lines without gaps, and no sine needed.
    slope = rng.uniform(-1.0, 1.0, (len(centre), 1))
    steep = rng.random((len(centre), 1)) < 0.5
    along = np.arange(LONGEST_TRACK)
    y = np.floor(centre[:, :1] + np.where(steep, 1.0, slope) * along).astype(np.int64)
    x = np.floor(centre[:, 1:] + np.where(steep, slope, 1.0) * along).astype(np.int64)
    return y, x, _draw_weights(shape, shortest=4, rng=rng)


def _draw_weights(shape: tuple[int, int], *, shortest: int, rng: np.random.Generator) -> np.ndarray:
    """Uneven weights along a path; paths end somewhere between the shortest and all."""
    length = rng.integers(shortest, shape[1] + 1, (shape[0], 1))
    weight = rng.uniform(0.3, 1.0, shape)
    weight[:, 0] = 1.0
    weight[np.arange(shape[1]) >= length] = 0.0
    return weight

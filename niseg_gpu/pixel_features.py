"""Features of a pixel beyond its spectrum: where it lies, what surrounds it, what other images show there.

After A. Kaestner, Segmenting neutron images using machine learning (2021): position keeps clusters together, smoothed
means and edges bring in the neighbourhood, a registered image of another kind (X-ray, dark field) a second modality.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from annotated_types import Gt, Le

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError, suggest
from niseg_gpu.images import read_image
from niseg_gpu.options import check_options

SPECTRUM = "spectrum"
NAMES = ("x", "y", "z", "smooth", "sobel_x", "sobel_y")


def compute_pixel_features(
    image: Any, names: Sequence[str], *, smooth_sigma_px: Annotated[float, Gt(0), Le(1000)] = 2.0
) -> Any:
    """Compute features of every pixel from an image.

    Parameters
    ----------
    image : (Y, X) or (Z, Y, X) array
        Such as the mean over time of flight; worked on in float32. NaN and Inf are no values: the smoothed
        surroundings stand in for them.
    names : sequence of str
        ``x``, ``y``, ``z`` (pixel), ``smooth`` (Gaussian mean), ``sobel_x``, ``sobel_y`` (slope along x and y, in the
        units of the image per pixel).
    smooth_sigma_px : float
        Standard deviation of the Gaussian.

    Returns
    -------
    (features, pixels) float32 array
        Finite wherever a value lies within reach of the Gaussian.

    Raises
    ------
    UserError
        An unknown name, or ``z`` of a single image.
    """
    check_options(compute_pixel_features, smooth_sigma_px=smooth_sigma_px)
    if (
        isinstance(names, str)
        or not isinstance(names, Iterable)
        or not all(isinstance(n, str) for n in names)
        or not names
    ):
        raise UserError(f"compute_pixel_features got names {names!r}; allowed: a list of {', '.join(NAMES)}")
    image = read_image(image, who="compute_pixel_features")
    backend = backend_of(image)
    xp = backend.xp
    image = xp.astype(image, xp.float32)  # slopes of unsigned counts would wrap
    smooth = _smooth(backend, image, smooth_sigma_px)
    filled = xp.where(xp.isfinite(image), image, smooth)
    rows = []
    for name in names:
        check_feature(name, ndim=image.ndim)
        if name == "smooth":
            values = smooth
        elif name in ("sobel_x", "sobel_y"):
            values = backend.sobel(filled, axis=-1 if name == "sobel_x" else -2) / 8  # the weights add up to 8
        else:
            axis = image.ndim - 1 - "xyz".index(name)
            line = xp.arange(image.shape[axis], dtype=xp.float32)
            values = xp.broadcast_to(line[(slice(None),) + (None,) * (image.ndim - 1 - axis)], image.shape)
        rows.append(xp.reshape(xp.astype(values, xp.float32), (-1,)))
    return xp.stack(rows)


def _smooth(backend: Any, image: Any, sigma_px: float) -> Any:
    """Gaussian mean of the values that are finite; NaN where none is in reach."""
    xp = backend.xp
    good = xp.isfinite(image)
    values = backend.gaussian(xp.where(good, image, xp.asarray(0, dtype=image.dtype)), sigma=sigma_px)
    if bool(xp.all(good)):
        return values
    weight = backend.gaussian(xp.astype(good, xp.float32), sigma=sigma_px)
    return xp.where(weight > 1e-6, values / xp.maximum(weight, xp.asarray(1e-6, dtype=xp.float32)), xp.nan)


def check_feature(name: str, *, ndim: int) -> None:
    """Refuse a feature that does not exist, or that a map of `ndim` axes does not have."""
    if name not in NAMES:
        raise UserError(f"kmeans: features names {name!r}{suggest(name, (SPECTRUM, *NAMES))}")
    if name == "z" and ndim < 3:
        raise UserError("kmeans: features names z, but the map is one image; allowed there: all others")


def standardize(columns: Any, weights: Sequence[float], *, valid: Any) -> Any:
    """Give every column mean 0 and the standard deviation `weights` says, over the pixels that are valid.

    Parameters
    ----------
    columns : (features, pixels) float32 array
    weights : sequence of float
        One a column. A constant column becomes 0.
    valid : (pixels,) bool array

    Returns
    -------
    (features, pixels) float32 array
    """
    xp = backend_of(columns).xp
    out = xp.empty_like(columns)
    for i, weight in enumerate(weights):
        values = xp.astype(columns[i], xp.float64)
        chosen = values[valid]
        spread = float(xp.std(chosen))
        out[i] = (values - xp.mean(chosen)) * (weight / spread if spread > 0 else 0.0)
    return out


def split_weights(features: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The weight of the spectrum (1 where none is given), and those of the other features that have one."""
    return float(features.get(SPECTRUM, 1.0)), {n: float(w) for n, w in features.items() if n != SPECTRUM and w > 0}

"""What a nearest-neighbour search looks at in each pixel: its value and how it stands out from its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError, suggest
from niseg_gpu.kernels.spots_xp import find_missing, median_of_values

Median = Callable[[int], Any]


class Feature(NamedTuple):
    """One number a pixel.

    Attributes
    ----------
    compute : callable
        ``(values, median) -> array``: from the (..., Y, X) float32 values, and ``median(size)``, their running median.
    halo : int
        Pixels around a pixel that decide its feature.
    """

    compute: Callable[[Any, Median], Any]
    halo: int


def running_median(image: Any) -> Median:
    """Return the function that gives `image`'s median over size x size pixels of each frame, computed once a size.

    NaN is left out of its neighbours' windows.
    """
    backend = backend_of(image)
    missing = cache(lambda: find_missing(image, None, xp=backend.xp))

    @cache
    def median(size: int) -> Any:
        return median_of_values(image, (1,) * (image.ndim - 2) + (size, size), missing(), backend=backend)

    return median


def compute_features(image: Any, names: Sequence[str], *, median: Median | None = None) -> Any:
    """Compute features of every pixel, frame by frame; outside of a frame its border value goes on.

    Parameters
    ----------
    image : (..., Y, X) array
    names : sequence of str
        Of `FEATURES`: ``value`` f, ``residual`` f - m3, ``abs_residual`` ``|f - m3|``, ``residual5`` f - m5, where m3
        and m5 are medians of 3 x 3 and 5 x 5 pixels; ``poisson_residual``, f - m5 over the root of m5 (of 1 at least),
        what counts are expected to vary by; ``local_mean``, the mean of 3 x 3 pixels; ``gradient``, the length of
        (f(x + 1) - f(x - 1), f(y + 1) - f(y - 1)) / 2.
    median : callable, optional
        As `running_median` gives it, to share what it has computed.

    Returns
    -------
    (..., Y, X, features) float32 array

    Raises
    ------
    UserError
        A name that is none of a feature, or none at all.
    """
    check_features(names)
    xp = backend_of(image).xp
    values, given = xp.astype(image, xp.float32), median or running_median(image)
    with np.errstate(invalid="ignore"):  # Inf - Inf: such a feature is NaN
        features = [FEATURES[name].compute(values, lambda size: xp.astype(given(size), xp.float32)) for name in names]
    return xp.stack(features, axis=-1)


def check_features(names: Iterable[str], *, who: str = "knn") -> None:
    """Refuse unknown, repeated and no features."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise UserError(f"{who} got the features {names!r}; allowed: a list of {', '.join(FEATURES)}")
    names = list(names)
    for name in names:
        if not isinstance(name, str) or name not in FEATURES:
            raise UserError(f"{who} has no feature {name!r}{suggest(str(name), FEATURES)}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"{who} got the features {names}; allowed: one or more of {', '.join(FEATURES)}, each once")


def halo_of_features(names: Iterable[str]) -> int:
    """Pixels of neighbourhood that a block needs."""
    return max(FEATURES[name].halo for name in names)


def _residual(values: Any, median: Median) -> Any:
    return values - median(3)


def _abs_residual(values: Any, median: Median) -> Any:
    return abs(values - median(3))


def _residual5(values: Any, median: Median) -> Any:
    return values - median(5)


def _poisson_residual(values: Any, median: Median) -> Any:
    xp = backend_of(values).xp
    return (values - median(5)) / xp.sqrt(xp.maximum(median(5), np.float32(1)))


def _local_mean(values: Any, median: Median) -> Any:
    # added one after the other: the same rounding on both devices
    total = _shifted(values, -1, -1)
    for rows, columns in ((-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1)):
        total = total + _shifted(values, rows, columns)
    return total / np.float32(9)


def _gradient(values: Any, median: Median) -> Any:
    along_x = (_shifted(values, 0, 1) - _shifted(values, 0, -1)) * np.float32(0.5)
    along_y = (_shifted(values, 1, 0) - _shifted(values, -1, 0)) * np.float32(0.5)
    return backend_of(values).xp.sqrt(along_x * along_x + along_y * along_y)


def _shifted(values: Any, rows: int, columns: int) -> Any:
    """The values `rows` below and `columns` to the right of each pixel, the border value repeated outside."""
    xp = backend_of(values).xp
    for axis, by in ((-2, rows), (-1, columns)):
        if by:
            last = values.shape[axis] - 1
            values = xp.take(values, xp.asarray(np.clip(np.arange(last + 1) + by, 0, last)), axis=axis)
    return values


FEATURES: dict[str, Feature] = {
    "value": Feature(lambda values, median: values, 0),
    "residual": Feature(_residual, 1),
    "abs_residual": Feature(_abs_residual, 1),
    "residual5": Feature(_residual5, 2),
    "poisson_residual": Feature(_poisson_residual, 2),
    "local_mean": Feature(_local_mean, 1),
    "gradient": Feature(_gradient, 1),
}

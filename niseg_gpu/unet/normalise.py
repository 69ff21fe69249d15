"""What a network is shown: channels of an image, brought to one scale by the training images' statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.knn_features import check_features, compute_features, halo_of_features

SAMPLE = 2**22  # pixels of all training images that a median is taken over


@dataclass(frozen=True)
class Normalisation:
    """How values become a network's input: ``(value - mean) / scale`` for each channel.

    Attributes
    ----------
    channels : tuple of str
        Features of a pixel, as `niseg_gpu.knn_features.FEATURES` names them; ``value`` is the image itself.
    means, scales : tuple of float
    compress : bool
        Take the inverse hyperbolic sine of it: near 0 nothing changes, and bright spots don't drown the weak.
    fill : float
        Stands in an image where it has no value, NaN or Inf: the mean of the training images.
    """

    channels: tuple[str, ...] = ("value",)
    means: tuple[float, ...] = (0.0,)
    scales: tuple[float, ...] = (1.0,)
    compress: bool = False
    fill: float = 0.0

    def __post_init__(self) -> None:
        check_features(self.channels, who="unet")
        numbers = np.array([self.means, self.scales], dtype=float)
        if numbers.shape != (2, len(self.channels)) or not np.isfinite(numbers).all() or (numbers[1] <= 0).any():
            raise UserError(
                f"unet got means {self.means} and scales {self.scales} for the channels {self.channels}; "
                "allowed: a number for each, scales above 0"
            )

    @property
    def halo(self) -> int:
        """Pixels around a pixel, in its frame, that decide its channels."""
        return halo_of_features(self.channels)

    def as_mapping(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Normalisation:
        parts = {name: tuple(mapping[name]) for name in ("channels", "means", "scales")}
        return cls(**parts, compress=bool(mapping["compress"]), fill=float(mapping["fill"]))


def fit_normalisation(
    images: Sequence[Any], *, channels: Sequence[str] = ("value",), robust: bool = False, compress: bool = False
) -> Normalisation:
    """Take the statistics of training images.

    Parameters
    ----------
    images : sequence of (..., Y, X) array
    channels : sequence of str
    robust : bool
        Median and 1.4826 times the median distance from it, which spots do not move, for mean and standard deviation.
    compress : bool

    Raises
    ------
    UserError
        An unknown channel, no image, or only NaN and Inf.
    """
    check_features(channels, who="unet")
    if not images:
        raise UserError("unet got no training images; needed: one or more")
    step = max(1, sum(int(np.prod(image.shape)) for image in images) // SAMPLE) if robust else 1
    names = [*channels, *({"value"} - set(channels))]
    rows = []
    for image in images:
        values = backend_of(image).to_host(compute_features(image, names)).reshape(-1, len(names))[::step]
        rows.append(values[np.isfinite(values).all(1)])
    values = np.concatenate(rows)
    if not len(values):
        raise UserError("the training images hold nothing but NaN and Inf")
    if robust:
        means = np.median(values, axis=0)
        scales = 1.4826 * np.median(abs(values - means), axis=0)
    else:
        means, scales = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    scales = np.where(scales > 0, scales, 1.0)
    kept = [tuple(map(float, part[: len(channels)])) for part in (means, scales)]
    return Normalisation(tuple(channels), *kept, compress, fill=float(means[names.index("value")]))


def read_channels(image: Any, normalisation: Normalisation) -> Any:
    """Return (..., Y, X, C) values, not normalised yet: of the image alone, in a dtype that JAX keeps as it is."""
    xp = backend_of(image).xp
    if normalisation.channels != ("value",):
        return compute_features(image, normalisation.channels)
    if image.dtype == bool:
        image = xp.astype(image, xp.uint8)
    elif image.dtype.itemsize > 4:
        image = xp.astype(image, xp.float32)
    return image[..., None]


def normalise(values: Any, normalisation: Normalisation) -> Any:
    """Normalise (..., C) values; a JAX function.

    Returns
    -------
    (..., C) float32 array
    """
    import jax.numpy as jnp

    means, scales = (jnp.asarray(part, jnp.float32) for part in (normalisation.means, normalisation.scales))
    values = (values.astype(jnp.float32) - means) / scales
    return jnp.arcsinh(values) if normalisation.compress else values

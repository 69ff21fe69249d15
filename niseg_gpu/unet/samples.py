"""Training images on the device, and samples drawn from them there."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.normalise import Normalisation, read_channels

log = logging.getLogger("niseg_gpu")
MARGIN = 1.5  # of the sample that a turned and magnified crop is cut from, in sides of the crop


class Samples(NamedTuple):
    """Images one after another, each in a corner of an array that holds the largest.

    Attributes
    ----------
    images : (N, *space, C) array
    masks : (N, *space) uint8 array
    sizes : (N, d) int32 array
        Sides of each image.
    """

    images: jax.Array
    masks: jax.Array
    sizes: jax.Array

    @property
    def smallest(self) -> tuple[int, ...]:
        return tuple(int(n) for n in np.asarray(self.sizes).min(axis=0))


def check_pairs(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], names: Sequence[str], *, classes: int
) -> None:
    """Refuse images and masks that do not fit each other, and masks with labels that are no classes."""
    for image, mask, name in zip(images, masks, names, strict=True):
        if image.shape != mask.shape:
            raise UserError(f"{name}: the image has shape {image.shape}, its mask {mask.shape}; crop both alike")
        known = np.unique(mask)
        if not np.isfinite(known).all() or (known != np.rint(known)).any() or known[0] < 0:
            raise UserError(f"{name}: the mask holds {known[:5].tolist()}; allowed: whole numbers from 0")
        if classes == 1 and len(known) > 2:
            raise UserError(
                f"{name}: the mask holds {len(known)} labels ({known[:5].tolist()} ...); allowed: 0 and one more, or "
                "give out_classes"
            )
        if classes == 1 and len(known) == 2 and known[0] != 0:
            raise UserError(f"{name}: the mask holds {known.tolist()}; allowed: 0 for background, and one more label")
        if classes > 1 and known[-1] >= classes:
            raise UserError(f"{name}: the mask holds label {known[-1]:g}; allowed: 0 to {classes - 1} (out_classes)")


def cut_frames(arrays: Sequence[np.ndarray], *, spatial_dims: int) -> list[np.ndarray]:
    """Return images (Y, X), or volumes (Z, Y, X), from stacks of any number of them."""
    frames: list[np.ndarray] = []
    for array in arrays:
        if array.ndim < spatial_dims:
            raise UserError(f"an image of shape {array.shape} is no volume; needed: (z, y, x), or spatial_dims 2")
        frames += list(array.reshape(-1, *array.shape[array.ndim - spatial_dims :]))
    return frames


def put_samples(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    *,
    config: UNetConfig,
    normalisation: Normalisation,
    device: Any,
) -> Samples:
    """Bring images and masks to the device; sides below the network's grid are filled up, and that is said."""
    sizes = np.array([[max(n, config.grid) for n in image.shape] for image in images], np.int32)
    if any(tuple(size) != image.shape for size, image in zip(sizes, images, strict=True)):
        log.warning("unet train: images smaller than the network's grid of %d pixels are filled up to it", config.grid)
    largest, missing = tuple(sizes.max(axis=0)), 0
    values = np.zeros((len(images), *largest, config.in_channels), np.float32)
    labels = np.zeros((len(images), *largest), np.uint8)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        known = np.isfinite(image)
        missing += known.size - int(known.sum())
        filled = np.where(known, image, np.asarray(normalisation.fill, image.dtype))
        wide = [(0, int(size) - n) for size, n in zip(sizes[i], image.shape, strict=True)]
        region = (i, *(slice(0, int(n)) for n in sizes[i]))
        values[region] = np.pad(np.asarray(read_channels(filled, normalisation), np.float32), [*wide, (0, 0)], "edge")
        labels[region] = np.pad((mask != 0) if config.out_classes == 1 else mask, wide, "edge")
    if missing:
        log.warning(
            "unet train: %d pixels of the images are NaN or Inf; the training images' mean stands for them", missing
        )
    return Samples(*(jax.device_put(part, device) for part in (values, labels, sizes)))


def choose_crop(samples: Samples, wanted: Sequence[int], *, grid: int) -> tuple[int, ...]:
    """Return the crop that was wanted, on the grid and no larger than the smallest image."""
    smallest = samples.smallest
    sides = tuple(wanted) * (len(smallest) if len(wanted) == 1 else 1)
    if len(sides) != len(smallest):
        raise UserError(f"unet train got crop {list(wanted)}; allowed: one side, or {len(smallest)}")
    return tuple(max(grid, min(side, most) // grid * grid) for side, most in zip(sides, smallest, strict=True))


def choose_window(samples: Samples, crop: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sides of what a crop is cut from when it is turned and magnified: wider, as far as images reach."""
    return tuple(min(math.ceil(MARGIN * side), n) for side, n in zip(crop, samples.smallest, strict=True))


def draw_samples(
    samples: Samples, key: jax.Array, *, batch: int, window: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Draw windows from anywhere in any image, each image as often as it has pixels.

    Returns
    -------
    images : (batch, *window, C) array
    masks : (batch, *window) array
    """
    pixels = jnp.prod(samples.sizes.astype(jnp.float32), axis=1)
    picks, places = jax.random.split(key)
    which = jax.random.choice(picks, len(samples.images), (batch,), p=pixels / jnp.sum(pixels))
    room = samples.sizes[which] - jnp.asarray(window) + 1
    corners = jnp.minimum((jax.random.uniform(places, room.shape) * room).astype(jnp.int32), room - 1)

    def cut(image: jax.Array, mask: jax.Array, corner: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (
            jax.lax.dynamic_slice(image, (*corner, 0), (*window, image.shape[-1])),
            jax.lax.dynamic_slice(mask, tuple(corner), window),
        )

    return jax.vmap(lambda i, corner: cut(samples.images[i], samples.masks[i], corner))(which, corners)


def list_windows(samples: Samples, crop: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the windows that cover all images: (M, 1 + d) image and corner, (M, d) first pixel not covered before."""
    places, fresh = [], []
    for i, size in enumerate(np.asarray(samples.sizes)):
        axes = [[(min(s, n - c), max(0, s - (n - c))) for s in range(0, n, c)] for n, c in zip(size, crop, strict=True)]
        for cell in np.ndindex(*(len(axis) for axis in axes)):
            ends = [axis[j] for axis, j in zip(axes, cell, strict=True)]
            places.append((i, *(corner for corner, _ in ends)))
            fresh.append([first for _, first in ends])
    return np.array(places, np.int32), np.array(fresh, np.int32)


def cut_windows(
    samples: Samples, places: jax.Array, fresh: jax.Array, *, crop: tuple[int, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cut windows out; the third array tells which pixels count, so that none counts twice."""

    def cut(place: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        image, mask = samples.images[place[0]], samples.masks[place[0]]
        valid = jnp.ones(crop, jnp.float32)
        for axis in range(len(crop)):
            valid *= jax.lax.broadcasted_iota(jnp.int32, crop, axis) >= first[axis]
        return (
            jax.lax.dynamic_slice(image, (*place[1:], 0), (*crop, image.shape[-1])),
            jax.lax.dynamic_slice(mask, tuple(place[1:]), crop),
            valid,
        )

    return jax.vmap(cut)(places, fresh)

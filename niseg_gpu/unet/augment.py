"""Augment training samples on the device: image and mask move together, then the image's values change.

Pure JAX, in 2-D and 3-D, all samples of a batch at once; compiled once for each shape and each `Augmentation`.
"""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.unet.augmentation import Augmentation

# Of one node of a random field, in distances of nodes: wide enough for a smooth field.
FIELD_WIDTH = 0.6
# Uniform numbers of a sample, and keys of its fields. All scalars come from one draw, for each draw takes JAX a while
# to compile: three for the corner of a crop, then which turn, angle and axis of rotation, and the rest.
CORNER, TURN, ANGLE, AXIS, SCALE, GAMMA, GAIN, OFFSET, BLUR, COUNTS, LEVEL = 0, *range(3, 6), *range(7, 14)
N_UNIFORM = 14
UNIFORM, ELASTIC, BIAS, POISSON, NOISE, N_KEYS = range(6)


def augment(image: Any, mask: Any, *, key: jax.Array, settings: Augmentation) -> tuple[jax.Array, jax.Array]:
    """Augment a batch, each sample by itself.

    Parameters
    ----------
    image : (N, [Z,] Y, X[, C]) array
        Any real type; channels are moved alike.
    mask : (N, [Z,] Y, X) array
        Bool, or integers that name classes.
    key : jax.Array
        Key of JAX's random numbers. Sample i depends on the key, i and itself, not on how many there are.
    settings : Augmentation
        Ranges to draw from.

    Returns
    -------
    image : jax.Array of float32
        Interpolated linearly where pixels move.
    mask : jax.Array
        In its own type; each pixel takes the class of the nearest one.

    Raises
    ------
    UserError
        If shapes do not fit each other or the crop.
    """
    image, mask = jnp.asarray(image), jnp.asarray(mask)
    _check_shapes(image.shape, mask.shape, settings)
    return _augment(image, mask, key, settings)


@partial(jax.jit, static_argnames="settings")
def _augment(image: jax.Array, mask: jax.Array, key: jax.Array, settings: Augmentation) -> tuple[jax.Array, jax.Array]:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(image)))
    return jax.vmap(partial(augment_sample, settings=settings))(image, mask, key=keys)


def augment_sample(
    image: jax.Array, mask: jax.Array, *, key: jax.Array, settings: Augmentation
) -> tuple[jax.Array, jax.Array]:
    """Augment one sample, without the batch's first axis; see `augment`."""
    dim = mask.ndim
    image = image.astype(jnp.float32)
    channelled = image.ndim == dim + 1
    image = image if channelled else image[..., None]
    keys = jax.random.split(key, N_KEYS)
    uniform = jax.random.uniform(keys[UNIFORM], (N_UNIFORM,))
    if settings.moves:
        places = [
            _fold(c, n)
            for c, n in zip(
                draw_places(mask.shape, uniform=uniform, key=keys[ELASTIC], settings=settings), mask.shape, strict=True
            )
        ]
        image = _interpolate(image, places)
        mask = mask[tuple(jnp.round(place).astype(jnp.int32) for place in places)]
    image = _change_values(image, uniform=uniform, keys=keys, settings=settings)
    return (image if channelled else image[..., 0]), mask


def draw_places(
    shape: tuple[int, ...], *, uniform: jax.Array, key: jax.Array, settings: Augmentation
) -> list[jax.Array]:
    """Draw where each pixel of the result comes from.

    Parameters
    ----------
    shape : ([Z,] Y, X)
        Of the sample.
    uniform : (N_UNIFORM,) array
        Random numbers from 0 to 1.
    key : jax.Array
        Of the displacement.
    settings : Augmentation

    Returns
    -------
    list of arrays of float32
        A coordinate in the sample for each axis, in the shape of the result.
    """
    dim = len(shape)
    size = settings.crop or shape
    turns = list_turns(size, flip=settings.flip, quarter_turns=settings.quarter_turns)
    matrix = jnp.asarray(turns)[_pick(uniform[TURN], len(turns))]
    if settings.rotation_deg:
        matrix = _rotate(uniform, dim, math.radians(settings.rotation_deg)) @ matrix
    if settings.scale != (1.0, 1.0):
        matrix = matrix / _between_logs(uniform[SCALE], settings.scale)
    middle = jnp.asarray([(n - 1) / 2 for n in size], jnp.float32)
    corner = [_pick(uniform[CORNER + i], n - m + 1) for i, (n, m) in enumerate(zip(shape, size, strict=True))]
    grid = jnp.stack(jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in size), indexing="ij"))
    out = grid - middle.reshape(-1, *[1] * dim)
    # Written out: a matrix product may be rounded to fewer digits on a GPU.
    places = [sum(matrix[i, j] * out[j] for j in range(dim)) + middle[i] + corner[i] for i in range(dim)]
    if settings.elastic_pixels:
        bend = settings.elastic_pixels * _draw_field(key, dim, size, settings.elastic_length_pixels)
        places = [place + bend[i] for i, place in enumerate(places)]
    return places


def _check_shapes(image: tuple[int, ...], mask: tuple[int, ...], settings: Augmentation) -> None:
    if len(mask) not in (3, 4) or image[: len(mask)] != mask or len(image) not in (len(mask), len(mask) + 1):
        raise UserError(
            f"augment got images {image} and masks {mask}; needed: (N, Y, X) or (N, Z, Y, X) alike, channels last"
        )
    crop = settings.crop
    if crop is not None and (len(crop) != len(mask) - 1 or any(c > n for c, n in zip(crop, mask[1:], strict=True))):
        raise UserError(f"crop={crop!r} does not fit in samples of {mask[1:]}; give as many sides, none larger")


def list_turns(size: tuple[int, ...], *, flip: bool, quarter_turns: bool) -> np.ndarray:
    """Return the matrices of all flips and right-angled turns that map a grid onto itself.

    Parameters
    ----------
    size : tuple of int
        Sides of the grid; only equal sides change places.
    flip : bool
        With mirror images.
    quarter_turns : bool
        With turns.

    Returns
    -------
    (M, D, D) ndarray of float32
        The first is the identity.
    """
    dim, found = len(size), []
    for order in itertools.permutations(range(dim)):
        straight = order == tuple(range(dim))
        if any(size[i] != size[j] for i, j in enumerate(order)) or not (straight or quarter_turns):
            continue
        for signs in itertools.product((1.0, -1.0), repeat=dim):
            matrix = np.zeros((dim, dim), np.float32)
            matrix[range(dim), order] = signs
            mirrored = np.linalg.det(matrix) < 0
            wanted = (flip or not mirrored) if quarter_turns else (flip or min(signs) > 0)
            if wanted:
                found.append(matrix)
    return np.stack(found)


def _pick(uniform: jax.Array, number: int) -> jax.Array:
    return jnp.minimum((uniform * number).astype(jnp.int32), number - 1)


def _between(uniform: jax.Array, limits: tuple[float, float]) -> jax.Array:
    return limits[0] + uniform * (limits[1] - limits[0])


def _between_logs(uniform: jax.Array, limits: tuple[float, float]) -> jax.Array:
    return jnp.exp(_between(uniform, (math.log(limits[0]), math.log(limits[1]))))


def _rotate(uniform: jax.Array, dim: int, most: float) -> jax.Array:
    """Return the matrix of a turn by up to `most` rad to either side, in 3-D about an axis of any direction."""
    angle = _between(uniform[ANGLE], (-most, most))
    c, s = jnp.cos(angle), jnp.sin(angle)
    if dim == 2:
        return jnp.stack([c, -s, s, c]).reshape(2, 2)
    # Heights on a sphere are as likely as one another.
    height, turn = _between(uniform[AXIS], (-1.0, 1.0)), 2.0 * math.pi * uniform[AXIS + 1]
    flat = jnp.sqrt(jnp.maximum(1.0 - height * height, 0.0))
    x, y, z = flat * jnp.cos(turn), flat * jnp.sin(turn), height
    axis, nil = jnp.stack([x, y, z]), jnp.zeros(())
    cross = jnp.stack([nil, -z, y, z, nil, -x, -y, x, nil]).reshape(3, 3)
    return c * jnp.eye(3) + s * cross + (1.0 - c) * axis[:, None] * axis[None, :]


def _fold(place: jax.Array, size: int) -> jax.Array:
    """Bring coordinates into the sample, mirrored about its outermost pixels; whole numbers stay whole."""
    last = float(max(size - 1, 1))
    return jnp.minimum(jnp.abs(jnp.mod(place + last, 2 * last) - last), size - 1.0)


def _interpolate(image: jax.Array, places: list[jax.Array]) -> jax.Array:
    """Interpolate (..., C) linearly at coordinates within it."""
    below = [jnp.floor(place).astype(jnp.int32) for place in places]
    share = [(place - low)[..., None] for place, low in zip(places, below, strict=True)]
    total = jnp.zeros((), jnp.float32)
    for corner in itertools.product((0, 1), repeat=len(places)):
        index = [jnp.minimum(low + up, n - 1) for low, up, n in zip(below, corner, image.shape, strict=False)]
        weight = math.prod(part if up else 1.0 - part for part, up in zip(share, corner, strict=True))
        total = total + weight * image[tuple(index)]
    return total


def _draw_field(key: jax.Array, number: int, size: tuple[int, ...], length: float) -> jax.Array:
    """Return smooth random fields, (number, *size), of mean 0 and standard deviation 1 at each pixel."""
    weights = []
    for n in size:
        nodes = np.arange(-2, n / length + 2)
        weight = np.exp(-0.5 * ((np.arange(n)[:, None] / length - nodes) / FIELD_WIDTH) ** 2)
        weights.append(weight / np.sqrt((weight**2).sum(axis=1, keepdims=True)))
    field = jax.random.normal(key, (number, *(weight.shape[1] for weight in weights)))
    for axis, weight in enumerate(weights):
        field = _multiply(jnp.asarray(weight, jnp.float32), field, axis + 1)
    return field


def _multiply(matrix: jax.Array, values: jax.Array, axis: int) -> jax.Array:
    """Apply a matrix along an axis, in full float32 on any device."""
    product = jnp.tensordot(matrix, values, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, axis)


def _change_values(image: jax.Array, *, uniform: jax.Array, keys: jax.Array, settings: Augmentation) -> jax.Array:
    """Change what is seen, then how sharply, then how noisily; (..., C)."""
    if settings.bias_field:
        size = image.shape[:-1]
        field = jnp.clip(_draw_field(keys[BIAS], 1, size, max(size) / 2.0)[0] / 2.0, -1.0, 1.0)
        image = image * jnp.exp(settings.bias_field * field)[..., None]
    if settings.gamma != (1.0, 1.0):
        image = _stretch(image, lambda share: share ** _between_logs(uniform[GAMMA], settings.gamma))
    if settings.gain != (1.0, 1.0):
        image = image * _between(uniform[GAIN], settings.gain)
    if settings.offset:
        image = image + _between(uniform[OFFSET], (-settings.offset, settings.offset)) * jnp.std(image)
    if settings.blur_pixels[1]:
        image = _blur(image, _between(uniform[BLUR], settings.blur_pixels))
    if settings.poisson_counts is not None:
        most = _between_logs(uniform[COUNTS], settings.poisson_counts)
        image = _stretch(image, lambda share: _draw_counts(keys[POISSON], share * most) / most)
    if settings.noise[1]:
        sigma = jnp.std(image) * _between(uniform[LEVEL], settings.noise)
        image = image + sigma * jax.random.normal(keys[NOISE], image.shape)
    return image


def _stretch(image: jax.Array, change: Any) -> jax.Array:
    """Apply a change to the values as shares of the range that they span."""
    low, high = jnp.min(image), jnp.max(image)
    span = jnp.where(high > low, high - low, 1.0)
    return low + span * change(jnp.clip((image - low) / span, 0.0, 1.0))


def _blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blur along each axis but the last by a Gaussian; at the border by what is left of it."""
    for axis, n in enumerate(image.shape[:-1]):
        x = jnp.arange(n, dtype=jnp.float32)
        weight = jnp.exp(-0.5 * ((x[:, None] - x) / jnp.maximum(sigma, 1e-3)) ** 2)
        image = _multiply(weight / jnp.sum(weight, axis=1, keepdims=True), image, axis)
    return image


def _draw_counts(key: jax.Array, mean: jax.Array) -> jax.Array:
    """Draw Poisson counts by the normal expansion that `niseg_gpu.simulate.detector.draw_poisson` uses.

    Sampling without it takes a loop for each pixel. From a mean of 1 on, mean and variance are right to 3 %.
    """
    z = jax.random.normal(key, mean.shape)
    skewed = jnp.clip(mean, 0.0, 1.0) * (z * z - 1.0) / 6.0
    return jnp.maximum(jnp.floor(mean + jnp.sqrt(jnp.maximum(mean - 5 / 36, 0.0)) * z + skewed + 0.5), 0.0)

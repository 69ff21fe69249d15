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
# Places of what is drawn evenly: three for the corner of a crop, two for an axis of rotation, one for each of the rest.
CORNER, TURN, ANGLE, AXIS, SCALE, GAMMA, GAIN, OFFSET, BLUR, COUNTS, LEVEL = 0, *range(3, 6), *range(7, 14)
N_UNIFORM = 14


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
        Arrays that hold no real numbers, shapes that do not fit each other or the crop, no key, no settings.
    """
    if not isinstance(settings, Augmentation):
        raise UserError(f"augment got settings of type {type(settings).__name__}; needed: an Augmentation")
    if not _is_key(key):
        raise UserError(f"augment got the key {key!r}; needed: one of JAX's, such as jax.random.key(0)")
    image, mask = (_read_numbers(given, name) for name, given in (("image", image), ("mask", mask)))
    _check_shapes(image.shape, mask.shape, settings)
    return _augment(image, mask, key, settings)


def _is_key(key: Any) -> bool:
    """Whether it is a single key, of the new or of the old kind."""
    if not isinstance(key, jax.Array):
        return False
    return (
        key.shape == () if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key.dtype == jnp.uint32 and key.ndim == 1
    )


def _read_numbers(given: Any, name: str) -> jax.Array:
    array = given if hasattr(given, "dtype") else np.asarray(given)
    if isinstance(array, np.ndarray):
        if np.ma.is_masked(array):
            raise UserError(f"augment got {name} as a masked array; needed: one that hides nothing, its .filled()")
        array = np.asarray(array)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise UserError(f"augment got {name} of type {array.dtype}; needed: an array of real numbers")
    return jnp.asarray(array)


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
    size = settings.crop or mask.shape
    uniform, normal = _draw_numbers(key, size, image.shape[-1], settings)
    if settings.moves:
        places = draw_places(mask.shape, uniform=uniform, bend=normal.get("elastic"), settings=settings)
        places = [_fold(place, n) for place, n in zip(places, mask.shape, strict=True)]
        image = _interpolate(image, places)
        mask = mask[tuple(jnp.round(place).astype(jnp.int32) for place in places)]
    image = _change_values(image, uniform=uniform, normal=normal, settings=settings)
    return (image if channelled else image[..., 0]), mask


def _draw_numbers(
    key: jax.Array, size: tuple[int, ...], channels: int, settings: Augmentation
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Draw all random numbers of a sample: even ones, and normal ones by their use.

    In two draws only: each takes JAX seconds to compile on a CPU.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if settings.elastic_pixels:
        shapes["elastic"] = (len(size), *_count_nodes(size, settings.elastic_length_pixels))
    if settings.bias_field:
        shapes["bias"] = (1, *_count_nodes(size, _bias_length(size)))
    if settings.poisson_counts is not None:
        shapes["poisson"] = (*size, channels)
    if settings.noise[1]:
        shapes["noise"] = (*size, channels)
    keys = jax.random.split(key)
    uniform = jax.random.uniform(keys[0], (N_UNIFORM,))
    ends = list(itertools.accumulate((math.prod(shape) for shape in shapes.values()), initial=0))
    line = jax.random.normal(keys[1], (ends[-1],)) if shapes else jnp.zeros(0)
    parts = zip(shapes.items(), ends[:-1], ends[1:], strict=True)
    return uniform, {name: line[a:b].reshape(shape) for (name, shape), a, b in parts}


def draw_places(
    shape: tuple[int, ...], *, uniform: jax.Array, bend: jax.Array | None, settings: Augmentation
) -> list[jax.Array]:
    """Draw where each pixel of the result comes from.

    Parameters
    ----------
    shape : ([Z,] Y, X)
        Of the sample.
    uniform : (N_UNIFORM,) array
        Random numbers from 0 to 1.
    bend : array, optional
        Standard normal numbers at the nodes of the displacement.
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
        rotation = _rotate(uniform, dim, math.radians(settings.rotation_deg))
        matrix = jnp.matmul(rotation, matrix, precision=jax.lax.Precision.HIGHEST)
    if settings.scale != (1.0, 1.0):
        matrix = matrix / _between_logs(uniform[SCALE], settings.scale)
    middle = jnp.asarray([(n - 1) / 2 for n in size], jnp.float32)
    corner = [_pick(uniform[CORNER + i], n - m + 1) for i, (n, m) in enumerate(zip(shape, size, strict=True))]
    grid = jnp.stack(jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in size), indexing="ij"))
    out = grid - middle.reshape(-1, *[1] * dim)
    # Written out: a matrix product may be rounded to fewer digits on a GPU.
    places = [sum(matrix[i, j] * out[j] for j in range(dim)) + middle[i] + corner[i] for i in range(dim)]
    if settings.elastic_pixels:
        field = settings.elastic_pixels * _smooth(bend, size, settings.elastic_length_pixels)
        places = [place + field[i] for i, place in enumerate(places)]
    return places


def _check_shapes(image: tuple[int, ...], mask: tuple[int, ...], settings: Augmentation) -> None:
    if len(mask) not in (3, 4) or image[: len(mask)] != mask or len(image) not in (len(mask), len(mask) + 1):
        raise UserError(
            f"augment got images {image} and masks {mask}; needed: (N, Y, X) or (N, Z, Y, X) alike, channels last"
        )
    if 0 in image[1:]:
        raise UserError(f"augment got images {image}; needed: sides of 1 pixel or more")
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


def _bias_length(size: tuple[int, ...]) -> float:
    return max(size) / 2.0


def _count_nodes(size: tuple[int, ...], length: float) -> tuple[int, ...]:
    """Number of nodes along each axis, two beyond either end so that the border is as lively as the middle."""
    return tuple(math.ceil(n / length) + 4 for n in size)


def _smooth(nodes: jax.Array, size: tuple[int, ...], length: float) -> jax.Array:
    """Spread standard normal numbers at nodes to fields, (number, *size), with standard deviation 1 at each pixel."""
    for axis, n in enumerate(size):
        place = np.arange(nodes.shape[axis + 1]) - 2
        weight = np.exp(-0.5 * ((np.arange(n)[:, None] / length - place) / FIELD_WIDTH) ** 2)
        weight /= np.sqrt((weight**2).sum(axis=1, keepdims=True))
        nodes = _multiply(jnp.asarray(weight, jnp.float32), nodes, axis + 1)
    return nodes


def _multiply(matrix: jax.Array, values: jax.Array, axis: int) -> jax.Array:
    """Apply a matrix along an axis, in full float32 on any device."""
    product = jnp.tensordot(matrix, values, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(product, 0, axis)


def _change_values(
    image: jax.Array, *, uniform: jax.Array, normal: dict[str, jax.Array], settings: Augmentation
) -> jax.Array:
    """Change what is seen, then how sharply, then how noisily; (..., C)."""
    if settings.bias_field:
        size = image.shape[:-1]
        field = jnp.clip(_smooth(normal["bias"], size, _bias_length(size))[0] / 2.0, -1.0, 1.0)
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
        image = _stretch(image, lambda share: draw_counts(share * most, normal["poisson"]) / most)
    if settings.noise[1]:
        sigma = jnp.std(image) * _between(uniform[LEVEL], settings.noise)
        image = image + sigma * normal["noise"]
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


def draw_counts(mean: jax.Array, normal: jax.Array) -> jax.Array:
    """Make Poisson counts of standard normal numbers z: m + sqrt(m - 5/36) z + (z² - 1) / 6, rounded.

    The first terms of the Cornish-Fisher expansion; exact sampling takes a loop for each pixel. From a mean of 1 on,
    mean and variance are right to 4 %; of means below 0.3 hardly any counts are left.
    """
    skewed = jnp.clip(mean, 0.0, 1.0) * (normal * normal - 1.0) / 6.0
    return jnp.maximum(jnp.floor(mean + jnp.sqrt(jnp.maximum(mean - 5 / 36, 0.0)) * normal + skewed + 0.5), 0.0)

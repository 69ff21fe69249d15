"""Slopes of convolutions and poolings for the CPU, where XLA's own take longer than all the rest of a training step.

XLA takes the slope of a kernel for a convolution whose window is the whole image. Here it is a product of matrices:
pixels by channels, times pixels by the channels beside them in every direction, a strip of rows at a time so that the
copies stay in the cache. Volumes are convolved plane by plane, and their slopes are taken so too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
from jax import lax

STRIP_BYTES = 2**19  # of the copies that are worked on at a time
PLANE_BYTES = 2**21  # the same of a plane of a volume, whose copies serve several products
SMALL = 32**2  # pixels of images for which XLA's own is as fast
SMALL_PLANE = 16**2  # of planes
NAMES = ("NHWC", "HWIO", "NHWC")
Padding = tuple[tuple[int, int], ...]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_frames(x: jax.Array, kernel: jax.Array, padding: Padding, precision: lax.Precision | None) -> jax.Array:
    """Convolve (N, Y, X, C) with (a, b, C, features); `padding` keeps the size."""
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=NAMES, precision=precision)


def _convolve(x, kernel, padding, precision):
    return convolve_frames(x, kernel, padding, precision), (x, kernel)


def _slopes(padding, precision, saved, slope):
    x, kernel = saved
    forward = partial(
        lax.conv_general_dilated, window_strides=(1, 1), padding=padding, dimension_numbers=NAMES, precision=precision
    )
    (of_x,) = jax.linear_transpose(lambda x: forward(x, kernel), x)(slope)
    if x.shape[1] * x.shape[2] <= SMALL:
        return of_x, jax.linear_transpose(lambda kernel: forward(x, kernel), kernel)(slope)[0]
    return of_x, slope_of_kernel(x, slope, size=kernel.shape[:2], padding=padding).astype(kernel.dtype)


convolve_frames.defvjp(_convolve, _slopes)


def slope_of_kernel(x: jax.Array, slope: jax.Array, *, size: tuple[int, ...], padding: Padding) -> jax.Array:
    """Return (a, b, C, features) sums over pixels of `x` beside a pixel, times the slope there; float32.

    Parameters
    ----------
    x : (N, Y, X, C) array
    slope : (N, Y, X, features) array
        Of the convolution's result.
    size : (a, b)
    padding : two pairs of int
        Zeros before and behind, together one less than `size`.
    """
    n, height, width = x.shape[:3]
    taps = list(product(*map(range, size)))
    if x.shape[3] <= slope.shape[3]:  # copied for each tap is what has fewer channels
        still, moved, before, offsets = slope, x, padding, taps
    else:
        still, moved = x, slope
        before = [(k - 1 - low, low) for k, (low, _) in zip(size, padding, strict=True)]
        offsets = [tuple(k - 1 - t for k, t in zip(size, tap, strict=True)) for tap in taps]
    channels, others = moved.shape[3], still.shape[3]
    moved = jnp.pad(moved, ((0, 0), *before, (0, 0)))
    rows = _choose_rows(height, n * width * len(taps) * channels * moved.dtype.itemsize)

    def add(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, beside = carry
        first = i * rows
        here = lax.dynamic_slice(still, (0, first, 0, 0), (n, rows, width, others))
        for k, (down, right) in enumerate(offsets):
            part = lax.dynamic_slice(moved, (0, first + down, right, 0), (n, rows, width, channels))
            # into what is carried on: a concatenation of as much takes several times as long
            beside = lax.dynamic_update_slice(beside, part, (0, 0, 0, k * channels))
        here, there = (a.reshape(n, rows * width, -1) for a in (here, beside))
        sums = lax.dot_general(
            here, there, (((1,), (1,)), ((0,), (0,))), precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        return total + sums, beside

    start = jnp.zeros((n, others, len(taps) * channels)), jnp.zeros((n, rows, width, len(taps) * channels), x.dtype)
    total = lax.fori_loop(0, height // rows, add, start)[0].sum(0).reshape(others, *size, channels)
    return total.transpose((1, 2, 3, 0) if still is slope else (1, 2, 0, 3))


def _choose_rows(height: int, row_bytes: int, *, most: int = STRIP_BYTES) -> int:
    """The most rows that a strip has room for and that divide the height."""
    return max(rows for rows in range(1, height + 1) if height % rows == 0 and (rows == 1 or rows * row_bytes <= most))


def sum_planes(x: jax.Array, kernel: jax.Array, padding: Padding, *, convolve: Callable[..., jax.Array]) -> jax.Array:
    """Convolve (N, Z, Y, X, C) with (a, b, c, C, features), by ``convolve(planes, kernel, padding)`` of frames."""
    n, channels, features = x.shape[0], x.shape[-1], kernel.shape[-1]
    x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    depth = x.shape[1] - kernel.shape[0] + 1
    total = None
    for k, plane_kernel in enumerate(kernel):
        planes = x[:, k : k + depth].reshape(-1, *x.shape[2:4], channels)
        part = convolve(planes, plane_kernel, padding[1:])
        total = part if total is None else total + part
    return total.reshape(n, depth, *total.shape[1:3], features)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_volumes(x: jax.Array, kernel: jax.Array, padding: Padding, precision: lax.Precision | None) -> jax.Array:
    """Convolve (N, Z, Y, X, C) with (a, b, c, C, features) as a sum of planes; `padding` keeps the size."""
    return sum_planes(x, kernel, padding, convolve=lambda *planes: convolve_frames(*planes, precision))


def _convolve_volumes(x, kernel, padding, precision):
    return convolve_volumes(x, kernel, padding, precision), (x, kernel)


def _slopes_of_volumes(padding, precision, saved, slope):
    x, kernel = saved

    def forward(x, kernel):
        return sum_planes(x, kernel, padding, convolve=lambda *planes: convolve_frames(*planes, precision))

    (of_x,) = jax.vjp(lambda x: forward(x, kernel), x)[1](slope)
    if x.shape[2] * x.shape[3] <= SMALL_PLANE or x.shape[4] == 1:
        return of_x, jax.vjp(lambda kernel: forward(x, kernel), kernel)[1](slope)[0]
    return of_x, slope_of_volume_kernel(x, slope, size=kernel.shape[:3], padding=padding).astype(kernel.dtype)


convolve_volumes.defvjp(_convolve_volumes, _slopes_of_volumes)


def slope_of_volume_kernel(x: jax.Array, slope: jax.Array, *, size: tuple[int, ...], padding: Padding) -> jax.Array:
    """Return (a, b, c, C, features) sums over voxels, as `slope_of_kernel` does over pixels.

    What lies beside a voxel in its plane is copied once, for all the planes that it is multiplied with.
    """
    (deep, *flat), ((low, _), *around) = size, padding
    taps = list(product(*map(range, flat)))
    of_x = x.shape[4] <= slope.shape[4]
    if of_x:
        still, moved, offsets, depth = slope, x, taps, (deep - 1 - low, low)
    else:
        still, moved, depth = x, slope, padding[0]
        around = [(k - 1 - before, before) for k, (before, _) in zip(flat, around, strict=True)]
        offsets = [tuple(k - 1 - t for k, t in zip(flat, tap, strict=True)) for tap in taps]
    n, planes, height, width, channels = moved.shape
    others = still.shape[4]
    still = jnp.pad(still, ((0, 0), depth, (0, 0), (0, 0), (0, 0)))
    moved = jnp.pad(moved, ((0, 0), (0, 0), *around, (0, 0)))
    rows = _choose_rows(height, width * len(taps) * channels * moved.dtype.itemsize, most=PLANE_BYTES)

    def add(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        total, beside = carry
        volume, plane, strip = jnp.unravel_index(i, (n, planes, height // rows))
        for k, (down, right) in enumerate(offsets):
            corner = (volume, plane, strip * rows + down, right, 0)
            part = lax.dynamic_slice(moved, corner, (1, 1, rows, width, channels)).reshape(rows, width, channels)
            beside = lax.dynamic_update_slice(beside, part, (0, 0, k * channels))
        here = lax.dynamic_slice(still, (volume, plane, strip * rows, 0, 0), (1, deep, rows, width, others))
        here = here.reshape(deep, rows * width, others).transpose(0, 2, 1).reshape(deep * others, -1)
        there = beside.reshape(rows * width, -1)
        sums = lax.dot(here, there, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32)
        return total + sums, beside

    start = jnp.zeros((deep * others, len(taps) * channels)), jnp.zeros((rows, width, len(taps) * channels), x.dtype)
    total = lax.fori_loop(0, n * planes * (height // rows), add, start)[0].reshape(deep, others, *flat, channels)
    # a plane of x meets those of the slope in the other order
    return total[::-1].transpose((0, 2, 3, 4, 1)) if of_x else total.transpose((0, 2, 3, 1, 4))


@jax.custom_vjp
def pool_largest(x: jax.Array) -> jax.Array:
    """Keep the largest of 2 pixels an axis of (N, *space, C)."""
    window = (1, *(2,) * (x.ndim - 2), 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


def _pool(x):
    largest = pool_largest(x)
    return largest, (x, largest)


def _slope_of_pool(saved, slope):
    """The first of those that are largest gets it."""
    x, largest = saved
    phases = list(product((0, 1), repeat=x.ndim - 2))
    first = jnp.full(largest.shape, len(phases), jnp.int8)
    for k, phase in reversed(list(enumerate(phases))):
        place = (slice(None), *(slice(p, None, 2) for p in phase))
        first = jnp.where(x[place] == largest, jnp.int8(k), first)
    # coarse pixels beside their phases: one pass, where writing phase after phase takes several
    n, *space, channels = largest.shape
    coarse = (n, *(length for s in space for length in (s, 1)), channels)
    fine = (n, *(length for s in space for length in (s, 2)), channels)
    here = sum(
        lax.broadcasted_iota(jnp.int8, fine, 2 * axis + 2) << (len(space) - 1 - axis) for axis in range(len(space))
    )
    found = jnp.where(first.reshape(coarse) == here, slope.reshape(coarse), jnp.zeros((), slope.dtype))
    return (found.reshape(x.shape),)


pool_largest.defvjp(_pool, _slope_of_pool)

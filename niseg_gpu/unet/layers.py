"""Convolutions over images and volumes, and the blocks of a U-Net made of them; channels last.

A block may be given a `Joined` pair, coarse features and the skip connection beside them: upsampling and
concatenation are then up to the convolution that reads them, which can do without either.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from niseg_gpu.unet.config import RECURRENCES
from niseg_gpu.unet.slopes import convolve_frames, convolve_volumes, pool_largest, sum_planes

LETTERS = {1: "W", 2: "HW", 3: "DHW"}
FEW_FINE = 8  # times few_pixels: up to so many coarse features are upsampled


class Run(NamedTuple):
    """How a network is computed; the result is the same but for rounding.

    Attributes
    ----------
    dtype : str
        Of the activations; parameters stay float32.
    strip_rows : int
        Rows (planes of a volume) that go through a block at a time, so that they stay in the cache; 0: all at once.
    phases : bool
        Convolve coarse features without upsampling them: as many fine pixels as a coarse one has, each from the 2
        coarse neighbours an axis that its 3 fine ones lie in.
    planes : bool
        Convolve volumes as sums of convolutions of planes.
    own_slopes : bool
        Take slopes by `niseg_gpu.unet.slopes`, not as XLA does.
    few_pixels : int
        Convolve up to so many pixels by one product of matrices: coarse levels have few, and large kernels, which XLA's
        convolution turns about for longer than it computes.
    """

    dtype: str = "float32"
    strip_rows: int = 0
    phases: bool = True
    planes: bool = False
    own_slopes: bool = False
    few_pixels: int = 0


class Joined(NamedTuple):
    """Coarse features, to be upsampled, and the fine ones of the skip connection; in this order in a kernel."""

    coarse: jax.Array
    fine: jax.Array


class Conv(nnx.Module):
    """A convolution with bias that keeps the size: zeros outside of the image."""

    def __init__(self, features: tuple[int, int], *, spatial_dims: int, size: int = 3, rngs: nnx.Rngs) -> None:
        shape = (size,) * spatial_dims + features
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(features[1]))

    def __call__(self, x: jax.Array | Joined, run: Run) -> jax.Array:
        kernel, bias = self.kernel[...], self.bias[...]
        if isinstance(x, Joined):
            split = x.coarse.shape[-1]
            y = convolve_upsampled(x.coarse, kernel[..., :split, :], run) + convolve(
                x.fine, kernel[..., split:, :], run
            )
        else:
            y = convolve(x, kernel, run)
        return y + bias.astype(y.dtype)


def convolve(x: jax.Array, kernel: jax.Array, run: Run, *, padding: tuple[tuple[int, int], ...] = ()) -> jax.Array:
    """Convolve (N, *space, C) with (*size, C, features); by default the size stays."""
    kernel = kernel.astype(x.dtype)
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None  # or a GPU would round to TF32
    dims, size = x.ndim - 2, kernel.shape[0]
    if size == 1:
        return jnp.tensordot(x, kernel.reshape(kernel.shape[-2:]), 1, precision=precision)
    padding = padding or ((size // 2, size // 2),) * dims
    if math.prod(x.shape[:-1]) <= run.few_pixels:
        return _convolve_few(x, kernel, padding=padding, precision=precision)
    if run.own_slopes and (dims == 2 or run.planes):
        return (convolve_volumes if dims == 3 else convolve_frames)(x, kernel, padding, precision)
    if dims == 3 and run.planes:
        return sum_planes(x, kernel, padding, convolve=lambda *planes: convolve(*planes[:2], run, padding=planes[2]))
    letters = LETTERS[dims]
    names = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    return lax.conv_general_dilated(x, kernel, (1,) * dims, padding, dimension_numbers=names, precision=precision)


def _convolve_few(
    x: jax.Array, kernel: jax.Array, *, padding: tuple[tuple[int, int], ...], precision: Any
) -> jax.Array:
    n, *space, channels = x.shape
    *size, _, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    space = [length + sum(pads) - k + 1 for length, pads, k in zip(space, padding, size, strict=True)]
    beside = [
        lax.slice(x, (0, *tap, 0), (n, *(t + length for t, length in zip(tap, space, strict=True)), channels))
        for tap in product(*map(range, size))
    ]
    columns = jnp.concatenate(beside, -1).reshape(-1, len(beside) * channels)
    return jnp.matmul(columns, kernel.reshape(-1, features), precision=precision).reshape(n, *space, features)


def convolve_upsampled(x: jax.Array, kernel: jax.Array, run: Run) -> jax.Array:
    """Convolve what `upsample` would give."""
    if kernel.shape[0] == 1:
        return upsample(convolve(x, kernel, run))
    dims, fine_pixels = x.ndim - 2, math.prod(x.shape[:-1]) * 2 ** (x.ndim - 2)
    if not run.phases or fine_pixels <= FEW_FINE * run.few_pixels:  # all phases of a large kernel take longer
        return convolve(upsample(x), kernel, run)
    parts = kernel
    for axis in range(dims):
        parts = _split_phases(parts, axis)
    found = [
        convolve(x, parts[phase], run, padding=tuple((1 - odd, odd) for odd in phase))
        for phase in product((0, 1), repeat=dims)
    ]
    return _interleave(jnp.stack(found), dims)


def _split_phases(kernel: jax.Array, axis: int) -> jax.Array:
    """What even and odd pixels along an axis of space take of their 2 coarse neighbours; phases before it are split."""
    first, middle, last = (lax.slice_in_dim(kernel, tap, tap + 1, axis=2 * axis) for tap in range(3))
    even, odd = [first, middle + last], [first + middle, last]
    return jnp.stack([jnp.concatenate(taps, 2 * axis) for taps in (even, odd)], axis)


def _interleave(phases: jax.Array, dims: int) -> jax.Array:
    """Put (2^d, N, *space, C) together to (N, *(2 space), C)."""
    _, n, *space, features = phases.shape
    y = phases.reshape((2,) * dims + (n, *space, features))
    order = [dims] + [axis for d in range(dims) for axis in (dims + 1 + d, d)] + [2 * dims + 1]
    return y.transpose(order).reshape(n, *(2 * s for s in space), features)


def upsample(x: jax.Array) -> jax.Array:
    """Repeat each pixel twice along every axis of space."""
    n, *space, features = x.shape
    between = [length for s in space for length in (s, 1)]
    repeated = [length for s in space for length in (s, 2)]
    x = jnp.broadcast_to(x.reshape(n, *between, features), (n, *repeated, features))
    return x.reshape(n, *(2 * s for s in space), features)


def pool(x: jax.Array, run: Run) -> jax.Array:
    """Keep the largest of 2 pixels an axis."""
    if run.own_slopes:
        return pool_largest(x)
    window = (1, *(2,) * (x.ndim - 2), 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")


NORM_MAKERS: dict[str, Any] = {
    "none": lambda features, rngs: None,
    "batch": lambda features, rngs: nnx.BatchNorm(features, momentum=0.9, rngs=rngs),
    "layer": lambda features, rngs: nnx.LayerNorm(features, rngs=rngs),
}


class Unit(nnx.Module):
    """Convolution, norm and, unless told otherwise, ReLU."""

    def __init__(self, features: tuple[int, int], *, spatial_dims: int, norm: str, rngs: nnx.Rngs) -> None:
        self.conv = Conv(features, spatial_dims=spatial_dims, rngs=rngs)
        self.norm = NORM_MAKERS[norm](features[1], rngs)

    def __call__(self, x: jax.Array | Joined, run: Run, *, training: bool, relu: bool = True) -> jax.Array:
        y = self.conv(x, run)
        if isinstance(self.norm, nnx.BatchNorm):
            y = self.norm(y, use_running_average=not training).astype(y.dtype)
        elif self.norm is not None:
            y = self.norm(y).astype(y.dtype)
        return jax.nn.relu(y) if relu else y


class PlainBlock(nnx.Module):
    """Two convolutions."""

    def __init__(self, features: tuple[int, int], *, spatial_dims: int, norm: str, rngs: nnx.Rngs) -> None:
        made = {"spatial_dims": spatial_dims, "norm": norm, "rngs": rngs}
        self.first = Unit(features, **made)
        self.second = Unit((features[1], features[1]), **made)

    def __call__(self, x: jax.Array | Joined, run: Run, *, training: bool) -> jax.Array:
        return self.second(self.first(x, run, training=training), run, training=training)


class ResidualBlock(nnx.Module):
    """Two convolutions, to which their input is added."""

    def __init__(self, features: tuple[int, int], *, spatial_dims: int, norm: str, rngs: nnx.Rngs) -> None:
        made = {"spatial_dims": spatial_dims, "norm": norm, "rngs": rngs}
        self.first = Unit(features, **made)
        self.second = Unit((features[1], features[1]), **made)
        self.shortcut = Conv(features, spatial_dims=spatial_dims, size=1, rngs=rngs)

    def __call__(self, x: jax.Array | Joined, run: Run, *, training: bool) -> jax.Array:
        y = self.second(self.first(x, run, training=training), run, training=training, relu=False)
        return jax.nn.relu(y + self.shortcut(x, run))


class RecurrentBlock(nnx.Module):
    """Two recurrent convolutions, to which their input is added.

    Each convolution is applied again to the sum of its input and what it gave.
    """

    def __init__(self, features: tuple[int, int], *, spatial_dims: int, norm: str, rngs: nnx.Rngs) -> None:
        made = {"spatial_dims": spatial_dims, "norm": norm, "rngs": rngs}
        self.shortcut = Conv(features, spatial_dims=spatial_dims, size=1, rngs=rngs)
        self.first = Unit((features[1], features[1]), **made)
        self.second = Unit((features[1], features[1]), **made)

    def __call__(self, x: jax.Array | Joined, run: Run, *, training: bool) -> jax.Array:
        start = y = self.shortcut(x, run)
        for unit in (self.first, self.second):
            given, y = y, unit(y, run, training=training)
            for _ in range(RECURRENCES):
                y = unit(given + y, run, training=training)
        return start + y


class Gate(nnx.Module):
    """Weighs the skip connection, pixel by pixel, by what the coarser level has found there."""

    def __init__(self, coarse: int, fine: int, *, spatial_dims: int, rngs: nnx.Rngs) -> None:
        inner = max(1, fine // 2)
        self.join = Conv((coarse + fine, inner), spatial_dims=spatial_dims, size=1, rngs=rngs)
        self.weigh = Conv((inner, 1), spatial_dims=spatial_dims, size=1, rngs=rngs)

    def __call__(self, pair: Joined, run: Run) -> Joined:
        weight = jax.nn.sigmoid(self.weigh(jax.nn.relu(self.join(pair, run)), run))
        return Joined(pair.coarse, pair.fine * weight)


MAKERS: dict[str, Any] = {"plain": PlainBlock, "residual": ResidualBlock, "recurrent-residual": RecurrentBlock}

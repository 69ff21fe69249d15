"""Applying a trained U-Net to images of any size, tile by tile: the same as to the whole image at once."""

from __future__ import annotations

import logging
import math
import threading
from functools import lru_cache, partial
from itertools import combinations, product
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Ge, Le
from jax import lax

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.findings import count
from niseg_gpu.images import read_image
from niseg_gpu.options import check_options
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.folder import UNetModel
from niseg_gpu.unet.layers import Run
from niseg_gpu.unet.metrics import foreground_logit
from niseg_gpu.unet.model import apply_network, init_weights
from niseg_gpu.unet.normalise import Normalisation, normalise, read_channels
from niseg_gpu.unet.tiles import Plan, Tile, plan_tiles

SHARE = 0.8  # of the free memory
TILES = 16  # at once at most: each has its own part in the programs that cut and put together
log = logging.getLogger(__name__)
_device = threading.Lock()  # one block at a time on the device, so that its memory is what was planned
_said: set[tuple[int, ...]] = set()


class Memory(NamedTuple):
    """Bytes of the device that a prediction holds at its peak.

    Attributes
    ----------
    volume : int
        The block as it was given, padded.
    result : int
    weights : int
    tile : int
        What goes into the network and comes out of it.
    network : int
        What the compiled program holds in between, by its own account, and a quarter more for the convolution
        library's own, which is not in it: so it was measured on a CPU.
    """

    volume: int
    result: int
    weights: int
    tile: int
    network: int

    @property
    def total(self) -> int:
        return sum(self)


class _Job(NamedTuple):
    """Where the tiles lie, the program that takes them, and what that costs."""

    plan: Plan
    batch: int
    network: Any
    memory: Memory


def predict_unet(
    image: Any,
    model: UNetModel,
    *,
    result: Literal["labels", "probability"] = "labels",
    flips: bool = False,
    threshold: Annotated[float, Ge(0), Le(1)] | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    dtype: Literal["float16", "float32"] = "float16",
    tile_pixels: Annotated[int, Ge(1)] | None = None,
) -> Any:
    """Segment an image, a stack of frames or a volume.

    A network for images takes a stack frame by frame; one for volumes takes the last three axes together. Sides that
    are no multiple of the network's grid are filled up with their last value, and cut off again.

    Parameters
    ----------
    image : (..., Y, X) array
        NumPy or CuPy; on the scale of the training images. Where it is NaN or Inf is background, without a probability.
    model : UNetModel
    result : {"labels", "probability"}
        Classes, or the probability of not being background.
    flips : bool
        Take the mean of what the network gives for the image and for its mirror images: slower 4 or 8 times.
    threshold : float, optional
        Probability from which a pixel is a spot; the model's by default. For models of one class.
    precision : {"auto", "float32", "bfloat16"}
        Of the activations; by default that in which the device is fast: float32 on a CPU, bfloat16 on a GPU.
    dtype : {"float16", "float32"}
        Of probabilities; classes are uint8.
    tile_pixels : int, optional
        Of a tile at most; by default what suits the device and its free memory.

    Returns
    -------
    (..., Y, X) uint8, float16 or float32 array
        On the same device. Of a probability, NaN where the image is NaN or Inf.

    Raises
    ------
    UserError
        No image or model, too few axes for the model, an impossible option, or too little memory.
    """
    if not isinstance(model, UNetModel):
        raise UserError(f"predict_unet got a {type(model).__name__}; needed: a model that load_unet gives")
    check_options(
        predict_unet, who="unet", result=result, flips=flips, threshold=threshold, precision=precision, dtype=dtype,
        tile_pixels=tile_pixels,
    )  # fmt: skip
    image = read_image(image, who="predict_unet")
    backend, config = backend_of(image), model.config
    xp, dims = backend.xp, config.spatial_dims
    if image.ndim < dims:
        raise UserError(
            f"the unet is for volumes, and the image has {image.ndim} axes {tuple(image.shape)}; needed: z, y, x"
        )
    shape, kept = tuple(image.shape), np.dtype(np.uint8 if result == "labels" else dtype)
    bad = None
    if image.dtype.kind == "f" and not bool(xp.isfinite(image).all()):
        bad = ~xp.isfinite(image)
        taken = "taken for background" if result == "labels" else "NaN in the result"
        count(f"values that are NaN or Inf, {taken}", bad)
        image = xp.where(bad, xp.asarray(model.normalisation.fill, dtype=image.dtype), image)
    values = _pad(read_channels(image, model.normalisation), config, xp=xp)
    values = xp.reshape(values, (-1, *values.shape[-1 - dims :]))
    run = _run_of(backend, precision)
    with _device:
        job = _prepare(backend, model, run, values, dtype=kept, pixels=tile_pixels)
        backend.make_room(job.memory.total)
        found = _predict(backend, model, job, values, dtype=kept, flips=flips, threshold=threshold)
    found = found.reshape(*shape[: len(shape) - dims], *found.shape[1:])
    found = found[(..., *(slice(n) for n in shape[-dims:]))]
    if bad is not None:
        found = xp.where(bad, xp.asarray(0 if result == "labels" else np.nan, dtype=found.dtype), found)
    return found


def plan_memory(
    image: Any,
    model: UNetModel,
    *,
    result: str = "labels",
    flips: bool = False,
    precision: str = "auto",
    tile_pixels: int | None = None,
) -> Memory:
    """Return what `predict_unet` would hold on the image's device; compiles the network, and computes nothing."""
    backend, dims = backend_of(image), model.config.spatial_dims
    values = _pad(read_channels(image, model.normalisation), model.config, xp=backend.xp)
    values = backend.xp.reshape(values, (-1, *values.shape[-1 - dims :]))
    dtype = np.dtype(np.uint8 if result == "labels" else np.float16)
    memory = _prepare(backend, model, _run_of(backend, precision), values, dtype=dtype, pixels=tile_pixels).memory
    return memory._replace(tile=2 * memory.tile) if flips else memory  # turned over, and what comes of that


def _run_of(backend: Any, precision: str) -> Run:
    return Run(**{**backend.network, **({} if precision == "auto" else {"dtype": precision})})


def _pad(values: Any, config: UNetConfig, *, xp: Any) -> Any:
    """Fill (..., *space, C) up to multiples of the grid with the values at its border; say so where it is small."""
    grid, sides = config.grid, values.shape[-1 - config.spatial_dims : -1]
    if min(sides) < grid and tuple(sides) not in _said:
        _said.add(tuple(sides))
        log.warning(
            "the unet sees %d pixels as one at its coarsest level, and the image has only %s: filled up with its "
            "border values",
            grid,
            " x ".join(map(str, sides)),
        )
    missing = [(0, -n % grid) for n in sides]
    if not any(after for _, after in missing):
        return values
    return xp.pad(values, [(0, 0)] * (values.ndim - 1 - len(sides)) + missing + [(0, 0)], mode="edge")


def _prepare(backend: Any, model: UNetModel, run: Run, values: Any, *, dtype: np.dtype, pixels: int | None) -> _Job:
    """Choose tiles that the device has room for, and compile the network for them."""
    config, pixels = model.config, pixels or backend.tile_pixels[model.config.spatial_dims]
    room, smaller = int(SHARE * backend.free_bytes()), True
    while smaller:
        plan = plan_tiles(values.shape[1:-1], halo=config.halo, grid=config.grid, pixels=pixels)
        size = math.prod(plan.size)
        batch = max(1, min(len(plan.tiles) * len(values), pixels // size, TILES))
        network = _compile(config, run, (batch, *plan.size, config.in_channels), backend.jax_device)
        memory = _add_up(model, values, network, pixels=batch * size, dtype=dtype)
        if memory.total <= room:
            return _Job(plan, batch, network, memory)
        pixels = batch * size // 2
        smaller = batch > 1 or plan_tiles(plan.padded, halo=config.halo, grid=config.grid, pixels=pixels) != plan
    raise UserError(
        f"the unet needs {memory.total / 1e9:.2f} GB for a tile of {' x '.join(map(str, plan.size))}, the smallest, "
        f"and {room / 1e9:.2f} GB are free; cut the image, take a machine with more memory, or train a smaller network"
    )


def _add_up(model: UNetModel, values: Any, network: Any, *, pixels: int, dtype: np.dtype) -> Memory:
    analysis = network.memory_analysis()
    cut = pixels * 4 * model.config.in_channels  # in float32, and beside it the one that is worked on
    return Memory(
        volume=int(values.nbytes),
        result=math.prod(values.shape[:-1]) * dtype.itemsize,
        weights=sum(leaf.nbytes for leaf in jax.tree.leaves((model.params, model.state))),
        tile=2 * (cut + analysis.output_size_in_bytes),
        network=int(1.25 * analysis.temp_size_in_bytes),
    )


@lru_cache(maxsize=16)
def _compile(config: UNetConfig, run: Run, shape: tuple[int, ...], device: Any) -> Any:
    """The network for tiles of one shape: (params, state, tiles) to (N, *size, classes) probabilities, float32."""

    def score(params: Any, state: Any, tiles: jax.Array) -> jax.Array:
        logits, _ = apply_network(config, params, state, tiles, run=run)
        if config.out_classes > 1:
            return jax.nn.softmax(logits)
        return jax.nn.sigmoid(foreground_logit(logits, output=config.output))[..., None]

    place = jax.sharding.SingleDeviceSharding(device)
    weights = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, init_weights(config)))
    given = (*weights, jax.ShapeDtypeStruct(shape, jnp.float32))
    given = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), given)
    return jax.jit(score).lower(*given).compile()


@lru_cache(maxsize=4)
def _place(model: UNetModel, device: Any) -> tuple[Any, Any]:
    return jax.device_put((model.params, model.state), device)


def _predict(
    backend: Any,
    model: UNetModel,
    job: _Job,
    values: Any,
    *,
    dtype: np.dtype,
    flips: bool,
    threshold: float | None,
) -> Any:
    """Classes or probabilities (N, *space) of values (N, *space, C)."""
    config, plan = model.config, job.plan
    weights = _place(model, backend.jax_device)
    volume = backend.to_jax(values)
    result = jnp.zeros(values.shape[:-1], dtype, device=backend.jax_device)
    level = np.float32(model.threshold if threshold is None else threshold)
    mirrored = [(), *_mirrors(config.spatial_dims)] if flips else [()]
    todo = list(product(range(len(values)), plan.tiles))
    before = None
    for start in range(0, len(todo), job.batch):
        some = todo[start : start + job.batch]
        some += some[-1:] * (job.batch - len(some))  # a batch is always as large: the last one does one tile again
        origins, lows, highs = (np.array(part, np.int32) for part in _corners(some))
        tiles = _cut(volume, origins, size=plan.size, normalisation=model.normalisation)
        scores = None
        for axes in mirrored:
            part = jnp.flip(job.network(*weights, jnp.flip(tiles, axes)), axes)
            scores = part if scores is None else scores + part
        result = _put(result, scores / len(mirrored), origins, lows, highs, level)
        if before is not None:
            before.block_until_ready()  # or more tiles than two would be on the device
        before = scores
    return backend.from_jax(result)


def _mirrors(dims: int) -> list[tuple[int, ...]]:
    """The axes to be turned round, in every combination but none."""
    return [axes for n in range(1, dims + 1) for axes in combinations(range(1, dims + 1), n)]


def _corners(some: list[tuple[int, Tile]]) -> tuple[list[Any], ...]:
    origins = [(frame, *tile.origin) for frame, tile in some]
    return origins, [tile.low for _, tile in some], [tile.high for _, tile in some]


@partial(jax.jit, static_argnames=("size", "normalisation"))
def _cut(volume: jax.Array, origins: jax.Array, *, size: tuple[int, ...], normalisation: Normalisation) -> jax.Array:
    """Tiles (B, *size, C) at (B, 1 + d) origins, normalised."""
    whole = (1, *size, volume.shape[-1])
    tiles = [lax.dynamic_slice(volume, (*origin, 0), whole) for origin in origins]
    return normalise(jnp.concatenate(tiles), normalisation)


@partial(jax.jit, donate_argnums=0)
def _put(
    result: jax.Array, scores: jax.Array, origins: jax.Array, lows: jax.Array, highs: jax.Array, threshold: jax.Array
) -> jax.Array:
    """Write the parts of tiles that are right into the result: classes if it holds integers, else probabilities."""
    labels = jnp.issubdtype(result.dtype, jnp.integer)
    if scores.shape[-1] > 1:
        found = jnp.argmax(scores, axis=-1) if labels else 1 - scores[..., 0]
    else:
        found = scores[..., 0] >= threshold if labels else scores[..., 0]
    found = found.astype(result.dtype)
    for tile, origin, low, high in zip(found, origins, lows, highs, strict=True):
        right = jnp.ones(tile.shape, bool)
        for axis in range(tile.ndim):
            place = lax.broadcasted_iota(jnp.int32, tile.shape, axis)
            right &= (place >= low[axis]) & (place < high[axis])
        old = lax.dynamic_slice(result, tuple(origin), (1, *tile.shape))
        result = lax.dynamic_update_slice(result, jnp.where(right, tile, old[0])[None], tuple(origin))
    return result

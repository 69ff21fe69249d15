"""The U-Net itself, and its weights as plain nested dicts: what training and prediction work with.

A network is its `UNetConfig`; `init_weights` makes ``(params, state)`` and `apply_network` is a pure function of them.
`state` holds running statistics, and is empty where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from niseg_gpu.unet.config import RECURRENCES, UNetConfig
from niseg_gpu.unet.layers import MAKERS, Conv, Gate, Joined, Run, pool

Tree = dict[str, Any]
DEFAULT = Run()


class UNet(nnx.Module):
    """The network of a `UNetConfig`, for images and volumes alike.

    Parameters
    ----------
    config : UNetConfig
    rngs : flax.nnx.Rngs
        With a stream ``params``.
    """

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        made = {"spatial_dims": config.spatial_dims, "rngs": rngs}
        block = MAKERS[config.block]
        depths = [config.depth(level) for level in range(config.levels)]
        inputs = [config.in_channels, *depths]
        self.downs = nnx.List(
            [block((i, o), norm=config.norm, **made) for i, o in zip(inputs[:-2], depths[:-1], strict=True)]
        )
        self.bottom = block((inputs[-2], depths[-1]), norm=config.norm, **made)
        pairs = list(zip(depths[1:], depths[:-1], strict=True))  # coarse and fine, level by level
        self.gates = nnx.List([Gate(c, f, **made) for c, f in pairs] if config.attention else [])
        self.ups = nnx.List([block((c + f, f), norm=config.norm, **made) for c, f in pairs])
        self.head = Conv((depths[0], config.out_classes), size=1, **made)

    def __call__(self, images: jax.Array, run: Run = DEFAULT, *, training: bool = False) -> jax.Array:
        """Return what the head gives for each pixel: logits, or what goes through a ReLU to be a probability.

        Parameters
        ----------
        images : (N, *space, C) array
            Sides are multiples of ``config.grid``.
        run : Run
        training : bool
            Norms use this batch's statistics, and keep a running mean of them.

        Returns
        -------
        (N, *space, out_classes) float32 array
        """
        rows = 0 if training else run.strip_rows
        each = 1 if self.config.block != "recurrent-residual" else RECURRENCES + 1  # half a block's reach: coarse rows
        x, skips = images.astype(run.dtype), []
        for down in self.downs:
            skip, x = map_strips(
                lambda s, down=down: (y := down(s, run, training=training), pool(y, run)), (x,), rows=rows, halo=each
            )
            skips.append(skip)
        (x,) = map_strips(lambda s: (self.bottom(s, run, training=training),), (x,), rows=rows, halo=2 * each, unit=1)
        for level in reversed(range(len(skips))):
            (x,) = map_strips(
                lambda c, f, level=level: (self._rise(level, Joined(c, f), run, training=training),),
                (x, skips[level]),
                rows=rows,
                halo=each,
            )
        return x if skips else self._finish(x, run)

    def _rise(self, level: int, pair: Joined, run: Run, *, training: bool) -> jax.Array:
        if self.gates:
            pair = self.gates[level](pair, run)
        x = self.ups[level](pair, run, training=training)
        return self._finish(x, run) if level == 0 else x

    def _finish(self, x: jax.Array, run: Run) -> jax.Array:
        return self.head(x.astype(jnp.float32), run)


def map_strips(
    function: Callable[..., tuple[jax.Array, ...]],
    inputs: tuple[jax.Array, ...],
    *,
    rows: int,
    halo: int,
    unit: int = 2,
) -> tuple[jax.Array, ...]:
    """Call `function` on strips of rows with a border around them, and put together what it gives.

    Strips at the border of the image end there, so that zeros go on outside for them as for the whole.

    Parameters
    ----------
    function : callable
    inputs : tuple of (N, rows, ...) array
        The first axis of space is cut.
    rows : int
        Of the largest input at a time; 0 for all of them.
    halo : int
        Units around a strip that decide what it gives.
    unit : int
        Rows of the largest input that make a unit, the coarsest rows there are.
    """
    units = max(x.shape[1] for x in inputs) // unit
    each = rows // unit
    tall = each + 2 * halo
    if not rows or units <= tall + each:
        return function(*inputs)
    # how often a unit goes into each input, and into each result
    cuts = [x.shape[1] // units for x in inputs]
    shapes = jax.eval_shape(
        function,
        *(
            jax.ShapeDtypeStruct((x.shape[0], tall * c, *x.shape[2:]), x.dtype)
            for x, c in zip(inputs, cuts, strict=True)
        ),
    )
    ratios = [shape.shape[1] // tall for shape in shapes]
    wholes = tuple(
        jnp.zeros((s.shape[0], units * r, *s.shape[2:]), s.dtype) for s, r in zip(shapes, ratios, strict=True)
    )

    def work(i: jax.Array, wholes: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        core = jnp.minimum(i * each, units - each)
        start = jnp.clip(core - halo, 0, units - tall)
        found = function(
            *(lax.dynamic_slice_in_dim(x, start * c, tall * c, 1) for x, c in zip(inputs, cuts, strict=True))
        )
        own = (lax.dynamic_slice_in_dim(y, (core - start) * r, each * r, 1) for y, r in zip(found, ratios, strict=True))
        return tuple(
            lax.dynamic_update_slice_in_dim(w, y, core * r, 1) for w, y, r in zip(wholes, own, ratios, strict=True)
        )

    return lax.fori_loop(0, math.ceil(units / each), work, wholes)


def init_weights(config: UNetConfig, *, seed: int = 2018) -> tuple[Tree, Tree]:
    """Draw the weights of a network (He et al., 10.1109/ICCV.2015.123), on the host: the same on every device.

    With ``output`` relu they are drawn as Keras draws them for the lecture, after Glorot and Bengio (2010): He's are
    so large that the ReLU at the end is dead after a few steps.

    Parameters
    ----------
    config : UNetConfig
    seed : int

    Returns
    -------
    params, state : nested dict of float32 ndarray
        What is trained, and what is tracked besides.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "kernel" and config.output == "relu":
            *size, inputs, outputs = leaf.shape
            most = math.sqrt(6 / (math.prod(size) * (inputs + outputs)))
            return rng.uniform(-most, most, leaf.shape).astype(np.float32)
        if name == "kernel":
            spread = math.sqrt(2 / math.prod(leaf.shape[:-1]))
            return (spread * rng.standard_normal(leaf.shape)).astype(np.float32)
        return np.full(leaf.shape, 1 if name in ("scale", "var") else 0, np.float32)

    params, state = split_model(abstract_model(config))
    return jax.tree.map_with_path(draw, params), jax.tree.map_with_path(draw, state)


def split_model(model: UNet) -> tuple[Tree, Tree]:
    """Return the parameters and the running statistics of a network as nested dicts."""
    _, params, state = nnx.split(model, nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(state)


def merge_model(config: UNetConfig, params: Tree, state: Tree) -> UNet:
    """Return the network with these weights."""
    graph, kept, tracked = nnx.split(abstract_model(config), nnx.Param, ...)
    nnx.replace_by_pure_dict(kept, jax.tree.map(jnp.asarray, params))
    nnx.replace_by_pure_dict(tracked, jax.tree.map(jnp.asarray, state))
    return nnx.merge(graph, kept, tracked)


def apply_network(
    config: UNetConfig,
    params: Tree,
    state: Tree,
    images: jax.Array,
    *,
    run: Run = DEFAULT,
    training: bool = False,
) -> tuple[jax.Array, Tree]:
    """Apply a network: a pure function, to be compiled, differentiated and sharded.

    Parameters
    ----------
    config : UNetConfig
    params, state : nested dict of array
    images : (N, *space, C) array
        Normalised; sides are multiples of ``config.grid``.
    run : Run
    training : bool

    Returns
    -------
    logits : (N, *space, out_classes) float32 array
    state : nested dict of array
        As it is after this batch.
    """
    model = merge_model(config, params, state)
    logits = model(images, run, training=training)
    return logits, split_model(model)[1]


def abstract_model(config: UNetConfig) -> UNet:
    """Return the network without weights: only their shapes."""
    return nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(params=0)))


def count_parameters(config: UNetConfig) -> dict[str, int]:
    """Return how many parameters each layer has, by its place, in the order of the network."""
    params, _ = split_model(abstract_model(config))
    counts: dict[str, int] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        names = [str(step.key) for step in path[:-1]]
        counts["/".join(names)] = counts.get("/".join(names), 0) + math.prod(leaf.shape)
    return {name: counts[name] for name in sorted(counts, key=_place)}


def _place(name: str) -> tuple[int, int]:
    """Where in the network a layer stands: down, bottom, up again from the coarsest, head."""
    part, _, rest = name.partition("/")
    number = rest.partition("/")[0]
    order = ("downs", "bottom", "gates", "ups", "head").index(part)
    return order, -int(number) if part in ("gates", "ups") else 0

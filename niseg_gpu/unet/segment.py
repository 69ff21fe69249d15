"""The step ``segment_unet``: a trained U-Net over a stack, block by block."""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le

from niseg_gpu.chunks import Work
from niseg_gpu.errors import UserError
from niseg_gpu.findings import count
from niseg_gpu.stack import NamesFile
from niseg_gpu.unet.folder import UNetModel, load_unet

LOADING = 25_000_000  # bytes, about: while JAX loads a compiled program


def fit_segment_unet(
    before: Any,
    *,
    model: Annotated[str, NamesFile("")],
    result: Literal["labels", "probability"] = "labels",
    threshold: Annotated[float, Ge(0), Le(1)] | None = None,
    flips: bool = False,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
) -> dict[str, Any]:
    """Load the model.

    Parameters
    ----------
    model : str
        Folder that ``niseg-gpu unet train`` wrote.
    result : {"labels", "probability"}
        Classes, or the probability of not being background.
    threshold : float
        Probability from which a pixel is a spot, for models of one class; the model's own by default.
    flips : bool
        Take the mean over mirror images, 4 of an image or 8 of a volume: better, and slower as many times.
    precision : {"auto", "float32", "bfloat16"}
        Of the activations; auto takes float32 on a CPU, bfloat16 on a GPU.
    """
    loaded = open_unet(model)
    if before is not None:
        _check_axes(loaded, tuple(before.info.dims), model)
    if threshold is not None and loaded.config.out_classes > 1:
        raise UserError(
            f"segment_unet got threshold {threshold}, and {model} has {loaded.config.out_classes} classes, of which "
            "the most probable is taken; leave it out"
        )
    return {"model": loaded, "result": result, "threshold": threshold, "flips": flips, "precision": precision}


def _check_axes(model: UNetModel, dims: tuple[str, ...], path: str) -> None:
    if model.config.spatial_dims == 3 and dims[-3:] != ("z", "y", "x"):
        raise UserError(
            f"{path} is a unet for volumes, and the stack has the axes {', '.join(dims)}; needed: z, y, x; "
            "take a model for images, or name the axes with dims"
        )


def open_unet(path: str) -> UNetModel:
    """Load a model once: the same object for the same folder, so that it is compiled and placed once."""
    try:
        stamp = os.stat(os.path.join(path, "model.json")).st_mtime_ns
    except OSError:
        stamp = 0
    return _load(path, stamp)


@lru_cache(maxsize=4)
def _load(path: str, stamp: int) -> UNetModel:
    return load_unet(path)


def segment_unet(image: Any, *, model: UNetModel, result: str = "labels", **options: Any) -> Any:
    """Segment with a trained U-Net: classes of pixels, or the probability of not being background.

    Parameters
    ----------
    image : (..., Y, X) array
    model : UNetModel
    result : {"labels", "probability"}
    **options
        ``threshold``, ``flips`` and ``precision`` of `niseg_gpu.unet.predict.predict_unet`.

    Returns
    -------
    (..., Y, X) uint8 or float16 array
    """
    from niseg_gpu.unet.predict import predict_unet

    found = predict_unet(image, model, result=result, **options)
    if result == "labels":
        count("values segmented as not background", found != 0)
    return found


def describe_segment_unet(info: Any, *, model: UNetModel, result: str = "labels", **_: Any) -> Any:
    """The stack after `segment_unet`: of one class against background it is a mask, and is compared as one.

    Of several, a number means the class of that number in the training's truth, unlike that of a cluster.
    """
    dtype = np.dtype(np.uint8 if result == "labels" else np.float16)
    names = {"labels": "mask" if model.config.out_classes == 1 else "classes"}
    quantity = names.get(result, result)
    return info.with_(dtype=dtype, attrs={"quantity": quantity})


def halo_segment_unet(*, model: UNetModel, **_: Any) -> tuple[int, int]:
    """Frames and pixels of neighbourhood that a block needs."""
    return (model.halo if model.config.spatial_dims == 3 else 0), model.halo


def grid_segment_unet(*, model: UNetModel, **_: Any) -> tuple[int, int]:
    """What blocks must start at multiples of."""
    return (model.config.grid if model.config.spatial_dims == 3 else 1), model.config.grid


def memory_segment_unet(info: Any, *, backend: Any, model: UNetModel, **options: Any) -> Work:
    """What it holds: each block its channels and result; the network, compiled for that, works on one at a time."""
    from niseg_gpu.unet.predict import plan_memory

    options.pop("threshold", None)
    held = plan_memory(backend.xp.zeros(info.shape, dtype=info.dtype), model, **options)
    return Work(held.volume + held.result, held.weights + held.tile + held.network + LOADING)

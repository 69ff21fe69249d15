"""A trained U-Net as a folder: weights by Orbax, and everything else that one must know of it as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.io.folders import tell_unwritten
from niseg_gpu.io.paths import read_path
from niseg_gpu.io.staged import staged
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.normalise import Normalisation
from niseg_gpu.unet.weights import BrokenWeights, read_weights, write_weights

FORMAT = "niseg_gpu unet"
VERSION = 1
REMEDY = "train one with niseg-gpu unet train"


@dataclass(frozen=True, eq=False)
class UNetModel:
    """A trained network, its weights on the host.

    Attributes
    ----------
    config : UNetConfig
    params, state : nested dict of float32 ndarray
        As `niseg_gpu.unet.model.init_weights` makes them.
    normalisation : Normalisation
    threshold : float
        Probability from which a pixel is a spot, chosen on validation images.
    training : mapping
        What it was trained on, and how.
    metrics : mapping
        How good it was then.
    """

    config: UNetConfig
    params: Mapping[str, Any]
    state: Mapping[str, Any]
    normalisation: Normalisation = field(default_factory=Normalisation)
    threshold: float = 0.5
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.normalisation.channels) != self.config.in_channels:
            raise UserError(
                f"unet got {len(self.normalisation.channels)} channels ({', '.join(self.normalisation.channels)}) and "
                f"in_channels {self.config.in_channels}; allowed: as many"
            )
        if not 0 <= self.threshold <= 1:
            raise UserError(f"unet got threshold {self.threshold}; allowed: 0 to 1")

    @property
    def halo(self) -> int:
        """Pixels of an image around a pixel that decide what it is given, rounded up to the grid."""
        margin = self.config.margin + self.normalisation.halo
        return math.ceil(margin / self.config.grid) * self.config.grid


def check_unet_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a name that a model can't be saved under."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {path.parent} is not a folder one may write to; make it, or give another name")
    if os.path.lexists(path) and not ((path / "model.json").is_file() and path.is_dir() and not path.is_symlink()):
        raise UserError(f"{path} exists and is no unet model, never overwritten; give another name")
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} exists; give another name, or replace it with --overwrite")


def save_unet(model: UNetModel, path: str | Path, *, overwrite: bool = False) -> Path:
    """Save a model as a folder, which appears under its name only when whole.

    Parameters
    ----------
    model : UNetModel
    path : str or Path
    overwrite : bool
        Replace a model of this name.

    Raises
    ------
    UserError
        A name that exists, a folder one can't write to, weights that hold NaN or Inf or are not those of the
        configuration's network.
    """
    if not isinstance(model, UNetModel):
        raise UserError(f"save_unet got a {type(model).__name__}; needed: a UNetModel, as load_unet gives")
    path = read_path(path, who="save_unet")
    check_unet_target(path, overwrite=overwrite)
    weights = {"params": flatten(model.params), "state": flatten(model.state)}
    if wrong := _find_misfit(weights, model.config):
        raise UserError(f"save_unet got a model whose weights don't fit: {wrong}; give those of the same network")
    _check_finite(weights, path)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "niseg_gpu": importlib.metadata.version("niseg-gpu"),
        "config": model.config.as_mapping(),
        "normalisation": model.normalisation.as_mapping(),
        "threshold": model.threshold,
        "training": dict(model.training),
        "metrics": dict(model.metrics),
    }
    try:
        with staged(path, folder=True) as partial:
            about["files"] = write_weights(partial / "weights", weights)
            (partial / "model.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(tell_unwritten(path, error)) from None
    return path


def read_about(path: str | Path) -> dict[str, Any]:
    """Return what a model's folder says of it, without its weights.

    Raises
    ------
    UserError
        A folder that is missing, none of a model, broken, or of a later version.
    """
    path = read_path(path, who="load_unet")
    if not path.exists():
        raise UserError(f"{path} does not exist; name a unet model, or {REMEDY}")
    try:
        about = json.loads((path / "model.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise UserError(f"{path} is no unet model; {REMEDY}")
        version = int(about["version"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no unet model, or a broken one: it has no whole model.json; {REMEDY}") from None
    if version > VERSION:
        raise UserError(
            f"{path} is a unet model of version {version}, this niseg-gpu reads up to {VERSION}; install a newer one"
        )
    return about


def load_unet(path: str | Path) -> UNetModel:
    """Load a model that `save_unet` wrote, on whatever device.

    Raises
    ------
    UserError
        A folder that is missing, none of a model, broken, or of a later version.
    """
    about = read_about(path)
    try:
        config = UNetConfig.from_mapping(about["config"])
        normalisation = Normalisation.from_mapping(about["normalisation"])
        parts = {name: about[name] for name in ("training", "metrics")}
        threshold, files = float(about["threshold"]), dict(about["files"])
    except (KeyError, TypeError, ValueError) as error:
        why = f"lacks {error}" if isinstance(error, KeyError) else f"can't be understood ({error})"
        raise UserError(f"{path} is a broken unet model: its model.json {why}; {REMEDY}") from None
    try:
        weights = read_weights(Path(path) / "weights", files)
        weights = {name: weights[name] or {} for name in ("params", "state")}
    except BrokenWeights as error:
        raise UserError(f"{path} is a broken unet model: its weights can't be read ({error}); {REMEDY}") from None
    if wrong := _find_misfit(weights, config):
        raise UserError(f"{path} is a broken unet model: {wrong}; {REMEDY}")
    _check_finite(weights, path)
    trees = (unflatten(weights[name]) for name in ("params", "state"))
    return UNetModel(config, *trees, normalisation=normalisation, threshold=threshold, **parts)


def flatten(tree: Mapping[Any, Any], *, under: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of nested dicts by their path, ``downs/0/first/conv/kernel``, on the host."""
    found: dict[str, np.ndarray] = {}
    for key, value in tree.items():
        name = f"{under}/{key}" if under else str(key)
        found.update(flatten(value, under=name) if isinstance(value, Mapping) else {name: np.asarray(value)})
    return found


def unflatten(arrays: Mapping[str, Any]) -> dict[Any, Any]:
    """Undo `flatten`."""
    tree: dict[Any, Any] = {}
    for name, value in arrays.items():
        *path, last = (int(part) if part.isdigit() else part for part in name.split("/"))
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def _find_misfit(weights: Mapping[str, Mapping[str, np.ndarray]], config: UNetConfig) -> str:
    """The first of the weights that are not what the network of a configuration has, in words; empty: none."""
    from niseg_gpu.unet.model import abstract_model, split_model

    for name, tree in zip(("params", "state"), split_model(abstract_model(config)), strict=True):
        expected = {key: leaf.shape for key, leaf in _shapes(tree)}
        found = {key: np.shape(leaf) for key, leaf in weights[name].items()}
        for key in sorted(expected.keys() | found.keys()):
            if expected.get(key) != found.get(key):
                return f"{key} has shape {found.get(key)}, its configuration says {expected.get(key)}"
    return ""


def _shapes(tree: Mapping[Any, Any], *, under: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        name = f"{under}/{key}" if under else str(key)
        found += _shapes(value, under=name) if isinstance(value, Mapping) else [(name, value)]
    return found


def _check_finite(weights: Mapping[str, Mapping[str, np.ndarray]], path: str | Path) -> None:
    for arrays in weights.values():
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise UserError(f"{path}: the weights {name} hold NaN or Inf; {REMEDY}, with a smaller learning rate")

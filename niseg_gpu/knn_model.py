"""Models of k nearest neighbours (Cover & Hart, 10.1109/TIT.1967.1053964): learnt from masks, kept in one file."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt

from niseg_gpu.backend import backend_of
from niseg_gpu.errors import UserError
from niseg_gpu.images import read_image
from niseg_gpu.io.folders import tell_unwritten
from niseg_gpu.io.paths import read_path
from niseg_gpu.io.staged import staged
from niseg_gpu.knn_features import check_features, compute_features
from niseg_gpu.options import check_options

FORMAT = "niseg_gpu knn"
VERSION = 1


@dataclass(frozen=True, eq=False)
class KnnModel:
    """Labelled points in the space of features, and how neighbours vote; plain arrays on the host.

    Attributes
    ----------
    features : tuple of str
        Names, in the order of the columns.
    points : (n, features) float32 ndarray
        Training features as computed, not standardised.
    labels : (n,) uint8 ndarray
        0 background, 1 spot.
    means, scales : (features,) float32 ndarray
        What is taken from a feature, and what it is then divided by, before distances are taken.
    low, high : (features,) float32 ndarray
        Range of the training features.
    n_neighbors : int
    weights : {"uniform", "distance"}
    training : mapping
        What it was trained on.
    """

    features: tuple[str, ...]
    points: np.ndarray
    labels: np.ndarray
    means: np.ndarray
    scales: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_neighbors: int
    weights: str
    training: Mapping[str, Any] = field(default_factory=dict)


def fit_knn(
    images: Any,
    masks: Any,
    names: Sequence[tuple[str, str]] | None = None,
    *,
    features: Sequence[str] = ("value", "abs_residual"),
    standardise: bool = True,
    n_neighbors: Annotated[int, Ge(1)] = 1,
    weights: Literal["uniform", "distance"] = "uniform",
    background_per_spot: Annotated[float, Gt(0)] = 30.0,
    seed: Annotated[int, Ge(0)] = 2018,
) -> KnnModel:
    """Learn from images and masks of their spots.

    Parameters
    ----------
    images : (..., Y, X) array or sequence of such
        One image or stack, or several.
    masks : (..., Y, X) array or sequence of such
        One for each of `images`, of its shape: 0 for background, any one other value for spots.
    names : sequence of (str, str), optional
        What each image and its mask are called in complaints, such as their files.
    features : sequence of str
        What to look at in each pixel: value, residual, abs_residual, residual5, poisson_residual, local_mean,
        gradient.
    standardise : bool
        Give every feature mean 0 and variance 1 over the training set; else distances are taken between raw features.
    n_neighbors : int
        Neighbours that vote.
    weights : {"uniform", "distance"}
        Whether each neighbour's vote counts 1 or 1 / distance.
    background_per_spot : float
        Background pixels to draw for each spot pixel, for spots are rare; inf takes them all.
    seed : int
        Of the draw.

    Returns
    -------
    KnnModel

    Raises
    ------
    UserError
        No real arrays, masks of another shape or with more than two values, one class only, NaN, an unknown feature,
        more neighbours than training pixels.
    """
    check_features(features)
    check_options(
        fit_knn, who="knn", standardise=standardise, n_neighbors=n_neighbors, weights=weights,
        background_per_spot=background_per_spot, seed=seed,
    )  # fmt: skip
    images = [read_image(image, who="knn") for image in _list_arrays(images, "images")]
    masks = [read_image(mask, who="knn, for a mask,") for mask in _list_arrays(masks, "masks")]
    names = names or [(f"image {i}", f"mask {i}") for i in range(len(images))]
    labels = _read_masks(images, masks, names)
    chosen = _draw(labels, background_per_spot=background_per_spot, seed=seed)
    points = np.concatenate(
        [
            _features_at(image, rows, features, name=name)
            for image, rows, (name, _) in zip(images, chosen, names, strict=True)
        ]
    )
    drawn = np.concatenate([spots[rows] for spots, rows in zip(labels, chosen, strict=True)])
    if n_neighbors > len(points):
        raise UserError(
            f"knn got n_neighbors {n_neighbors}, the training set has {len(points)} pixels; allowed: 1 to {len(points)}"
        )
    means, scales = np.zeros(points.shape[1], np.float32), np.ones(points.shape[1], np.float32)
    if standardise:
        means, deviations = points.mean(0, dtype=np.float64), points.std(0, dtype=np.float64)
        means, scales = means.astype(np.float32), np.where(deviations > 0, deviations, 1).astype(np.float32)
    training = {
        "images": len(images),
        "shapes": [list(image.shape) for image in images],
        "pixels": int(sum(map(len, labels))),
        "spot_pixels": int(sum(spots.sum() for spots in labels)),
        "background_drawn": int((drawn == 0).sum()),
        "background_per_spot": float(background_per_spot) if np.isfinite(background_per_spot) else "inf",
        "standardise": bool(standardise),
        "seed": int(seed),
    }
    return KnnModel(
        tuple(features), points, drawn, means, scales, points.min(0), points.max(0), int(n_neighbors), weights, training
    )


def _list_arrays(given: Any, name: str) -> list[Any]:
    if hasattr(given, "shape"):
        return [given]
    if not isinstance(given, list | tuple):
        raise UserError(f"knn got {name} of type {type(given).__name__}; needed: an array, or a list of such")
    return list(given)


def _read_masks(images: Sequence[Any], masks: Sequence[Any], names: Sequence[tuple[str, str]]) -> list[np.ndarray]:
    """The flat labels of each image."""
    if not images or len(images) != len(masks):
        raise UserError(f"knn got {len(images)} images and {len(masks)} masks; allowed: one or more, a mask for each")
    labels = []
    for image, mask, (_, name) in zip(images, masks, names, strict=True):
        if mask.shape != image.shape or len(image.shape) < 2:
            raise UserError(
                f"{name} has shape {tuple(mask.shape)}, its image {tuple(image.shape)}; allowed: the same, "
                "(..., Y, X); crop both alike"
            )
        mask = backend_of(mask).to_host(mask)
        values = np.unique(mask)
        one = len(values) > 1 and values[0] != 0 and values[1] != 0
        if len(values) > 2 or one or not np.isfinite(values).all():  # NaN is not 0, and no mark either
            shown = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
            raise UserError(
                f"{name} holds {len(values)} values ({shown}); allowed: 0 for background and one other for spots"
            )
        labels.append((mask != 0).ravel().astype(np.uint8))
    spots = sum(int(part.sum()) for part in labels)
    if spots in (0, sum(map(len, labels))):
        what = "no spots" if spots == 0 else "no background"
        raise UserError(f"the masks hold {what}; needed: some pixels of each, 0 for background, else spots")
    return labels


def _draw(labels: Sequence[np.ndarray], *, background_per_spot: float, seed: int) -> list[np.ndarray]:
    """Rows of each image's pixels that train: all spots, and background drawn evenly from all images."""
    flat = np.concatenate(labels)
    background = np.flatnonzero(flat == 0)
    wanted = background_per_spot * (len(flat) - len(background))
    keep = flat != 0
    if wanted < len(background):
        rng = np.random.default_rng(seed)
        background = rng.choice(background, max(1, round(wanted)), replace=False, shuffle=False)
    keep[background] = True
    ends = np.cumsum([len(part) for part in labels])
    return [np.flatnonzero(part) for part in np.split(keep, ends[:-1])]


def _features_at(image: Any, rows: np.ndarray, features: Sequence[str], *, name: str) -> np.ndarray:
    backend = backend_of(image)
    values = backend.xp.reshape(compute_features(image, features), (-1, len(features)))
    points = backend.to_host(values[backend.xp.asarray(rows)])
    bad = np.flatnonzero(~np.isfinite(points).all(1))
    if len(bad):
        place = tuple(int(i) for i in np.unravel_index(rows[bad[0]], image.shape))
        raise UserError(
            f"{name} has NaN or Inf at or beside {place} (indices from 0), {len(bad)} training pixels in all; "
            "mend them, or crop image and mask"
        )
    return points


def save_knn(model: KnnModel, path: str | Path, *, overwrite: bool = False) -> Path:
    """Save a model; it appears under its name only when whole.

    Parameters
    ----------
    model : KnnModel
    path : str or Path
        Ends in ``.npz``.
    overwrite : bool
        Replace what is there.

    Raises
    ------
    UserError
        No such model, no path, another ending, a file that exists, a folder that one can't write to.
    """
    if not isinstance(model, KnnModel):
        raise UserError(f"save_knn got a {type(model).__name__}; needed: a model of fit_knn or load_knn")
    path = read_path(path, who="save_knn")
    check_model_target(path, overwrite=overwrite)
    arrays = {name: getattr(model, name) for name in ("points", "labels", "means", "scales", "low", "high")}
    about = {
        "features": list(model.features),
        "n_neighbors": model.n_neighbors,
        "weights": model.weights,
        "training": dict(model.training),
    }
    try:
        with staged(path) as partial, partial.open("wb") as file:
            np.savez(
                file, format=np.array(FORMAT), version=np.array(VERSION), about=np.array(json.dumps(about)), **arrays
            )
    except OSError as error:
        raise UserError(tell_unwritten(path, error)) from None
    return path


def check_model_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a name that a model can't be saved under."""
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path}: unknown ending {path.suffix!r}; allowed: .npz")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path}: {path.parent} is not a folder one may write to; make it, or give another name")
    if path.is_dir() or (os.path.lexists(path) and not overwrite):
        raise UserError(f"{path} exists; give another name, or replace it with --overwrite")


def load_knn(path: str | Path) -> KnnModel:
    """Load a model that `save_knn` wrote.

    Raises
    ------
    UserError
        No path, or a file that is missing, broken, no such model, or of a later version.
    """
    path, remedy = read_path(path, who="load_knn"), "train one with niseg-gpu knn train"
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            if str(file.get("format", "")) != FORMAT:
                raise UserError(f"{path} is no knn model; {remedy}")
            if int(file["version"]) > VERSION:
                raise UserError(
                    f"{path} is a knn model of version {int(file['version'])}, this niseg-gpu reads up to {VERSION}; "
                    "install a newer one"
                )
            about = json.loads(str(file["about"]))
            arrays = {name: file[name] for name in ("points", "labels", "means", "scales", "low", "high")}
            rest = {name: about[name] for name in ("n_neighbors", "weights", "training")}
            model = KnnModel(tuple(about["features"]), **arrays, **rest)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a knn model, or {remedy}") from None
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile):
        raise UserError(f"{path} is no knn model, or a broken one; {remedy}") from None
    _check_loaded(model, path)
    return model


def _check_loaded(model: KnnModel, path: str | Path) -> None:
    check_features(model.features)
    columns = len(model.features)
    fits = model.points.ndim == 2 and model.points.shape[1] == columns and len(model.points) == len(model.labels)
    fits = fits and all(a.shape == (columns,) for a in (model.means, model.scales, model.low, model.high))
    if not fits or not 1 <= model.n_neighbors <= len(model.points) or not np.isfinite(model.points).all():
        raise UserError(f"{path} is a broken knn model: its arrays don't fit together; train it again")

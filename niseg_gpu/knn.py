"""Spots found by the k nearest neighbours of each pixel among pixels that somebody has marked."""

from __future__ import annotations

import logging
import math
import os
import threading
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from niseg_gpu.backend import backend_of
from niseg_gpu.chunks import Work
from niseg_gpu.errors import UserError
from niseg_gpu.findings import count
from niseg_gpu.images import read_image
from niseg_gpu.knn_features import Median, compute_features, halo_of_features, running_median
from niseg_gpu.knn_model import KnnModel, load_knn
from niseg_gpu.options import check_options
from niseg_gpu.plane import Plane
from niseg_gpu.stack import NamesFile

LATTICE_CODES = 1024
FAR_SHARE = 0.01

log = logging.getLogger(__name__)
_preparing = threading.Lock()


class _Prepared(NamedTuple):
    """What a device searches for a model, and the features whose values were found out of range, said once."""

    voters: Any
    warned: set[str]


class _Lattice(NamedTuple):
    """Answers at the nodes of a lattice over two features: where each cell ends, and the answer at its node."""

    edges: tuple[Any, Any]
    classes: Any
    shares: Any


def predict_knn(
    image: Any, model: KnnModel, *, exact: bool = True, scores: bool = False, workers: Annotated[int, Ge(1)] = 1
) -> Any:
    """Find the spots of an image by the votes of each pixel's nearest training pixels.

    Distances are Euclidean, between features rounded to float32. Of training pixels equally far, those that come
    first in the training set vote (scikit-learn leaves that to its tree); equal votes make background, as there.

    Parameters
    ----------
    image : (..., Y, X) array
        Frame by frame; on the same scale as the images the model was trained on.
    model : KnnModel
    exact : bool
        Search the neighbours of every pixel; else look up the answer at the nearest node of a lattice of up to 1024
        values of each of two features, quantiles of the training set.
    scores : bool
        Return the spots' share of the votes.
    workers : int
        Threads of the search on a CPU.

    Returns
    -------
    (..., Y, X) uint8 array
        1 for spots, 0 for background and where a feature is NaN or Inf; or, for `scores`, float32 from 0 to 1, NaN
        where a feature is.

    Raises
    ------
    UserError
        No image of real numbers, no such model, no workers.
    """
    _check_model(model, who="predict_knn")
    check_options(predict_knn, exact=exact, scores=scores, workers=workers)
    image = read_image(image, who="predict_knn")
    classes, shares = _predict(image, model, median=running_median(image), exact=exact, workers=workers)
    return shares if scores else classes


def _check_model(model: Any, *, who: str) -> None:
    if not isinstance(model, KnnModel):
        raise UserError(f"{who} got a {type(model).__name__}; needed: a model of fit_knn or load_knn")


def _predict(image: Any, model: KnnModel, *, median: Median, exact: bool, workers: int = 1) -> tuple[Any, Any]:
    backend = backend_of(image)
    xp = backend.xp
    with _preparing:  # once, not once a thread
        prepared = _prepare(backend, model)
        lattice = None if exact else _build_lattice(backend, model)
    features = compute_features(image, model.features, median=median)
    _count_far(features, model, prepared)
    finite = xp.all(xp.isfinite(features), axis=-1)
    count("values with NaN or Inf around them, taken for background", ~finite)
    rows = xp.flatnonzero(finite)
    queries = _standardise(xp.reshape(features, (-1, len(model.features)))[rows], model, xp=xp)
    classes = xp.zeros(finite.size, dtype=xp.uint8)
    shares = xp.full(finite.size, np.nan, dtype=xp.float32)
    if lattice is not None:
        classes[rows], shares[rows] = _look_up(lattice, queries, xp=xp)
    else:
        classes[rows], shares[rows] = _search(backend, prepared, model, queries, workers=workers)
    return xp.reshape(classes, image.shape), xp.reshape(shares, image.shape)


def classify_points(points: Any, model: KnnModel) -> Any:
    """Classify points of the space of features, such as the nodes of a grid, by their nearest training pixels.

    Parameters
    ----------
    points : (n, features) float32 array
        Finite, in the order of the model's features.
    model : KnnModel

    Returns
    -------
    (n,) uint8 array
        1 for spots, 0 for background.
    """
    backend = backend_of(points)
    with _preparing:
        prepared = _prepare(backend, model)
    return _search(backend, prepared, model, _standardise(points, model, xp=backend.xp), workers=1)[0]


def _standardise(features: Any, model: KnnModel, *, xp: Any) -> Any:
    return (features - xp.asarray(model.means)) / xp.asarray(model.scales)


def _count_far(features: Any, model: KnnModel, prepared: _Prepared) -> None:
    """Count values outside of what the model was trained on; its answers there are guesses."""
    for i, name in enumerate(model.features):
        values = features[..., i]
        far = (values < float(model.low[i])) | (values > float(model.high[i]))
        count(f"values whose {name} lies outside of the training range", far)
        share = float(far.mean()) if far.size else 0.0
        if share > FAR_SHARE and name not in prepared.warned:
            prepared.warned.add(name)
            log.warning(
                "knn: %.1f %% of a block's values have a %s outside of the training range %g to %g; "
                "normalize before training and detection, or train on images like these",
                100 * share,
                name,
                model.low[i],
                model.high[i],
            )


@lru_cache(maxsize=4)
def _prepare(backend: Any, model: KnnModel) -> _Prepared:
    """Pile up equal points; piles lie in the order of their first points."""
    points = _standardise(model.points, model, xp=np)
    order = np.lexsort(points.T)  # stable: equal points stay in the order of the training set
    ordered = points[order]
    start = np.flatnonzero(np.append(True, (ordered[1:] != ordered[:-1]).any(1)))
    size = np.diff(np.append(start, len(points)))
    pile = np.argsort(order[start], kind="stable")
    start, size = start[pile], size[pile]
    first = np.append(0, np.cumsum(size))
    members = order[np.repeat(start - first[:-1], size) + np.arange(len(points))]
    before = np.append(0, np.cumsum(model.labels[members], dtype=np.int64))
    distinct = points[order[start]]
    return _Prepared(backend.index_voters(distinct, first=first, before=before, n_neighbors=model.n_neighbors), set())


def _search(backend: Any, prepared: _Prepared, model: KnnModel, queries: Any, *, workers: int) -> tuple[Any, Any]:
    """Classes and the spots' share of the votes."""
    for_spots, against = backend.find_votes(
        prepared.voters,
        queries,
        n_neighbors=model.n_neighbors,
        by_distance=model.weights == "distance",
        workers=workers,
    )
    classes = backend.xp.astype(for_spots > against, backend.xp.uint8)
    return classes, backend.xp.astype(for_spots / (for_spots + against), backend.xp.float32)


@lru_cache(maxsize=4)
def _build_lattice(backend: Any, model: KnnModel) -> _Lattice:
    if len(model.features) != 2:
        raise UserError(
            f"approximate knn got {len(model.features)} features ({', '.join(model.features)}); allowed: 2; "
            "leave approximate out"
        )
    points = _standardise(model.points, model, xp=np)
    shares = np.linspace(0, 1, LATTICE_CODES)
    nodes = [np.unique(np.quantile(column, shares, method="nearest")) for column in points.T]
    edges = tuple(backend.from_host(((n[1:].astype(float) + n[:-1]) / 2).astype(np.float32)) for n in nodes)
    queries = np.stack([axis.ravel() for axis in np.meshgrid(*nodes, indexing="ij")], axis=1)
    found = _search(backend, _prepare(backend, model), model, backend.from_host(queries), workers=1)
    shape = tuple(len(n) for n in nodes)
    classes, votes = (backend.xp.reshape(part, shape) for part in found)
    return _Lattice(edges, classes, votes)


def _look_up(lattice: _Lattice, queries: Any, *, xp: Any) -> tuple[Any, Any]:
    codes = tuple(xp.searchsorted(edges, queries[:, i]) for i, edges in enumerate(lattice.edges))
    return lattice.classes[codes], lattice.shares[codes]


def fit_detect_spots(
    before: Any,
    *,
    model: Annotated[str, NamesFile(".npz")],
    replace: Literal["median", "none"] = "median",
    approximate: bool = False,
) -> dict[str, Any]:
    """Load the model.

    Parameters
    ----------
    model : str
        File that ``niseg-gpu knn train`` wrote.
    replace : {"median", "none"}
        Put the median of 3 x 3 pixels in the place of spots, or leave the image as it is.
    approximate : bool
        Look the answers up in a table over two features instead of searching.
    """
    try:
        stamp = os.stat(model).st_mtime_ns
    except OSError:
        stamp = 0
    loaded = _load(model, stamp)
    if approximate and len(loaded.features) != 2:
        raise UserError(
            f"detect_spots got approximate, and {model} has {len(loaded.features)} features; allowed: 2; leave it out"
        )
    return {"model": loaded, "replace": replace, "approximate": approximate}


@lru_cache(maxsize=4)
def _load(path: str, stamp: int) -> KnnModel:
    """The same object for the same file, so that what is prepared for it is prepared once."""
    return load_knn(path)


def detect_spots(
    image: Any, *, model: KnnModel, replace: Literal["median", "none"] = "median", approximate: bool = False
) -> tuple[Any, Any]:
    """Replace spots that a trained model of nearest neighbours finds.

    Parameters
    ----------
    image : (..., Y, X) array
    model : KnnModel
    replace : {"median", "none"}
    approximate : bool

    Returns
    -------
    cleaned : (..., Y, X) array
        In the dtype of `image`.
    spots : (..., Y, X) bool array
    """
    check_options(detect_spots, replace=replace, approximate=approximate)
    _check_model(model, who="detect_spots")
    image = read_image(image, who="detect_spots")
    xp, median = backend_of(image).xp, running_median(image)
    classes, _ = _predict(image, model, median=median, exact=not approximate)
    spots = classes != 0
    if replace == "none":
        count("spots found", spots)
        return image, spots
    count("spots replaced", spots)
    return xp.where(spots, median(3), image), spots


def plane_detect_spots(*, model: KnnModel, **_: Any) -> Plane:
    """The plane in which the model decides; where that has more or fewer than two features, the usual two."""
    decides = len(model.features) == 2
    features = tuple(model.features) if decides else ("value", "abs_residual")
    return Plane(
        features,
        lambda frame: compute_features(frame, features),
        halo_of_features(features),
        model=model if decides else None,
    )


def halo_detect_spots(*, model: Any, **_: Any) -> int:
    """Pixels of neighbourhood that a block needs."""
    return max(1, halo_of_features(model.features))


def memory_detect_spots(info: Any, *, model: KnnModel, approximate: bool = False, **_: Any) -> Work:
    """What it holds: features and their copies, standardised, and of each pixel its number, votes, class and share."""
    return Work(((33 if approximate else 45) + 12 * len(model.features)) * math.prod(info.shape))

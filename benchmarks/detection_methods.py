"""Ways to find spots: each learns from images, chooses its threshold on others, and gives scores for the rest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.backend import select
from niseg_gpu.evaluate import evaluate_scores
from niseg_gpu.knn import predict_knn
from niseg_gpu.knn_features import compute_features, running_median
from niseg_gpu.knn_model import fit_knn
from niseg_gpu.pipeline.learn import FLIPS, train_unet
from niseg_gpu.unet.folder import UNetModel, load_unet

from .detection_data import DataSet, Fold, Marked

SEEDS = (2018, 1, 2, 3, 4)
TREES = {"max_iter": 200, "learning_rate": 0.15, "l2_regularization": 1.0, "early_stopping": False}
BACKGROUND_PER_SPOT = 5  # pixels that trees learn from
# The lecture's: a crop of one image, thrice a step, 20 steps with one each; a ReLU for the probability.
RECIPE_CROP, RECIPE_CHECK, RECIPE_THRESHOLD = (128, 800), (500, 1200), 0.05
RECIPE = {
    "channels": ["value"], "crop": list(RECIPE_CROP), "augmentation": False, "epochs": 20, "steps_per_epoch": 3,
    "batch": 1, "output": "relu", "loss": "relu_bce", "clip_norm": 0,
}  # fmt: skip
# Flips and quarter turns leave the noise what it is.
FLIPPED = {name: value for name, value in asdict(FLIPS).items() if name != "crop"}
THOROUGH = {
    "channels": ["poisson_residual", "residual5", "value"], "robust": True, "compress": True, "crop": 128,
    "augmentation": FLIPPED, "epochs": 12, "steps_per_epoch": 100, "batch": 4, "optimizer": "adamw",
    "learning_rate": 3e-3,
}  # fmt: skip


class Found(NamedTuple):
    """Scores of a fold's validation and test images, (N, Y, X); spots are where a test score reaches the threshold.

    Attributes
    ----------
    validation : (N, Y, X) array or None
        None where nothing was chosen.
    test : (N, Y, X) array
    threshold : float
    """

    validation: np.ndarray | None
    test: np.ndarray
    threshold: float

    @property
    def mask(self) -> np.ndarray:
        return self.test >= self.threshold


class Method(NamedTuple):
    """A way to find spots.

    Attributes
    ----------
    find : callable
        Of a fold and a keyword ``seed``.
    seeds : tuple of int
        Of what is drawn when it learns; one where nothing is.
    data : tuple of str
        Names of the data sets that it is for.
    tuned : bool
        Whether its threshold was chosen on validation images.
    """

    find: Callable[..., Found]
    seeds: tuple[int, ...] = (0,)
    data: tuple[str, ...] = ("measured", "simulated")
    tuned: bool = True


def list_methods(data: DataSet, *, models: Path | None = None) -> dict[str, Method]:
    """Return the methods for a data set by name.

    Parameters
    ----------
    data : DataSet
    models : path, optional
        Folder where trained networks are kept, and taken from where they are there; by default none are.
    """
    networks = {"models": models, "data": ("simulated",)}
    methods = {
        "abs(f - median), fixed": Method(partial(cut_at_fixed, threshold=data.fixed_threshold), tuned=False),
        "abs(f - median), best": Method(partial(cut_at_best, feature="abs_residual")),
        "f - median, best": Method(partial(cut_at_best, feature="residual")),
        "(f - median 5) / root": Method(partial(cut_at_best, feature="poisson_residual")),
        "kNN, 1 neighbour": Method(partial(vote, n_neighbors=1), SEEDS, tuned=False),
        "kNN, 15 neighbours": Method(partial(vote, n_neighbors=15), SEEDS, tuned=False),
        "boosted trees, 16 features": Method(grow_trees, SEEDS),
        "U-Net, the lecture's recipe": _network("recipe", find=follow_recipe, tuned=False, **networks),
        "U-Net": _network("thorough", find=train_thoroughly, tuned=True, **networks),
    }
    return {name: method for name, method in methods.items() if data.name in method.data}


def _network(
    name: str, *, find: Callable[..., Found], models: Path | None, data: tuple[str, ...], tuned: bool
) -> Method:
    return Method(partial(find, models=models, name=name), SEEDS, data, tuned)


def choose_threshold(scores: np.ndarray, masks: np.ndarray) -> float:
    """The threshold of the best F1."""
    return evaluate_scores(np.atleast_2d(scores), np.atleast_2d(masks)).best_threshold


def cut_at_fixed(fold: Fold, *, threshold: float, seed: int) -> Found:
    """Spots are where abs(f - median) reaches a threshold set beforehand."""
    return Found(None, compute_features(fold.test.images, ["abs_residual"])[..., 0], threshold)


def cut_at_best(fold: Fold, *, feature: str, seed: int) -> Found:
    """Spots are where a feature reaches the best threshold."""
    known, scores = (compute_features(part.images, [feature])[..., 0] for part in (fold.validation, fold.test))
    return Found(known, scores, choose_threshold(known, fold.validation.masks))


def vote(fold: Fold, *, n_neighbors: int, seed: int) -> Found:
    """Spots are where more than half of the nearest training pixels are."""
    model = fit_knn(fold.training.images, fold.training.masks, n_neighbors=n_neighbors, seed=seed)
    known, scores = (predict_knn(part.images, model, scores=True) for part in (fold.validation, fold.test))
    return Found(known, scores, float(np.nextafter(0.5, 1)))


def grow_trees(fold: Fold, *, seed: int) -> Found:
    """Spots are where gradient-boosted trees see them in 16 features of a pixel and its neighbours."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(seed)
    features, masks = [], []
    for image, mask in zip(fold.training.images, fold.training.masks, strict=True):
        share = min(1.0, BACKGROUND_PER_SPOT * mask.sum() / max(1, (~mask).sum()))
        kept = mask | (rng.random(mask.shape) < share)
        features.append(compute_16_features(image)[kept])
        masks.append(mask[kept])
    trees = HistGradientBoostingClassifier(random_state=seed, **TREES)
    trees.fit(np.concatenate(features), np.concatenate(masks))

    def score(image: np.ndarray) -> np.ndarray:
        return trees.predict_proba(compute_16_features(image).reshape(-1, 16))[:, 1].reshape(image.shape)

    known, scores = (np.stack([score(image) for image in part.images]) for part in (fold.validation, fold.test))
    return Found(known, scores, choose_threshold(known, fold.validation.masks))


def compute_16_features(image: np.ndarray) -> np.ndarray:
    """Return (Y, X, 16) features: a pixel's own, and the eight neighbours' residuals in order of size."""
    median = running_median(image)
    names = ["value", "local_mean", "gradient", "residual", "residual5", "poisson_residual"]
    own = compute_features(image, names, median=median)
    wide = image.astype(np.float32) - median(7)
    padded = np.pad(own[..., -1], 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    inner = windows[..., 1:4, 1:4].reshape(*image.shape, 9)
    neighbours = np.sort(np.delete(inner, 4, axis=-1), axis=-1)
    return np.concatenate([own, wide[..., None], windows.max((-2, -1))[..., None], neighbours], -1)


def follow_recipe(fold: Fold, *, seed: int, models: Path | None, name: str) -> Found:
    """Train as the lecture does, on a crop of one image; spots are where its probability reaches 0.05."""
    learn, check = _cut(fold.training, *RECIPE_CROP), _cut(fold.validation, *RECIPE_CHECK)
    model = learn_network(learn, check, models and models / f"{name}-{seed}", seed=seed, **RECIPE)
    return Found(None, score_by_network(fold.test.images, model), RECIPE_THRESHOLD)


def _cut(marked: Marked, rows: int, columns: int) -> Marked:
    """The upper left corner of the first image."""
    return Marked(marked.images[:1, :rows, :columns], marked.masks[:1, :rows, :columns])


def train_thoroughly(fold: Fold, *, seed: int, models: Path | None, name: str) -> Found:
    """Train the same network on all images, and choose its threshold on others."""
    model = learn_network(fold.training, fold.validation, models and models / f"{name}-{seed}", seed=seed, **THOROUGH)
    known, scores = (score_by_network(part.images, model) for part in (fold.validation, fold.test))
    return Found(known, scores, choose_threshold(known, fold.validation.masks))


def learn_network(training: Marked, validation: Marked, path: Path | None, **settings: Any) -> UNetModel:
    """Train the spot network, or take it from `path` where it is kept; a training that was cut there goes on."""
    with tempfile.TemporaryDirectory(prefix="niseg-detection-") as temporary:
        path = path or Path(temporary) / "model"
        if not path.exists():
            images = path.with_name(f"{path.name}.images")  # the same names whenever a training goes on
            images.mkdir(parents=True, exist_ok=True)
            files = {
                f"{part}{kind}": [_save(images / f"{part}{kind}.npy", values)]
                for part, marked in (("", training), ("validation_", validation))
                for kind, values in (("images", marked.images), ("masks", marked.masks.astype(np.uint8)))
            }
            resume = path.with_name(f"{path.name}.training").exists()
            train_unet(path, **files, **settings, quiet=True, resume=resume)
            shutil.rmtree(images)
        return load_unet(path)


def _save(path: Path, values: np.ndarray) -> str:
    np.save(path, values)
    return str(path)


def score_by_network(images: np.ndarray, model: UNetModel) -> np.ndarray:
    """Probabilities of (N, Y, X) images."""
    from niseg_gpu.unet.predict import predict_unet

    backend, _ = select("auto")
    options = {"result": "probability", "dtype": "float32"}
    return np.stack([backend.to_host(predict_unet(backend.from_host(image), model, **options)) for image in images])

"""Training models of nearest neighbours from files, and applying them from file to file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niseg_gpu.backend import backend_of, select
from niseg_gpu.errors import UserError
from niseg_gpu.knn import fit_detect_spots, halo_detect_spots, predict_knn
from niseg_gpu.knn_features import compute_features
from niseg_gpu.knn_model import KnnModel, check_model_target, fit_knn, save_knn
from niseg_gpu.pipeline.engine import Stage
from niseg_gpu.pipeline.files import check_file_target, write_file
from niseg_gpu.pipeline.parse import Pipeline
from niseg_gpu.pipeline.progress import show_progress
from niseg_gpu.pipeline.run import Session, open_session
from niseg_gpu.pipeline.steps import Op
from niseg_gpu.pipeline.transform import watched
from niseg_gpu.stack import StackInfo
from niseg_gpu.threads import use_threads

if TYPE_CHECKING:
    import xarray as xr


def train_file(
    out: Path,
    *,
    images: Sequence[str],
    masks: Sequence[str],
    dims: Sequence[str] | None = None,
    unsigned: bool = False,
    device: str = "auto",
    picture: Path | None = None,
    overwrite: bool = False,
    **parameters: Any,
) -> list[str]:
    """Train a model from files of images and masks, read whole, and save it.

    Parameters
    ----------
    out : Path
        Ends in ``.npz``.
    images, masks : sequence of str
        A mask for each image, in order.
    dims : sequence of str, optional
        Axes as they lie in the files.
    unsigned : bool
        Signed counts that wrapped are read as unsigned.
    device : {"auto", "cpu", "gpu"}
    picture : Path, optional
        ``.png`` file for the training images in the plane of two features, and what the model takes for a spot.
    overwrite : bool
    **parameters
        Of `fit_knn`.

    Returns
    -------
    list of str
        What was written and learnt, a line each.
    """
    from niseg_gpu.io.open import open_stack

    check_model_target(out, overwrite=overwrite)
    if picture:
        _check_picture(picture, parameters.get("features"), overwrite=overwrite)
    if len(images) != len(masks):
        raise UserError(
            f"knn train got {len(images)} images and {len(masks)} masks; allowed: a --mask for each --image"
        )
    backend, _ = select(device)
    stacks = [open_stack(path, dims=dims, unsigned=unsigned) for path in images]
    marked = [open_stack(path, dims=dims) for path in masks]
    names = list(zip(images, masks, strict=True))
    for image, mask, (image_path, mask_path) in zip(stacks, marked, names, strict=True):  # before any is read
        if image.shape != mask.shape:
            raise UserError(
                f"{mask_path} has shape {mask.shape}, its image {image_path} has {image.shape}; allowed: the same; "
                "crop both alike"
            )
    values, spots = [backend.from_host(s.values) for s in stacks], [m.values for m in marked]
    model = fit_knn(values, spots, names, **parameters)
    learnt = {**model.training, "files": [list(pair) for pair in names]}
    drawn = _picture_model(model, values, spots) if picture else b""
    save_knn(replace(model, training=learnt), out, overwrite=overwrite)
    if picture:
        write_file(picture, drawn)
    return [
        *(f"wrote {path}" for path in (out, picture) if path),
        f"learnt {learnt['spot_pixels']} spot and {learnt['background_drawn']} background pixels "
        f"of {learnt['pixels']} by {', '.join(model.features)}",
    ]


def _check_picture(path: Path, features: Sequence[str] | None, *, overwrite: bool) -> None:
    from niseg_gpu.figures_knn import check_bivariate

    check_file_target(path, ending=".png", overwrite=overwrite)
    if features is not None:
        check_bivariate(features)


def _picture_model(model: KnnModel, images: Sequence[Any], masks: Sequence[np.ndarray]) -> bytes:
    """All pixels of the training images, drawn or not."""
    from niseg_gpu.figures_knn import draw_bivariate

    features = [
        backend_of(image).to_host(compute_features(image, model.features)).reshape(-1, len(model.features))
        for image in images
    ]
    spots = np.concatenate([mask.ravel() != 0 for mask in masks])
    return draw_bivariate(np.concatenate(features), spots, model=model).light


def classify_file(
    pipeline: Pipeline,
    out: Path,
    *,
    model: str,
    scores: bool = False,
    approximate: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> list[str]:
    """Find spots of a stack with a trained model, block by block.

    Parameters
    ----------
    pipeline : Pipeline
        Of no steps: what to read, and where to compute.
    out : Path
        Its ending names the format.
    model : str
        File that `train_file` wrote.
    scores : bool
        Write the spots' share of the votes instead of classes.
    approximate : bool
        Look the answers up in a table over two features.
    overwrite, quiet : bool

    Returns
    -------
    list of str
        What was written and what was found, a line each.
    """

    from niseg_gpu.io.save import check_target, save

    check_target(out, overwrite=overwrite)
    loaded = fit_detect_spots(None, model=model, approximate=approximate)["model"]
    session = open_session(pipeline)
    found = classify_stack(session, loaded, scores=scores, exact=not approximate)
    provenance = {**pipeline.as_mapping(), "knn": {"model": model, "scores": scores, "approximate": approximate}}
    with (
        use_threads(session.workers),
        show_progress("values", total=found.size, quiet=quiet) as progress,
    ):
        save(watched(session, found, progress), out, overwrite=overwrite, provenance=provenance)
    return [f"wrote {out}", *session.clock.findings()]


def classify_stack(session: Session, model: KnnModel, *, scores: bool, exact: bool) -> xr.DataArray:
    """Classes or scores of the session's sample, lazy; its blocks lie on the session's device."""
    info = StackInfo.of(session.inputs.sample)
    dtype, quantity = (np.dtype(np.float32), "share of votes") if scores else (np.dtype(np.uint8), "mask")
    op = Op(partial(predict_knn, exact=exact, scores=scores), halo=halo_detect_spots)
    stage = Stage("knn", op, {"model": model}, info.with_(dtype=dtype, attrs={"quantity": quantity}))
    return session.engine.map_stages(session.inputs.sample, [stage]).image

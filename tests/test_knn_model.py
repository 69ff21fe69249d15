"""Training of nearest neighbours: what is drawn and scaled, what is refused, and the model's file."""

from __future__ import annotations

import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.knn import predict_knn
from niseg_gpu.knn_features import compute_features
from niseg_gpu.knn_model import fit_knn, load_knn, save_knn


def scene(seed: int = 0, *, shape: tuple[int, ...] = (40, 50), whole: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Noise with spots of several heights, and where they are; real numbers, or whole ones with their many ties."""
    rng = np.random.default_rng(seed)
    spots = rng.random(shape) < 0.04
    image = rng.normal(300, 15, shape) + spots * rng.exponential(120, shape)
    return (image.round().astype(np.uint16) if whole else image.astype(np.float32)), spots


@pytest.mark.parametrize("per_spot", [0.5, 1, 3, np.inf])
def test_all_spots_and_so_many_background_pixels_train(per_spot: float) -> None:
    images, masks = zip(scene(0), scene(1, shape=(20, 30)), strict=True)
    model = fit_knn(images, masks, background_per_spot=per_spot)
    spots = sum(int(m.sum()) for m in masks)
    background = sum(m.size for m in masks) - spots
    assert np.bincount(model.labels).tolist() == [
        min(background, round(per_spot * spots)) if per_spot < np.inf else background,
        spots,
    ]
    assert model.training["background_drawn"] == (model.labels == 0).sum() and model.training["images"] == 2
    again, other = (fit_knn(images, masks, background_per_spot=per_spot, seed=seed) for seed in (2018, 1))
    np.testing.assert_array_equal(again.points, model.points)
    assert np.isinf(per_spot) or not np.array_equal(other.points, model.points)
    everything = np.concatenate([compute_features(i, model.features).reshape(-1, 2) for i in images])
    assert {tuple(p) for p in model.points.tolist()} <= {tuple(p) for p in everything.tolist()}


def test_standardised_features_have_mean_0_and_variance_1() -> None:
    image, spots = scene()
    model = fit_knn(image, spots)
    scaled = (model.points - model.means) / model.scales
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-4)
    raw = fit_knn(image, spots, standardise=False)
    assert raw.means.tolist() == [0, 0] and raw.scales.tolist() == [1, 1]
    flat = fit_knn(np.full((6, 6), 5.0), np.eye(6), features=["value"])
    assert flat.scales.tolist() == [1]


def test_a_constant_image_of_both_classes_gives_the_first_label() -> None:
    mask = np.zeros((4, 4))
    mask[0, 0] = 1
    assert predict_knn(np.full((4, 4), 5.0), fit_knn(np.full((4, 4), 5.0), mask)).all()


IMAGE, SPOTS = scene()


@pytest.mark.parametrize(
    "images, masks, options, message",
    [
        (IMAGE, SPOTS[:-1], {}, r"mask 0 has shape \(39, 50\), its image \(40, 50\); allowed: the same"),
        (IMAGE, SPOTS + 2 * (IMAGE > 300), {}, "mask 0 holds 4 values .0, 1, 2, 3.; allowed: 0"),
        (IMAGE, SPOTS + 1, {}, "mask 0 holds 2 values .1, 2."),
        (IMAGE, SPOTS * 0, {}, "the masks hold no spots"),
        (IMAGE, SPOTS * 0 + 1, {}, "the masks hold no background"),
        (IMAGE, SPOTS, {"features": ["valu"]}, "no feature 'valu'; did you mean 'value'"),
        (IMAGE, SPOTS, {"n_neighbors": 10**6}, r"got n_neighbors 1000000, the training set has \d+ pixels; allowed: 1"),
        (IMAGE, SPOTS, {"n_neighbors": 0}, "got n_neighbors 0"),
        (IMAGE, SPOTS, {"background_per_spot": 0}, "background_per_spot 0"),
        (IMAGE, SPOTS, {"weights": "near"}, "weights 'near'; allowed: uniform, distance"),
        (np.where(SPOTS, np.nan, IMAGE), SPOTS, {}, "image 0 has NaN or Inf at or beside"),
        ([IMAGE, IMAGE], [SPOTS], {}, "got 2 images and 1 masks"),
        ([], [], {}, "got 0 images"),
        (IMAGE[0], SPOTS[0], {}, r"shape \(\d+,\) and type \w+; needed: real numbers \(..., y, x\)"),
        (IMAGE[1:], SPOTS, {}, r"allowed: the same, \(..., Y, X\)"),
        (IMAGE, np.where(SPOTS, np.nan, 0), {}, r"mask 0 holds 2 values \(0, nan\); allowed: 0 for background and one"),
        (IMAGE, None, {}, "masks of type NoneType; needed: an array, or a list of such"),
        ([IMAGE.tolist()], [SPOTS], {}, "got a list; needed: a NumPy or CuPy array"),
        (IMAGE.astype(complex), SPOTS, {}, "type complex128; needed: real numbers"),
        (IMAGE, SPOTS, {"n_neighbors": 2.5}, "knn got n_neighbors 2.5; allowed: a whole number from 1"),
        (IMAGE, SPOTS, {"features": None}, "knn got the features None; allowed: a list of value, residual"),
        (IMAGE, SPOTS, {"features": "value"}, "knn got the features 'value'; allowed: a list of value, residual"),
        (IMAGE, SPOTS, {"features": [["value"]]}, r"knn has no feature \['value'\]"),
        (IMAGE, SPOTS, {"weights": np.array(["a", "b"])}, "got weights a ndarray; allowed: uniform, distance"),
        (IMAGE, SPOTS, {"standardise": "no"}, "got standardise 'no'; allowed: True, False"),
        (IMAGE, SPOTS, {"seed": -1}, "knn got seed -1; allowed: a whole number from 0"),
    ],
)  # fmt: skip
def test_what_cannot_train_is_told_in_one_line(images, masks, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        fit_knn(images, masks, **options)
    assert "\n" not in str(error.value)


def test_masks_may_mark_spots_by_different_values() -> None:
    model = fit_knn([IMAGE, IMAGE], [SPOTS, SPOTS.astype(np.uint8) * 255])
    assert model.labels.sum() == 2 * SPOTS.sum()


def test_a_model_survives_its_file(tmp_path) -> None:
    model = fit_knn(*scene(), features=["residual", "gradient"], n_neighbors=3, weights="distance")
    path = save_knn(model, tmp_path / "m.npz")
    loaded = load_knn(path)
    for name in ("points", "labels", "means", "scales", "low", "high"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
        assert getattr(loaded, name).dtype == getattr(model, name).dtype
    for name in ("features", "n_neighbors", "weights", "training"):
        assert getattr(loaded, name) == getattr(model, name)
    image, _ = scene(8)
    np.testing.assert_array_equal(predict_knn(image, loaded), predict_knn(image, model))
    assert [p.name for p in tmp_path.iterdir()] == ["m.npz"]
    with pytest.raises(UserError, match="m.npz exists; give another name"):
        save_knn(model, path)
    with pytest.raises(UserError, match="save_knn got a dict; needed: a model"):
        save_knn({}, path, overwrite=True)
    with pytest.raises(UserError, match="predict_knn got a PosixPath; needed: a model"):
        predict_knn(image, path)
    with pytest.raises(UserError, match=r"predict_knn got an array of shape \(\d+,\)"):
        predict_knn(image[0], model)
    with pytest.raises(UserError, match="workers 0; allowed: a whole number from 1"):
        predict_knn(image, model, workers=0)
    half = image.astype(np.float16)
    np.testing.assert_array_equal(predict_knn(half, model), predict_knn(half.astype(np.float32), model))
    save_knn(model, path, overwrite=True)


@pytest.mark.parametrize(
    "name, message", [("m.txt", "unknown ending '.txt'; allowed: .npz"), ("no/m.npz", "no is not a")]
)
def test_a_model_goes_where_models_go(tmp_path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        save_knn(fit_knn(*scene()), tmp_path / name)


def test_files_that_are_no_model_are_told(tmp_path) -> None:
    path = tmp_path / "m.npz"
    with pytest.raises(UserError, match="m.npz does not exist"):
        load_knn(path)
    path.write_text("model")
    with pytest.raises(UserError, match="is no knn model, or a broken one"):
        load_knn(path)
    np.savez(path, points=np.zeros((3, 2)))
    with pytest.raises(UserError, match="is no knn model; train one"):
        load_knn(path)
    np.savez(path, format=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="no knn model"):
        load_knn(path)
    np.save(tmp_path / "m.npy", np.zeros(3))
    with pytest.raises(UserError, match="no knn model"):
        load_knn(tmp_path / "m.npy")
    save_knn(fit_knn(*scene()), path, overwrite=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="no knn model"):
        load_knn(path)
    path.write_bytes(whole)
    for change, message in (
        ({"version": np.array(2)}, "of version 2, this niseg-gpu reads up to 1"),
        ({"labels": np.zeros(3, np.uint8)}, "arrays don't fit together"),
        ({"about": np.array("{}")}, "no knn model"),
    ):
        with np.load(path) as file:
            arrays = {**file, **change}
        np.savez(tmp_path / "changed.npz", **arrays)
        with pytest.raises(UserError, match=message):
            load_knn(tmp_path / "changed.npz")

"""Augmentation: off is identity, image and mask move alike, ranges are kept, keys decide."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.figures_augment import draw_augmented
from niseg_gpu.pipeline.parameters import check_model, model_of
from niseg_gpu.unet import augment as module
from niseg_gpu.unet.augment import augment, augment_sample, draw_counts, list_turns
from niseg_gpu.unet.augmentation import NO_AUGMENTATION, Augmentation

KEY = jax.random.key(3)
SHAPES = {"2d": (40, 40), "3d": (20, 20, 20)}
MOVING = replace(
    NO_AUGMENTATION, flip=True, quarter_turns=True, rotation_deg=180.0, scale=(0.8, 1.25), elastic_pixels=1.5,
    elastic_length_pixels=12.0,
)  # fmt: skip


@pytest.fixture(params=SHAPES)
def shape(request) -> tuple[int, ...]:
    return SHAPES[request.param]


def make_balls(shape: tuple[int, ...], n_samples: int, *, radius: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Return dark images with a bright soft ball each, and the ball's mask."""
    rng = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    images = np.empty((n_samples, *shape), np.float32)
    for image in images:
        centre = rng.uniform(0.3, 0.7, len(shape)) * shape
        distance = np.sqrt(((grid - centre.reshape(-1, *[1] * len(shape))) ** 2).sum(axis=0))
        image[:] = np.clip(radius - distance, -2, 2)
    return images, images > 0


def test_off_is_identity(shape):
    rng = np.random.default_rng(0)
    image, mask = rng.normal(size=(2, *shape)).astype(np.float32), rng.integers(0, 5, (2, *shape), np.uint8)
    same, labels = augment(image, mask, key=KEY, settings=NO_AUGMENTATION)
    np.testing.assert_array_equal(same, image)
    np.testing.assert_array_equal(labels, mask)
    assert labels.dtype == np.uint8 and same.dtype == np.float32
    assert not NO_AUGMENTATION.moves and Augmentation().moves


def test_flips_and_turns_are_exact(shape):
    """The values stay what they are, each at another place, and the mask with them."""
    image = np.random.default_rng(0).normal(size=(12, *shape)).astype(np.float32)
    settings = replace(NO_AUGMENTATION, flip=True, quarter_turns=True)
    moved, mask = (np.asarray(a) for a in augment(image, image > 0, key=KEY, settings=settings))
    np.testing.assert_array_equal(np.sort(moved.reshape(12, -1)), np.sort(image.reshape(12, -1)))
    np.testing.assert_array_equal(mask, moved > 0)
    assert len({sample.tobytes() for sample in np.asarray(moved) - image}) > 6


@pytest.mark.parametrize(
    ("size", "flip", "turns", "number"),
    [
        ((4, 4), True, True, 8), ((4, 4), False, True, 4), ((4, 4), True, False, 4), ((4, 4), False, False, 1),
        ((4, 6), False, True, 2), ((4, 6), True, True, 4), ((4, 4, 4), True, True, 48), ((4, 4, 4), False, True, 24),
        ((4, 6, 6), False, True, 8),
    ],
)  # fmt: skip
def test_the_turns_are_those_of_the_grid(size, flip, turns, number):
    matrices = list_turns(size, flip=flip, quarter_turns=turns)
    assert len(np.unique(matrices, axis=0)) == len(matrices) == number
    np.testing.assert_array_equal(matrices[0], np.eye(len(size)))
    assert flip or (np.linalg.det(matrices) > 0).all()


def test_image_and_mask_move_together(shape):
    image, mask = make_balls(shape, 8)
    moved, marked = (np.asarray(a) for a in augment(image, mask, key=KEY, settings=MOVING))
    assert marked.dtype == bool and (marked.reshape(8, -1).any(axis=1)).all()
    assert moved[marked].min() > -1.2 and moved[~marked].max() < 1.2
    assert np.mean((moved > 0) == marked) > 0.98
    assert np.mean(marked == mask) < 0.999


def test_scale_and_rotation_do_what_they_say():
    image, mask = make_balls((64, 64), 16, radius=6.0)
    larger = replace(NO_AUGMENTATION, scale=(1.5, 1.5))
    _, marked = augment(image, mask, key=KEY, settings=larger)
    areas = np.asarray(marked).sum(axis=(1, 2)) / mask.sum(axis=(1, 2))
    assert np.median(areas) == pytest.approx(1.5**2, rel=0.1)
    turned = replace(NO_AUGMENTATION, rotation_deg=40.0)
    bar = np.zeros((200, 41, 41), np.float32)
    bar[:, 20, 6:35] = 1.0
    moved, _ = augment(bar, bar > 0, key=KEY, settings=turned)
    y, x = np.indices((41, 41)) - 20
    moved = np.asarray(moved)
    angle = 0.5 * np.degrees(np.arctan2(2 * (moved * x * y).sum(axis=(1, 2)), (moved * (x**2 - y**2)).sum(axis=(1, 2))))
    assert 37 < abs(angle).max() < 40.5 and abs(angle.mean()) < 5 and angle.std() == pytest.approx(23.1, rel=0.15)


def test_a_rotation_keeps_distances():
    for dim in (2, 3):
        uniform = jax.random.uniform(KEY, (module.N_UNIFORM,))
        matrix = np.asarray(module._rotate(uniform, dim, math.pi))
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=1e-6)
        assert np.linalg.det(matrix) == pytest.approx(1.0, abs=1e-5)


def test_displacements_have_the_size_asked_for():
    size = (30, 40)
    nodes = jax.random.normal(KEY, (600, *module._count_nodes(size, 12.0)))
    field = np.asarray(module._smooth(nodes, size, 12.0))
    assert field.shape == (600, *size)
    np.testing.assert_allclose(field.std(axis=0), 1.0, atol=0.15)
    assert field.std() == pytest.approx(1.0, abs=0.02)
    assert np.diff(field, axis=2).std() < 0.2  # smooth


def test_crops_lie_anywhere_inside():
    image = np.arange(30 * 40, dtype=np.float32).reshape(30, 40)
    settings = replace(NO_AUGMENTATION, crop=(8, 16))
    many, mask = augment(np.repeat(image[None], 300, 0), np.repeat(image[None], 300, 0).astype(int), key=KEY,
                         settings=settings)  # fmt: skip
    many = np.asarray(many)
    assert many.shape == mask.shape == (300, 8, 16)
    y, x = np.divmod(many[:, 0, 0].astype(int), 40)
    np.testing.assert_array_equal(
        many, image[y[:, None, None] + np.arange(8)[:, None], x[:, None, None] + np.arange(16)]
    )
    np.testing.assert_array_equal(mask, many.astype(int))
    assert set(y) == set(range(23)) and set(x) == set(range(25))


def test_values_change_as_asked():
    rng = np.random.default_rng(0)
    image = np.repeat(rng.gamma(4.0, size=(1, 32, 32)).astype(np.float32), 200, axis=0)
    mask = image > 4

    def change(**options) -> np.ndarray:
        seen, same = augment(image, mask, key=KEY, settings=replace(NO_AUGMENTATION, **options))
        np.testing.assert_array_equal(same, mask)
        return np.asarray(seen)

    gain = change(gain=(0.5, 2.0)) / image
    assert np.ptp(gain, axis=(1, 2)).max() < 1e-5 and gain.min() >= 0.5 and gain.max() <= 2.0
    assert gain[:, 0, 0].mean() == pytest.approx(1.25, abs=0.1)
    shift = (change(offset=0.5) - image) / image.std()
    assert np.ptp(shift, axis=(1, 2)).max() < 1e-4 and 0.45 < abs(shift).max() < 0.501
    curved = change(gamma=(0.5, 2.0))
    np.testing.assert_allclose(curved.min(axis=(1, 2)), image[0].min(), rtol=1e-5)
    np.testing.assert_allclose(curved.max(axis=(1, 2)), image[0].max(), rtol=1e-5)
    order = np.argsort(image[0].ravel())
    assert (np.diff(curved.reshape(200, -1)[:, order], axis=1) >= -1e-5).all() and np.ptp(curved[:, 5, 5]) > 1
    bent = np.log(change(bias_field=0.3) / image)
    assert 0.2 < abs(bent).max() <= 0.3 + 1e-5 and abs(np.diff(bent, axis=1)).max() < 0.1
    noise = (change(noise=(0.2, 0.2)) - image) / image[0].std()
    assert noise.std() == pytest.approx(0.2, rel=0.02) and abs(noise.mean()) < 0.002
    blurred = change(blur_pixels=(1.0, 1.0))
    np.testing.assert_allclose(blurred, np.broadcast_to(blurred[0], blurred.shape), atol=1e-5)
    assert blurred[0].mean() == pytest.approx(image[0].mean(), rel=0.03) and blurred[0].std() < 0.5 * image[0].std()


def test_blurring_spreads_a_point_as_a_gaussian():
    point = np.zeros((1, 31, 31), np.float32)
    point[0, 15, 15] = 1.0
    seen, _ = augment(point, point > 0, key=KEY, settings=replace(NO_AUGMENTATION, blur_pixels=(2.0, 2.0)))
    profile = np.asarray(seen)[0].sum(axis=0)
    assert profile.sum() == pytest.approx(1.0, abs=1e-3)
    assert (profile * (np.arange(31) - 15) ** 2).sum() == pytest.approx(4.0, rel=0.02)


def test_counts_are_poisson():
    normal = jax.random.normal(KEY, (400_000,))
    for mean in (1.0, 2.0, 5.0, 30.0, 500.0):
        counts = np.asarray(draw_counts(np.full(400_000, mean, np.float32), normal))
        assert (counts == np.rint(counts)).all() and counts.min() >= 0
        assert counts.mean() == pytest.approx(mean, rel=0.03) and counts.var() == pytest.approx(mean, rel=0.04)
    np.testing.assert_array_equal(draw_counts(np.zeros(10, np.float32), normal[:10]), 0)
    ramp = np.repeat(np.linspace(0, 2, 64, dtype=np.float32)[None, None], 400, axis=1)
    seen, _ = augment(ramp, ramp > 1, key=KEY, settings=replace(NO_AUGMENTATION, poisson_counts=(100.0, 100.0)))
    variance, mean = np.asarray(seen)[0].var(axis=0), ramp[0, 0]
    np.testing.assert_allclose(variance[8:], mean[8:] * 2 / 100, rtol=0.35)


def test_a_batch_is_its_samples_one_by_one(shape):
    settings = Augmentation(crop=tuple(n - 4 for n in shape), poisson_counts=(50.0, 500.0))
    image, mask = make_balls(shape, 3)
    images, masks = augment(image, mask, key=KEY, settings=settings)
    alone = jax.jit(partial(augment_sample, settings=settings))
    for i in range(3):
        one, own = alone(image[i], mask[i], key=jax.random.fold_in(KEY, i))
        # Rounding differs, and counts are whole numbers: a few may be one more or less.
        assert np.isclose(images[i], one, atol=1e-3).mean() > 0.99 and np.mean(masks[i] == own) > 0.999
    assert images.shape == masks.shape == (3, *settings.crop)


def test_the_key_decides_and_nothing_else():
    image, mask = make_balls((40, 40), 4)
    first, again = (augment(image, mask, key=KEY, settings=Augmentation())[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = augment(image, mask, key=jax.random.key(4), settings=Augmentation())[0]
    assert np.mean(np.asarray(first) == other) < 0.5
    fewer = augment(image[:2], mask[:2], key=KEY, settings=Augmentation())[0]
    np.testing.assert_allclose(fewer, first[:2], atol=1e-5)
    assert (np.asarray(first[0]) != first[1]).any()


def test_channels_move_alike():
    image, mask = make_balls((40, 40), 2)
    images, _ = augment(np.stack([image, 2 * image], axis=-1), mask, key=KEY, settings=MOVING)
    np.testing.assert_allclose(2 * images[..., 0], images[..., 1], atol=1e-5)
    alone, _ = augment(image, mask, key=KEY, settings=MOVING)
    np.testing.assert_allclose(alone, images[..., 0], atol=1e-5)


def test_it_is_compiled_once_for_a_shape():
    image, mask = make_balls((24, 24), 2)
    settings = replace(NO_AUGMENTATION, gain=(0.5, 0.75))
    before = module._augment._cache_size()
    for i in range(3):
        augment(image, mask, key=jax.random.key(i), settings=settings)
        augment(image, mask, key=jax.random.key(i), settings=replace(settings))
    assert module._augment._cache_size() == before + 1


def test_parameters_come_from_yaml():
    model = model_of(Augmentation, name="augmentation")
    checked = check_model(model, {"rotation_deg": 5, "crop": [64, 64], "scale": [0.9, 1.1]}, where="augment")
    settings = Augmentation(**checked.model_dump())
    assert settings == Augmentation(rotation_deg=5.0, crop=(64, 64), scale=(0.9, 1.1)) and hash(settings)
    with pytest.raises(UserError, match="no parameter 'rotation'"):
        check_model(model, {"rotation": 5}, where="augment")
    assert all(field.description for field in model.model_fields.values())
    assert hash(Augmentation(crop=[64, 64])) == hash(Augmentation(crop=(64, 64)))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"rotation_deg": 200}, "rotation_deg=200 is out of range; give 0 to 180"),
        ({"scale": (1.2, 0.8)}, "is no range; give the low and the high end"),
        ({"noise": (0.1,)}, "is no range"),
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\) is out of range; give 0.1 to 10"),
        ({"gain": (math.nan, 1.0)}, "out of range"),
        ({"crop": (64,)}, "is no crop of 2 or 3 sides"),
        ({"crop": 64}, "is no crop of 2 or 3 sides; give whole numbers"),
        ({"crop": (64.5, 64)}, "is no crop of 2 or 3 sides; give whole numbers"),
        ({"scale": None}, "scale=None is out of range"),
    ],
)
def test_values_out_of_range_are_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        Augmentation(**options)


def test_shapes_that_do_not_fit_are_refused():
    image, mask = make_balls((24, 24), 2)
    with pytest.raises(UserError, match=r"augment got images \(2, 24, 24\) and masks \(24, 24\)"):
        augment(image, mask[0], key=KEY, settings=NO_AUGMENTATION)
    for wrong, complaint in (
        ({"image": None}, "image of type object; needed: an array of real numbers"),
        ({"image": image.astype(complex)}, "image of type complex128"),
        ({"image": image[:, :0], "mask": mask[:, :0]}, "needed: sides of 1 pixel or more"),
        ({"key": 3}, "got the key 3; needed: one of JAX's"),
        ({"settings": {"crop": (8, 8)}}, "settings of type dict; needed: an Augmentation"),
    ):
        with pytest.raises(UserError, match=complaint):
            augment(**{"image": image, "mask": mask, "key": KEY, "settings": NO_AUGMENTATION, **wrong})
    assert len(augment(image, mask, key=jax.random.PRNGKey(0), settings=NO_AUGMENTATION)[0]) == 2  # of the old kind
    with pytest.raises(UserError, match=r"crop=\(32, 16\) does not fit in samples of \(24, 24\)"):
        augment(image, mask, key=KEY, settings=Augmentation(crop=(32, 16)))


def test_parameters_are_light():
    code = "import sys, niseg_gpu.unet.augmentation; assert 'jax' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_picture_is_drawn(shape):
    image, mask = make_balls(shape, 1)
    picture = draw_augmented(image[0], mask[0], settings=MOVING, n_samples=6)
    assert picture.light.startswith(b"\x89PNG") and picture.width > picture.height

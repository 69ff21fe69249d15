"""Prediction in tiles: the same as of the whole image, on whatever size, and within the memory there is."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from niseg_gpu.backend import CPU
from niseg_gpu.errors import UserError
from niseg_gpu.findings import collect
from niseg_gpu.unet import predict
from niseg_gpu.unet.config import UNetConfig, spot_config
from niseg_gpu.unet.folder import UNetModel
from niseg_gpu.unet.model import apply_network, init_weights
from niseg_gpu.unet.normalise import Normalisation, fit_normalisation
from niseg_gpu.unet.predict import plan_memory, predict_unet


def make_model(config: UNetConfig, normalisation: Normalisation | None = None, **more: object) -> UNetModel:
    """A network whose answers vary: weights and biases drawn at random."""
    params, state = init_weights(config, seed=3)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), params)
    return UNetModel(config, params, state, normalisation or Normalisation(means=(100.0,), scales=(20.0,)), **more)


SPOTS = make_model(spot_config(base_depth=3))
VOLUME = make_model(UNetConfig(spatial_dims=3, base_depth=2, levels=2, out_classes=3, block="residual", norm="batch"))
# of fewer features a norm over them makes rounding large
DEEP = make_model(UNetConfig(base_depth=6, levels=3, block="residual", attention=True, norm="layer"))


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(100, 20, shape).astype(np.float32)


def whole(image: np.ndarray, model: UNetModel) -> np.ndarray:
    """The network on the whole image at once, padded to the grid: probability of not being background."""
    dims, grid = model.config.spatial_dims, model.config.grid
    x = (image.reshape(-1, *image.shape[-dims:], 1) - model.normalisation.means[0]) / model.normalisation.scales[0]
    x = np.pad(x, [(0, 0)] + [(0, -n % grid) for n in image.shape[-dims:]] + [(0, 0)], mode="edge")
    logits = np.asarray(jax.jit(lambda x: apply_network(model.config, model.params, model.state, x)[0])(x), float)
    if logits.shape[-1] == 1:
        p = 1 / (1 + np.exp(-logits[..., 0]))
    else:
        p = 1 - np.exp(logits[..., 0]) / np.exp(logits).sum(-1)
    return p[(slice(None), *(slice(n) for n in image.shape[-dims:]))].reshape(image.shape)


@pytest.mark.parametrize(
    "model, shape, pixels",
    [
        (SPOTS, (173, 131), 76 * 80),
        (SPOTS, (64, 200), 100**2),
        (SPOTS, (3, 81, 85), 64**2),
        (SPOTS, (5, 40, 40), 10**9),
        (SPOTS, (2, 3), 10**9),
        (DEEP, (141, 63), 80**2),
        (VOLUME, (37, 50, 33), 30**3),
        (VOLUME, (9, 64, 8), 10**9),
    ],
)
def test_tiled_equals_whole(model: UNetModel, shape: tuple[int, ...], pixels: int) -> None:
    image = draw(*shape)
    expected = whole(image, model)
    assert np.ptp(expected) > 0.05
    found = predict_unet(image, model, result="probability", dtype="float32", tile_pixels=pixels)
    assert found.shape == shape and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_tile_too_small_for_its_halo_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """With less of a halo tiles differ from the whole: the test above can fail."""
    image = draw(200, 64)
    monkeypatch.setattr(UNetConfig, "halo", 8)
    found = predict_unet(image, SPOTS, result="probability", dtype="float32", tile_pixels=48 * 64)
    assert abs(found - whole(image, SPOTS)).max() > 1e-4


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float64", "bool"])
def test_raw_counts_need_no_conversion(dtype: str) -> None:
    image = draw(40, 44).astype(dtype)
    found = predict_unet(image, SPOTS, result="probability", dtype="float32")
    np.testing.assert_allclose(found, whole(image.astype(np.float32), SPOTS), atol=1e-5)


def test_labels_follow_the_threshold() -> None:
    image = draw(60, 70)
    p = predict_unet(image, SPOTS, result="probability", dtype="float32")
    level = float(np.median(p))
    labels = predict_unet(image, SPOTS, threshold=level)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, p >= np.float32(level))
    kept = make_model(spot_config(base_depth=3), threshold=level)
    np.testing.assert_array_equal(predict_unet(image, kept), labels)
    half = predict_unet(image, SPOTS, result="probability")
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, p, atol=1e-3)


def test_the_most_probable_class_wins() -> None:
    image = draw(12, 16, 10)
    x = ((image - 100) / 20)[None, ..., None]
    logits = np.asarray(jax.jit(lambda x: apply_network(VOLUME.config, VOLUME.params, VOLUME.state, x)[0])(x))[0]
    labels = predict_unet(image, VOLUME)
    assert len(np.unique(labels)) == 3
    np.testing.assert_array_equal(labels, logits.argmax(-1))


def test_flips_average_over_mirror_images() -> None:
    image = draw(52, 60)
    expected = np.mean([np.flip(whole(np.flip(image, axes), SPOTS), axes) for axes in ((), (0,), (1,), (0, 1))], axis=0)
    for pixels in (10**9, 56 * 60):
        found = predict_unet(image, SPOTS, result="probability", dtype="float32", flips=True, tile_pixels=pixels)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert abs(found - whole(image, SPOTS)).max() > 1e-3


def test_channels_besides_the_value() -> None:
    image = draw(61, 70)
    normalisation = fit_normalisation([image], channels=("residual", "value"), robust=True, compress=True)
    config = UNetConfig(in_channels=2, base_depth=2, levels=2)
    model = make_model(config, normalisation)
    assert model.halo == 10 and config.margin == 8
    one, many = (predict_unet(image, model, result="probability", dtype="float32", tile_pixels=n) for n in (10**9, 900))
    np.testing.assert_allclose(one, many, atol=1e-5)
    median = CPU.median(image, size=(3, 3))
    channels = np.stack([image - median, image], -1)
    x = np.arcsinh((channels - np.float32(normalisation.means)) / np.float32(normalisation.scales))
    x = np.pad(x, [(0, 1), (0, 0), (0, 0)], mode="edge")[None]
    logits = np.asarray(jax.jit(lambda x: apply_network(config, model.params, model.state, x)[0])(x))[0, :61, :, 0]
    np.testing.assert_allclose(one, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_what_has_no_value_is_background() -> None:
    image = draw(48, 48)
    image[10, 12], image[30, 31] = np.nan, np.inf
    filled = np.where(np.isfinite(image), image, np.float32(SPOTS.normalisation.fill))
    with collect() as tally:
        p = predict_unet(image, SPOTS, result="probability")
        labels = predict_unet(image, SPOTS, threshold=0.0)
    assert np.argwhere(np.isnan(p)).tolist() == np.argwhere(labels == 0).tolist() == [[10, 12], [30, 31]]
    clean = np.isfinite(image)
    np.testing.assert_array_equal(p[clean], predict_unet(filled, SPOTS, result="probability")[clean])
    assert tally["values that are NaN or Inf, NaN in the result"] == 2
    assert tally["values that are NaN or Inf, taken for background"] == 2


def test_small_images_are_filled_up_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    predict._said.clear()
    with caplog.at_level(logging.WARNING):
        assert predict_unet(draw(3, 50), SPOTS).shape == (3, 50)
        predict_unet(draw(3, 50), SPOTS)
    assert len(caplog.records) == 1 and "4 pixels as one" in caplog.text and "3 x 50" in caplog.text


def test_less_memory_gives_smaller_tiles_and_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    image = draw(160, 160)
    expected = predict_unet(image, SPOTS, result="probability", dtype="float32")
    ample = plan_memory(image, SPOTS)
    monkeypatch.setattr(type(CPU), "free_bytes", lambda self: ample.total)
    scarce = plan_memory(image, SPOTS)
    assert scarce.total <= 0.8 * ample.total and scarce.network < ample.network
    found = predict_unet(image, SPOTS, result="probability", dtype="float32")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    monkeypatch.setattr(type(CPU), "free_bytes", lambda self: 10_000)
    with pytest.raises(UserError, match="for a tile of 52 x 52, the smallest, and 0.00 GB are free; cut the image"):
        predict_unet(image, SPOTS)


MEASURE = """
import sys
import numpy as np
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.folder import UNetModel
from niseg_gpu.unet.model import init_weights
from niseg_gpu.unet.predict import plan_memory, predict_unet

dims, depth, side, pixels = map(int, sys.argv[1:])

def read(name):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return 1024 * int(lines[name].split()[0])

config = UNetConfig(spatial_dims=dims, base_depth=depth, levels=3)
model = UNetModel(config, *init_weights(config))
image = np.random.default_rng(0).normal(0, 1, (side,) * dims).astype(np.float32)
planned = plan_memory(image, model, result="probability", tile_pixels=pixels).total
predict_unet(image[(slice(32),) * dims], model, result="probability")
open("/proc/self/clear_refs", "w").write("5")  # forgets the peak
before = read("VmRSS")
predict_unet(image, model, result="probability", tile_pixels=pixels)
print(planned, read("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak memory of a part")
@pytest.mark.parametrize("dims, depth, side, pixels", [(2, 24, 1400, 10**6), (3, 16, 112, 2 * 10**6)])
def test_no_more_memory_is_taken_than_was_planned(dims: int, depth: int, side: int, pixels: int) -> None:
    """By the operating system's figure; a compiler's and a library's own tens of megabytes come on top."""
    sizes = [str(number) for number in (dims, depth, side, pixels)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *sizes], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr[-2000:]
    planned, used = map(int, done.stdout.split())
    assert 0.6 * planned < used < planned + 40e6, (planned, used)


def test_bfloat16_is_near() -> None:
    image = draw(40, 40)
    near = predict_unet(image, SPOTS, result="probability", precision="bfloat16")
    assert 0 < abs(near - whole(image, SPOTS)).max() < 0.03


@pytest.mark.parametrize(
    "image, options, message",
    [
        (draw(20, 20), {"model": VOLUME}, "for volumes, and the image has 2 axes"),
        (draw(20, 20), {"result": "classes"}, "got result 'classes'; allowed: labels, probability"),
        (draw(20, 20), {"tile_pixels": "x"}, "got tile_pixels 'x'; allowed: a whole number from 1, or None"),
        (draw(20, 20), {"flips": "no"}, "got flips 'no'; allowed: True, False"),
        (draw(20, 20), {"precision": "half"}, "got precision 'half'"),
        (draw(20, 20), {"threshold": 2}, "got threshold 2; allowed: a number from 0 up to 1"),
        (draw(20, 20), {"threshold": np.nan}, "got threshold nan; allowed: a number from 0 up to 1"),
        (draw(20, 20), {"model": "spots/"}, "got a str; needed: a model that load_unet gives"),
        (draw(20, 20)[:0], {}, r"an array of shape \(0, 20\) .*, no axis empty"),
        (draw(20, 20).astype(complex), {}, "type complex128; needed: real numbers"),
        (None, {}, "predict_unet got a NoneType; needed: a NumPy or CuPy array"),
    ],
)
def test_what_can_not_be_predicted_is_refused(image: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict_unet(image, **{"model": SPOTS, **options})


def test_both_devices_agree(backend) -> None:
    image = draw(90, 77)
    options = {"result": "probability", "precision": "float32", "dtype": "float32"}
    found = predict_unet(backend.from_host(image), SPOTS, **options)
    np.testing.assert_allclose(backend.to_host(found), predict_unet(image, SPOTS, **options), atol=1e-3)

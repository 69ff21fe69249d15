"""U-Nets on each device: predicting images and volumes, and learning."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from niseg_gpu.backend import CPU
from niseg_gpu.findings import collect
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.folder import UNetModel
from niseg_gpu.unet.model import init_weights
from niseg_gpu.unet.normalise import Normalisation
from niseg_gpu.unet.predict import predict_unet


def make_model(**config: Any) -> UNetModel:
    config = UNetConfig(base_depth=2, levels=2, **config)
    params, state = init_weights(config, seed=3)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), params)
    return UNetModel(config, params, state, Normalisation(means=(400.0,), scales=(20.0,)))


IMAGES, VOLUMES = make_model(), make_model(spatial_dims=3, out_classes=3, block="residual", norm="batch")
CASES = {
    "one frame": (IMAGES, (37, 50), {}),
    "a stack": (IMAGES, (3, 36, 52), {}),
    "tiles": (IMAGES, (90, 77), {"tile_pixels": 48 * 48}),
    "mirror images": (IMAGES, (36, 52), {"flips": True}),
    "one pixel": (IMAGES, (1, 1), {}),
    "a volume": (VOLUMES, (9, 20, 17), {}),
}


@pytest.mark.parametrize("dtype", ["float32", "uint16", "int16"])
@pytest.mark.parametrize("name", CASES)
def test_a_network_predicts_alike(backend, name: str, dtype: str) -> None:
    model, shape, options = CASES[name]
    image = np.random.default_rng(1).normal(400, 20, shape).astype(dtype)
    options = {"result": "probability", "precision": "float32", "dtype": "float32", **options}
    found, expected = (predict_unet(twin.from_host(image), model, **options) for twin in (backend, CPU))
    assert found.shape == shape and (image.size == 1 or np.ptp(expected) > 0.02)
    np.testing.assert_allclose(backend.to_host(found), expected, atol=1e-3)


def test_what_has_no_value_is_background_on_either_device(backend) -> None:
    image = np.random.default_rng(2).normal(400, 20, (36, 52)).astype(np.float32)
    image[4, 5], image[30, 31] = np.nan, np.inf
    with collect() as tally:
        p = backend.to_host(predict_unet(backend.from_host(image), IMAGES, result="probability"))
        labels = backend.to_host(predict_unet(backend.from_host(image), IMAGES, threshold=0.0))
    assert np.argwhere(np.isnan(p)).tolist() == np.argwhere(labels == 0).tolist() == [[4, 5], [30, 31]]
    assert tally["values that are NaN or Inf, NaN in the result"] == 2
    assert tally["values that are NaN or Inf, taken for background"] == 2


@pytest.mark.parametrize("model", [IMAGES, VOLUMES], ids=["2-D", "3-D"])
def test_half_precision_is_near(backend, model: UNetModel) -> None:
    """As a GPU computes them by default."""
    image = np.random.default_rng(3).normal(400, 20, (9, 20, 17)).astype(np.float32)
    options = {"result": "probability", "dtype": "float32"}
    near = backend.to_host(predict_unet(backend.from_host(image), model, precision="bfloat16", **options))
    exact = predict_unet(image, model, precision="float32", **options)
    assert 0 < abs(near - exact).max() < 0.3 and abs(near - exact).mean() < 0.02


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_learns_alike(backend, dims: int) -> None:
    """Losses of three steps in float32, from the same weights, crops and keys."""
    from jax.sharding import Mesh

    from niseg_gpu.unet.layers import Run
    from niseg_gpu.unet.losses import make_loss
    from niseg_gpu.unet.samples import Samples
    from niseg_gpu.unet.train import Plan, Schedule, make_step, start_learner

    config, crop = UNetConfig(spatial_dims=dims, base_depth=2, levels=2), (36, 32, 20)[:dims]
    images = np.random.default_rng(0).normal(400, 20, (2, *crop, 1)).astype(np.float32)
    masks = (images[..., 0] > 430).astype(np.uint8)

    def learn(twin: Any) -> list[float]:
        run = Run(**{**twin.network, "strip_rows": 0, "dtype": "float32"})
        scale = Normalisation(means=(400.0,), scales=(20.0,))
        plan = Plan(config, scale, Schedule(batch=2), make_loss("bce"), crop, None, run)
        step = make_step(plan, Mesh(np.array([twin.jax_device]), ("batch",)), crop)
        learner, losses = jax.device_put(start_learner(plan), twin.jax_device), []
        samples = Samples(*jax.device_put((images, masks, np.array([crop] * 2, np.int32)), twin.jax_device))
        for i in range(3):
            learner, loss, _ = step(learner, samples, jax.random.key(i))
            losses.append(float(loss))
        return losses

    losses = learn(backend)
    assert losses[0] != losses[-1]
    np.testing.assert_allclose(losses, learn(CPU), rtol=1e-4)

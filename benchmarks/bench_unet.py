"""Predicting with the spot network: one radiograph, its values to probabilities."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from niseg_gpu.backend import count_cores
from niseg_gpu.unet.config import spot_config
from niseg_gpu.unet.folder import UNetModel
from niseg_gpu.unet.normalise import Normalisation

from . import ours

SIDES = {"small": 128, "full": 1024}
LEVEL, NOISE = 20000.0, 800.0
TORCH = importlib.util.find_spec("torch") is not None


class SpotPrediction:
    """The network of 265,105 parameters with equal weights, drawn at random; each side from raw counts."""

    params = (["small", "full"],)
    param_names = ["size"]
    reference = "time_torch" if TORCH else "time_plain_jax"
    equal = "probabilities to 1e-5"
    included = "memory to memory, normalisation, tiles and sigmoid included; compiled before, no start-up, no disk"
    warm_up = True
    devices = ("cpu", "gpu")
    on_host = ("torch", "plain_jax")

    def setup(self, size: str) -> None:
        from niseg_gpu.unet.model import init_weights

        rng = np.random.default_rng(0)
        shape = (SIDES[size], SIDES[size])
        self.image = rng.normal(LEVEL, NOISE, shape).astype(np.uint16)
        params, state = init_weights(spot_config())
        scale = Normalisation(means=(LEVEL,), scales=(NOISE,))
        self.model = UNetModel(spot_config(), params, state, scale)
        self.shape, self.dtype, self.nbytes = shape, self.image.dtype, self.image.nbytes
        self._plain = self._torch = None

    def time_ours(self, size: str) -> np.ndarray:
        from niseg_gpu.unet.predict import predict_unet

        backend = ours.choose_device()
        found = predict_unet(backend.from_host(self.image), self.model, result="probability", dtype="float32")
        return backend.to_host(found)

    def time_plain_jax(self, size: str) -> np.ndarray:
        """The image at once, by plain convolutions after upsampling and concatenation."""
        if self._plain is None:
            self._plain = self._compile()
        return np.asarray(self._plain(self.image.astype(np.float32)))

    def _compile(self) -> Any:
        import jax

        from niseg_gpu.unet.layers import Run
        from niseg_gpu.unet.model import apply_network

        def predict(image: Any) -> Any:
            x = ((image - LEVEL) / NOISE)[None, ..., None]
            logits, _ = apply_network(self.model.config, self.model.params, {}, x, run=Run(phases=False))
            return jax.nn.sigmoid(logits[0, ..., 0])

        return jax.jit(predict)

    if TORCH:

        def time_torch(self, size: str) -> np.ndarray:
            import torch

            if self._torch is None:
                torch.set_num_threads(count_cores())
                self._torch = build_torch(self.model)
            with torch.inference_mode():
                x = (torch.from_numpy(self.image.astype(np.float32)) - LEVEL) / NOISE
                x = x[None, None].contiguous(memory_format=torch.channels_last)
                return torch.sigmoid(self._torch(x))[0, 0].numpy()

    def least(self, side: str) -> dict[str, float]:
        """The image read and the probabilities written; what lies between could stay in the caches."""
        return {
            "memory": self.nbytes + 4 * self.image.size,
            "operations": count_operations(self.model.params, self.image.size),
        }

    def assert_equal(self, found: np.ndarray, expected: np.ndarray) -> None:
        assert np.ptp(expected) > 0.05, "the same everywhere, so this proves nothing"
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def count_operations(params: dict[str, Any], pixels: int) -> float:
    """Additions and multiplications of a U-Net's convolutions; each level down has a quarter of the pixels."""
    import jax

    deepest = len(params["downs"])
    blocks = [*enumerate(params["downs"]), *enumerate(params["ups"]), (deepest, params["bottom"]), (0, params["head"])]
    kernels = [(level, leaf) for level, block in blocks for leaf in jax.tree.leaves(block) if np.ndim(leaf) == 4]
    return sum(2 * kernel.size * pixels / 4**level for level, kernel in kernels)


def build_torch(model: UNetModel) -> Any:
    """Return the spot network in PyTorch, channels last, with a model's weights."""
    import torch
    from torch.nn import functional

    def load(layer: Any) -> tuple[Any, Any]:
        kernel = torch.from_numpy(np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1)))
        return kernel.contiguous(memory_format=torch.channels_last), torch.from_numpy(layer["bias"])

    p = model.params
    blocks = [p["downs"][0], p["downs"][1], p["bottom"], p["ups"][1], p["ups"][0]]
    pairs = [[load(block[name]["conv"]) for name in ("first", "second")] for block in blocks]
    head = load(p["head"])

    def block(x: Any, pair: Any) -> Any:
        for kernel, bias in pair:
            x = functional.relu(functional.conv2d(x, kernel, bias, padding="same"))
        return x

    def up(x: Any, skip: Any) -> Any:
        return torch.cat([functional.interpolate(x, scale_factor=2, mode="nearest"), skip], 1)

    def network(x: Any) -> Any:
        fine = block(x, pairs[0])
        middle = block(functional.max_pool2d(fine, 2), pairs[1])
        x = block(functional.max_pool2d(middle, 2), pairs[2])
        x = block(up(block(up(x, middle), pairs[3]), fine), pairs[4])
        return functional.conv2d(x, *head)

    return network

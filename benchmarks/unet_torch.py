"""The U-Net of plain blocks in PyTorch, with given weights: what others would write for the same network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from niseg_gpu.backend import count_cores
from niseg_gpu.unet.config import UNetConfig


class TorchUNet:
    """Predicts and learns on one device, channels last; on a GPU compiled, with bfloat16 activations.

    Parameters
    ----------
    config : UNetConfig
        Of plain blocks without norms.
    params : nested dict of array
        As `niseg_gpu.unet.model.init_weights` gives them.
    device : {"cpu", "gpu"}
    scale : (level, noise)
        What images are normalised by.
    """

    def __init__(self, config: UNetConfig, params: dict[str, Any], *, device: str, scale: tuple[float, float]) -> None:
        import torch

        torch.set_num_threads(count_cores())
        self.torch, self.config, self.scale = torch, config, scale
        self.device = torch.device("cuda" if device == "gpu" else "cpu")
        self.layout = torch.channels_last if config.spatial_dims == 2 else torch.channels_last_3d
        levels = range(config.levels - 1)
        blocks = [
            *(params["downs"][i] for i in levels),
            params["bottom"],
            *(params["ups"][i] for i in reversed(levels)),
        ]
        layers = [block[name]["conv"] for block in blocks for name in ("first", "second")] + [params["head"]]
        self.weights = [tensor for layer in layers for tensor in self._load(layer)]
        self.network = torch.compile(self._apply) if device == "gpu" else self._apply

    def _load(self, layer: Any) -> list[Any]:
        kernel = np.moveaxis(np.asarray(layer["kernel"]), (-1, -2), (0, 1))
        kernel = self.torch.tensor(np.ascontiguousarray(kernel), device=self.device)
        bias = self.torch.tensor(np.asarray(layer["bias"]), device=self.device)
        return [kernel.contiguous(memory_format=self.layout).requires_grad_(), bias.requires_grad_()]

    def _apply(self, x: Any, weights: list[Any]) -> Any:
        torch, dims = self.torch, self.config.spatial_dims
        functional = torch.nn.functional
        convolve = getattr(functional, f"conv{dims}d")
        pool = getattr(functional, f"max_pool{dims}d")
        left, skips = iter(weights), []

        def block(x: Any) -> Any:
            for _ in range(2):
                x = functional.relu(convolve(x, next(left), next(left), padding="same"))
            return x

        for _ in range(self.config.levels - 1):
            skips.append(block(x))
            x = pool(skips[-1], 2)
        x = block(x)
        for skip in reversed(skips):
            x = block(torch.cat([functional.interpolate(x, scale_factor=2, mode="nearest"), skip], 1))
        return convolve(x, next(left), next(left))

    def _logits(self, images: Any) -> Any:
        """Of (N, *space) images, normalised here."""
        x = ((images.float() - self.scale[0]) / self.scale[1])[:, None].contiguous(memory_format=self.layout)
        with self.torch.autocast(self.device.type, self.torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.network(x, self.weights)[:, 0].float()

    def bring(self, array: np.ndarray) -> Any:
        """Bring an array to the device."""
        return self.torch.as_tensor(array, device=self.device)

    def predict(self, image: np.ndarray) -> Any:
        """Probabilities of an image in the host's memory, on the device."""
        values = image.view(np.int16) if image.dtype == np.uint16 else image  # not all of PyTorch knows uint16
        with self.torch.inference_mode():
            x = self.bring(values).int() & 0xFFFF if values is not image else self.bring(values)
            return self.torch.sigmoid(self._logits(x[None]))[0]

    def start_training(self, rate: float) -> Callable[[Any, Any], Any]:
        """Return the step of Adam on a batch on the device; it gives the loss."""
        optimizer = self.torch.optim.Adam(self.weights, lr=rate, fused=self.device.type == "cuda")
        entropy = self.torch.nn.functional.binary_cross_entropy_with_logits

        def step(images: Any, masks: Any) -> Any:
            optimizer.zero_grad()
            loss = entropy(self._logits(images), masks.float())
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    def flat_weights(self) -> np.ndarray:
        """All kernels, then all biases, one after another, laid out as ours."""
        kernels = [np.moveaxis(w.detach().cpu().numpy(), (0, 1), (-1, -2)).ravel() for w in self.weights[::2]]
        return np.concatenate(kernels + [w.detach().cpu().numpy().ravel() for w in self.weights[1::2]])


def flatten_params(params: dict[str, Any]) -> np.ndarray:
    """Our parameters as `TorchUNet.flat_weights` gives PyTorch's."""
    downs, ups = params["downs"], params["ups"]
    blocks = [*(downs[i] for i in range(len(downs))), params["bottom"], *(ups[i] for i in reversed(range(len(ups))))]
    layers = [block[name]["conv"] for block in blocks for name in ("first", "second")] + [params["head"]]
    return np.concatenate([np.asarray(layer[part]).ravel() for part in ("kernel", "bias") for layer in layers])

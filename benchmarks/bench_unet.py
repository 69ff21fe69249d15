"""Predicting with U-Nets, and training them: voxels a second, and operations counted from the compiled program."""

from __future__ import annotations

import importlib.util
import math
import os
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from niseg_gpu.unet.config import UNetConfig, spot_config
from niseg_gpu.unet.folder import UNetModel
from niseg_gpu.unet.normalise import Normalisation

from . import ours
from .clock import DEVICES, Ran, measure_work
from .memory import with_memory
from .unet_torch import TorchUNet, flatten_params

LEVEL, NOISE = 20000.0, 800.0
SCALE = Normalisation(means=(LEVEL,), scales=(NOISE,))
TORCH = importlib.util.find_spec("torch") is not None
SIDES = ("ours", "plain_jax", *["torch"] * TORCH)
RATE, STEPS = 1e-3, 3  # of training; steps from the same start in each run
WHOLE = 2048**3  # voxels of the volume whose time is told from the rate
NETWORKS = {
    "spots": spot_config(),
    "2-D": UNetConfig(base_depth=32, levels=5),
    "3-D": UNetConfig(spatial_dims=3, base_depth=32, levels=5),
}
IMAGES = {  # sides by network and, for those that are too much for a CPU, device
    "spots": {"small": 128, "full": 1024},
    "2-D": {"small": 64, "full": {"cpu": 512, "gpu": 8192}},
    "3-D": {"small": 16, "full": {"cpu": 48, "gpu": 512}},
}
CROPS = {  # batch, and sides of a crop
    "spots": {"small": (2, 40), "full": (4, 128)},  # as unet train takes them by default
    "2-D": {"small": (1, 48), "full": {"cpu": (2, 128), "gpu": (16, 512)}},
    "3-D": {"small": (1, 16), "full": {"cpu": (1, 32), "gpu": (2, 128)}},
}


class _Network:
    """What predicting and training share: the network with weights drawn at random, and counts to show it."""

    warm_up = True
    compiles = True  # for its shapes: not the memory that is asked after
    devices = ("cpu", "gpu")
    reference = "time_torch" if TORCH else "time_plain_jax"
    peers = {"torch": "torch"}
    param_names = ["size", "network"]

    def prepare(self, sizes: dict[str, Any], network: str, size: str, *, training: bool) -> Any:
        """Set up the network and return its entry in a table of sizes."""
        from niseg_gpu.unet.model import init_weights

        self.config, self.training = NETWORKS[network], training
        self.device = os.environ.get("NISEG_BENCH_DEVICE", "cpu")
        self.backend = ours.choose_device(self.device)
        self.params, self.state = init_weights(self.config)
        entry = sizes[network][size]
        return entry[self.device] if isinstance(entry, dict) else entry

    def draw(self, *shape: int) -> np.ndarray:
        image = np.random.default_rng(0).normal(LEVEL, NOISE, shape).astype(np.uint16)
        self.shape, self.dtype, self.nbytes = shape, image.dtype, image.nbytes
        return image

    def tell(self, work: Any) -> Ran:
        """Time something on the device, and say how fast a large volume would be at the same rate."""
        ran = measure_work(work, device=DEVICES[self.device])
        rate = math.prod(self.shape) / ran.seconds
        more = {"voxels_extrapolated_to": WHOLE, "seconds_extrapolated": WHOLE / rate}
        return replace(ran, details={"voxels_per_second": rate, **more})

    def build_torch(self) -> TorchUNet:
        return TorchUNet(self.config, self.params, device=self.device, scale=(LEVEL, NOISE))

    def least(self, side: str) -> dict[str, float]:
        """The image read and the probabilities written; what lies between could stay in the caches."""
        moved = self.nbytes + (0 if self.training else 4 * math.prod(self.shape))
        each = count_operations(self.config, training=self.training)
        return {"memory": moved, "operations": each * math.prod(self.shape)}


@with_memory(*SIDES)
class _Prediction(_Network):
    equal = "probabilities to 1e-5 on a CPU, on a GPU (bfloat16) to 0.05, their mean distance to 0.005"
    included = (
        "from counts in the host's memory to probabilities on the device, normalisation, tiles and sigmoid included; "
        "compiled before, no start-up, no disk"
    )

    def setup(self, size: str, network: str) -> None:
        side = self.prepare(IMAGES, network, size, training=False)
        self.image = self.draw(*(side,) * self.config.spatial_dims)
        self.model = UNetModel(self.config, self.params, self.state, SCALE)
        self.torch = self.build_torch() if TORCH else None
        self.plain = None

    def time_ours(self, size: str, network: str) -> Ran:
        from niseg_gpu.unet.predict import predict_unet

        how = {"result": "probability", "dtype": "float32"}
        return self.tell(lambda: predict_unet(self.backend.from_host(self.image), self.model, **how))

    def time_plain_jax(self, size: str, network: str) -> Ran:
        """The image at once, by plain convolutions after upsampling and concatenation."""
        import jax

        if self.plain is None:
            self.plain = jax.jit(lambda params, image: jax.nn.sigmoid(self._apply(params, image)))
            self.params = jax.device_put(self.params, self.backend.jax_device)
        image = self.image
        return self.tell(lambda: self._give(self.plain(self.params, jax.device_put(image, self.backend.jax_device))))

    def _apply(self, params: Any, image: Any) -> Any:
        from niseg_gpu.unet.layers import Run
        from niseg_gpu.unet.model import apply_network

        x = ((image.astype(np.float32) - LEVEL) / NOISE)[None, ..., None]
        run = Run(dtype=self.backend.network["dtype"], phases=False)
        return apply_network(self.config, params, self.state, x, run=run)[0][0, ..., 0]

    if TORCH:

        def time_torch(self, size: str, network: str) -> Ran:
            return self.tell(lambda: self._give(self.torch.predict(self.image)))

    def _give(self, array: Any) -> Any:
        """A result as it lies on a GPU, or as NumPy sees it in the host's memory."""
        return array if self.device == "gpu" else np.asarray(array)

    def assert_equal(self, found: Any, expected: Any) -> None:
        found, expected = _to_host(found), _to_host(expected)
        assert np.ptp(expected) > 0.05, "the same everywhere, so this proves nothing"
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 if self.device == "cpu" else 0.05)
        assert abs(found - expected).mean() < 0.005


class SpotPrediction(_Prediction):
    """The network of 265,105 parameters with equal weights, drawn at random; each side from raw counts."""

    params = (["small", "full"], ["spots"])


class Prediction(_Prediction):
    """Five levels from 32 features, images and volumes; smaller ones on a CPU."""

    params = (["small", "full"], ["2-D", "3-D"])


@with_memory(*SIDES)
class _Training(_Network):
    equal = (
        "the first loss to 1e-5 relative, after 3 steps the loss to 2e-3 and all but 1 in 200 weights to 1e-4 (a "
        "tenth of a step) on a CPU; on a GPU (bfloat16) losses to 0.05"
    )
    included = (
        "a step: crops on the device, forward, backward, Adam; ours as unet train does it, the crops drawn and figures "
        "counted; PyTorch is given the crops; seconds of three steps in a row after another one, divided by three"
    )

    def setup(self, size: str, network: str) -> None:
        import jax

        from niseg_gpu.unet.samples import Samples, draw_samples

        batch, side = self.prepare(CROPS, network, size, training=True)
        self.batch, self.crop = batch, (side,) * self.config.spatial_dims
        image = self.draw(batch, *self.crop)
        masks = (np.random.default_rng(1).random(image.shape) < 0.02).astype(np.uint8)
        counts = image + np.float32(5 * NOISE) * masks
        sizes = np.array([self.crop] * batch, np.int32)
        self.samples = Samples(*jax.device_put((counts[..., None], masks, sizes), self.backend.jax_device))
        self.keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(STEPS)]
        draw = jax.jit(lambda key: draw_samples(self.samples, jax.random.split(key)[0], batch=batch, window=self.crop))
        self.batches = [tuple(np.array(part) for part in draw(key)) for key in self.keys]
        self.steps: dict[str, Any] = {}

    def time_ours(self, size: str, network: str) -> Ran:
        return self._learn("ours")

    def time_plain_jax(self, size: str, network: str) -> Ran:
        """The same step with XLA's own slopes, after upsampling and concatenation."""
        return self._learn("plain_jax")

    def _learn(self, side: str) -> Ran:
        import jax
        from jax.sharding import Mesh, NamedSharding, PartitionSpec

        from niseg_gpu.pages import keep_pages
        from niseg_gpu.unet.layers import Run
        from niseg_gpu.unet.losses import make_loss
        from niseg_gpu.unet.train import Plan, Schedule, choose_devices, make_step, share_samples, start_learner

        network = {**self.backend.network, "strip_rows": 0}
        run = Run(**network) if side == "ours" else Run(dtype=network["dtype"], phases=False)
        schedule = Schedule(batch=self.batch, learning_rate=RATE, clip_norm=0.0)
        plan = Plan(self.config, SCALE, schedule, make_loss("bce"), self.crop, None, run)
        devices = choose_devices(plan, self.backend) if side == "ours" else [self.backend.jax_device]
        mesh = Mesh(np.array(devices), ("batch",))
        if side not in self.steps:
            self.steps[side] = make_step(plan, mesh, self.crop)
        samples = share_samples(self.samples, mesh)

        def start() -> Any:
            return jax.block_until_ready(jax.device_put(start_learner(plan), NamedSharding(mesh, PartitionSpec())))

        def work(learner: Any, keys: list[Any]) -> tuple[Any, list[Any]]:
            losses = []
            for key in keys:
                learner, loss, _ = self.steps[side](learner, samples, key)
                losses.append(loss)
            return learner, jax.block_until_ready(losses)

        with keep_pages():  # as a training does
            work(start(), self.keys[:1])
            learner = start()
            ran = self._tell_step(lambda: work(learner, self.keys))
        learner, losses = ran.output
        return replace(ran, output=(np.array([float(loss) for loss in losses]), flatten_params(learner.params)))

    if TORCH:

        def time_torch(self, size: str, network: str) -> Ran:
            before, peer = self.build_torch(), self.build_torch()
            step = peer.start_training(RATE)
            batches = [(peer.bring(images[..., 0]), peer.bring(masks)) for images, masks in self.batches]
            before.start_training(RATE)(*batches[0])
            ran = self._tell_step(lambda: [step(*batch) for batch in batches])
            return replace(ran, output=(np.array([float(loss) for loss in ran.output]), peer.flat_weights()))

    def _tell_step(self, work: Any) -> Ran:
        ran = self.tell(work)
        rate = STEPS * math.prod(self.shape) / ran.seconds
        return replace(ran, seconds=ran.seconds / STEPS, details={"voxels_per_second": rate})

    def assert_equal(self, found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> None:
        assert expected[0][0] != expected[0][-1], "nothing was learnt, so this proves nothing"
        on_cpu = self.device == "cpu"
        np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-5 if on_cpu else 0.05)
        np.testing.assert_allclose(found[0], expected[0], rtol=2e-3 if on_cpu else 0.05)
        # where a slope is near 0, Adam, which divides by its size, makes its rounding as large as a step
        far = (abs(found[1] - expected[1]) > RATE / 10).mean() if on_cpu else 0
        assert found[1].shape == expected[1].shape and far <= 5e-3, f"{far:.2%} of the weights differ"


class SpotTraining(_Training):
    """The network of 265,105 parameters, cross-entropy of logits, Adam: equal weights and crops on both sides."""

    params = (["small", "full"], ["spots"])


class Training(_Training):
    """Five levels from 32 features, images and volumes; smaller crops on a CPU."""

    params = (["small", "full"], ["2-D", "3-D"])


def _to_host(array: Any) -> np.ndarray:
    """NumPy's of what lies on a GPU, CuPy's, PyTorch's or JAX's."""
    for name in ("get", "cpu"):
        array = getattr(array, name)() if hasattr(array, name) else array
    return np.asarray(array)


@cache
def count_operations(config: UNetConfig, *, training: bool = False) -> float:
    """Additions and multiplications a pixel, of the compiled program by the compiler's own account.

    Of the program with the fewest of them: coarse features are convolved without being upsampled. It is compiled for
    the CPU, where nothing of it is hidden in calls of a library, and an image of some 64,000 pixels.
    """
    import jax
    import jax.numpy as jnp

    from niseg_gpu.unet.model import apply_network, init_weights

    side = 256 if config.spatial_dims == 2 else 48
    shape = (1, *(side,) * config.spatial_dims, config.in_channels)
    weights = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, init_weights(config)))

    def predict(params: Any, state: Any, images: Any) -> Any:
        return apply_network(config, params, state, images)[0]

    run = jax.grad(lambda *given: predict(*given).sum()) if training else predict
    with jax.default_device(jax.devices("cpu")[0]):
        compiled = jax.jit(run).lower(*weights, jax.ShapeDtypeStruct(shape, jnp.float32)).compile()
    return compiled.cost_analysis()["flops"] / math.prod(shape)

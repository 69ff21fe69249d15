"""Every step through the engine on each device, in chunks, against the CPU on the whole; and the twins' members.

On the CPU this holds chunking and the library's kernels to it; with ``-m gpu`` the GPU.
"""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import jax
import numpy as np
import pytest

from niseg_gpu.backend import CPU, Cpu
from niseg_gpu.pipeline.engine import Engine
from niseg_gpu.pipeline.parse import parse_steps
from niseg_gpu.stack import StackInfo

SHAPE = (12, 21, 26)
STEPS: dict[str, dict[str, Any]] = {
    "overlap_correct": {"overlap_correct": {}},
    "select_tof": {"select_tof": {"first": 2, "last": 9}},
    "rebin_tof": {"rebin_tof": {"factor": 3}},
    "spots": {"remove_spots": {"size": 3, "threshold": 60}},
    "wide spots": {"remove_spots": {"size": 5, "threshold": 60, "kind": "bright"}},
    "spots by their sigma": {"remove_spots": {"threshold": 6, "threshold_unit": "sigma"}},
    "small spots": {"remove_spots": {"threshold": 60, "max_area": 3}},
    "spots of a volume": {"remove_spots": {"threshold": 60, "neighbourhood": "volume"}},
    "scale": {"scale_spectra": {}},
    "standardise": {"scale_spectra": {"method": "standard"}},
}


def draw(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    counts = rng.poisson(400, SHAPE)
    counts[rng.random(SHAPE) < 0.01] += 300
    return (counts + (rng.random(SHAPE) if dtype == "float32" else 0)).astype(dtype)


def apply(backend: Any, counts: np.ndarray, step: dict[str, Any], chunks: Any) -> list[np.ndarray]:
    """The image after a step, and its masks."""
    attrs = {"quantity": "counts", "shutter_windows": [(0, 5), (6, 11)], "shutter_counts": [4000, 5000]}
    info = StackInfo(("tof", "y", "x"), counts.shape, counts.dtype, {}, attrs)
    engine = Engine(backend, workers=2)
    applied = engine.apply(info.wrap(da.from_array(counts, chunks=chunks)), parse_steps([step]))
    with dask.config.set(scheduler="threads", num_workers=2):
        return [np.asarray(engine.to_host(a).data) for a in (applied.image, *applied.masks.values())]


@pytest.mark.parametrize("chunks", [(-1, -1, -1), (-1, 8, 26), (5, 7, 9)], ids=str)
@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_gives_what_the_cpu_gives(backend, name: str, dtype: str, chunks: tuple[int, ...]) -> None:
    counts = draw(dtype)
    expected = apply(CPU, counts, STEPS[name], (-1, -1, -1))
    found = apply(backend, counts, STEPS[name], chunks)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5 if other.dtype.kind == "f" else 0, atol=0)


LABELS = np.random.default_rng(1).integers(0, 4, 300).astype(np.int32)
ROWS = np.random.default_rng(2).poisson(900, (300, 17)).astype(np.float32)
MASK = np.random.default_rng(3).random((2, 30, 40)) < 0.2
MEMBERS = {
    "gaussian": lambda b: b.gaussian(b.from_host(ROWS), sigma=1.5),
    "sobel": lambda b: b.sobel(b.from_host(ROWS), axis=1),
    "label": lambda b: b.label(b.from_host(MASK))[0],
    "sum_by_label": lambda b: b.sum_by_label(b.from_host(ROWS), b.from_host(LABELS), n_labels=4),
    "to_jax and back": lambda b: b.from_jax(2 * b.to_jax(b.from_host(ROWS))),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_gives_what_the_cpus_gives(backend, name: str) -> None:
    found, expected = (np.asarray(twin.to_host(MEMBERS[name](twin))) for twin in (backend, Cpu("library")))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-2 if name in ("gaussian", "sobel") else 0)


def test_clusters_from_the_same_start(backend) -> None:
    start = ROWS[:4].copy()
    found, expected = (
        twin.run_lloyd(twin.from_host(ROWS), centroids=start, max_iter=5, tol=0.0) for twin in (backend, CPU)
    )
    np.testing.assert_array_equal(backend.to_host(found.labels), expected.labels)
    np.testing.assert_allclose(found.centroids, expected.centroids, rtol=1e-5)
    assert found.inertia == pytest.approx(expected.inertia, rel=1e-5) and found.n_iter == expected.n_iter


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_learns_alike(backend, dims: int) -> None:
    """Losses of three steps in float32, from the same weights, crops and keys."""
    from jax.sharding import Mesh

    from niseg_gpu.unet.config import UNetConfig
    from niseg_gpu.unet.layers import Run
    from niseg_gpu.unet.losses import make_loss
    from niseg_gpu.unet.normalise import Normalisation
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

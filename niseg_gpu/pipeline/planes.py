"""What a run keeps of the pixels on their way to the steps that look for spots, for the report's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from niseg_gpu.chunks import Region
from niseg_gpu.pipeline.results import write_array
from niseg_gpu.plane import Band, Plane, choose_bands, sample_plane

PIXELS = 1 << 20  # of each step in all: a sample, so that it costs next to nothing


class Sampled(NamedTuple):
    """The pixels of one step.

    Attributes
    ----------
    step : str
    plane : Plane
    quantity : str
        Of the stack as it comes to the step.
    bands : list of Band
        Where it is sampled, however it is cut.
    parts : list of (n, 2) float32 ndarray
        On the host.
    """

    step: str
    plane: Plane
    quantity: str
    bands: list[Band]
    parts: list[np.ndarray]


class PlaneSamples:
    """Samples blocks in the planes of a run's steps.

    Parameters
    ----------
    backend : Cpu or Gpu
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.steps: dict[int, Sampled] = {}

    def prepare(self, stages: Sequence[Any], infos: Sequence[Any]) -> None:
        """Note which stages are to be sampled; `infos` tell of the stack before each."""
        for i, (stage, info) in enumerate(zip(stages, infos, strict=False)):
            plane = stage.op.plane(**stage.state) if stage.op.plane is not None else None
            if plane is not None:
                self.steps[i] = Sampled(stage.name, plane, info.quantity, choose_bands(info.shape, pixels=PIXELS), [])

    def take(self, stage: int, block: Any, own: Region, *, inner: Region) -> list[np.ndarray]:
        """Sample `inner` of a block, its `own`, on its way to a stage of `steps`; several threads may do so at once."""
        sampled = self.steps[stage]
        begin = own[0].start if block.ndim == 3 else 0, own[-2].start
        parts = sample_plane(block, sampled.plane, bands=sampled.bands, inner=inner, begin=begin)
        return [self.backend.to_host(part) for part in parts]

    def extend(self, stage: int, parts: Sequence[np.ndarray]) -> None:
        """Keep what was taken."""
        self.steps[stage].parts.extend(parts)

    def gather(self) -> dict[int, np.ndarray]:
        """All that is kept of each stage, (n, 2) float32."""
        return {stage: _join(sampled.parts) for stage, sampled in self.steps.items()}

    def write(self, group: Any) -> None:
        """Count the pixels in each plane into arrays ``spot_plane``, ``spot_plane_2``, ... and those beside them."""
        from niseg_gpu.figures_knn import count_plane, decide_region

        for number, sampled in enumerate(self.steps.values(), start=1):
            name, plane = "spot_plane" if number == 1 else f"spot_plane_{number}", sampled.plane
            counted = count_plane(_join(sampled.parts), names=plane.features)
            axes = tuple(f"{name}_{feature}" for feature in plane.features)
            about = {
                "step": sampled.step,
                "features": list(plane.features),
                "quantity": sampled.quantity,
                "median_size": plane.size,
                "even_up_to": list(counted.widths),
                "threshold": plane.threshold,
                "n_neighbors": plane.model.n_neighbors if plane.model is not None else None,
            }
            write_array(group, name, counted.number, axes, **about)
            for axis, edges in zip(axes, counted.edges, strict=True):
                write_array(group, f"{axis}_edges", edges, (f"{axis}_edge",))
            if plane.model is not None:
                region = decide_region(plane.model, counted.nodes, backend=self.backend)
                write_array(group, f"{name}_region", region, tuple(f"{axis}_node" for axis in axes[::-1]))


def _join(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros((0, 2), np.float32)

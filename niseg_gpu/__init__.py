"""niseg_gpu: segment neutron images at full size, on CPU or GPU.

The names below are loaded when first used, so that ``import niseg_gpu`` stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Augmentation": "niseg_gpu.unet.augmentation",
    "KMeans": "niseg_gpu.kmeans.estimator",
    "UserError": "niseg_gpu.errors",
    "add_spots": "niseg_gpu.simulate.spots",
    "apply_steps": "niseg_gpu.pipeline.api",
    "augment": "niseg_gpu.unet.augment",
    "cluster_stack": "niseg_gpu.pipeline.api",
    "compute_pixel_features": "niseg_gpu.pixel_features",
    "evaluate_labels": "niseg_gpu.evaluate.labels",
    "evaluate_mask": "niseg_gpu.evaluate.masks",
    "evaluate_scores": "niseg_gpu.evaluate.scores",
    "evaluate_strengths": "niseg_gpu.evaluate.strengths",
    "extract_spots": "niseg_gpu.simulate.spots",
    "detect_spots": "niseg_gpu.knn",
    "draw_augmented": "niseg_gpu.figures_augment",
    "fit_knn": "niseg_gpu.knn_model",
    "load_knn": "niseg_gpu.knn_model",
    "make_radiograph_frame": "niseg_gpu.simulate.radiograph",
    "make_radiograph_sample": "niseg_gpu.simulate.radiograph",
    "make_root_sample": "niseg_gpu.simulate.roots",
    "load_unet": "niseg_gpu.unet.folder",
    "normalize": "niseg_gpu.transmission",
    "open_stack": "niseg_gpu.io.open",
    "open_workers": "niseg_gpu.pipeline.workers",
    "overlap_correct": "niseg_gpu.correct",
    "parse_pipeline": "niseg_gpu.pipeline.parse",
    "plan_pipeline": "niseg_gpu.pipeline.planner",
    "predict_knn": "niseg_gpu.knn",
    "predict_unet": "niseg_gpu.unet.predict",
    "read_pipeline": "niseg_gpu.pipeline.parse",
    "rebin_tof": "niseg_gpu.tof",
    "remove_spots": "niseg_gpu.spots",
    "run_pipeline": "niseg_gpu.pipeline.run",
    "save": "niseg_gpu.io.save",
    "save_knn": "niseg_gpu.knn_model",
    "save_unet": "niseg_gpu.unet.folder",
    "scale_spectra": "niseg_gpu.correct",
    "select_tof": "niseg_gpu.tof",
    "simulate_roots": "niseg_gpu.simulate.roots",
    "simulate_radiograph": "niseg_gpu.simulate.radiograph",
    "simulate_tof": "niseg_gpu.simulate.tof",
    "wavelength_of": "niseg_gpu.tof",
    "write_report": "niseg_gpu.report",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'niseg_gpu' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

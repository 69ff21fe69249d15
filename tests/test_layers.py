"""Imports point down, nothing imports the package root, and only ``backend`` names the devices' libraries."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import niseg_gpu

PACKAGE = Path(niseg_gpu.__file__).parent
LAYERS = {
    "errors": 1,
    "findings": 1,
    "stack": 1,
    "chunks": 1,
    "kernels": 1,
    "xla": 1,
    "pages": 1,
    "threads": 1,
    "backend": 1,
    "images": 1,
    "options": 1,
    "io": 2,
    "correct": 3,
    "transmission": 3,
    "tof": 3,
    "plane": 3,
    "spots": 3,
    "kmeans": 3,
    "cluster_quality": 3,
    "pixel_features": 3,
    "evaluate": 3,
    "knn_features": 3,
    "knn_model": 3,
    "knn": 3,
    "unet": 3,
    "simulate": 3,
    "figures": 4,
    "figures_clusters": 4,
    "figures_spectra": 4,
    "figures_unet": 4,
    "figures_evaluate": 4,
    "figures_augment": 4,
    "figures_knn": 4,
    "figures_maps": 4,
    "figures_roots": 4,
    "figures_simulate": 4,
    "report_cards": 4,
    "report_classes": 4,
    "report_clusters": 4,
    "report": 4,
    "pipeline": 4,
    "cli_options": 5,
    "cli_output": 5,
    "cli_signals": 5,
    "cli_bench": 5,
    "cli_knn": 5,
    "cli_plan": 5,
    "cli_simulate": 5,
    "cli_unet": 5,
    "cli": 5,
    "__main__": 6,
}
DEVICE_LIBRARIES = {"cupy", "cucim", "cuml", "sklearn"}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = LAYERS[room_of(path)]
    for name in imports_of(path):
        if name.split(".")[0] != "niseg_gpu":
            continue
        parts = name.split(".")
        assert len(parts) > 2 or parts[1] in LAYERS, f"{path} imports the package root"
        assert LAYERS[parts[1]] <= own, f"{path} (layer {own}) imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_backend_names_device_libraries(path: Path) -> None:
    if room_of(path) == "backend":
        return
    for name in imports_of(path):
        assert name.split(".")[0] not in DEVICE_LIBRARIES, f"{path} imports {name}"
        assert not name.startswith("scipy.ndimage"), f"{path} imports {name}"


@pytest.mark.parametrize(
    "room", ["correct", "transmission", "tof", "spots", "kmeans", "knn_features", "knn_model", "knn", "unet", "kernels"]
)
def test_no_step_knows_dask(room: str) -> None:
    for path in MODULES:
        if room_of(path) == room:
            assert not any(name.split(".")[0] == "dask" for name in imports_of(path)), path


def test_every_module_has_a_layer() -> None:
    assert {room_of(path) for path in MODULES} == set(LAYERS)

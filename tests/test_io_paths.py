"""Names of files from Python: what names none is told in one line, whoever it was given to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import niseg_gpu as ng
from niseg_gpu.errors import UserError
from niseg_gpu.io.paths import read_path


def save_stack(path: Any) -> None:
    ng.save(xr.DataArray(np.zeros((2, 3))), path)


def save_model(path: Any) -> None:
    mask = np.eye(9, dtype=bool)
    ng.save_knn(ng.fit_knn(mask * 100 + np.arange(9), mask), path)


def cluster_in(path: Any) -> None:
    ng.cluster_stack(xr.DataArray(np.eye(9, dtype=np.float32), dims=("y", "x")), n_clusters=2, folder=path)


TAKERS: list[Callable[[Any], Any]] = [
    ng.open_stack,
    save_stack,
    ng.load_knn,
    save_model,
    ng.load_unet,
    ng.read_pipeline,
    ng.write_report,
    ng.simulate_tof,
    ng.simulate_radiograph,
    ng.simulate_roots,
]


@pytest.mark.parametrize("take", [*TAKERS, cluster_in], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "path", [3, b"bytes", ["list.npy"], "", "a\0b.npz", "a" * 300 + ".npz"], ids=lambda p: repr(p)[:9]
)
def test_what_is_no_path_is_refused(take: Callable[[Any], Any], path: Any) -> None:
    with pytest.raises(UserError, match=r"got .*path.*allowed: "):
        take(path)


@pytest.mark.parametrize("take", TAKERS, ids=lambda f: f.__name__)
def test_none_is_no_path(take: Callable[[Any], Any]) -> None:
    with pytest.raises(UserError, match="got a NoneType for a path; allowed: a str or Path"):
        take(None)


def test_text_and_paths_are_taken(tmp_path: Path) -> None:
    assert read_path(tmp_path, who="x") == read_path(str(tmp_path), who="x") == tmp_path
    assert read_path("file.h5:/entry/data", who="x") == Path("file.h5:/entry/data")
    assert read_path("ä" * 127, who="x") == Path("ä" * 127)

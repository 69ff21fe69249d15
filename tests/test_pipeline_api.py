"""Steps on stacks of Python: what is misused is told in one line, what is merely unusual gives the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import niseg_gpu as ng
from niseg_gpu.errors import UserError

RNG = np.random.default_rng(3)
VALUES = RNG.poisson(60, (6, 8, 9)).astype(np.float32)
STACK = xr.DataArray(VALUES, dims=("tof", "y", "x"))
CLEAN = [{"remove_spots": {"threshold": 20}}]


@pytest.mark.parametrize("dims", [("y", "x", "tof"), ("tof", "x", "y"), ("y", "tof", "x")])
def test_axes_in_another_order_are_not_worked_on_in_silence(dims: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"stack has the axes .*; needed: tof, y, x: give stack.transpose\(...\)"):
        ng.apply_steps(STACK.transpose(*dims), CLEAN)
    with pytest.raises(UserError, match="open_beam has the axes"):
        ng.apply_steps(STACK, ["normalize"], open_beam=STACK.transpose(*dims))
    if dims[0] != "tof":
        with pytest.raises(UserError, match="stack has the axes .*; needed: tof first"):
            ng.cluster_stack(STACK.transpose(*dims), n_clusters=2)


def test_axes_with_other_names_are_told_or_taken_as_they_lie() -> None:
    with pytest.raises(UserError, match=r"tof, row, column; needed: tof, y, x: .* or .rename\(...\)"):
        ng.apply_steps(STACK.rename(y="row", x="column"), CLEAN)
    found = ng.apply_steps(STACK.rename(tof="energy"), CLEAN).image
    assert found.dims == ("energy", "y", "x")
    np.testing.assert_array_equal(found, ng.apply_steps(STACK, CLEAN).image)
    labels = [ng.cluster_stack(s, n_clusters=2).labels for s in (STACK, STACK.rename(y="row", x="column"))]
    np.testing.assert_array_equal(*labels)


@pytest.mark.parametrize("chunks", [(1, 8, 9), (6, 1, 4), ((2, 1, 3), (5, 3), (9,)), (6, 8, 9)])
def test_chunks_of_any_shape_give_the_same(chunks: Any) -> None:
    lazy = STACK.copy(data=da.from_array(VALUES, chunks=chunks))
    np.testing.assert_array_equal(ng.apply_steps(lazy, CLEAN).image, ng.apply_steps(STACK, CLEAN).image)


def test_chunks_of_unknown_size_are_told() -> None:
    lazy = da.from_array(VALUES)
    unknown = xr.DataArray(lazy[lazy.sum(axis=(1, 2)) > 0], dims=STACK.dims)
    for call in (ng.apply_steps, lambda stack, steps: ng.cluster_stack(stack, n_clusters=2)):
        with pytest.raises(UserError, match=r"stack: unknown lengths .* call compute_chunk_sizes\(\)"):
            call(unknown, CLEAN)


def test_numbers_of_numpy_paths_and_arrays_are_parameters_too(tmp_path: Path) -> None:
    np.save(tmp_path / "dead.npy", np.eye(8, 9, dtype=np.uint8))
    tof = STACK.assign_coords(tof=("tof", np.arange(6.0)), tof_width=("tof", np.ones(6)))
    plain = [
        {"remove_spots": {"threshold": 20.0, "size": 5, "dead_pixels": str(tmp_path / "dead.npy")}},
        {"rebin_tof": {"edges_s": [0.0, 2.0, 6.0]}},
    ]
    other = [
        {"remove_spots": {"threshold": np.float32(20), "size": np.int64(5), "dead_pixels": tmp_path / "dead.npy"}},
        {"rebin_tof": {"edges_s": np.array([0, 2, 6.0])}},
    ]
    np.testing.assert_array_equal(ng.apply_steps(tof, other).image, ng.apply_steps(tof, plain).image)
    parsed = ng.parse_pipeline({"input": tmp_path, "steps": ["kmeans"], "output": {"path": tmp_path / "out"}})
    assert (parsed.input.path, parsed.output.path) == (str(tmp_path), str(tmp_path / "out"))


def test_a_long_value_is_not_printed() -> None:
    with pytest.raises(
        UserError, match="remove_spots: dead_pixels is a list; |remove_spots: dead_pixels is a ndarray; "
    ):
        ng.apply_steps(STACK, [{"remove_spots": {"threshold": 3, "dead_pixels": np.zeros((80, 90))}}])


def test_what_to_do_about_values_is_one_of_two() -> None:
    with pytest.raises(UserError, match="apply_steps got bad_values 'x'; allowed: error, keep"):
        ng.apply_steps(STACK, CLEAN, bad_values="x")


@pytest.mark.parametrize("pipeline", [None, "pipeline.yaml", {"input": "a", "steps": ["kmeans"]}])
def test_only_what_was_parsed_is_run_or_planned(pipeline: Any) -> None:
    for call in (ng.run_pipeline, ng.plan_pipeline):
        with pytest.raises(UserError, match=f"{call.__name__} got a .*; needed: a Pipeline, which read_pipeline makes"):
            call(pipeline)


@pytest.mark.parametrize("overrides", ["kmeans.n_clusters=3", [3]])
def test_overrides_are_a_list(overrides: Any, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("input: x\nsteps: [kmeans]\n")
    with pytest.raises(UserError, match=r"got overrides .*; allowed: a list of step.parameter=value"):
        ng.read_pipeline(tmp_path / "p.yaml", overrides=overrides)

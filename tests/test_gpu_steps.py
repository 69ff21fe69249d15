"""Every block-wise step through the engine on each device, in blocks, against the CPU on the whole.

On the CPU this holds chunking and any order of memory to it; with ``-m gpu`` the GPU. Shapes, models and dtypes are few
and shared, for most of the time on a GPU goes into compiling.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from niseg_gpu.backend import CPU
from niseg_gpu.knn_model import fit_knn, save_knn
from niseg_gpu.pipeline.engine import Engine
from niseg_gpu.pipeline.parse import parse_steps
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.stack import StackInfo
from niseg_gpu.unet.config import UNetConfig
from niseg_gpu.unet.folder import UNetModel, save_unet
from niseg_gpu.unet.model import init_weights
from niseg_gpu.unet.normalise import Normalisation

SHAPE = (12, 21, 26)
STEPS: dict[str, dict[str, Any]] = {
    "overlap_correct": {"overlap_correct": {}},
    "overlap_correct per trigger": {"overlap_correct": {"per_trigger": True}},
    "assign_wavelength": {"assign_wavelength": {"flight_path_m": 10}},
    "select_tof": {"select_tof": {"first": 2, "last": 9}},
    "rebin_tof": {"rebin_tof": {"factor": 3}},
    "rebin_tof by the mean": {"rebin_tof": {"edges_s": [1e-3, 1.04e-3, 1.11e-3], "how": "mean"}},
    "spots": {"remove_spots": {"size": 3, "threshold": 60}},
    "wide spots": {"remove_spots": {"size": 5, "threshold": 60, "kind": "bright"}},
    "spots by their sigma": {"remove_spots": {"threshold": 6, "threshold_unit": "sigma"}},
    "spots by counting noise": {"remove_spots": {"threshold": 6, "threshold_unit": "poisson", "replacement": "mean"}},
    "small spots": {"remove_spots": {"threshold": 60, "max_area": 3}},
    "spots of a volume": {"remove_spots": {"threshold": 60, "neighbourhood": "volume"}},
    "dead pixels": {"remove_spots": {"threshold": 60, "dead_pixels": "dead.npy"}},
    "learnt spots": {"detect_spots": {"model": "spots.npz"}},
    "learnt spots, nearly": {"detect_spots": {"model": "spots.npz", "replace": "none", "approximate": True}},
    "normalize": {"normalize": {}},
    "dose": {"normalize": {"dose_roi": [1, 2, 7, 9], "minus_log": True}},
    "scale": {"scale_spectra": {}},
    "standardise": {"scale_spectra": {"method": "standard"}},
    "unet": {"segment_unet": {"model": "unet", "precision": "float32"}},
    "unet's probability": {
        "segment_unet": {"model": "unet", "result": "probability", "precision": "float32", "flips": True}
    },
}
COMPILED_FOR_A_SHAPE = {"unet", "unet's probability"}
TAKES_NAN = sorted(set(STEPS) - {"learnt spots", "learnt spots, nearly"})


class Whole(NamedTuple):
    """What a step gives: the image, then its masks; and what it counted."""

    arrays: list[np.ndarray]
    findings: list[str]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with what steps read: a trained search, a network, a mask of dead pixels."""
    folder = tmp_path_factory.mktemp("models")
    counts = draw("uint16")
    save_knn(fit_knn(counts[0], counts[0] > 550, n_neighbors=3), folder / "spots.npz")
    config = UNetConfig(base_depth=2, levels=2)
    params, state = init_weights(config, seed=3)
    save_unet(UNetModel(config, params, state, Normalisation(means=(400.0,), scales=(20.0,))), folder / "unet")
    dead = np.zeros(SHAPE[1:], np.uint8)
    dead[3, 4] = dead[10, 8] = dead[10, 9] = dead[20, 25] = 1
    np.save(folder / "dead.npy", dead)
    return str(folder)


@lru_cache(maxsize=8)
def draw(dtype: str, shape: tuple[int, ...] = SHAPE, *, missing: bool = False, level: int = 400) -> np.ndarray:
    rng = np.random.default_rng(5)
    counts = rng.poisson(level, shape)
    counts[rng.random(shape) < 0.01] += 300
    counts = (counts + (rng.random(shape) if dtype == "float32" else 0)).astype(dtype)
    if missing:
        counts[rng.random(shape) < 0.02] = np.nan
        counts[:, :2, -2:] = np.nan
    counts.flags.writeable = False
    return counts


def wrap(counts: np.ndarray, chunks: Any, *, stored: str = "=", bins: bool = True) -> Any:
    """A lazy stack; `stored` tells the byte order of its blocks, as files have it."""
    n = len(counts)
    attrs = {"quantity": "counts", "shutter_windows": [(0, 5), (6, n - 1)], "shutter_counts": [4000, 5000]}
    coords = {"tof": 1e-3 + 1e-5 * np.arange(n), "tof_width": np.full(n, 1e-5)} if bins else {}
    lazy, order = da.from_array(counts, chunks=chunks), counts.dtype.newbyteorder(stored)
    lazy = lazy.map_blocks(lambda block: block.astype(order), dtype=counts.dtype)
    dims = (("tof" if bins else "z"), "y", "x")
    return StackInfo(dims, counts.shape, counts.dtype, coords, attrs if bins else {"quantity": "counts"}).wrap(lazy)


def apply(backend: Any, counts: np.ndarray, step: dict[str, Any], models: str, chunks: Any = -1, **how: Any) -> Whole:
    stored, workers, block_bytes = how.get("stored", "="), how.get("workers", 2), how.get("block_bytes", 2**25)
    engine = Engine(backend, workers=workers, block_bytes=block_bytes, bad_values="keep")
    chunks = (-1, -1, -1) if chunks == -1 else chunks
    beams = {}
    if "normalize" in step:
        of = {"dtype": str(counts.dtype), "shape": counts.shape}
        beams = {"open_beam": wrap(draw(level=900, **of), chunks), "dark": wrap(draw(level=20, **of)[:1], -1)}
        beams["dark"] = beams["dark"].drop_vars(["tof", "tof_width"]).rename(tof="z")
    applied = engine.apply(wrap(counts, chunks, stored=stored), parse_steps([step], base=models), **beams)
    with dask.config.set(scheduler="threads", num_workers=workers):
        arrays = [np.asarray(engine.to_host(a).data) for a in (applied.image, *applied.masks.values())]
    return Whole(arrays, sorted(engine.clock.findings()))


@lru_cache(maxsize=64)
def expect(name: str, dtype: str, models: str, *, missing: bool = False) -> Whole:
    return apply(CPU, draw(dtype, missing=missing), STEPS[name], models)


def assert_same(found: Whole, expected: Whole) -> None:
    assert len(found.arrays) == len(expected.arrays)
    for one, other in zip(found.arrays, expected.arrays, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        half = 1e-3 if other.dtype == np.float16 else 0
        np.testing.assert_allclose(one, other, rtol=1e-5 if other.dtype.kind == "f" else 0, atol=half)
    assert found.findings == expected.findings


@pytest.mark.parametrize("chunks", [(-1, 8, 26), (5, 7, 9)], ids=str)
@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
@pytest.mark.parametrize("name", STEPS)
def test_a_step_gives_what_the_cpu_gives(backend, models, name: str, dtype: str, chunks: tuple[int, ...]) -> None:
    found, expected = apply(backend, draw(dtype), STEPS[name], models, chunks), expect(name, dtype, models)
    assert_same(found, expected)
    if len(expected.arrays) > 1:
        assert 0 < expected.arrays[1].mean() < 0.2, "without spots the masks prove nothing"
    if name == "unet":
        assert 0 < expected.arrays[0].mean() < 1


def test_every_step_is_here() -> None:
    assert {next(iter(step)) for step in STEPS.values()} == {name for name, op in OPS.items() if op.apply is not None}


@pytest.mark.parametrize("name", TAKES_NAN)
def test_what_has_no_value_is_treated_alike(backend, models, name: str) -> None:
    found = apply(backend, draw("float32", missing=True), STEPS[name], models, (5, 7, 9))
    expected = expect(name, "float32", models, missing=True)
    assert_same(found, expected)
    assert any("NaN" in line for line in expected.findings)


@settings(max_examples=40)
@given(
    name=st.sampled_from(sorted(set(STEPS) - COMPILED_FOR_A_SHAPE)),
    dtype=st.sampled_from(["uint16", "float32"]),
    chunks=st.tuples(*(st.integers(1, n) for n in SHAPE)),
    stored=st.sampled_from("<>"),
    workers=st.integers(1, 3),
    block_bytes=st.integers(1, 40_000),
)
def test_cuts_and_byte_order_are_not_seen_in_the_result(
    backend, models, name, dtype, chunks, stored, workers, block_bytes
) -> None:
    how = {"stored": stored, "workers": workers, "block_bytes": block_bytes}
    assert_same(apply(backend, draw(dtype), STEPS[name], models, chunks, **how), expect(name, dtype, models))


SIZES = [(12, 1, 1), (12, 1, 33), (13, 17, 1), (12, 70_001, 2), (70_001, 1, 3)]
ANY_SIZE = ["overlap_correct", "rebin_tof", "spots", "small spots", "spots of a volume", "learnt spots", "scale"]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("name", ANY_SIZE)
def test_any_size_will_do(backend, models, name: str, shape: tuple[int, ...]) -> None:
    """One pixel, one row, one column; and more rows, or frames, than a grid of blocks has along its second axis."""
    counts = draw("uint16", shape)
    assert_same(apply(backend, counts, STEPS[name], models), apply(CPU, counts, STEPS[name], models))


@pytest.mark.parametrize("layout", ["turned", "every other", "reversed", "begins anywhere"])
@pytest.mark.parametrize("name", STEPS)
def test_blocks_may_lie_in_memory_as_they_like(backend, models, name: str, layout: str) -> None:
    """A step gets what the one before gives, which may be a view; the result is that of the same values close by."""
    counts = draw("uint16")
    op, (step,) = OPS[next(iter(STEPS[name]))], parse_steps([STEPS[name]], base=models)
    beam = wrap(draw("uint16", level=900), -1)
    (stage,) = Engine(CPU).fit(wrap(counts, -1), [step], reading=True, open_beam=beam)
    state = {key: backend.from_host(value.values) if hasattr(value, "dims") else value for key, value in
             stage.state.items()}  # fmt: skip
    if "open_beam" in state:
        state["open_beam"] = backend.from_host(draw("uint16", level=900))
    close = backend.from_host(counts.copy())
    room = backend.xp.zeros((13, 21, 52), dtype=close.dtype)
    if layout == "turned":
        other = backend.xp.ascontiguousarray(backend.xp.moveaxis(close, 0, 2))
        other = backend.xp.moveaxis(other, 2, 0)
    elif layout == "reversed":
        other = backend.xp.ascontiguousarray(close[:, ::-1, ::-1])[:, ::-1, ::-1]
    else:
        other = room[:12, :, ::2] if layout == "every other" else room[1:, :, 1:27]
        other[...] = close
    found, expected = (op.apply(block, **state) for block in (other, close))
    for one, another in zip(*((r if op.mask else (r,)) for r in (found, expected)), strict=True):
        one, another = backend.to_host(one), backend.to_host(another)
        np.testing.assert_allclose(one, another, rtol=1e-6, atol=1e-3 if one.dtype == np.float16 else 0)
    np.testing.assert_array_equal(backend.to_host(close), counts)

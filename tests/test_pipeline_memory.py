"""What steps are said to hold is what they hold, by NumPy's own account."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from niseg_gpu.backend import CPU, Cpu, Gpu, with_kernels, working_on
from niseg_gpu.chunks import widen
from niseg_gpu.kmeans.step import fit_kmeans, memory_kmeans
from niseg_gpu.kmeans.table import PixelTable
from niseg_gpu.knn_model import fit_knn
from niseg_gpu.pipeline import memory
from niseg_gpu.pipeline.blocks import PARTS, cut_blocks, halo_of
from niseg_gpu.pipeline.engine import Stage
from niseg_gpu.pipeline.memory import Way, count_host, find_peak, follow_block
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.stack import StackInfo
from niseg_gpu.tof import Group

SHAPE = (150, 40, 200)  # large enough that what is held once for all pixels does not count
RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(200, SHAPE).astype(np.uint16)
FLOATS = COUNTS.astype(np.float32)
HOLES = np.where(RNG.random(SHAPE) < 1e-4, np.float32(np.nan), FLOATS)
DEAD = np.zeros(SHAPE[1:], bool)
DEAD[3, 4] = True
LEAST = 0.75  # of what is declared: one number has to do for several types and options


class Reference:
    """Stands in a state for the open beam of every bin, as the planner sees it."""

    stages = ()


def allocate(work: Callable[[], Any]) -> tuple[Any, int]:
    """Return what a call gives and the most that it held of memory, the second time."""
    work()
    tracemalloc.start()
    found = work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, peak


def describe(block: np.ndarray) -> StackInfo:
    return StackInfo(("tof", "y", "x")[-block.ndim :], block.shape, block.dtype)


def groups_of(n: int) -> list[Group]:
    return [Group(i, i + n - 1) for i in range(0, 150, n)]


STATES = {
    "overlap_correct": ("overlap_correct", {"windows": [(0, 74), (75, 149)], "shutter_counts": [5000, 6000]}),
    "rebin_tof, 1": ("rebin_tof", {"groups": groups_of(1), "mean": False}),
    "rebin_tof, 5": ("rebin_tof", {"groups": groups_of(5), "mean": True}),
    "scale_spectra": ("scale_spectra", {"method": "mean"}),
    "scale_spectra, standard": ("scale_spectra", {"method": "standard"}),
    "normalize": ("normalize", {"open_beam": FLOATS[0], "dark": None}),
    "normalize, dark and dose": ("normalize", {"open_beam": FLOATS[0], "dark": DEAD, "dose": np.ones(150, np.float32)}),
    "normalize, minus_log": ("normalize", {"open_beam": FLOATS[0], "dark": None, "minus_log": True}),
    "normalize, every bin": ("normalize", {"open_beam": FLOATS, "dark": FLOATS / 10}),
    "normalize, every bin, minus_log": ("normalize", {"open_beam": FLOATS, "dark": None, "minus_log": True}),
    "remove_spots": ("remove_spots", {}),
    "remove_spots, 5": ("remove_spots", {"size": 5}),
    "remove_spots, 9": ("remove_spots", {"size": 9}),
    "remove_spots, 15": ("remove_spots", {"size": 15}),
    "remove_spots, poisson": ("remove_spots", {"threshold_unit": "poisson", "kind": "bright"}),
    "remove_spots, sigma": ("remove_spots", {"threshold_unit": "sigma"}),
    "remove_spots, mean": ("remove_spots", {"replacement": "mean"}),
    "remove_spots, max_area": ("remove_spots", {"max_area": 4}),
    "remove_spots, volume": ("remove_spots", {"neighbourhood": "volume"}),
    "remove_spots, volume, sigma": ("remove_spots", {"neighbourhood": "volume", "threshold_unit": "sigma"}),
    "remove_spots, dead": ("remove_spots", {"dead_pixels": DEAD}),
}


@pytest.mark.parametrize("kernels", ["own", "library"])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("case", STATES)
def test_a_step_holds_what_the_table_of_steps_says(case: str, dtype: str, kernels: str) -> None:
    (name, state), twin = STATES[case], with_kernels(CPU, kernels)
    block = COUNTS if dtype == "uint16" else FLOATS
    if name == "remove_spots":
        state = {"threshold": 60.0, **state}
    with working_on(twin):
        _, peak = allocate(lambda: OPS[name].apply(block, **state))
    if "every bin" in case:
        state = {key: Reference() if getattr(value, "ndim", 0) == 3 else value for key, value in state.items()}
    declared = OPS[name].memory(describe(block), backend=twin, **state).each
    margin = 32 * math.prod(SHAPE[1:])  # maps of its pixels
    # of what lies in memory meanwhile, the block itself included
    assert LEAST * (declared + block.nbytes) <= peak + block.nbytes <= declared + block.nbytes + margin


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("with_dark", [False, True])
def test_references_count_where_a_block_is_a_frame(dtype: str, with_dark: bool) -> None:
    """As large frames are cut: they are then as large as what is normalized."""
    frame = RNG.poisson(200, (1, 1200, 1000)).astype(dtype)
    state = {"open_beam": frame[0].astype("f4") + 9, "dark": frame[0].astype("f4") / 9 if with_dark else None}
    _, peak = allocate(lambda: OPS["normalize"].apply(frame, **state))
    declared = OPS["normalize"].memory(describe(frame), backend=CPU, **state).each
    assert LEAST * (declared + frame.nbytes) <= peak + frame.nbytes <= declared + frame.nbytes + 100_000


@pytest.mark.parametrize("name, state", [("select_tof", {"first": 10, "last": 140}), ("assign_wavelength", {})])
def test_a_step_that_gives_a_part_of_its_block_holds_nothing(name: str, state: dict[str, Any]) -> None:
    state = state or {"flight_path_m": 10.0}
    found, peak = allocate(lambda: OPS[name].apply(FLOATS, **state))
    assert np.shares_memory(found, FLOATS) and peak < 10_000
    assert OPS[name].memory(describe(FLOATS), backend=CPU, **state).each == 0


def test_nan_is_allowed_for() -> None:
    for state in ({}, {"threshold_unit": "sigma"}, {"dead_pixels": DEAD}):
        state = {"threshold": 60.0, **state}
        _, peak = allocate(lambda state=state: OPS["remove_spots"].apply(HOLES, **state))
        assert peak <= OPS["remove_spots"].memory(describe(HOLES), backend=CPU, **state).each + 10**6


@pytest.mark.parametrize("features", [["value"], ["value", "abs_residual"], ["value", "residual", "gradient"]])
@pytest.mark.parametrize("approximate", [False, True])
def test_neighbours_are_found_in_the_memory_declared(features: list[str], approximate: bool) -> None:
    if approximate and len(features) != 2:
        return
    block = FLOATS.reshape(-1, 300, 400)
    model = fit_knn([block[0]], [RNG.random(block.shape[1:]) < 0.02], features=features)
    state = {"model": model, "approximate": approximate}
    _, peak = allocate(lambda: OPS["detect_spots"].apply(block, **state))
    declared = OPS["detect_spots"].memory(describe(block), backend=CPU, **state).each
    assert LEAST * declared <= peak <= declared + 10**6


TABLES = {
    "spectra": ((200, 200, 300), True, {}),
    "spectra, no sample": ((200, 200, 300), True, {"init_sample": None, "n_init": 1}),
    "spectra, several": ((200, 200, 300), True, {"n_clusters": [4, 6]}),
    "spectra, deviations": ((200, 200, 300), True, {"deviations": True}),
    "two bins": ((2, 500, 700), True, {}),
    "frames": ((10, 300, 400), False, {}),
    "features": ((2, 500, 700), True, {"features": {"x": 1.0, "y": 1.0, "smooth": 1.0}}),
}


BY_LIBRARY = ["spectra, no sample", "two bins", "frames"]  # scikit-learn takes its time for the others


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
@pytest.mark.parametrize("case, kernels", [*((c, "own") for c in TABLES), *((c, "library") for c in BY_LIBRARY)])
def test_kmeans_holds_what_it_says_beside_its_table(case: str, dtype: str, kernels: str) -> None:
    shape, is_tof, parameters = TABLES[case]
    parameters = {"n_clusters": 5, "max_iter": 6, **parameters}
    backend, stack = Cpu(kernels), RNG.poisson(300, shape).astype(dtype)
    info = StackInfo(("tof" if is_tof else "z", "y", "x"), shape, stack.dtype)

    def fill() -> PixelTable:
        extras = len(parameters.get("features", ()))
        table = PixelTable(backend, shape=shape, features=is_tof, dtype=dtype, extras=extras)
        table[tuple(slice(0, n) for n in shape)] = stack
        return table

    fit_kmeans(fill(), 2, **parameters)
    table = fill()
    tracemalloc.start()
    fit_kmeans(table, 2, **parameters)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    declared = memory_kmeans(info, backend=backend, **parameters).once
    counted, more = memory._count_last(info, (OPS["kmeans"], parameters), backend=backend)
    assert (counted, more) == (table.rows.nbytes + table.valid.nbytes, declared)
    assert 0.8 * (declared + table.rows.nbytes) <= peak + table.rows.nbytes <= 1.01 * (declared + table.rows.nbytes)


def stage_of(name: str, before: StackInfo, **state: Any) -> Stage:
    return Stage(name, OPS[name], state, OPS[name].describe(before, **state))


def test_a_block_is_followed_through_its_steps() -> None:
    stack = StackInfo(("tof", "y", "x"), (100, 64, 32), np.dtype(np.int16), {}, {"quantity": "counts"})
    first = stage_of("overlap_correct", stack, windows=[(0, 99)], shutter_counts=[9], per_trigger=False)
    second = stage_of("remove_spots", first.info, threshold=5.0)
    region = (slice(0, 100), slice(16, 32), slice(0, 32))
    values = 100 * 18 * 32  # with a row above and below
    way = follow_block(stack, [first, second], region, backend=CPU)
    assert way.raw == 2 * values
    assert way.steps == (4 * values, 4 * values + (4 + 1 + 1) * values), "the float copy; then the result, mask, holes"
    assert way.left == 5 * values and way.peak == way.raw + way.steps[1] and way.largest == 4 * values
    nothing = follow_block(stack, [], region, backend=CPU)
    assert nothing.steps == () and nothing.peak == 2 * 100 * 16 * 32 == nothing.raw, "what was read is the result"


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 60), st.integers(1, 20)),
    st.integers(1, 5),
    st.sampled_from(["uint16", "float32", "float16"]),
)
def test_blocks_need_no_less_than_their_values_and_more_with_every_step(shape, workers, dtype) -> None:
    stack = StackInfo(("z", "y", "x"), shape, np.dtype(dtype), {}, {"quantity": "counts"})
    given_to_steps = stack.with_(dtype=np.dtype("float32") if dtype == "float16" else stack.dtype)
    stages = [stage_of("remove_spots", given_to_steps, threshold=1.0)]
    peaks = []
    for some in ([], stages, 2 * stages):
        region = cut_blocks(stack, stages, whole=frozenset(), parts=PARTS * workers)[0]
        way = follow_block(stack, some, region, backend=CPU)
        wide = widen(region, shape, halo=halo_of(some))
        assert way.raw == math.prod(s.stop - s.start for s in wide) * stack.dtype.itemsize
        peaks.append(way.peak)
    assert peaks == sorted(peaks)


def test_the_phase_that_needs_most_is_the_peak() -> None:
    assert find_peak({"blocks": {"a": 1, "b": 2}, "report": {"a": 4}}) == ("report", 4)


def test_copies_to_a_gpu_have_memory_of_the_host_for_all_blocks_at_once() -> None:
    """CuPy's pool of page-locked memory knows powers of two only, and keeps what it has."""
    way, image = (
        Way(raw=3 * 2**20, steps=(2**24,), left=2**22, once=0, largest=2**22),
        StackInfo(("tof", "y", "x"), (1, 8, 8), np.dtype("f4")),
    )
    common = {"at_once": 4, "base": 0, "last": None, "n_planes": 0, "pictures_frames": False}
    for phase in count_host(image, way, backend=Gpu(), **common).values():
        assert 4 * 2**22 <= phase["copies to the device"] < 4 * 2**23
    assert all(not phase["copies to the device"] for phase in count_host(image, way, backend=CPU, **common).values())

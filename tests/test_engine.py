"""Steps over Dask: chunking never changes a result, references go along, bad values are named."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from niseg_gpu.backend import CPU, Cpu
from niseg_gpu.errors import UserError
from niseg_gpu.io.open import as_stack
from niseg_gpu.io.source import Source
from niseg_gpu.pipeline.api import apply_steps, cluster_stack
from niseg_gpu.pipeline.engine import Engine
from niseg_gpu.pipeline.parse import parse_steps
from niseg_gpu.pipeline.values import ValueCheck

WINDOWS = {"shutter_windows": [[0, 6], [7, 19]], "shutter_counts": [900, 1100], "bin_triggers": [900] * 7 + [1100] * 13}


def tof_run(seed: int = 0, *, shape: tuple[int, ...] = (20, 40, 17), mean: float = 30) -> xr.DataArray:
    counts = np.random.default_rng(seed).poisson(mean, shape).astype(np.uint16)
    tof = 1e-3 + np.arange(shape[0]) * 1e-5
    coords = {"tof": tof, "tof_width": ("tof", np.full(shape[0], 1e-5))}
    return xr.DataArray(counts, dims=("tof", "y", "x"), coords=coords, attrs={"quantity": "counts", **WINDOWS})


def later() -> xr.DataArray:
    """A run whose last bin begins a bin later."""
    run = tof_run(1)
    return run.assign_coords(tof=np.where(np.arange(20) == 19, run.tof + 1e-5, run.tof))


STEPS = [
    "overlap_correct",
    {"remove_spots": {"size": 3, "threshold": 12}},
    {"select_tof": {"first": 2, "last": 18}},
    {"rebin_tof": {"factor": 3}},
    {"remove_spots": {"size": 5, "threshold": 20, "kind": "bright"}},
    {"normalize": {"dose_by_shutter_counts": True}},
    "scale_spectra",
]


def run(stack, steps, beam, *, block_bytes=10**9, workers=1):
    engine = Engine(CPU, workers=workers, block_bytes=block_bytes)
    applied = engine.apply(stack, parse_steps(steps), open_beam=beam)
    values = [applied.image.values, *(mask.values for mask in applied.masks.values())]
    return values, engine.clock


@pytest.fixture(scope="module")
def whole():
    """The steps on the whole stack at once."""
    values, clock = run(tof_run(), STEPS, tof_run(1, mean=60))
    return values, clock.findings()


@settings(max_examples=15)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 17)),
    st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 17)),
    st.integers(1, 60_000),
    st.integers(1, 3),
)
def test_chunking_never_changes_a_result(whole, chunks, beam_chunks, block_bytes, workers) -> None:
    dims = ("tof", "y", "x")
    stack = tof_run().chunk(dict(zip(dims, chunks, strict=True)))
    beam = tof_run(1, mean=60).chunk(dict(zip(dims, beam_chunks, strict=True)))
    values, clock = run(stack, STEPS, beam, block_bytes=block_bytes, workers=workers)
    for found, expected in zip(values, whole[0], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert sorted(clock.findings()) == sorted(whole[1]), "what lies in a halo is counted once"


@settings(max_examples=15)
@given(st.integers(1, 20), st.integers(1, 5000))
def test_frames_are_cut_along_the_first_axis_when_no_step_needs_it_whole(thick, block_bytes) -> None:
    steps = [{"remove_spots": {"threshold": 9}}, "normalize"]
    stack, beam = tof_run().chunk({"tof": thick}), tof_run(1, mean=60)
    values, _ = run(stack, steps, beam, block_bytes=block_bytes)
    expected, _ = run(tof_run(), steps, beam)
    for a, b in zip(values, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_steps_follow_one_another_as_if_called_by_hand() -> None:
    from scipy.ndimage import median_filter

    counts = tof_run().values.astype(float)
    corrected = np.empty_like(counts)
    for (first, last), triggers in zip(WINDOWS["shutter_windows"], WINDOWS["shutter_counts"], strict=True):
        for i in range(first, last + 1):
            corrected[i] = counts[i] / (1 - counts[first:i].sum(0) / triggers)
    corrected = corrected.astype(np.float32)
    median = median_filter(corrected, size=(1, 3, 3), mode="nearest")
    spots = np.abs(corrected - median) > 12
    cleaned = np.where(spots, median, corrected)
    expected = np.add.reduceat(cleaned[2:19].astype(float), range(0, 17, 3), axis=0)
    applied = apply_steps(tof_run(), STEPS[:4])
    np.testing.assert_allclose(applied.image.values, expected, rtol=1e-5)
    # a value within rounding of the threshold may fall either way
    assert (applied.masks["spots"].values != spots).mean() < 1e-4
    assert applied.image.attrs["quantity"] == "counts"


class Counting:
    """A lazy array that tells how much of it was read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype, self.ndim = values, values.shape, values.dtype, values.ndim
        self.bytes = 0

    def __getitem__(self, key):
        block = self.values[key]
        self.bytes += block.nbytes
        return block


def test_every_byte_is_read_once_but_for_the_halo() -> None:
    arrays = [Counting(tof_run(seed, shape=(20, 400, 17)).values) for seed in (0, 1)]
    stacks = []
    for array in arrays:
        source = Source(array, ("run.npy",), ("tof", "y", "x"), (1, 1, 17), {}, WINDOWS)
        stacks.append(as_stack(source, chunks=(-1, -1, -1)))
    steps = parse_steps(["overlap_correct", {"remove_spots": {"threshold": 9}}, "normalize"])
    applied = Engine(CPU, workers=1, block_bytes=4 * 20 * 17 * 100).apply(stacks[0], steps, open_beam=stacks[1])
    applied.image.values  # noqa: B018
    for array in arrays:
        assert array.values.nbytes < array.bytes <= array.values.nbytes * 1.03


def test_a_single_reference_frame_serves_every_bin() -> None:
    stack = tof_run().astype(np.float32)
    beam = xr.DataArray(np.full((3, 40, 17), 60, np.uint16), dims=("angle", "y", "x"))
    dark = xr.DataArray(np.full((40, 17), 10, np.uint16), dims=("y", "x"))
    applied = apply_steps(stack, ["normalize"], open_beam=beam, dark=dark)
    np.testing.assert_allclose(applied.image.values, (stack.values - 10) / 50, rtol=1e-6)
    assert applied.image.attrs["quantity"] == "transmission"


@settings(max_examples=15)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(1, 5000), st.integers(1, 3), st.booleans())
def test_the_cut_is_not_seen_in_an_average(n, height, block_bytes, workers, whole_counts) -> None:
    frames = np.random.default_rng(n).uniform(0, 60_000, (n, height, 17))
    frames = frames.astype(np.uint16 if whole_counts else np.float32)
    stack = xr.DataArray(frames, dims=("z", "y", "x")).chunk({"z": 2, "y": 7})
    engine = Engine(CPU, workers=workers, block_bytes=block_bytes)
    found = engine.refer(stack, [], reading=True).average()
    total = np.zeros((height, 17))
    for frame in frames:
        total += frame
    assert found.dims == ("y", "x") and found.dtype == np.float32
    np.testing.assert_array_equal(found.values, (total / n).astype(np.float32))
    rows = parse_steps([{"remove_spots": {"threshold": 1e6}}])
    np.testing.assert_array_equal(engine.refer(stack, rows, reading=True).average().values, found.values)


def test_the_dose_region_brings_open_beam_to_one() -> None:
    rng = np.random.default_rng(0)
    beam = rng.uniform(900, 1100, (30, 20)).astype(np.float32)
    doses = np.array([0.5, 0.8, 1.3], np.float32)
    transmission = np.ones((30, 20), np.float32)
    transmission[10:20, 5:15] = 0.4
    stack = xr.DataArray(beam * transmission * doses[:, None, None], dims=("angle", "y", "x"))
    applied = apply_steps(
        stack.chunk({"angle": 1}),
        [{"normalize": {"dose_roi": [0, 0, 4, 30]}}],
        open_beam=xr.DataArray(beam, dims=("y", "x")),
    )
    np.testing.assert_allclose(applied.image.values, np.broadcast_to(transmission, (3, 30, 20)), rtol=1e-5)


@pytest.mark.parametrize(
    "steps, references, message",
    [
        (["normalize"], {}, "needs an open beam; give input.open_beam"),
        ([{"normalize": {"dose_roi": [0, 0, 18, 5]}}], {"open_beam": tof_run(1)}, "frames are 17 wide and 40 high"),
        (["normalize"], {"open_beam": tof_run(1, shape=(20, 8, 17))}, "frames of 8x17 pixels, the sample of 40x17"),
        (["normalize"], {"open_beam": tof_run(1)[:7]}, "has 7 ToF bins, the sample 20"),
        (
            ["normalize"],
            {"open_beam": tof_run(1).drop_vars("tof").rename(tof="angle")},
            "has 20 frames without times, whose mean is no bin's of the sample's 20; put its",
        ),
        (
            [{"rebin_tof": {"factor": 2}}, "normalize"],
            {"open_beam": tof_run(1), "dark": tof_run(2)[0]},
            "dark current .* has no ToF bins, and rebin_tof has summed the sample's bins; let normalize come before it",
        ),
        (
            [{"overlap_correct": {"per_trigger": True}}, "normalize"],
            {"open_beam": tof_run(1), "dark": tof_run(2)[0]},
            "has no ToF bins, and overlap_correct has divided the sample by its triggers",
        ),
        (["normalize"], {"open_beam": later()}, "bin 19 begins at 0.0012 s, the sample's 0.00119 s; give a run"),
        (
            [{"rebin_tof": {"factor": 10}}, "normalize"],
            {"open_beam": tof_run(1)[1:].assign_attrs(shutter_windows=[[0, 5], [6, 18]])},
            "other time bins: bin 0 begins at 0.00101 s, the sample's 0.001 s",
        ),
        (
            [{"rebin_tof": {"factor": 10}}, "normalize"],
            {"open_beam": tof_run(1)[:-1].assign_attrs(shutter_windows=[[0, 6], [7, 18]])},
            "other time bins: bin 1 has a width of 0.00012 s, the sample's 0.00013 s",
        ),
        (
            [{"overlap_correct": {"per_trigger": True}}, {"normalize": {"dose_by_shutter_counts": True}}],
            {"open_beam": tof_run(1)},
            "overlap_correct has divided by the triggers",
        ),
        (["normalize", "normalize"], {"open_beam": tof_run(1)}, "works on counts, the stack holds transmission"),
        (["overlap_correct", "overlap_correct"], {}, "overlap_correct needs the whole run"),
        ([{"rebin_tof": {"factor": 2}}, "overlap_correct"], {}, "let no select_tof or rebin_tof come before"),
        (["scale_spectra", "overlap_correct"], {}, "works on raw counts, the stack holds scaled"),
        ([{"remove_spots": {"size": 4, "threshold": 1}}], {}, "size 4; allowed: odd"),
        ([{"remove_spots": {"threshold": np.inf}}], {}, "remove_spots got threshold inf; allowed: a finite number"),
    ],
)
def test_a_misused_step_is_told(steps, references, message) -> None:
    with pytest.raises(UserError, match=message):
        apply_steps(tof_run(), steps, **references)


def test_triggers_of_other_bins_are_told() -> None:
    by_triggers = [{"normalize": {"dose_by_shutter_counts": True}}]
    run, beam = (tof_run(seed).assign_attrs(bin_triggers=[7] * 20) for seed in (0, 1))
    with pytest.raises(UserError, match="the sample has 15 ToF bins, but triggers of 20; cut it with the step select_"):
        apply_steps(run[5:], by_triggers, open_beam=beam[5:])


@pytest.mark.parametrize(
    "stack, message",
    [
        (np.zeros((3, 4, 5)), "stack is a ndarray; allowed: an xarray.DataArray"),
        ("run/", "stack is a str; allowed: an xarray.DataArray"),
        (tof_run()[:0], r"stack: shape \(0, 40, 17\); needed"),
        (tof_run()[:, 3, 3], r"stack: shape \(20,\); needed: 2 or more"),
        (tof_run().expand_dims("angle"), r"stack has 4 axes \(1, 20, 40, 17\); allowed: 2 or 3"),
        (tof_run().astype(complex), "stack: values of type complex128; allowed: real numbers"),
    ],
)
def test_what_is_no_stack_is_told(stack, message: str) -> None:
    with pytest.raises(UserError, match=message):
        apply_steps(stack, [{"remove_spots": {"threshold": 1}}])
    with pytest.raises(UserError, match=message):
        cluster_stack(stack, n_clusters=2)
    with pytest.raises(UserError, match=message.replace("stack", "open_beam", 1)):
        apply_steps(tof_run(), ["normalize"], open_beam=stack)
    with pytest.raises(UserError, match="steps is a list; got NoneType"):
        apply_steps(tof_run(), None)


@pytest.mark.parametrize(
    "value, dtype, what",
    [
        (np.nan, np.float32, "nan (NaN)"),
        (np.inf, np.float32, "inf (Inf)"),
        (-3, np.int16, "-3 (negative)"),
        (65535, np.uint16, "65535 (saturated)"),
        (32767, np.int16, "32767 (saturated)"),
    ],
)
def test_a_bad_value_is_named_with_its_file_and_place(value, dtype, what) -> None:
    stack = tof_run().astype(dtype)
    stack.values[11, 30, 5] = value
    stack.attrs["files"] = [f"run_{i:05}.fits" for i in range(20)]
    steps = [{"rebin_tof": {"factor": 2}}]
    with pytest.raises(UserError) as error:
        apply_steps(stack.chunk({"y": 9}), steps).image.compute()
    assert f"run_00011.fits: frame 11, row 30, column 5 holds {what}" in str(error.value)
    assert "bad_values: keep" in str(error.value)
    engine = Engine(CPU, bad_values="keep")
    engine.apply(stack, parse_steps(steps)).image.compute()
    (line,) = engine.clock.findings()
    assert line.startswith("input: 1 ") and line.endswith("values kept")


@pytest.mark.parametrize("values", [[3e38, 3e38], [3e38, 3e38, -3e38, -3e38], [-3e38] * 3])
def test_values_whose_sum_overflows_are_not_bad(values: list[float]) -> None:
    block = np.array(values, np.float32).reshape(1, 1, -1)
    ValueCheck((), bad_values="error")(block, (slice(0, 1),) * 3)


@pytest.mark.parametrize(("dtype", "worked"), [(np.float16, np.float32), (bool, np.uint8)])
def test_masks_and_half_precision_are_worked_on_as_what_holds_them(dtype, worked) -> None:
    stack = tof_run()
    stack = stack.copy(data=(stack.values > 29) if dtype is bool else stack.values / 7).astype(dtype)
    steps = [{"remove_spots": {"threshold": 0.5}}, {"rebin_tof": {"factor": 2}}, "scale_spectra"]
    beam = tof_run(1, mean=60)
    for some in ([], steps[:1], steps, [*steps[:2], "normalize"]):
        found, _ = run(stack, some, beam)
        expected, _ = run(stack.astype(worked), some, beam)
        for each, same in zip(found, expected, strict=True):
            assert each.dtype == same.dtype and each.dtype != dtype or each.dtype == bool
            np.testing.assert_array_equal(each, same)
    assert run(stack, [], beam)[0][0].dtype == worked
    assert cluster_stack(stack, n_clusters=2).inertia == cluster_stack(stack.astype(worked), n_clusters=2).inertia


def test_each_engines_blocks_are_worked_on_by_its_own_kernels_in_other_processes_too(monkeypatch) -> None:
    took, real = [], Cpu.replace_spots
    monkeypatch.setattr(Cpu, "replace_spots", lambda self, *a, **k: took.append(self.kernels) or real(self, *a, **k))
    stack, steps = tof_run().chunk({"y": 9}), [{"remove_spots": {"threshold": 12}}]
    images = {kernels: apply_steps(stack, steps, kernels=kernels).image for kernels in ("auto", "library", "own")}
    expected = images["auto"].compute()
    for kernels, image in images.items():
        for each in (image, pickle.loads(pickle.dumps(image))):
            took.clear()
            np.testing.assert_array_equal(each.compute(), expected)
            assert set(took) == {"library" if kernels == "library" else "own"}


def test_clustering_from_python_needs_no_files() -> None:
    stack = tof_run()
    stack.values[:, :20] *= 3
    stack.values[::2, :20] //= 4
    found = cluster_stack(stack.chunk({"tof": 3, "y": 7}), n_clusters=2)
    assert len(np.unique(found.labels[:20])) == 1 and (found.labels[20:] != found.labels[0, 0]).all()
    with pytest.raises(UserError, match="n_clusters 700, the stack has 680 pixels"):
        cluster_stack(stack, n_clusters=700)
    with pytest.raises(UserError, match="then call cluster_stack"):
        apply_steps(stack, ["kmeans"])

"""The twins: same members, honest choice, and the loop that gives the GPU scikit-learn's k-means."""

from __future__ import annotations

import importlib.util
import pickle
import threading

import array_api_strict
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import median_filter
from sklearn.cluster import KMeans

from niseg_gpu.backend import (
    CPU,
    GPU,
    Cpu,
    Gpu,
    _say_other_is_taken,
    backend_of,
    iterate_lloyd,
    select,
    why_no_gpu,
    working_on,
)
from niseg_gpu.errors import UserError


def members(twin: type) -> set[str]:
    return {name for name in vars(twin) if not name.startswith("_")}


def test_twins_have_the_same_members() -> None:
    assert members(Cpu) == members(Gpu)
    assert set(CPU.uses) == set(GPU.uses)


def test_a_blocks_type_tells_its_twin() -> None:
    assert backend_of(np.zeros(2)) is CPU
    with pytest.raises(TypeError, match="array_api_strict"):
        backend_of(array_api_strict.zeros(2))


def test_cpu_is_chosen_when_asked_for() -> None:
    assert select("cpu") == (CPU, "asked for")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UserError, match="'cuda'; allowed: auto, cpu, gpu"):
        select("cuda")


def test_a_missing_gpu_is_told_by_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cuml" else real("sys") or real(name))
    assert why_no_gpu() == "cuml is not installed"
    with pytest.raises(UserError, match="cuml is not installed"):
        select("gpu")
    twin, reason = select("auto")
    assert twin is CPU and "cuml is not installed" in reason


def test_a_broken_driver_is_a_reason_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str):
            raise RuntimeError("cudaErrorInsufficientDriver:\n CUDA driver version is insufficient")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(vars(GPU), "xp", Broken())
    assert why_no_gpu() == "RuntimeError: cudaErrorInsufficientDriver: CUDA driver version is insufficient"


@pytest.fixture
def usable_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the choice believe in a GPU."""
    monkeypatch.setattr("niseg_gpu.backend.why_no_gpu", lambda: "")
    monkeypatch.setattr(Gpu, "why_no_own", lambda self: "")


@pytest.mark.usefixtures("usable_gpu")
def test_kernels_are_chosen_with_the_device() -> None:
    assert select("gpu")[0].uses["remove_spots"] == "cucim.skimage.filters.median"
    assert select("auto", kernels="own")[0].uses["remove_spots"].startswith("numba.cuda (own kernel)")
    assert select("cpu", kernels="own")[0] is CPU and select("gpu", kernels="library")[0] is GPU
    assert select("auto")[0].kernels == "library"
    assert select("cpu", kernels="library")[0].uses["kmeans"] == "sklearn.cluster.KMeans (lloyd)"
    assert select("cpu")[0].uses["kmeans"] == "numba (own kernel)"
    with pytest.raises(UserError, match="kernels is 'fast'; allowed: auto, library, own"):
        select("cpu", kernels="fast")


@pytest.mark.usefixtures("usable_gpu")
def test_one_choice_of_kernels_does_not_disturb_another() -> None:
    chosen = [select(device, kernels=kernels)[0] for device in ("cpu", "gpu") for kernels in ("own", "library", "auto")]
    for twin, kernels in zip(chosen, ("own", "library", "own", "own", "library", "library"), strict=True):
        assert twin.kernels == kernels
        again = pickle.loads(pickle.dumps(twin))
        assert again == twin and hash(again) == hash(twin) and again.kernels == kernels
        with pytest.raises(AttributeError):
            twin.kernels = "auto"
    assert len(set(chosen)) == 4 and (CPU.kernels, GPU.kernels) == ("own", "library")


def test_what_was_imported_does_not_travel() -> None:
    twin = Gpu("own")
    vars(twin).update(xp=threading.Lock())
    assert vars(pickle.loads(pickle.dumps(twin))) == {"kernels": "own"}


def test_blocks_go_to_the_twin_at_work_in_their_thread() -> None:
    block, there = np.zeros(2), []
    with working_on(Cpu("library")):
        assert backend_of(block) == Cpu("library")
        other = threading.Thread(target=lambda: there.append(backend_of(block)))
        other.start()
        other.join()
        with working_on(GPU):
            assert backend_of(block) is CPU  # a block of the host is none of the GPU's
        assert backend_of(block) == Cpu("library")
    assert there == [CPU] and backend_of(block) is CPU


@pytest.mark.usefixtures("usable_gpu")
def test_own_kernels_need_a_gpu_that_numba_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gpu, "why_no_own", lambda self: "numba can't use the GPU; install numba-cuda")
    assert select("gpu")[0] is GPU
    with pytest.raises(UserError, match="numba can't use the GPU; install numba-cuda or say kernels: library"):
        select("gpu", kernels="own")


def test_what_our_kernel_lacks_goes_to_the_library_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    twin, frames = Gpu("own"), np.random.default_rng(0).integers(0, 9, (3, 8, 8)).astype(float)
    vars(twin).update(xp=np, _median=median_filter)
    _say_other_is_taken.cache_clear()
    settings = {"size": (1, 3, 3), "threshold": 2.0, "kind": "both"}
    with caplog.at_level("WARNING", logger="niseg_gpu"):
        for _ in range(2):
            for ours, theirs in zip(
                twin.clean_spots(frames, **settings), CPU.clean_spots(frames, **settings), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)
    assert [r.getMessage() for r in caplog.records] == [
        "kernels is own, but not for this median: it has no 1 x 3 x 3 of float64; cuCIM's is taken"
    ]


@pytest.mark.parametrize("dtype", [">u2", ">i2", ">i4", ">f4", ">f8", ">u8", "<i2", "u1"])
def test_any_byte_order_comes_in(dtype: str) -> None:
    """On the GPU the bytes travel as they are; NumPy stands in for CuPy."""
    values = np.random.default_rng(1).integers(0, 120, (2, 5, 3)).astype(dtype)
    values[0, 0, :2] = [-3 if values.dtype.kind != "u" else 3, 100]
    twin, given = Gpu(), []
    vars(twin).update(xp=type("Cupy", (), {"asarray": lambda a: given.append(a) or np.array(a)}))
    for block in (values, values[:, ::2], values[:0]):
        for device in (CPU, twin):
            kept, here = block.copy(), device.from_host(block)
            assert here.dtype == block.dtype.newbyteorder("=") and here.dtype.isnative
            np.testing.assert_array_equal(here, kept)
            np.testing.assert_array_equal(block, kept)
    assert all(a.dtype.isnative and a.itemsize == values.itemsize for a in given)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [">u2", ">i2", ">i4", ">f4", ">f8"])
def test_any_byte_order_comes_to_the_device(backend, dtype: str) -> None:
    values = np.random.default_rng(1).integers(0, 30000, (3, 50, 41)).astype(dtype)
    np.testing.assert_array_equal(backend.to_host(backend.from_host(values)), values)


@pytest.mark.gpu
def test_the_gpu_describes_itself(backend) -> None:
    assert backend.describe()


@given(
    hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=3, max_side=9), elements=st.integers(0, 500)),
    st.integers(1, 1000),
)
def test_overlap_kernels_agree_with_the_formula(counts, triggers) -> None:
    from niseg_gpu.kernels.overlap import correct_window_cpu, correct_window_xp

    first, last = len(counts) // 3, len(counts) - 1
    earlier = np.cumsum(counts[first:], axis=0, dtype=float) - counts[first:]
    live = np.maximum(1 - earlier / triggers, 1 / triggers)
    expected = counts[first:] / live
    window = {"first": first, "last": last, "triggers": triggers, "scale": 1.0}
    for correct in (correct_window_cpu, lambda *a, **k: correct_window_xp(*a, xp=np, **k)):
        out = np.zeros(counts.shape, np.float32)
        spent = correct(counts, out, **window)
        # 1 - P loses digits in float32 as P nears 1
        np.testing.assert_allclose(out[first:], expected, rtol=1e-6 * triggers + 1e-5)
        assert (out[:first] == 0).all()
        assert spent.shape == counts.shape[1:]


def test_the_gpus_overlap_runs_on_a_strict_array_api() -> None:
    from niseg_gpu.kernels.overlap import correct_window_cpu, correct_window_xp

    xp, counts = array_api_strict, np.random.default_rng(0).integers(0, 9, (12, 4, 5)).astype(np.uint16)
    expected, window = np.zeros(counts.shape, np.float32), {"first": 2, "last": 10, "triggers": 100, "scale": 0.01}
    correct_window_cpu(counts, expected, **window)
    device = xp.Device("device1")  # reading it as a NumPy array raises, as CuPy's do
    out = xp.zeros(counts.shape, dtype=xp.float32, device=device)
    correct_window_xp(xp.asarray(counts, device=device), out, xp=xp, **window)
    with pytest.raises(RuntimeError):
        np.asarray(out)
    np.testing.assert_allclose(np.asarray(out.to_device(xp.Device("CPU_DEVICE"))), expected, rtol=1e-6)


def iterate_with_sklearn(pixels, start):
    """What cuML does in one call of one iteration, done by scikit-learn."""
    model = KMeans(len(start), init=start, n_init=1, max_iter=1, tol=0).fit(pixels)
    labels = model.predict(pixels)
    return model.cluster_centers_, labels, float(model.inertia_)


@pytest.mark.filterwarnings("ignore:.*convergence:UserWarning")
@pytest.mark.parametrize("max_iter, tol", [(1, 0.0), (4, 0.0), (300, 0.0), (300, 1e-4), (300, 1e-2)])
def test_one_iteration_a_call_ends_where_sklearn_ends(max_iter: int, tol: float) -> None:
    rng = np.random.default_rng(1)
    centres = rng.uniform(1000, 1300, (5, 30))
    pixels = (centres[rng.integers(0, 5, 4000)] + rng.normal(0, 60, (4000, 30))).astype(np.float32)
    start = pixels[rng.choice(4000, 5, replace=False)].copy()
    kept = pixels.copy()
    ours = iterate_lloyd(np, iterate_with_sklearn, pixels, centroids=start, max_iter=max_iter, tol=tol)
    theirs = KMeans(5, init=start, n_init=1, max_iter=max_iter, tol=tol).fit(kept)
    assert (ours.labels == theirs.labels_).mean() > 0.9995
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, rtol=1e-4)
    np.testing.assert_allclose(pixels, kept, rtol=1e-6)


def iterate_keeping_empty(pixels, start):
    """One iteration as cuML does it: an empty cluster keeps its centroid."""
    start = np.asarray(start)
    labels = ((pixels[:, None] - start) ** 2).sum(2).argmin(1)
    new = np.stack([pixels[labels == k].mean(0) if (labels == k).any() else start[k] for k in range(len(start))])
    labels = ((pixels[:, None] - new) ** 2).sum(2).argmin(1)
    return new.astype(np.float32), labels, float(((pixels - new[labels]) ** 2).sum())


def test_an_empty_cluster_is_refilled() -> None:
    pixels = np.array([[0.0], [0.1], [5.0], [5.1], [9.0]], np.float32)
    start = np.array([[0.0], [5.0], [1000.0]], np.float32)
    found = iterate_lloyd(np, iterate_keeping_empty, pixels.copy(), centroids=start, max_iter=20, tol=0)
    assert sorted(np.bincount(found.labels, minlength=3)) == [1, 2, 2]


@given(hnp.arrays(np.float32, (30, 7), elements=st.floats(-1e3, 1e3, width=32)), st.integers(1, 5))
def test_sums_by_label_agree(rows, n_labels) -> None:
    from niseg_gpu.kernels.sums import sum_by_label_cpu, sum_by_label_xp

    labels = (np.arange(30, dtype=np.int32) * 7) % n_labels
    expected = np.stack([rows[labels == k].sum(0, dtype=float) for k in range(n_labels)])
    on_device = [array_api_strict.asarray(a, device=array_api_strict.Device("CPU_DEVICE")) for a in (rows, labels)]
    for found in (
        sum_by_label_cpu(rows, labels, n_labels=n_labels),
        sum_by_label_xp(rows, labels, xp=np, n_labels=n_labels, block=7),
        sum_by_label_xp(*on_device, xp=array_api_strict, n_labels=n_labels, block=30),
    ):
        np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("dtype, kept", [("float32", "float32"), ("int16", "float32"), ("uint16", "uint16")])
@given(st.data())
def test_writing_spectra_is_a_transpose(dtype, kept, data) -> None:
    bins, pixels = data.draw(st.integers(1, 80)), data.draw(st.integers(1, 300))
    block = np.random.default_rng(0).integers(0, 30_000, (bins, pixels)).astype(dtype)
    for rows in (np.zeros((pixels, bins), kept), np.zeros((pixels, bins + 3), kept)[:, 1:-2]):
        CPU.write_spectra(block, rows)
        np.testing.assert_array_equal(rows, block.T)

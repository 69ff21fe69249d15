"""An honest choice of the device, and of kernels that no other choice disturbs; then the data are followed."""

from __future__ import annotations

import importlib.util
import pickle
import threading
import warnings
from types import SimpleNamespace
from typing import Any

import array_api_strict
import numpy as np
import pytest

from niseg_gpu.backend import CPU, GPU, Cpu, Gpu, backend_of, select, why_no_gpu, working_on
from niseg_gpu.errors import UserError


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


@pytest.mark.parametrize(("value", "refused"), [("1", True), ("0", False), ("", False)])
def test_a_stream_for_each_thread_is_refused(monkeypatch: pytest.MonkeyPatch, value: str, refused: bool) -> None:
    """Threads that read ahead, and those that fill the table of k-means, hand on what is not done yet."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM", value)
    assert (why_no_gpu() == "CUPY_CUDA_PER_THREAD_DEFAULT_STREAM gives each thread a stream of its own; unset it") is (
        refused
    )


def test_a_broken_driver_is_a_reason_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str):
            raise RuntimeError("cudaErrorInsufficientDriver:\n CUDA driver version is insufficient")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(vars(GPU), "xp", Broken())
    assert why_no_gpu() == "RuntimeError: cudaErrorInsufficientDriver: CUDA driver version is insufficient"


def test_what_a_library_says_of_its_future_is_no_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where warnings are errors, as they are here."""

    class Old:
        zeros = np.zeros

        @property
        def cuda(self) -> SimpleNamespace:
            warnings.warn("will be gone soon", DeprecationWarning, stacklevel=1)
            return cuda_on(0)

    believe_in(Old(), monkeypatch)
    with pytest.warns(DeprecationWarning, match="will be gone soon"):
        assert why_no_gpu() == ""


def cuda_on(device: int) -> SimpleNamespace:
    """CuPy's CUDA with two devices, one of them the current one."""
    return SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 2), Device=lambda: SimpleNamespace(id=device))


def believe_in(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name, part in {"xp": xp, "_median": 0, "_kmeans": 0, "_neighbors": 0}.items():
        monkeypatch.setitem(vars(GPU), name, part)


def test_a_device_that_threads_would_not_begin_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    believe_in(SimpleNamespace(zeros=np.zeros, cuda=cuda_on(1)), monkeypatch)
    with pytest.raises(UserError, match="current device is 1, .* name one in CUDA_VISIBLE_DEVICES; mend that or say"):
        select("gpu")


@pytest.fixture
def usable_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the choice believe in a GPU."""
    monkeypatch.setattr("niseg_gpu.backend.choose.why_no_gpu", lambda: "")
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

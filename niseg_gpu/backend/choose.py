"""Which twin: chosen once for a run, then told by each block's own type."""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

from niseg_gpu.backend.cpu import Cpu
from niseg_gpu.backend.gpu import Gpu
from niseg_gpu.errors import UserError

log = logging.getLogger(__name__)

OWN_STREAMS = "CUPY_CUDA_PER_THREAD_DEFAULT_STREAM"  # of CuPy

CPU, GPU = Cpu(), Gpu()
TWINS: dict[str, Any] = {"numpy": CPU, "cupy": GPU}
_at_work: ContextVar[Any] = ContextVar("at_work", default=None)


def backend_of(block: Any) -> Any:
    """Return the twin that `block` lives on, by the block's own type: the one at work where it is of that device."""
    root = type(block).__module__.partition(".")[0]
    if root not in TWINS:
        raise TypeError(f"block is a {type(block).__module__}.{type(block).__name__}; allowed: numpy or cupy arrays")
    twin, at_work = TWINS[root], _at_work.get()
    return at_work if at_work is not None and at_work.name == twin.name else twin


@contextmanager
def working_on(twin: Any) -> Iterator[None]:
    """Inside, this thread's blocks of the twin's device are worked on by it, with the kernels chosen for it."""
    token = _at_work.set(twin)
    try:
        yield
    finally:
        _at_work.reset(token)


def select(device: str = "auto", *, kernels: str = "auto") -> tuple[Any, str]:
    """Choose the device, once, at the edge.

    Parameters
    ----------
    device : {"auto", "cpu", "gpu"}
    kernels : {"auto", "library", "own"}
        What is taken where both are there; auto takes our own on the CPU and the library's on a GPU.

    Returns
    -------
    twin : Cpu or Gpu
    reason : str
        Why this one, in words.

    Raises
    ------
    UserError
        ``gpu`` was demanded and none can be used, or ``own`` on a GPU that numba can't use.
    """
    if device not in ("auto", "cpu", "gpu"):
        raise UserError(f"device is {device!r}; allowed: auto, cpu, gpu")
    if device == "cpu":
        return with_kernels(CPU, kernels), "asked for"
    missing = why_no_gpu()
    if not missing:
        return with_kernels(GPU, kernels), "asked for" if device == "gpu" else "a usable GPU was found"
    if device == "gpu":
        remedy = "install the gpu extra on a GPU node" if missing.endswith("is not installed") else "mend that"
        raise UserError(f"device is gpu, but no GPU can be used: {missing}; {remedy} or say device: auto")
    twin = with_kernels(CPU, kernels)
    log.info("running on the CPU: %s", missing)
    return twin, f"no GPU can be used: {missing}"


def with_kernels(twin: Any, kernels: str) -> Any:
    """Return the twin that takes these kernels, as `select` knows them; the one given stays as it is."""
    if kernels not in ("auto", "library", "own"):
        raise UserError(f"kernels is {kernels!r}; allowed: auto, library, own")
    kernels = type(twin).kernels if kernels == "auto" else kernels
    missing = twin.why_no_own() if kernels == "own" else ""
    if missing:
        raise UserError(f"kernels is own, but {missing} or say kernels: library")
    return twin if twin.kernels == kernels else replace(twin, kernels=kernels)


def why_no_gpu() -> str:
    """Return why the GPU twin can't run here, or an empty string where it can."""
    for package in ("cupy", "cucim", "cuml"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if os.environ.get(OWN_STREAMS, "0") not in ("", "0"):
        # a block is begun in one thread and gone on with in another, in the order of the stream that they share
        return f"{OWN_STREAMS} gives each thread a stream of its own; unset it"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # what a library says of another one's future, whoever makes errors of it
            if GPU.xp.cuda.runtime.getDeviceCount() == 0:
                return "no CUDA device"
            current = GPU.xp.cuda.Device().id
            if current != 0:  # threads that are still to come begin on device 0
                return f"CuPy's current device is {current}, and threads begin on 0; name one in CUDA_VISIBLE_DEVICES"
            GPU.xp.zeros(1).sum().item()
            _ = GPU._median, GPU._kmeans, GPU._neighbors
    except Exception as error:  # drivers and loaders fail in ways of their own; the reason is passed on in words
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return ""

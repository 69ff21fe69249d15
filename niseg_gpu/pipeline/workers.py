"""Other processes that k-means may go to: one for each GPU of this machine, or the workers of a Dask scheduler."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from niseg_gpu.backend import select, why_no_gpu
from niseg_gpu.errors import UserError
from niseg_gpu.kmeans.spread import collect

if TYPE_CHECKING:
    from niseg_gpu.pipeline.parse import Compute

GPUS = "gpus"
PATIENCE_S = 30
ALLOWED = f"allowed: {GPUS}, an address such as tcp://node1:8786, the .json file of a scheduler"


@contextmanager
def open_workers(cluster: str, *, device: str = "auto", kernels: str = "auto") -> Iterator[Any]:
    """Connect to workers. Meanwhile `KMeans` holds the chunks of Dask arrays there, and goes over them there.

    Parameters
    ----------
    cluster : str
        ``gpus``: a ``LocalCUDACluster``, a worker for each GPU that this process may see (``CUDA_VISIBLE_DEVICES``).
        Else the address of a scheduler (``tcp://node1:8786``), or the file that it writes (``--scheduler-file``,
        ``.json``).
    device : {"auto", "cpu", "gpu"}
        That each worker is to have.
    kernels : {"auto", "library", "own"}
        That each worker is to take.

    Yields
    ------
    distributed.Client
        Dask's default one inside.

    Raises
    ------
    UserError
        Nobody answers, no worker comes in half a minute, or one has no such device or another version of this package.

    Examples
    --------
    >>> with open_workers("gpus"):  # doctest: +SKIP
    ...     labels = niseg_gpu.KMeans(4, random_state=0).fit_predict(dask_array)
    """
    if cluster == GPUS:
        with _start_on_gpus(device) as started, _connect(started) as client:
            check_workers(client, device="gpu", kernels=kernels)
            yield client
        return
    with _connect(_find_scheduler(cluster)) as client:
        check_workers(client, device=device, kernels=kernels)
        yield client


@contextmanager
def workers_of(compute: Compute) -> Iterator[Any]:
    """The client of the workers that a pipeline names, None where it names none."""
    if compute.cluster is None:
        yield None
        return
    with open_workers(compute.cluster, device=compute.device, kernels=compute.kernels) as client:
        yield client


def check_cluster(compute: Compute) -> None:
    """Refuse what can't be workers, without asking any."""
    if compute.cluster == GPUS:
        _check_gpus(compute.device)
    elif compute.cluster is not None:
        _find_scheduler(compute.cluster)


def _check_gpus(device: str) -> None:
    if device == "cpu":
        raise UserError(f"cluster is {GPUS}, but device is cpu; say device: auto, or leave cluster out")
    missing = why_no_gpu()
    if missing:
        raise UserError(f"cluster is {GPUS}, but no GPU can be used: {missing}; leave cluster out")


@contextmanager
def _start_on_gpus(device: str) -> Iterator[Any]:
    _check_gpus(device)
    try:
        from dask_cuda import LocalCUDACluster
    except ImportError:
        raise UserError(f"cluster is {GPUS}, but dask-cuda is not installed; install the gpu extra") from None
    with LocalCUDACluster(dashboard_address=None) as started:
        yield started


def _find_scheduler(cluster: str) -> str:
    """Refuse what is no address, and a file that isn't there, which would be waited for."""
    if cluster.endswith(".json"):
        if not Path(cluster).is_file():
            raise UserError(f"cluster is {cluster}: no such file; {ALLOWED}")
        try:
            found = json.loads(Path(cluster).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or "address" not in found:
            raise UserError(f"cluster is {cluster}, which no scheduler wrote: it holds no address; {ALLOWED}")
    elif "://" not in cluster:
        raise UserError(f"cluster is {cluster!r}; {ALLOWED}")
    return cluster


@contextmanager
def _connect(where: Any) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError:
        raise UserError("cluster needs distributed, which is not installed; install the hpc extra") from None
    named = isinstance(where, str)
    how = {"scheduler_file": where} if named and where.endswith(".json") else {"address": where}
    try:
        client = Client(**how, timeout=PATIENCE_S)
    except (OSError, ValueError) as error:  # a timeout is an OSError
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"cluster is {where}, but no scheduler answers there ({why}); {ALLOWED}") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE_S)
        except TimeoutError:
            raise UserError(
                f"the scheduler at {where} has no worker, nor got one in {PATIENCE_S} s; start some"
            ) from None
        yield client


def check_workers(client: Any, *, device: str, kernels: str) -> None:
    """Refuse workers that lack the device, or have another version of this package or none."""
    here = importlib.metadata.version("niseg-gpu")
    for worker, found in describe_workers(client, device=device, kernels=kernels).items():
        if found["version"] != here:
            raise UserError(f"worker {worker} has niseg-gpu {found['version']}, here is {here}; install the same there")


def describe_workers(client: Any, *, device: str, kernels: str) -> dict[str, dict[str, str]]:
    """What each worker has, by its address: version of this package, device, hardware, kernels."""
    workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
    jobs = {w: client.submit(_describe, device, kernels, workers=[w], pure=False) for w in workers}
    try:
        # a worker that can't load this package ends, as one without memory does
        return collect(client, jobs, workers=workers, mend="asked for its device; install the same niseg-gpu there")
    except UserError as error:
        raise UserError(f"of the workers: {error}") from None
    except Exception as error:  # whatever is missing there: this package first of all
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"the workers can't do the work ({why}); install the same niseg-gpu there") from None


def tell_workers(compute: Compute) -> list[str]:
    """A line on the workers that a pipeline names; they are connected to, or started, to see that they are there."""
    with workers_of(compute) as client:
        if client is None:
            return []
        found = describe_workers(client, device=compute.device, kernels=compute.kernels).values()
    devices = ", ".join(sorted({f"{worker['device']}: {worker['hardware']}" for worker in found}))
    return [f"cluster {compute.cluster}: {len(found)} workers ({devices})"]


def _describe(device: str, kernels: str) -> dict[str, str]:
    backend, _ = select(device, kernels=kernels)
    version = importlib.metadata.version("niseg-gpu")
    return {
        "version": version, "device": backend.name, "hardware": backend.describe(), "kernels": backend.kernels
    }  # fmt: skip

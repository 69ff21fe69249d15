"""What a row was measured on and with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from niseg_gpu.backend import count_cores
from niseg_gpu.pipeline.info import describe_machine

DRIVER = Path("/proc/driver/nvidia/version")
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def describe_conditions(*, kernels: str = "auto") -> dict[str, Any]:
    """Return date, hardware, threads, library versions and the revision of the sources."""
    machine = describe_machine(kernels=kernels)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": machine["devices"]["cpu"],
        "gpu": machine["devices"]["gpu"],
        "driver": read_driver() if machine["devices"]["gpu"] else None,
        "device": machine["auto_takes"],
        "kernels": kernels,
        "cores": count_cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": _count_threads(),
        "uses": machine["steps"],
        "versions": {**machine["versions"], **_peers(), "niseg-gpu": importlib.metadata.version("niseg-gpu")},
        "revision": _revision(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def read_driver(path: Path = DRIVER) -> str | None:
    """The version of NVIDIA's driver, where Linux tells it."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return found[1] if found else None


def _count_threads() -> dict[str, Any]:
    """Threads of every library with threads of its own, and what the environment says of them."""
    import sklearn.utils._openmp_helpers  # noqa: F401  loads the OpenMP that scikit-learn uses
    from threadpoolctl import threadpool_info

    pools = {f"{pool['internal_api']} ({pool['prefix']})": pool["num_threads"] for pool in threadpool_info()}
    return {
        "workers": count_cores(),
        **pools,
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _peers() -> dict[str, str]:
    """Versions of those compared with, where they are there."""
    found = {}
    for name, package in {"opencv": "opencv-python-headless", "torch": "torch"}.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _revision() -> str | None:
    """The commit of the sources, ``-dirty`` where they were changed since; None outside of a checkout."""
    here = Path(__file__).parent
    if not (here.parent / "pyproject.toml").is_file():  # installed, maybe within a repository of somebody else
        return None
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None

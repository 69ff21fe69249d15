"""How JAX is set up before it is first used: which device, whose memory, where compiled programs are kept."""

from __future__ import annotations

import hashlib
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

from niseg_gpu.errors import UserError

log = logging.getLogger(__name__)


@cache
def start_jax(cpu: str) -> Any:
    """Import JAX, set up once; what the user has set up already stays.

    JAX takes memory as it needs it, and not three quarters of a GPU at once: CuPy works on the same one. Compiled
    programs are kept in a folder, one for each kind of processor, as homes are shared by the nodes of a cluster.

    Parameters
    ----------
    cpu : str
        Name of the processor.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    folder = cache_folder(cpu)
    if jax.config.jax_compilation_cache_dir is None and folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    return jax


def cache_folder(cpu: str) -> Path | None:
    """Return the folder of compiled programs, made where it is missing; None where there can't be one."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "niseg_gpu" / "xla" / hashlib.sha256(f"{cpu} {_cpu_flags()}".encode()).hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.info("compiled programs are not kept: %s can't be made (%s)", folder, error.strerror)
        return None
    return folder if os.access(folder, os.W_OK) else None


def _cpu_flags() -> str:
    """What the processor can do, where Linux tells: a program compiled for more would not run."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def find_gpu(jax: Any, number: int) -> Any:
    """Return JAX's device of a GPU's number.

    Raises
    ------
    UserError
        JAX has no such device.
    """
    try:
        return next(device for device in jax.devices("gpu") if device.local_hardware_id == number)
    except (RuntimeError, StopIteration) as error:
        reason = " ".join(str(error).split())[:150] or f"none has the number {number}"
        raise UserError(
            f"JAX, which computes U-Nets, finds no GPU ({reason}); install jax[cuda13] (the gpu extra), "
            "or say device: cpu"
        ) from None


def free_host_bytes() -> int:
    """Memory that new programs can have without swapping."""
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return int(line.split()[1]) * 1024
    except OSError:
        log.debug("no /proc/meminfo: taking half of all memory for free")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2

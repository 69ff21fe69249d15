"""How JAX is set up before it is first used: which device, whose memory, where compiled programs are kept."""

from __future__ import annotations

import hashlib
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from niseg_gpu.errors import UserError

SHARE = 0.75  # of a GPU's memory that JAX holds at most, by its own default; arrays always find the rest
# devices that share a batch wait for each other: XLA ends the program after 40 s, a stopped or crowded one too
PATIENCE = {
    "--xla_cpu_collective_call_terminate_timeout_seconds": 10**6,
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds": 600,
}

log = logging.getLogger(__name__)
_found: dict[int, Any] = {}  # devices that JAX was started on, by number


class Pool(NamedTuple):
    """Bytes of a GPU's memory that JAX holds, what of it nothing uses, and what it may hold at most."""

    held: int
    idle: int
    most: int


@cache
def start_jax(cpu: str, *, devices: int = 1) -> Any:
    """Import JAX, set up once; what the user has set up already stays.

    JAX takes memory as it needs it, and not three quarters of a GPU at once: CuPy works on the same one. Compiled
    programs are kept in a folder, one for each kind of processor, as homes are shared by the nodes of a cluster.

    Parameters
    ----------
    cpu : str
        Name of the processor.
    devices : int
        Into which JAX parts the processor; what it has begun with stays.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if devices > 1:
        missing = [f"{name}={seconds}" for name, seconds in PATIENCE.items() if name not in given]
        os.environ["XLA_FLAGS"] = " ".join([*missing, given]).strip()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    folder = cache_folder(cpu)
    if jax.config.jax_compilation_cache_dir is None and folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if devices > 1 and jax.config.jax_num_cpu_devices < 0 and "host_platform_device_count" not in given:
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError:
            log.debug("JAX has begun: the processor stays one device")
    return jax


def cache_folder(cpu: str) -> Path | None:
    """Return the folder of compiled programs, made where it is missing; None where there can't be one."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # of a user without a name, as in containers
        log.info("compiled programs are not kept: there is no home folder")
        return None
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
        _found[number] = next(device for device in jax.devices("gpu") if device.local_hardware_id == number)
        return _found[number]
    except (RuntimeError, StopIteration) as error:
        reason = " ".join(str(error).split())[:150] or f"none has the number {number}"
        raise UserError(
            f"JAX, which computes U-Nets, finds no GPU ({reason}); install jax[cuda13] (the gpu extra), "
            "or say device: cpu"
        ) from None


def read_pool(number: int, *, total: int) -> Pool:
    """Return what JAX holds of a GPU of `total` bytes; where it was not started there, nothing, and its limit."""
    stats = _found[number].memory_stats() if number in _found else None
    if not stats:  # not started, or told to keep nothing
        return Pool(0, 0, int(total * read_share()))
    used = stats["bytes_in_use"]
    held = max(used, stats.get("pool_bytes", 0) or stats.get("peak_bytes_in_use", 0))
    return Pool(held, held - used, stats["bytes_limit"])


def read_share() -> float:
    """Return the share of a GPU's memory that JAX is allowed."""
    given = (os.environ.get(name) for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"))
    return float(next(filter(None, given), SHARE))


def takes_all_at_once() -> bool:
    """Whether JAX was told to take its share of a GPU's memory when it starts; `start_jax` tells it not to."""
    return os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false") not in ("false", "False", "0")


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

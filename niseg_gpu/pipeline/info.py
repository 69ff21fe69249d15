"""What this machine has, and which library each step would use on it."""

from __future__ import annotations

from typing import Any

from niseg_gpu.backend import CPU, GPU, select, why_no_gpu
from niseg_gpu.pipeline.run import versions
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.xla import takes_all_at_once


def describe_machine(*, kernels: str = "auto") -> dict[str, Any]:
    """Return devices, versions and the choice per step, ready for JSON; `kernels` as `select` takes it."""
    missing = why_no_gpu()
    twin, reason = select("auto", kernels=kernels)
    rest = twin.uses["everything else"]
    return {
        "devices": {"cpu": CPU.describe(), "gpu": GPU.describe() if not missing else None},
        "gpu_unusable_because": missing or None,
        "auto_takes": twin.name,
        "because": reason,
        "memory": _describe_memory(GPU) if not missing else None,
        "steps": {name: twin.uses.get(name, rest) for name in OPS},
        "versions": versions(),
    }


def _describe_memory(twin: Any) -> dict[str, Any]:
    """A GPU's memory in bytes, and how arrays (CuPy) and networks (JAX) share it."""
    budget = twin.read_budget()
    most, at_once = budget.networks_most, takes_all_at_once()
    return {"total": budget.total, "free": budget.free, "networks_most": most, "networks_take_all_at_once": at_once}


def _format_memory(memory: dict[str, Any]) -> str:
    total, free, most = (memory[name] / 2**30 for name in ("total", "free", "networks_most"))
    taken = "at their start" if memory["networks_take_all_at_once"] else "at most, as they need it"
    return (
        f"{free:.1f} of the GPU's {total:.1f} GiB are free; arrays (CuPy) and networks (JAX) share them, "
        f"networks take {most:.1f} GiB {taken}"
    )


def format_machine(machine: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"cpu      {machine['devices']['cpu']}"]
    lines.append(f"gpu      {machine['devices']['gpu'] or 'none: ' + str(machine['gpu_unusable_because'])}")
    if machine["memory"]:
        lines.append(f"memory   {_format_memory(machine['memory'])}")
    lines += [f"auto     takes the {machine['auto_takes']}", "", "step              uses"]
    lines += [f"{name:<17} {library}" for name, library in machine["steps"].items()]
    lines += ["", "library           version"]
    lines += [f"{name:<17} {version}" for name, version in machine["versions"].items()]
    return "\n".join(lines)

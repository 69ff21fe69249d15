"""What this machine has, and which library each step would use on it."""

from __future__ import annotations

from typing import Any

from niseg_gpu.backend import CPU, GPU, select, why_no_gpu
from niseg_gpu.pipeline.run import versions
from niseg_gpu.pipeline.steps import OPS


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
        "steps": {name: twin.uses.get(name, rest) for name in OPS},
        "versions": versions(),
    }


def format_machine(machine: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"cpu      {machine['devices']['cpu']}"]
    lines.append(f"gpu      {machine['devices']['gpu'] or 'none: ' + str(machine['gpu_unusable_because'])}")
    lines += [f"auto     takes the {machine['auto_takes']}", "", "step              uses"]
    lines += [f"{name:<17} {library}" for name, library in machine["steps"].items()]
    lines += ["", "library           version"]
    lines += [f"{name:<17} {version}" for name, version in machine["versions"].items()]
    return "\n".join(lines)

"""Peak memory of one side of a measurement, in a process of its own that does nothing else.

``python -m benchmarks.memory kmeans.Fit ours '["full", "65536 x 661, k 10"]'`` sets the benchmark up, has the side do
its work on small data, so that libraries are loaded and threads started, forgets what was the most memory until then,
runs ``peakmem_ours`` and prints as JSON what came on top.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import niseg_gpu

from .clock import DEVICES

CLEAR = Path("/proc/self/clear_refs")  # Linux alone lets a process forget its peak


def with_memory(*sides: str) -> Callable[[type], type]:
    """Give a class ``peakmem_SIDE`` for these of its sides: the work of ``time_SIDE``, looked at for its memory.

    asv takes the peak of its own process for the answer, in which the benchmark was set up too; `measure_peak` tells
    what the work takes besides.
    """

    def add(kind: type) -> type:
        for side in sides:
            setattr(kind, f"peakmem_{side}", _run_again(side))
        return kind

    return add


def _run_again(side: str) -> Callable[..., None]:
    def peakmem(self: Any, *values: Any) -> None:
        getattr(self, f"time_{side}")(*values)

    peakmem.__name__ = f"peakmem_{side}"
    return peakmem


def measure_peak(name: str, side: str, values: Sequence[Any]) -> dict[str, float]:
    """Memory that a side takes beyond what its set-up holds, for its row.

    Parameters
    ----------
    name : str
        Of the benchmark, as ``niseg-gpu bench`` takes it.
    side : str
    values : sequence
        Of its parameters.

    Returns
    -------
    dict of str to float
        ``peak_memory_gb``, of the host; on a GPU also ``peak_device_memory_gb``. Empty where no system tells it.
    """
    if not CLEAR.exists():
        return {}
    command = [sys.executable, "-P", "-m", f"{__package__}.memory", name, side, json.dumps(list(values))]
    done = subprocess.run(command, env=sources_first(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{side} ended with status {done.returncode}: {done.stderr.strip()[-200:]}")
    return json.loads(done.stdout.splitlines()[-1])


def sources_first() -> dict[str, str]:
    """The environment in which another process finds the package that this one uses."""
    path = [str(Path(niseg_gpu.__path__[0]).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path)}


def main() -> None:
    from .runner import find_benchmarks

    name, side, values = *sys.argv[1:3], json.loads(sys.argv[3])
    (kind,) = find_benchmarks([name])
    device = DEVICES[os.environ.get("NISEG_BENCH_DEVICE", "cpu")]
    first = values if getattr(kind, "compiles", False) else ["small", *values[1:]]
    _start(kind, side, first)()
    work = _start(kind, side, values)
    gc.collect()
    CLEAR.write_text("5")
    device.wait()
    before, held = _read_status("VmRSS"), device.count_held()
    work()
    device.wait()
    found = {"peak_memory_gb": (_read_status("VmHWM") - before) / 1e9}
    if device.name == "gpu":  # its pools give nothing back: what they hold at the end was the most
        found["peak_device_memory_gb"] = (device.count_held() - held) / 1e9
    print(json.dumps(found))


def _start(kind: type, side: str, values: Sequence[Any]) -> Callable[[], Any]:
    benchmark = kind()
    benchmark.setup(*values)
    return lambda: getattr(benchmark, f"peakmem_{side}")(*values)


def _read_status(name: str) -> int:
    """Bytes of memory by the kernel's name for them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


if __name__ == "__main__":
    main()

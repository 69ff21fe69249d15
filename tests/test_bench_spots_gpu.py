"""The GPU's benchmarks of spots, run through with stand-ins: NumPy for CuPy, SciPy for the libraries, the simulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

STAND_INS = {
    "cupy/__init__.py": """
        import time
        from numpy import *
        asnumpy = asarray = array  # copies, as from and to a device
        class cuda:
            class Device:
                def synchronize(self): pass
            def get_allocator(): return None
            def set_allocator(allocate): pass
            class Event:
                def record(self): self.at = time.perf_counter()
                def synchronize(self): pass
            class stream:
                ptr = 0
                def synchronize(): pass
            def get_elapsed_time(start, end): return 1000 * (end.at - start.at)
            def get_current_stream(): return cuda.stream
    """,
    "cucim/skimage/filters.py": """
        from scipy.ndimage import median_filter
        def median(image, footprint=None, *, mode): return median_filter(image, size=footprint, mode=mode)
    """,
    "cupyx/scipy/ndimage.py": "from scipy.ndimage import median_filter",
    "httomolibgpu/misc/corr.py": """
        import numpy as np
        from scipy.ndimage import median_filter
        def remove_outlier(data, kernel_size=3, dif=1000):
            median = median_filter(data, size=kernel_size, mode="nearest")
            return np.where(abs(data.astype(np.float64) - median) >= dif, median, data)
    """,
}
CODE = """
import json
from contextlib import nullcontext
from benchmarks import bench_spots_gpu as bench, clock, rows
from niseg_gpu.kernels import median_cuda

median_cuda.THREADS, bench.CALLS = 3, 1
bench.FRAMES["small"], bench.VOLUME["small"] = (2, 9, 12), (3, 8, 10)
class Asked:
    nbytes = 10**9

clock.Cuda.watch = lambda self: nullcontext(Asked)  # nothing lies on a GPU here
clock.Cuda.why_not_held = lambda self, seconds: "there are no multiprocessors here"
found = []
for kind in (bench.MedianOfFrames, bench.CleanFrames, bench.MedianOfVolume, bench.CleanVolume, bench.FromRawBytes):
    kind.why_not, kind.params = staticmethod(lambda: ""), tuple(choices[:1] for choices in kind.params)
    found += rows.run_benchmark(kind, size="small", seconds=0, devices=["gpu"])
bench.CleanVolume.time_own = lambda self, *_: self.run(lambda: self.frames + 1, moved=1)
bench.CleanVolume.time_copy = lambda self, *_: self.run(lambda: self.frames + 1, moved=1)
wrong = list(rows.run_benchmark(bench.CleanVolume, size="small", seconds=0, devices=["gpu"]))
print(json.dumps([found, wrong]))
"""


def test_every_side_runs_and_a_wrong_one_gets_no_time(tmp_path: Path) -> None:
    for name, code in STAND_INS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix("        ") for line in code.splitlines()))
    root = Path(__file__).parents[1]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found, wrong = json.loads(done.stdout)
    assert [row["failed"] for row in found if "failed" in row] == []
    sides = {}
    for row in found:
        sides.setdefault(row["benchmark"], set()).add(row["side"])
        assert row["seconds"]["repeats"] == 1 and (
            row["side"] == "cpu" or "of_copy" in row or "Raw" in row["benchmark"]
        )
    assert sides["spots_gpu.MedianOfFrames"] == sides["spots_gpu.MedianOfVolume"] == {"cucim", "cupyx", "own", "copy"}
    assert sides["spots_gpu.CleanFrames"] == {"cucim", "cupyx", "own", "copy", "cpu"}
    assert sides["spots_gpu.CleanVolume"] == {"cucim", "cupyx", "own", "copy", "cpu", "httomolibgpu"}
    assert sides["spots_gpu.FromRawBytes"] == {"on_the_host", "on_the_device", "within_the_kernel"}
    assert {row["side"] for row in wrong if "failed" in row} == {"own", "copy"}

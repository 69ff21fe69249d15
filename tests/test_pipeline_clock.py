import subprocess
import sys
from pathlib import Path

import numpy as np

from niseg_gpu.pipeline.clock import measure_peak_memory

PROGRAM = "from niseg_gpu.pipeline.clock import measure_peak_memory as m; a = m(); b'x' * 100_000_000; print(a, m())"


def test_peak_memory_is_this_process_s_own():
    """What the process that started it holds does not count."""
    held = np.ones(60_000_000)  # 480 MB
    assert measure_peak_memory() > held.nbytes
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < held.nbytes / 2
    assert 95e6 < after - before < 120e6

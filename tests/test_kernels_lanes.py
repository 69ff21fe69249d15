"""Pixels side by side: the same bytes from vectors of eight as from those of sixteen."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llvmlite import binding

from niseg_gpu.kernels import lanes
from niseg_gpu.kmeans.estimator import KMeans

ROOT = Path(__file__).parents[1]
NARROW = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2,+popcnt"}

PROGRAM = """
from niseg_gpu.kernels import lanes
from tests.test_kernels_lanes import hash_clusters
print(lanes.LANES, lanes.SPAN, hash_clusters())
"""


def hash_clusters() -> str:
    """Of what is found in pixels of all kinds."""
    pixels, found = np.random.default_rng(0).normal(50, 20, (2011, 141)).astype(np.float32), hashlib.sha256()
    for k, kind in ((3, pixels), (14, np.asfortranarray(pixels)), (7, np.asfortranarray(pixels.astype(np.int16)))):
        model = KMeans(k, init=kind[:k].astype(np.float32), max_iter=6, tol=0).fit(kind)
        for values in (model.labels_, model.cluster_centers_, np.float64(model.inertia_)):
            found.update(values.tobytes())
    return found.hexdigest()


@pytest.mark.skipif(not binding.get_host_cpu_features().get("avx2"), reason="for processors that have AVX2")
def test_the_width_of_vectors_is_not_seen_in_the_result(tmp_path: Path) -> None:
    variables = {**os.environ, **NARROW, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    told = subprocess.check_output([sys.executable, "-c", PROGRAM], env=variables, text=True, cwd=ROOT).split()
    assert told == ["8", "24", hash_clusters()]
    assert lanes.SPAN % lanes.LANES == 0

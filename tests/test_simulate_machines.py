"""The same seed gives the same data on machines whose processors and libraries round otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# What processors without AVX2 and FMA do: other code of the C library's and NumPy's functions, no vectors of numba's.
PLAIN = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX2_Usable,-FMA_Usable,-AVX512F",
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4 "
    "AVX2 FMA3",
    "NUMBA_CPU_NAME": "generic",
}
CODE = """
import hashlib, math, sys, warnings
from pathlib import Path
import numpy as np
import niseg_gpu as ng
warnings.simplefilter("ignore")

values = np.random.default_rng(0).uniform(-10, 10, 100_000)
digest = [hashlib.sha256(np.stack([np.exp(values), np.sin(values)]).tobytes()).hexdigest()]
out = Path(sys.argv[1])
ng.simulate_tof(out / "tof", n_bins=20, height=48, width=48, texture="alpha_iron:110:0.7")
ng.simulate_radiograph(out / "radiograph", height=200, width=220)
ng.simulate_roots(out / "slab", shape=(160, 140), habit="fibrous", lines=0.02, format="npy")
ng.simulate_roots(out / "pot", shape=(56, 48, 48), voxel_size_um=400, rings=0.02, format="npy")
for path in sorted(p for p in out.rglob("*") if p.is_file()):
    digest.append(f"{path.relative_to(out)} {hashlib.sha256(path.read_bytes()).hexdigest()}")
print("\\n".join(digest))
"""


@pytest.mark.skipif(
    not (sys.platform == "linux" and platform.machine() == "x86_64"), reason="needs glibc on x86-64 to round otherwise"
)
def test_other_instructions_and_mathematics_give_the_same_bytes(tmp_path):
    digests = []
    for name, setting in (("own", {}), ("plain", {**PLAIN, "NUMBA_CACHE_DIR": str(tmp_path / "compiled")})):
        (tmp_path / name).mkdir()
        call = [sys.executable, "-c", CODE, str(tmp_path / name)]
        done = subprocess.run(call, env={**os.environ, **setting}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        digests.append(done.stdout.splitlines())
    (library, *own), (other, *plain) = digests
    if library == other:
        pytest.skip("this machine has no other mathematics to compare with")
    assert len(own) > 50 and own == plain

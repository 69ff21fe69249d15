"""The front door: light to open, and true to its list of names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import niseg_gpu

HEAVY = ("cupy", "cucim", "cuml", "jax", "sklearn", "matplotlib", "numba", "scipy.ndimage", "astropy", "h5py")


@pytest.mark.parametrize("code", ["import niseg_gpu", "from niseg_gpu.cli import main; main(['--help'])"])
def test_opening_is_light(code: str) -> None:
    at_exit = f"print('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    check = f"import atexit, sys\natexit.register(lambda: {at_exit})\n{code}"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "LOADED []" in done.stdout


def test_every_public_name_is_there() -> None:
    for name in niseg_gpu.__all__:
        assert callable(getattr(niseg_gpu, name))
    assert list(niseg_gpu.__all__) == sorted(niseg_gpu.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'segment_everything'"):
        _ = niseg_gpu.segment_everything


def test_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "niseg_gpu", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert niseg_gpu.__version__ in done.stdout

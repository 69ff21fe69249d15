"""Fixtures for both devices and for the real data."""

from __future__ import annotations

import os
from pathlib import Path

import array_api_strict
import pytest
from hypothesis import settings

from niseg_gpu import cli
from niseg_gpu.backend import CPU, GPU, TWINS, Cpu, why_no_gpu

settings.register_profile("niseg", deadline=None, derandomize=True, max_examples=50)  # compiling kernels takes its time
settings.load_profile("niseg")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of measured data: ``NISEG_DATA``, else ``../shared/data`` beside the repository."""
    folder = Path(os.environ.get("NISEG_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no measured data: {folder} does not exist; set NISEG_DATA")
    return folder


@pytest.fixture(scope="session", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest):
    """Each twin in turn; the GPU's is skipped with the reason where it can't run."""
    if request.param == "cpu":
        return CPU
    missing = why_no_gpu()
    if missing:
        pytest.skip(f"no GPU can be used: {missing}")
    return GPU


class Strict(Cpu):
    """NumPy's values behind the strict array API: what a method calls must be in the standard."""

    xp = array_api_strict


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch):
    """Namespace whose arrays the methods take as those of a third device."""
    monkeypatch.setitem(TWINS, "array_api_strict", Strict())
    return array_api_strict


@pytest.fixture
def niseg(capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process; return exit status, output and complaint."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call

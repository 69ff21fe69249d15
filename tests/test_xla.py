"""How JAX is set up, in processes of their own: once it has begun it stays as it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from niseg_gpu.xla import cache_folder

BEGUN = "import jax; jax.devices(); "
PLAIN = "import os; "


@pytest.mark.parametrize(
    "before, flags, devices, expected",
    [
        (PLAIN, "", 3, 3),
        (PLAIN, "", 1, 1),
        (PLAIN, "--xla_force_host_platform_device_count=2", 3, 2),
        ("import jax; jax.config.update('jax_num_cpu_devices', 2); ", "", 3, 2),
        (BEGUN, "", 3, 1),
    ],
)
def test_the_processor_is_parted_unless_the_user_or_jax_has_begun_otherwise(before, flags, devices, expected) -> None:
    script = (
        f"{before}from niseg_gpu.xla import start_jax; "
        f"print(len(start_jax('a processor', devices={devices}).devices('cpu')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "XLA_FLAGS": flags}, capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [str(expected)]


def test_a_user_without_a_home_folder_keeps_no_programs(monkeypatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as for a number that no name belongs to
    assert cache_folder("any processor") is None

"""Folders of simulations: whole or not there, and replaced only where the user says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.simulate.folders import appear_when_whole, write_summary
from niseg_gpu.simulate.radiograph import simulate_radiograph
from niseg_gpu.simulate.roots import simulate_roots
from niseg_gpu.simulate.tof import simulate_tof

SIMULATIONS = {
    "tof": (simulate_tof, {"n_bins": 12, "height": 32, "width": 40}),
    "radiograph": (simulate_radiograph, {"height": 32, "width": 40}),
    "roots": (simulate_roots, {"shape": (32, 40), "format": "npy"}),
}


def read_all(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def fail(_: Path) -> None:
    raise RuntimeError("no picture")


@pytest.mark.parametrize("kind", SIMULATIONS)
def test_a_simulation_is_replaced_only_when_asked_and_whole(tmp_path, kind):
    simulate, options = SIMULATIONS[kind]
    simulate(tmp_path / "run", seed=1, **options)
    before = read_all(tmp_path / "run")
    with pytest.raises(UserError, match="exists; give another name, or replace it with --overwrite"):
        simulate(tmp_path / "run", seed=2, **options)
    with pytest.raises(RuntimeError):
        simulate(tmp_path / "run", fail, seed=2, overwrite=True, **options)
    assert read_all(tmp_path / "run") == before
    simulate(tmp_path / "run", seed=2, overwrite=True, **options)
    simulate(tmp_path / "other", seed=2, **options)
    assert read_all(tmp_path / "run") == read_all(tmp_path / "other") != before
    assert {p.name for p in tmp_path.iterdir()} == {"run", "other"}


@pytest.mark.parametrize("kind", SIMULATIONS)
def test_numbers_of_numpy_do_as_plain_ones(tmp_path, kind):
    simulate, options = SIMULATIONS[kind]
    simulate(tmp_path / "plain", seed=7, **options)
    numbers = {name: np.int64(value) if isinstance(value, int) else value for name, value in options.items()}
    simulate(tmp_path / "numpy", seed=np.uint32(7), **numbers)
    assert read_all(tmp_path / "numpy") == read_all(tmp_path / "plain")


@pytest.mark.parametrize("kind", SIMULATIONS)
def test_the_command_draws_into_the_folder_before_it_appears(niseg, tmp_path, monkeypatch, kind):
    where = {"roots": "niseg_gpu.figures_roots.draw_previews"}.get(kind, f"niseg_gpu.figures_simulate.picture_{kind}")
    monkeypatch.setattr(where, fail)
    options = {"tof": ["--n-bins", 12], "roots": ["--shape", "32x40"]}.get(kind, [])
    sizes = [] if kind == "roots" else ["--height", 32, "--width", 40]
    assert niseg("simulate", kind, tmp_path / "run", *options, *sizes)[0] == 1
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    status, said, _ = niseg("simulate", kind, tmp_path / "run", *options, *sizes)
    assert (
        status == 0
        and "preview" in said
        and len(list((tmp_path / "run").rglob("*.png"))) == (2 if kind == "roots" else 1)
    )
    assert niseg("simulate", kind, tmp_path / "run", *options, *sizes)[0] == 2
    assert niseg("simulate", kind, tmp_path / "run", *options, *sizes, "--overwrite")[0] == 0


def test_only_simulations_are_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with (
            pytest.raises(UserError, match="is no earlier simulation"),
            appear_when_whole(tmp_path / name, overwrite=True),
        ):
            pass
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_what_another_made_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(UserError, match="out exists; give another name"), appear_when_whole(tmp_path / "out") as folder:
        (folder / "mine").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["theirs"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_summary_is_plain_json(tmp_path):
    (tmp_path / "truth").mkdir()
    write_summary(tmp_path, {"seed": np.int64(3), "snr": np.float32(0.5), "shape": (4, 5)})
    assert json.loads((tmp_path / "truth" / "simulation.json").read_text()) == {"seed": 3, "snr": 0.5, "shape": [4, 5]}

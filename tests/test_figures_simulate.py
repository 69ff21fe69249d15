"""Pictures of what was simulated: drawn for every kind of run, and true to its files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from niseg_gpu import figures_simulate
from niseg_gpu.figures_simulate import picture_radiograph, picture_tof
from niseg_gpu.simulate.radiograph import simulate_radiograph
from niseg_gpu.simulate.scenes import Scene
from niseg_gpu.simulate.tof import simulate_tof


def size_of(png: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(png)).size


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"open_beam": False, "n_bins": 1, "shutters": 1, "n_triggers": 2000},
        {"n_bins": figures_simulate.BINS_SHOWN + 30, "dead_pixels": 1200},
        {"scene": Scene((), np.zeros((40, 90), np.uint8), np.zeros((0, 40, 90), np.float32))},
    ],
    ids=["small", "one bin", "many bins", "open beam only"],
)
def test_runs_are_drawn(tmp_path, options) -> None:
    simulate_tof(tmp_path / "run", **{"n_bins": 12, "height": 40, "width": 50} | options)
    picture = picture_tof(tmp_path / "run")
    assert size_of(picture.light) == size_of(picture.dark) == (picture.width, picture.height)


def test_lines_are_the_transmission_and_end_where_the_shutter_closes(tmp_path, monkeypatch) -> None:
    drawn = {}
    monkeypatch.setattr(figures_simulate, "draw_run", lambda *arrays, **named: drawn.update(named, arrays=arrays))
    simulate_tof(tmp_path / "run", n_bins=30, height=64, width=64, shutters=(10, 20), overlap=False)
    picture_tof(tmp_path / "run")
    spectra = drawn["arrays"][2]
    assert drawn["names"] == ["void", "alpha_iron", "austenitic_steel", "aluminium"]
    assert spectra.shape == (4, 31) and np.isnan(spectra[:, 10]).all() and np.isfinite(np.delete(spectra, 10, 1)).all()
    np.testing.assert_allclose(np.delete(spectra[0], 10), 0.98, atol=0.03)
    assert (np.nanmean(spectra[1:3], axis=1) < 0.6).all() and 0.7 < np.nanmean(spectra[3]) < 0.97


@pytest.mark.parametrize("options", [{"n_frames": 2}, {"height": 300, "width": 700, "spots": 0.0}])
def test_radiographs_are_drawn(tmp_path, options) -> None:
    simulate_radiograph(tmp_path / "run", **{"height": 64, "width": 80} | options)
    picture = picture_radiograph(tmp_path / "run")
    assert size_of(picture.light) == size_of(picture.dark) == (picture.width, picture.height)

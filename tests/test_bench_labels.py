"""Names in the picture of a record: beside their points, on nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks import readme
from benchmarks.roofline import draw_roofs
from niseg_gpu.figures import LIGHT

LIMITS = {"cpu": {"memory": 50.0, "operations": 300.0}}
SIDES = ["ours", "torch", "plain_jax"]


def draw(rows, limits):
    """The upper part of the picture, as large as it is there."""
    figure = Figure((8.6, 3.65), dpi=115)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.1, 0.15, 0.87, 0.8))
    draw_roofs(ax, LIGHT, rows, limits)
    figure.canvas.draw()
    return ax


def touching(ax):
    """Every name that touches a point, another name, the legend or the border of the axes, with what it touches."""
    renderer, found = ax.figure.canvas.get_renderer(), []
    names = {text.get_text(): text.get_window_extent(renderer) for text in ax.texts}
    assert len(names) == len(ax.texts), "each name stands there once"
    boxes = {f"name {name}": box.extents for name, box in names.items()}
    boxes["legend"] = ax.get_legend().get_window_extent(renderer).extents
    for i, marks in enumerate(ax.collections):
        ((x, y),) = ax.transData.transform(marks.get_offsets())
        half = np.sqrt(marks.get_sizes()[0]) / 2 * ax.figure.dpi / 72
        boxes[f"point {i}"] = (x - half, y - half, x + half, y + half)
    for name, box in names.items():
        for what, (left, bottom, right, top) in boxes.items():
            if what != f"name {name}" and left < box.x1 and right > box.x0 and bottom < box.y1 and top > box.y0:
                found.append((name, what))
        inside = ax.get_window_extent(renderer)
        if box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1:
            found.append((name, "border"))
        for line in ax.lines:
            xy = ax.transData.transform(line.get_xydata())
            for (ax0, ay0), (ax1, ay1) in zip(xy, xy[1:], strict=False):
                along = np.linspace(0, 1, 50)
                xs, ys = ax0 + along * (ax1 - ax0), ay0 + along * (ay1 - ay0)
                if np.any((xs > box.x0 + 1) & (xs < box.x1 - 1) & (ys > box.y0 + 1) & (ys < box.y1 - 1)):
                    found.append((name, "line"))
                    break
    return names, found


def test_no_name_of_the_newest_results_touches_anything() -> None:
    folder = Path(readme.__file__).parents[1] / readme.RESULTS
    if not folder.is_dir():
        pytest.skip("the measurements are installed without their results")
    record = json.loads(readme.find_newest(folder).read_text(encoding="utf-8"))
    rows = [row for row in record["rows"] if "of_limit" in row and {"memory", "operations"} <= set(row["least"])]
    names, found = touching(draw(rows, record["limits"]))
    assert not found
    assert set(names) == {row["benchmark"] for row in rows if row["side"].startswith("ours")}


def row_of(subject, side, density, rate):
    return {
        "benchmark": subject, "side": side, "reference": "torch", "device": "cpu", "params": {}, "limited_by": "copy",
        "least": {"operations": density * 1e9, "memory": 1e9}, "seconds": {"median": density / rate},
    }  # fmt: skip


@settings(max_examples=10)
@given(st.integers(1, 40), st.floats(0.02, 1), st.integers(0, 2**32 - 1))
def test_no_name_touches_anything_however_the_points_lie(n, spread, seed) -> None:
    rng = np.random.default_rng(seed)
    densities, rates = 10 ** (2 + spread * rng.uniform(-2, 4, n)), 10 ** (1.5 + spread * rng.uniform(-1, 1, n))
    subjects = [f"subject_{i % 9}.Benchmark" for i in range(n)]
    sides = [SIDES[int(i)] for i in rng.integers(0, 3, n)]
    rows = [row_of(*each) for each in zip(subjects, sides, densities, rates, strict=True)]
    names, found = touching(draw(rows, LIMITS))
    assert not found
    ours = {row["benchmark"] for row in rows if row["side"] == "ours"}
    assert set(names) <= ours and (n > 12 or set(names) == ours)

"""Measurements in short: our side beside the fastest other one."""

from __future__ import annotations

import pytest

from benchmarks.summary import HEAD, format_summary


def row(side: str, seconds: float | None, *, device: str = "cpu", benchmark: str = "spots.Spots", **more) -> dict:
    made = {
        "benchmark": benchmark, "params": {"size": "full", "dtype": "uint16", "window": 3}, "side": side,
        "device": device, "reference": "scipy", **more,
    }  # fmt: skip
    return made if seconds is None else {**made, "seconds": {"median": seconds}}


def cells(*rows: dict, before: tuple[dict, ...] = ()) -> list[list[str]]:
    lines = format_summary([{"rows": before}, {"rows": rows}]).splitlines()
    assert len(lines[0].split("|")) == len(HEAD) + 2
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_the_fastest_of_the_others_stands_beside_ours() -> None:
    limit = {"of_limit": 0.25, "limited_by": "copy", "peak_memory_gb": 0.5}
    others = row("scipy", 8.0), row("opencv", 0.06, peak_memory_gb=1.25), row("skimage", None, skipped="not installed")
    found = cells(row("ours_one_thread", 0.01), row("ours", 0.02, **limit), *others)
    told = [
        "spots.Spots, uint16, window 3",
        "cpu",
        "20 ms",
        "25 % (copy)",
        "opencv",
        "60 ms",
        "3.00",
        "0.5 GB and 1.2 GB",
    ]
    assert found == [told]


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_what_has_no_time_is_told(outcome: str) -> None:
    assert cells(row("ours", None, **{outcome: "x"}), row("scipy", 1.0))[0][2:] == [outcome, *[""] * 5]
    (alone,) = cells(row("ours", 2.0), row("scipy", None, **{outcome: "x"}))
    assert alone[2:] == ["2 s", *[""] * 5]


def test_each_device_is_held_against_its_own_others_first() -> None:
    rows = row("ours", 1.0), row("scipy", 4.0), row("ours", 0.1, device="gpu"), row("cucim", 0.5, device="gpu")
    assert [line[1:7] for line in cells(*rows)] == [
        ["cpu", "1 s", "", "scipy", "4 s", "4.00"],
        ["gpu", "0.1 s", "", "cucim", "0.5 s", "5.00"],
    ]
    assert cells(*rows[:3])[1][4] == "scipy, on the cpu"


def test_where_both_sides_are_ours_the_reference_is_the_other() -> None:
    (line,) = cells(row("resident", 1.0, reference="resident"), row("streamed", 2.0, reference="resident"))
    assert line[2:7] == ["2 s", "", "resident", "1 s", "0.50"]


def test_of_two_records_the_later_counts_and_subjects_stay_together() -> None:
    before = row("ours", 5.0), row("ours", 3.0, benchmark="knn.Predict"), row("ours", 4.0, benchmark="spots.Volume")
    found = cells(row("ours", 1.0), row("scipy", 2.0), before=before)
    assert [(line[0].partition(",")[0], line[2]) for line in found] == [
        ("spots.Spots", "1 s"), ("spots.Volume", "4 s"), ("knn.Predict", "3 s"),
    ]  # fmt: skip

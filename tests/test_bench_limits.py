"""The limits beside the figures: measured rates, a row's share, the picture, and the README's copy of the newest."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import clock, limits, readme, roofline, rows, table
from benchmarks.summary import format_summary
from niseg_gpu import cli
from niseg_gpu.backend import Cpu
from niseg_gpu.errors import UserError

ROOT = Path(__file__).parents[1]
RATES = {"memory": 10.0, "memory, one thread": 5.0, "operations": 100.0, "cache": 20.0, "disk": 2.0}
LIMITS = {"cpu": RATES, "gpu": {"memory": 1000.0, "operations": 50_000.0, "bus": 50.0}, "note": "made up"}


def test_the_rates_of_the_host_are_of_the_right_size():
    found = limits.measure_host(2**22, side=256)
    assert set(found) == {"memory", "memory, one thread", "operations"}
    source, target = np.ones(2**22 // 8), np.zeros(2**22 // 8)
    start = time.perf_counter()
    np.copyto(target, source)
    once = 2 * source.nbytes / (time.perf_counter() - start) / 1e9
    assert found["memory"] >= found["memory, one thread"] > once / 10  # the fastest of several, so hardly slower
    assert found["operations"] > 0.1


@pytest.mark.parametrize("jax", [True, False])
def test_the_rates_of_a_gpu_are_measured_with_its_twin(monkeypatch, jax):
    """The CPU's twin stands in for it; JAX may see no GPU."""
    twin = Cpu()

    def refuse(self, block):
        raise UserError("no GPU for JAX")

    if not jax:
        monkeypatch.setattr(Cpu, "to_jax", refuse)
    monkeypatch.setattr(limits, "GPU", twin)
    monkeypatch.setitem(clock.DEVICES, "gpu", clock.DEVICES["cpu"])
    found = limits.measure_gpu(2**20, side=64)
    assert set(found) == {"memory", "operations", "bus"} and all(rate > 0 for rate in found.values())
    assert len(limits._products(np.ones((4, 4), np.float32))) == 1 + jax


def test_files_are_read_from_the_disk_or_it_is_said_that_they_were_not(tmp_path, monkeypatch):
    fetched, dropped = [0.0, 2.0**23], []
    monkeypatch.setattr(limits, "drop_pages", dropped.append)
    monkeypatch.setattr(limits, "count_fetched", lambda: fetched.pop(0))
    disk, cache, note = limits.measure_files(tmp_path, 2**23)
    assert len(dropped) == 1 and disk > 0 and cache > 0 and "emptied" in note
    fetched += [0.0, 2.0**20]  # the disk gave an eighth: the rest came from the cache
    disk, cache, note = limits.measure_files(tmp_path, 2**23)
    assert disk is None and cache > 0 and "cannot be dropped" in note
    fetched += [float("nan")] * 2
    assert limits.measure_files(tmp_path, 2**23)[0] is None
    assert not list(tmp_path.iterdir())


def test_pages_are_dropped_where_the_system_can(tmp_path):
    """By the system's own count of what was fetched; a file system in memory has nothing to fetch from."""
    disk, cache, note = limits.measure_files(tmp_path, 2**24)
    assert cache > 0 and (disk is not None) == ("emptied" in note)


def test_a_cold_read_must_come_from_the_disk(tmp_path, monkeypatch):
    """Where the cache cannot be emptied there is no row; where it was not, in one run, the row fails."""
    from benchmarks import bench_read

    monkeypatch.setenv("NISEG_BENCH_DATA", str(tmp_path))
    counts = count(step=10**9)  # each look at the count finds much more
    monkeypatch.setattr(bench_read, "count_fetched", lambda: next(counts))
    monkeypatch.setattr(bench_read.ReadCold, "params", (["small"], [661]))
    found = list(rows.run_benchmark(bench_read.ReadCold, size="small", seconds=0, limits=LIMITS))
    assert [row["limited_by"] for row in found] == ["disk", "disk"] and found[0]["shape"][0] == 43
    seen = iter([0, 10**9, 0, 10**9, 0, 10])  # emptied in the setup and for the reference, but not for ours
    monkeypatch.setattr(bench_read, "count_fetched", lambda: next(seen))
    (_, ours) = rows.run_benchmark(bench_read.ReadCold, size="small", seconds=0)
    assert "only 10 of" in ours["failed"]
    monkeypatch.setattr(bench_read, "count_fetched", lambda: 0.0)
    (row,) = rows.run_benchmark(bench_read.ReadCold, size="small", seconds=0)
    assert "cannot be dropped" in row["skipped"] and "seconds" not in row


def test_a_cold_job_must_come_from_the_disk():
    from benchmarks.bench_end_to_end import Labels, LabelsCold

    for kind, fails in ((LabelsCold, True), (Labels, False)):
        benchmark = kind()
        benchmark.nbytes = 100
        benchmark.check_cache({"fetched_bytes": 95})
        if fails:
            with pytest.raises(AssertionError, match="only 80 bytes came from the disk, not 90"):
                benchmark.check_cache({"fetched_bytes": 80})
        else:
            benchmark.check_cache({"fetched_bytes": 0})


def test_too_large_a_job_is_skipped_with_the_reason(monkeypatch):
    from benchmarks import bench_end_to_end

    monkeypatch.setattr(Cpu, "count_memory", lambda self: 10**6)
    (row,) = rows.run_benchmark(bench_end_to_end.LabelsOf3000, size="full", seconds=0)
    assert row["skipped"] == "the plain script needs 19 GB of memory"


def test_every_byte_is_read_once(tmp_path, monkeypatch):
    read = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, rooms, first: read.append(first) or preadv(file, rooms, first))
    with open(tmp_path / "file", "wb+") as file:
        file.write(bytes(3 * limits.PIECE))
        file.flush()
        limits._read(file.fileno(), 3 * limits.PIECE)
    assert sorted(read) == [0, limits.PIECE, 2 * limits.PIECE]


@pytest.mark.parametrize(
    ("least", "device", "by", "seconds"),
    [
        ({"memory": 1e9}, "cpu", "copy", 0.1),
        ({"memory": 1e9, "operations": 1e9}, "cpu", "copy", 0.1),
        ({"memory": 1e9, "operations": 5e10}, "cpu", "matrix product", 0.5),
        ({"memory": 1e9, "operations": 5e10}, "gpu", "copy", 0.001),
        ({"bus": 1e9}, "gpu", "bus", 0.02),
        ({"cache": 1e9}, "gpu", "page cache", 0.05),  # files are the host's
        ({"disk": 1e9}, "cpu", "disk", 0.5),
    ],
)
def test_the_limit_is_what_takes_longest(least, device, by, seconds):
    found = limits.share_of_limit(least, LIMITS, device=device, seconds=2.0)
    assert found["limited_by"] == by and found["limit_s"] == pytest.approx(seconds)
    assert found["of_limit"] == pytest.approx(seconds / 2)


def test_a_rate_that_is_not_known_makes_no_limit():
    without = {**LIMITS, "cpu": {**RATES, "disk": None}}
    assert limits.share_of_limit({"disk": 1e9, "memory": 1}, without, device="cpu", seconds=1.0) == {}
    assert limits.share_of_limit({"bus": 1e9}, LIMITS, device="cpu", seconds=1.0) == {}
    assert limits.share_of_limit({}, LIMITS, device="cpu", seconds=1.0) == {}


def test_operations_of_a_network():
    """From the compiled program, against a count by hand: each output pixel, by all that it is made of."""
    from benchmarks.bench_unet import count_operations
    from niseg_gpu.unet.config import spot_config

    # 9 taps of the fine features, and 4 instead of 9 of the coarse ones beside them
    fine = 9 * (1 + 24 + 24 + 24) * 24 + 4 * 48 * 24 + 24
    middle = 9 * (24 + 48 + 48 + 48) * 48 + 4 * 96 * 48
    coarse = 9 * (48 + 96) * 96
    by_hand = 2 * (fine + middle / 4 + coarse / 16)
    counted = count_operations(spot_config())
    assert 0.97 * by_hand < counted < 1.01 * by_hand  # zeros outside of the image are not counted
    assert 2.8 * counted < count_operations(spot_config(), training=True) < 3.05 * counted


class Copying:
    """Waits as long as a copy of its data takes at 10 GB/s, five times over."""

    params = (["small"],)
    param_names = ["size"]
    reference = "time_ours"
    equal = "identical"
    included = "nothing"
    warm_up = False

    def setup(self, size):
        self.shape, self.dtype, self.nbytes = (10**7,), np.dtype(np.uint8), 10**7

    def least(self, side):
        return {"memory": 2 * self.nbytes, "operations": 1e6}

    def time_ours(self, size):
        return rows.Ran(np.zeros(1), 0.01)

    def assert_equal(self, found, expected):
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def record():
    found = list(rows.run_benchmark(Copying, size="small", seconds=0, limits=LIMITS))
    conditions = {
        "date": "2026-11-30",
        "cpu": "a CPU",
        "gpu": None,
        "memory_gb": 1.0,
        "system": "Linux",
        "revision": "x",
    }
    return {**conditions, "versions": {}, "threads": {}, "limits": LIMITS, "size": "small", "rows": found}


def test_a_row_says_its_share(record):
    (row,) = record["rows"]
    assert row["limited_by"] == "copy" and row["of_limit"] == pytest.approx(0.2)
    text = table.format_table(record)
    assert (
        "| 20 % (copy) |" in text and "cpu: copy 10 GB/s, copy by one thread 5 GB/s, matrix product 100 GFLOP/s" in text
    )


def test_the_picture_shows_every_row(record):
    (row,) = record["rows"]
    png = roofline.draw_roofline(record)
    alone = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    better = {**record, "rows": [row, {**row, "side": "numpy", "of_limit": 0.9}]}
    assert (np.asarray(Image.open(io.BytesIO(roofline.draw_roofline(better))).convert("RGB")) != alone).any()
    longer = {**record, "rows": [row, {**row, "params": {"size": "small", "case": 2}}]}
    assert Image.open(io.BytesIO(roofline.draw_roofline(longer))).height > alone.shape[0]


def test_stored_rows_are_shown_again(record, tmp_path, capsys):
    stored, picture = tmp_path / "rows.json", tmp_path / "rows.png"
    stored.write_text(json.dumps(record))

    def show(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["bench", "--from", *map(str, arguments)])
        return ended.value.code, capsys.readouterr()

    status, shown = show(stored, "--picture", picture)
    assert status == 0 and shown.out.strip() == table.format_table(record)
    assert picture.read_bytes() == roofline.draw_roofline(record)
    for row in record["rows"]:
        del row["of_limit"]
    stored.write_text(json.dumps(record))
    status, shown = show(stored, "--picture", picture)
    assert status == 2 and "no row with a limit" in shown.err
    stored.write_text("[]")
    status, shown = show(stored)
    assert status == 2 and "name a file that --json wrote" in shown.err
    status, shown = show(tmp_path / "nowhere.json")
    assert status == 2 and "nowhere.json" in shown.err and shown.err.count("\n") == 1


def test_the_newest_results_come_into_a_readme_with_their_picture(record, tmp_path):
    (tmp_path / readme.RESULTS).mkdir(parents=True)
    (tmp_path / ".images").mkdir()
    (tmp_path / "README.md").write_text("before\n<!-- measured: begin -->\nold\n<!-- measured: end -->\nafter\n")
    for name in ("2026-11-22-a.json", "2026-11-30-b.json", "2026-12-01-detection.json"):
        (tmp_path / readme.RESULTS / name).write_text(json.dumps(record if "30" in name else {**record, "rows": []}))
    newest = readme.show_newest(tmp_path)
    assert newest.name == "2026-11-30-b.json"
    page = (tmp_path / "README.md").read_text()
    assert "old" not in page and "](.images/roofline.png)" in page and format_summary([record]) in page
    assert "(benchmarks/results/2026-11-30-b.md)" in page and page.count("/results/") == 1
    whole = (tmp_path / readme.RESULTS / "2026-11-30-b.md").read_text()
    assert whole == table.format_table(record) + "\n"
    source = Image.open(tmp_path / readme.PICTURE).text[readme.SOURCE]
    assert source == hashlib.sha256(newest.read_bytes()).hexdigest()
    for name in ("2026-11-30-b-wide.json", "2026-11-30-b-before.json"):
        (tmp_path / readme.RESULTS / name).write_text(json.dumps({**record, "revision": name}))
    assert readme.show_newest(tmp_path) == newest
    page = (tmp_path / "README.md").read_text()
    assert "[revision 2026-11-30-b-wide.json](benchmarks/results/2026-11-30-b-wide.md)" in page
    assert "before" not in page.partition("-->")[2] and (tmp_path / readme.RESULTS / "2026-11-30-b-before.md").exists()


def test_the_readme_shows_the_newest_results():
    newest, page = readme.find_newest(ROOT / readme.RESULTS), (ROOT / "README.md").read_text(encoding="utf-8")
    record = json.loads(newest.read_text(encoding="utf-8"))
    shown = table.put_between_marks(page, readme.format_newest(newest), name=table.MEASURED)
    assert shown == page, "run python -m benchmarks.readme"
    for path in newest.parent.glob("*.md"):
        record_of = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert path.read_text(encoding="utf-8") == table.format_table(record_of) + "\n", (
            "run python -m benchmarks.readme"
        )
    assert newest.with_suffix(".md").exists()
    if readme.has_limits(record):
        source = Image.open(ROOT / readme.PICTURE).text[readme.SOURCE]
        assert source == hashlib.sha256(newest.read_bytes()).hexdigest(), "run python -m benchmarks.readme"


def test_the_command_finds_the_benchmarks_of_a_checkout_from_anywhere(tmp_path):
    code = "import niseg_gpu.cli_bench as bench; print(bench.find_benchmarks().__path__[0])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == ROOT / "benchmarks"


def test_the_command_says_where_the_benchmarks_are_missing(monkeypatch, niseg, tmp_path):
    from niseg_gpu import cli_bench

    monkeypatch.setattr(cli_bench, "__file__", str(tmp_path / "niseg_gpu" / "cli_bench.py"))
    monkeypatch.delitem(sys.modules, "benchmarks")
    status, _, complaint = niseg("bench")
    assert status == 2 and "the benchmarks are not here" in complaint and complaint.count("\n") == 1

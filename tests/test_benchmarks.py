import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import bench_kmeans, clock, data, ours, plain, rows, runner, table
from benchmarks.bench_end_to_end import Labels, launch
from niseg_gpu import cli
from niseg_gpu.backend import CPU
from niseg_gpu.io.open import open_stack
from niseg_gpu.simulate.tof import simulate_tof

ROOT = Path(__file__).parents[1]


def bench(*arguments: str) -> int:
    """Run ``niseg-gpu bench``; return its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *map(str, arguments)])
    return ended.value.code


@pytest.fixture(autouse=True)
def known_limits(monkeypatch):
    """Limits as if they had been measured, which takes seconds."""
    rates = {"memory": 20.0, "memory, one thread": 10.0, "operations": 100.0, "cache": 20.0, "disk": 1.0}
    monkeypatch.setattr(runner, "measure_limits", lambda folder, devices: {"cpu": rates, "note": "made up"})


@pytest.fixture(scope="module")
def bench_data(tmp_path_factory):
    """A folder of simulated data, kept for all tests of this module."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module", params=["simulated", "measured"])
def run(request, bench_data):
    """Counts (N, Y, X), windows and triggers of a run, as the plain script reads them."""
    if request.param == "simulated":
        simulate_tof(bench_data / "tof-60x64x64", open_beam=False, seed=data.SEED, **data.SIZES["small"])
        folder, part = bench_data / "tof-60x64x64" / "sample", np.s_[:, :, :]
    else:
        # rows and columns over the edge of the sample, which covers columns from 204
        folder, part = request.getfixturevalue("data_dir") / "tof_mcp_crop", np.s_[:, 96:160, 172:236]
    counts, (windows, triggers) = plain.read_stack(folder), plain.read_windows(folder)
    stack = open_stack(folder)
    np.testing.assert_array_equal(stack[part].values, counts[part])
    assert [tuple(window) for window in stack.attrs["shutter_windows"]] == windows
    assert stack.attrs["shutter_counts"] == triggers
    return np.ascontiguousarray(counts[part]), windows, triggers


@pytest.fixture(scope="module")
def corrected(run):
    return plain.correct_overlap(*run)


def test_overlap_agrees_with_plain_script(run, corrected):
    counts, windows, triggers = run
    attrs = {"shutter_windows": windows, "shutter_counts": triggers}
    (found,) = ours.apply_step(counts, {"overlap_correct": {}}, **attrs)
    assert corrected.sum() > 1.02 * counts.sum()  # there was something to correct
    np.testing.assert_allclose(found, corrected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_spots_agree_with_plain_script(run, corrected, dtype):
    frames = (corrected if dtype == "float32" else run[0])[:100]
    threshold = float(np.quantile(np.abs(np.diff(frames.astype(float), axis=-1)), 0.999))
    cleaned, spots = plain.remove_spots(frames, threshold)
    found, mask = ours.apply_step(frames, {"remove_spots": {"size": 3, "threshold": threshold}})
    assert 0 < spots.mean() < 0.01
    np.testing.assert_array_equal(mask, spots)
    np.testing.assert_array_equal(found, cleaned)


def test_labels_agree_with_plain_script(corrected):
    spectra = plain.collect_spectra(corrected)
    centroids = spectra[np.random.default_rng(0).choice(len(spectra), 5, replace=False)]
    expected = plain.cluster_spectra(spectra, centroids, 10)
    table = ours.build_table(corrected)
    np.testing.assert_array_equal(table.spectra, spectra)
    found = ours.cluster_spectra(table, centroids, iterations=10)
    assert len(np.unique(expected.labels_)) == 5
    np.testing.assert_array_equal(found.labels.ravel(), expected.labels_)
    mean = plain.average_spectra(spectra, expected.labels_, 5)
    np.testing.assert_allclose(found.spectra, mean, rtol=1e-4, atol=1e-3)


def test_runner_measures_every_step(bench_data, tmp_path, capsys):
    names = ["read", "overlap", "spots", "knn", "kmeans", "simulate"]
    files = ["--json", tmp_path / "rows.json", "--markdown", tmp_path / "rows.md"]
    assert bench(*names, "--peers", "--seconds", 0, "--data", bench_data, *files) == 0
    record = json.loads((tmp_path / "rows.json").read_text())
    assert {row["benchmark"].partition(".")[0] for row in record["rows"]} == set(names)
    for row in record["rows"]:
        if "skipped" in row:
            assert row["skipped"].endswith("is not installed") or row["benchmark"] == "read.ReadCold"
            continue
        assert row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["seconds"]["median"] / 1e9)
        assert row["benchmark"].startswith("simulate") or 0 < row["of_limit"] < 20  # small data fit the caches
    for known in ("cpu", "cores", "threads", "versions", "date"):
        assert record[known]
    shown = capsys.readouterr().out
    assert shown.strip() == table.format_table(record) and shown == (tmp_path / "rows.md").read_text()


def test_whole_job_agrees_with_plain_script(bench_data, capsys):
    assert bench("end_to_end.LabelsAndImage", "--seconds", 0, "--data", bench_data) == 0
    assert capsys.readouterr().out.count("GB |") == 2  # both sides with their peak memory


class Planted:
    """Two sides that agree, one that is off by one, one that breaks."""

    params = (["small"],)
    param_names = ["size"]
    reference = "time_right"
    equal = "identical"
    included = "nothing"
    warm_up = True

    def setup(self, size):
        self.shape, self.dtype, self.nbytes = (8,), np.dtype(np.int64), 64

    def time_right(self, size):
        return np.arange(8)

    def time_as_right(self, size):
        return np.arange(8)

    def time_wrong(self, size):
        return np.arange(8) + np.eye(8, dtype=int)[3]

    def time_broken(self, size):
        raise ZeroDivisionError("on purpose")

    def assert_equal(self, output, expected):
        np.testing.assert_array_equal(output, expected)


def test_what_was_measured_before_a_stop_is_kept(monkeypatch, tmp_path):
    class Right(Planted):
        time_wrong = time_broken = None

    class Stopped(Right):
        def setup(self, size):
            raise KeyboardInterrupt

    monkeypatch.setattr(runner, "find_benchmarks", lambda names: [Right, Stopped])
    assert bench("--seconds", 0, "--json", tmp_path / "rows.json") == 130
    found = runner.read_record(tmp_path / "rows.json")
    assert [row["side"] for row in found["rows"]] == ["right", "as_right"]
    assert table.format_table(found)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_no_time_for_a_wrong_answer(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(runner, "find_benchmarks", lambda names: [Planted])
    assert bench("--seconds", 0, "--json", tmp_path / "rows.json") == 1
    found = {row["side"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert list(found)[0] == "right"
    assert found["right"]["seconds"] and found["as_right"]["seconds"]
    for side, reason in {"wrong": "AssertionError", "broken": "ZeroDivisionError: on purpose"}.items():
        assert "seconds" not in found[side] and reason in found[side]["failed"]
    assert "failed: AssertionError" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [1, 3])
def test_what_is_right_at_first_only_has_no_time_either(wrong):
    class Later(Planted):
        runs = 0

        def time_as_right(self, size):
            Later.runs += 1
            return np.arange(8) + (Later.runs > wrong)

    seconds = 0 if wrong == 1 else 1e9
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "MAX_REPEATS", 3)
        found = {row["side"]: row for row in rows.run_benchmark(Later, size="small", seconds=seconds)}
    assert "AssertionError" in found["as_right"]["failed"] and "seconds" in found["right"]
    assert Later.runs == wrong + 1


def spoil(output: Any, *, share: int | None = None) -> Any:
    """Change one value (or one in `share`) of an array, of the first of several, or a byte of the largest file."""
    if isinstance(output, Path):
        faulty = output.with_name("faulty")
        shutil.copytree(output, faulty)
        some = max((path for path in faulty.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        some.write_bytes(some.read_bytes()[:-1] + b"?")
        return faulty
    if isinstance(output, tuple | list):
        return type(output)([spoil(output[0], share=share), *output[1:]])
    faulty = output.copy()
    middle = faulty.size // 2
    for i in range(middle, middle + (faulty.size // share if share else 1)):
        faulty.flat[i] = not faulty.flat[i] if faulty.dtype == bool else faulty.flat[i] + 1
    return faulty


@pytest.mark.parametrize("subject", runner.SUBJECTS[:-1])
def test_every_benchmark_refuses_wrong_output(subject, bench_data, monkeypatch):
    """The check of each subject sees a small fault in what a side gives."""
    monkeypatch.setenv("NISEG_BENCH_DATA", str(bench_data))
    for kind in runner.find_benchmarks([subject]):
        benchmark = kind()
        values = [choices[0] for choices in kind.params]
        if missing := getattr(kind, "why_not", str)():
            pytest.skip(missing)
        try:
            benchmark.setup(*values)
        except NotImplementedError:  # files in memory are never cold
            continue
        expected = getattr(benchmark, benchmark.reference)(*values)
        expected = getattr(expected, "output", expected)
        if subject == "spots_gpu":
            expected = [benchmark.gpu.to_host(a).copy() for a in expected]
        faulty = spoil(expected, share=300 if subject.startswith("kmeans") else None)
        benchmark.assert_equal(expected, expected)
        with pytest.raises(AssertionError):
            benchmark.assert_equal(faulty, expected)


def test_what_cannot_run_here_is_skipped_with_the_reason(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("benchmarks.bench_spots_gpu.FromRawBytes.why_not", staticmethod(lambda: "no | GPU"))
    assert bench("spots_gpu.FromRawBytes", "--json", tmp_path / "rows.json") == 0
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["skipped"] == "no | GPU" and "seconds" not in row
    assert "| spots_gpu.FromRawBytes small |  |  | skipped: no \\| GPU |" in capsys.readouterr().out


def test_labels_may_differ_at_ties_only(bench_data, monkeypatch):
    monkeypatch.setenv("NISEG_BENCH_DATA", str(bench_data))
    benchmark = Labels()
    benchmark.setup("small")
    counts = plain.read_stack(benchmark.run)
    corrected = plain.correct_overlap(counts, *plain.read_windows(benchmark.run))
    spectra = plain.collect_spectra(plain.remove_spots(corrected, data.THRESHOLD)[0])
    labels = np.zeros((64, 64), np.uint8)
    labels[40:] = 1

    def average(labels):
        return plain.average_spectra(spectra, labels.ravel(), 2)

    tie = spectra[20 * 64 + 63]
    expected = {"labels": labels, "centroids": np.stack([tie + 5, tie - 5]), "spectra": average(labels)}
    for place, agrees in {(20, 63): True, (20, 10): False}.items():
        other = labels.copy()
        other[place] = 1
        found = {**expected, "labels": other, "spectra": average(other)}
        if agrees:
            assert benchmark.assert_equal(found, expected) == {"ties_decided_otherwise": 1}
            with pytest.raises(AssertionError, match="Not equal to tolerance"):  # the spectra of other labels
                benchmark.assert_equal({**found, "spectra": 1.002 * found["spectra"]}, expected)
            with pytest.raises(AssertionError, match="centroid 1 is off by 0.001 of its length"):
                benchmark.assert_equal({**found, "centroids": found["centroids"] * [[1], [1.001]]}, expected)
        else:
            with pytest.raises(AssertionError, match="pixel 20, 10: squared distance"):
                benchmark.assert_equal(found, expected)
    with pytest.raises(AssertionError, match="4096 of 4096 labels differ"):
        benchmark.assert_equal({**expected, "labels": 1 - labels}, expected)


def test_labels_of_float64_count_against_the_reference_s_rounding(bench_data, monkeypatch):
    monkeypatch.setenv("NISEG_BENCH_DATA", str(bench_data))
    monkeypatch.setattr(bench_kmeans, "TIES", 1e-3)  # of few pixels
    benchmark = bench_kmeans.KMeans()
    benchmark.setup("small")
    right = benchmark.time_sklearn("small")
    means = np.stack([benchmark.spectra[right == c].mean(axis=0) for c in range(len(benchmark.centroids))])
    distances = ((benchmark.spectra[:, None] - means) ** 2).sum(-1)
    distances.sort(axis=1)
    clear = int(np.argmax(distances[:, 1] / distances[:, 0]))  # a pixel that is no tie
    other = right.copy()
    other[clear] = (right[clear] + 1) % len(means)
    assert benchmark.assert_equal(right, right) == {"ties_decided_otherwise": 0}
    assert benchmark.assert_equal(right, other) == {"ties_decided_otherwise": 0, "decided_as_in_float64": 1}
    with pytest.raises(AssertionError, match=f"pixel {clear}: distance"):
        benchmark.assert_equal(other, right)


def test_sides_run_in_turns_within_their_time():
    order = []

    def side(name, seconds):
        return rows.Side(lambda: order.append(name) or rows.Ran(None, seconds), clock.DEVICES["cpu"])

    runs = {"slow": [], "fast": []}
    sides = {"slow": side("slow", 4.0), "fast": side("fast", 1.0)}
    assert rows._repeat(sides, (), runs, seconds=5, check=lambda found: None) == {}
    assert order == ["slow", "fast", "fast", "fast", "fast", "fast"]


def test_peak_memory_is_the_command_s_own(tmp_path, monkeypatch):
    """A runner that holds much memory does not hand its own peak to what it starts."""
    (tmp_path / "small_program.py").write_text("print((b'x' * 50_000_000)[:5])")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    held = np.ones(40_000_000)  # 320 MB
    took = launch(["-m", "small_program"])
    assert 50e6 < took["peak_bytes"] < 150e6 < held.nbytes
    assert took["seconds"] > 0


def test_voxels_a_second_stand_below_the_table():
    measured = {"seconds": {"median": 0.5}, "voxels_per_second": 2000.0}
    row = {"benchmark": "unet.Prediction", "params": {"network": "2-D"}, "side": "ours", "device": "cpu", **measured}
    row |= {"shape": [10, 100], "voxels_extrapolated_to": 2048**3}
    assert table._tell_rate(row) == ("unet.Prediction 2-D ours cpu: 2e+03 voxels/s, 2048³ in 4.29e+06 s (extrapolated)")
    del row["voxels_extrapolated_to"]
    assert table._tell_rate(row).endswith("2e+03 voxels/s")


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"--json": "folder"}, "is a folder; give the name of a file"),
        ({"--json": "rows", "--markdown": "folder/../rows"}, "is the file of --json too; give each a name of its own"),
        ({"--picture": "none/rows.png"}, "its folder does not exist; make it first"),
    ],
)
def test_files_that_can_not_be_written_are_told_before_anything_is_measured(tmp_path, capsys, files, complaint):
    (tmp_path / "folder").mkdir()
    assert bench(*(part for flag, name in files.items() for part in (flag, tmp_path / name))) == 2
    told = capsys.readouterr()
    assert complaint in told.err and told.out == ""
    assert os.listdir(tmp_path) == ["folder"]


def test_a_file_that_turns_out_not_to_be_writable_is_told_in_one_line(monkeypatch, tmp_path, capsys):
    class Right(Planted):
        time_wrong = time_broken = None

    monkeypatch.setattr(runner, "find_benchmarks", lambda names: [Right])
    assert bench("--seconds", 0, "--markdown", tmp_path / ("m" * 254)) == 2
    told = capsys.readouterr()
    assert "can't be written: File name too long" in told.err and "as_right" in told.out


def test_unknown_names_are_refused(capsys):
    assert bench("kmean") == 2
    assert "did you mean 'kmeans'?" in capsys.readouterr().err
    assert bench("kmeans.gather") == 2
    assert "Gather" in capsys.readouterr().err


def test_gpu_rows_are_skipped_with_a_reason(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.bench_kmeans_gpu.why_no_gpu", lambda: "it is out for lunch")
    assert bench("kmeans_gpu", "--json", tmp_path / "rows.json") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| kmeans_gpu")]
    assert len(lines) == 3 and all("skipped: no GPU can be used: it is out for lunch" in line for line in lines)


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_gpu_benchmark_on_the_cpu(monkeypatch, dtype):
    """Its own side, with the twin of the CPU in the place of the GPU's, against scikit-learn."""
    from benchmarks import bench_kmeans_gpu as gpu

    monkeypatch.setattr(gpu, "select", lambda device, kernels: (CPU, "a test"))
    monkeypatch.setitem(clock.DEVICES, "gpu", clock.DEVICES["cpu"])
    benchmark = gpu.Iteration()
    benchmark.setup("small", dtype)
    ran = benchmark.time_own("small", dtype)
    labels = plain.cluster_spectra(benchmark.counts.astype(np.float32), benchmark.start, gpu.ITERATIONS - 1).labels_
    assert benchmark.assert_equal(ran.output, labels)["labels_the_same"] >= 0.999
    with pytest.raises(AssertionError):
        benchmark.assert_equal((ran.output + 1) % 10, labels)
    assert len(np.unique(labels)) == 10
    expected = benchmark.counts.nbytes / (ran.details["ms_per_iteration"] / 1e3) / benchmark.copying
    assert ran.details["fraction_of_copying"] == pytest.approx(expected)
    stream = gpu.Stream()
    if dtype == "uint16":
        stream.setup("small", dtype)
        assert stream.assert_equal(
            *(run("small", dtype).output for run in (stream.time_resident, stream.time_streamed))
        )

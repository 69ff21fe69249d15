"""The command line: exit statuses, one-line complaints, every step as a command."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from niseg_gpu.errors import add_note
from niseg_gpu.io.open import open_stack
from niseg_gpu.pipeline import inputs
from niseg_gpu.pipeline.steps import OPS
from niseg_gpu.simulate.tof import simulate_tof
from niseg_gpu.spots import remove_spots


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "data"
    simulate_tof(out, height=32, width=40, n_bins=30, seed=3)
    return out


@pytest.fixture
def frame(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).poisson(400, (30, 50)).astype(np.uint16)
    values[10, 20] = 9000
    tifffile.imwrite(tmp_path / "frame.tif", values)
    return tmp_path / "frame.tif"


PIPELINE = """
input: {{path: {data}/sample}}
steps:
  - overlap_correct: {{}}
  - rebin_tof: {{factor: 3}}
  - kmeans: {{n_clusters: 3}}
output: {{path: out}}
"""


@pytest.fixture
def pipeline(tmp_path: Path, data: Path) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(PIPELINE.format(data=data))
    return path


def test_run_check_and_run_again(niseg, pipeline: Path) -> None:
    status, out, err = niseg("check", pipeline)
    assert (status, err) == (0, "")
    assert "tof 10 x y 32 x x 40 float32 counts" in out and "all is well" in out  # three shutter windows
    assert not (pipeline.parent / "out").exists()
    status, out, err = niseg("run", pipeline)
    assert (status, err) == (0, "")
    assert out.rstrip().endswith(f"report: {pipeline.parent / 'out' / 'report.html'}")
    status, out, err = niseg("run", pipeline)
    assert (status, out) == (2, "") and err.count("\n") == 1 and "out exists; give another name" in err
    for options in (("--overwrite",), ("--out", pipeline.parent / "other")):
        status, out, err = niseg("check", pipeline, *options)
        assert (status, err) == (0, "") and "all is well" in out
    status, out, err = niseg("run", pipeline, "--overwrite", "--quiet", "--set", "kmeans.n_clusters=2")
    assert (status, out, err) == (0, "", "")
    record = json.loads((pipeline.parent / "out" / "run.json").read_text())
    assert record["results"]["labels"]["n_clusters"] == 2


def test_files_are_fetched_ahead_by_what_will_read_them(niseg, pipeline: Path, monkeypatch) -> None:
    announced: list[list[str]] = []
    monkeypatch.setattr(inputs, "read_ahead", lambda files: announced.append(list(files)))
    assert niseg("check", pipeline)[0] == 0
    assert announced == []  # it reads no data
    assert niseg("run", pipeline, "--quiet")[0] == 0
    assert len(announced) == 1 and len(announced[0]) == len(set(announced[0])) == 30


def test_a_run_starts_no_distributed_scheduler(pipeline: Path) -> None:
    """To import it takes longer than a short run."""
    arguments = ["run", str(pipeline), "--quiet", "--out", str(pipeline.parent / "out")]
    code = f"from niseg_gpu.cli import main\nmain({arguments})"
    look = "import atexit, sys\natexit.register(lambda: print('distributed' in sys.modules))\n"
    done = subprocess.run([sys.executable, "-c", look + code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_out_is_relative_to_where_one_stands(niseg, pipeline: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert niseg("run", pipeline, "--out", "mine", "--quiet")[0] == 0
    assert (tmp_path / "elsewhere" / "mine" / "report.html").is_file()


@pytest.mark.parametrize("name", ["run #3", "a: b", "1", "[x]", "true", " x ", "'"])
def test_out_is_the_name_that_was_given(niseg, pipeline: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert niseg("run", pipeline, "--out", name, "--quiet") == (0, "", "")
    assert set(tmp_path.iterdir()) == {*before, tmp_path / name}


def test_a_folder_may_be_named_by_a_number(niseg, frame: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "20261127").mkdir()
    tifffile.imwrite(tmp_path / "20261127" / "ob.tif", np.full((30, 50), 400, np.uint16))
    assert niseg("normalize", frame, "out.npy", "--open-beam", "20261127")[0] == 0
    np.testing.assert_allclose(np.load("out.npy"), tifffile.imread(frame) / np.float32(400), rtol=1e-6)


@pytest.mark.parametrize("ending", [".tif", ".zarr", ".h5", ".npy"])
def test_remove_spots_from_file_to_file(niseg, frame: Path, tmp_path: Path, ending: str) -> None:
    out, mask = tmp_path / f"clean{ending}", tmp_path / f"mask{ending}"
    status, said, err = niseg("remove-spots", frame, out, "--size", 3, "--threshold", 1000, "--mask", mask)
    assert (status, err) == (0, "")
    assert "remove_spots: 1 spots replaced" in said and f"wrote {mask}" in said
    cleaned, spots = remove_spots(tifffile.imread(frame), size=3, threshold=1000)
    np.testing.assert_array_equal(open_stack(out).values, cleaned)
    np.testing.assert_array_equal(open_stack(mask).values.astype(bool), spots)


def test_a_threshold_that_marks_much_is_warned_of_in_one_step_too(niseg, frame: Path, tmp_path: Path) -> None:
    status, said, _ = niseg("remove-spots", frame, tmp_path / "clean.npy", "--threshold", 1)
    assert status == 0
    (spots,) = re.findall(r"remove_spots: (\d+) spots replaced", said)
    assert f"warning: {spots} of {tifffile.imread(frame).size} values (" in said and "the threshold is too low" in said


def test_outputs_that_can_not_be_are_told_before_work(niseg, frame: Path, data: Path, tmp_path: Path) -> None:
    out, gone = tmp_path / "o.npy", tmp_path / "no" / "s.csv"
    before = set(tmp_path.iterdir())
    spots = niseg("remove-spots", frame, out, "--threshold", 9, "--mask", out)
    nowhere = niseg("kmeans", data / "sample", out, "--spectra", gone)
    assert [spots[0], nowhere[0]] == [2, 2]
    assert "o.npy is to be written twice" in spots[2]
    assert f"{gone} can't be made: {gone.parent} is not a folder one may write to; choose another" in nowhere[2]
    assert set(tmp_path.iterdir()) == before


def run_apart(*arguments: object, **options) -> subprocess.CompletedProcess:
    """The command in a process of its own, with what the system gives it."""
    command = [sys.executable, "-m", "niseg_gpu", *map(str, arguments)]
    return subprocess.run(command, **{"capture_output": True, "timeout": 300, **options})


def test_a_broken_file_is_one_line_whatever_libraries_log(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((5, 16, 17), np.uint16))
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    found = run_apart("remove-spots", tmp_path / "a.tif", tmp_path / "b.tif", "--threshold", 9)
    assert found.returncode == 2 and found.stderr.count(b"\n") == 1 and b"breaks off after 1" in found.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_no_letter_is_a_fault(tmp_path: Path) -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    told = run_apart("select-tof", "--help", env=plain)
    assert told.returncode == 0 and b"wavelength" in told.stdout
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/r\xfcckseite")  # as Latin-1 has it
    os.mkdir(folder)
    tifffile.imwrite(Path(folder, "a.tif"), np.ones((9, 9), np.uint16))
    out = Path(folder, "out.npy")
    found = run_apart("remove-spots", Path(folder, "a.tif"), out, "--threshold", 9)
    assert (found.returncode, found.stderr) == (0, b"") and b"out.npy" in found.stdout and out.exists()
    Path(folder, "p.yaml").write_text("input: a.tif\nsteps: [{kmeans: {n_clusters: 1}}]\noutput: {path: out}")
    found = run_apart("run", Path(folder, "p.yaml"))
    assert (found.returncode, found.stderr) == (0, b"") and b"report: " in found.stdout
    found = run_apart("run", Path(folder, "p.yaml"), "--out", Path(folder, "other"), "--quiet")
    assert (found.returncode, found.stderr) == (0, b"") and Path(folder, "other", "run.json").exists()
    found = run_apart("evaluate", out, out, "--kind", "labels", "--json", Path(folder, "figures.json"))
    assert (found.returncode, found.stderr) == (0, b"")
    assert json.loads(Path(folder, "figures.json").read_bytes())["files"]["predicted"] == str(out)
    assert "ckseite" in Path(folder, "out", "report.html").read_text(encoding="utf-8")


def test_a_process_may_begin_with_closed_streams(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((9, 9), np.uint16))
    (tmp_path / "p.yaml").write_text("input: a.npy\nsteps: [{remove_spots: {threshold: 9}}]\noutput: {path: out}")
    command = [sys.executable, "-m", "niseg_gpu", "run", str(tmp_path / "p.yaml"), "--overwrite"]
    for closed in ("2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], timeout=300)
        assert done.returncode == 0, closed
    assert (tmp_path / "out" / "report.html").stat().st_size


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the output fails at its end, or in the midst of the work
def test_output_that_nobody_reads_ends_as_sigpipe_does_and_is_no_fault(unbuffered: str) -> None:
    def end(*arguments: str, **streams) -> tuple[int, bytes]:
        reader, writer = os.pipe()
        os.close(reader)
        streams = {name: writer if stream == "gone" else stream for name, stream in streams.items()}
        done = run_apart(
            *arguments, capture_output=False, env={**os.environ, "PYTHONUNBUFFERED": unbuffered}, **streams
        )
        os.close(writer)
        return done.returncode, done.stderr or b""

    assert end("info", stdout="gone", stderr=subprocess.PIPE) == (141, b"")
    assert end("--version", stdout="gone", stderr=subprocess.PIPE) in ((141, b""), (0, b""))  # argparse's own way
    status, told = end("inf", stdout="gone", stderr=subprocess.PIPE)
    assert status == 2 and told.startswith(b"niseg-gpu: ") and told.count(b"\n") == 1
    assert end("inf", stdout="gone", stderr="gone") == (2, b"")
    assert end("inf", stdout=subprocess.DEVNULL, stderr="gone") == (2, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="a device that is full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_has_no_room_is_told_however_it_is_buffered(unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        streams = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        found = run_apart("info", env={**os.environ, "PYTHONUNBUFFERED": unbuffered}, **streams)
    assert found.returncode == 2 and found.stderr.count(b"\n") == 1 and b"no room for the output" in found.stderr


def test_a_connection_that_breaks_is_a_fault_all_the_same(niseg, monkeypatch) -> None:
    def fail(**_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("niseg_gpu.pipeline.info.describe_machine", fail)
    status, _, err = niseg("info")
    assert status == 1 and "a fault of ours: BrokenPipeError" in err


def test_nan_may_replace_spots_by_its_name(niseg, frame: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "floats.npy", tifffile.imread(frame).astype(np.float32))
    out, options = tmp_path / "clean.npy", ("--threshold", 1000, "--replacement", "nan")
    assert niseg("remove-spots", tmp_path / "floats.npy", out, *options)[0] == 0
    assert np.isnan(np.load(out)).sum() == 1
    status, _, err = niseg("remove-spots", frame, tmp_path / "other.npy", *options)
    assert status == 2 and "replacement nan needs floats, the stack is uint16" in err


def test_dead_pixels_from_a_file(niseg, frame: Path, tmp_path: Path) -> None:
    out, image = tmp_path / "clean.npy", tifffile.imread(frame)
    dead = np.zeros(image.shape, np.uint8)
    dead[3:5, 7] = 255
    tifffile.imwrite(tmp_path / "dead.tif", dead)
    status, said, err = niseg("remove-spots", frame, out, "--threshold", 1000, "--dead-pixels", tmp_path / "dead.tif")
    assert (status, err) == (0, "") and "remove_spots: 2 values of dead pixels replaced" in said
    np.testing.assert_array_equal(np.load(out), remove_spots(image, threshold=1000, dead_pixels=dead)[0])


def test_kmeans_from_file_to_file(niseg, data: Path, tmp_path: Path) -> None:
    out, spectra = tmp_path / "labels.tif", tmp_path / "spectra.csv"
    status, said, _ = niseg("kmeans", data / "sample", out, "--n-clusters", 3, "--spectra", spectra, "--seed", 1)
    assert status == 0 and f"wrote {spectra}" in said
    assert tifffile.imread(out).shape == (32, 40)
    lines = spectra.read_text().splitlines()
    assert lines[0] == "tof_s,cluster_0,cluster_1,cluster_2" and len(lines) == 31


def test_spectra_that_can_not_be_written_are_told_in_one_line(niseg, data: Path, tmp_path: Path) -> None:
    spectra = tmp_path / f"{'s' * 240}.csv"  # that is a name, but the hidden one it is made under is too long
    status, _, err = niseg("kmeans", data / "sample", tmp_path / "l.npy", "--n-clusters", 2, "--spectra", spectra)
    assert status == 2 and err.count("niseg-gpu:") == 1
    assert f"{spectra} can't be written: File name too long" in err and err.endswith("give another name\n")


def test_none_is_none_where_one_may_say_so(niseg, data: Path, tmp_path: Path) -> None:
    out, every = tmp_path / "labels.npy", ("--n-clusters", 2, "--init-sample", "none")
    assert niseg("kmeans", data / "sample", out, *every, "--quiet") == (0, "", "")
    status, _, err = niseg("kmeans", data / "sample", tmp_path / "l.npy", "--seed", "none")
    assert status == 2 and "seed is 'none'; input should be a valid integer" in err


def test_axes_that_no_step_knows_are_told(niseg, pipeline: Path, tmp_path: Path) -> None:
    assert niseg("run", pipeline, "--quiet")[0] == 0
    status, _, err = niseg("kmeans", f"{tmp_path / 'out' / 'result.zarr'}:spectra", tmp_path / "l.npy")
    assert (
        status == 2
        and err.count("\n") == 1
        and "the array's axes are cluster, tof; allowed: tof, angle, z, y, x" in err
    )


def test_an_empty_name_is_told(niseg, data: Path, pipeline: Path, tmp_path: Path) -> None:
    clean = ["remove-spots", data / "sample", tmp_path / "clean.zarr", "--threshold", 9]
    for arguments, told in (
        (["run", pipeline, "--out", ""], "output: path is ''; give a name"),
        ([*clean, "--open-beam", ""], "input: open_beam is ''; give a name, or leave it out"),
        ([*clean, "--mask", ""], "unknown ending ''; allowed: .zarr"),
    ):
        status, _, err = niseg(*arguments)
        assert status == 2 and err.count("\n") == 1 and told in err


def test_the_other_steps_from_file_to_file(niseg, data: Path, tmp_path: Path) -> None:
    beam = ["--open-beam", data / "open_beam"]
    for arguments in (
        ["overlap-correct", data / "sample", tmp_path / "a.zarr", "--per-trigger"],
        ["select-tof", tmp_path / "a.zarr", tmp_path / "b.h5", "--first", 3, "--last", 20],
        ["rebin-tof", tmp_path / "b.h5", tmp_path / "c.tif", "--factor", 4],
        ["assign-wavelength", tmp_path / "c.tif", tmp_path / "d.h5", "--flight-path-m", 10],
        ["scale-spectra", tmp_path / "d.h5", tmp_path / "e.zarr"],
        ["select-tof", tmp_path / "d.h5", tmp_path / "f.zarr", "--wavelength-angstrom", "1,3"],
        ["normalize", data / "sample", tmp_path / "g.zarr", *beam, "--dose-roi", "0,0,4,32"],
    ):
        status, _, err = niseg(*arguments)
        assert (status, err) == (0, ""), arguments
    e = open_stack(tmp_path / "e.zarr")
    assert e.shape == (5, 32, 40) and "wavelength" in e.coords
    means = e.mean("tof").values
    np.testing.assert_allclose(means[np.isfinite(means)], 1, rtol=1e-5)


def test_simulate_tof(niseg, tmp_path: Path) -> None:
    status, out, err = niseg("simulate", "tof", tmp_path / "sim", "--n-bins", 20, "--height", 32, "--width", 40)
    assert (status, err) == (0, "") and "wrote" in out
    assert open_stack(tmp_path / "sim" / "sample").shape == (20, 32, 40)
    assert (tmp_path / "sim" / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert niseg("simulate", "tof", tmp_path / "sim")[0] == 2


def test_simulate_tof_takes_ranges_and_lists(niseg, tmp_path: Path) -> None:
    size = ["--n-bins", 20, "--height", 32, "--width", 40, "--no-open-beam", "--quiet"]
    ranges = [
        "--wavelength-range",
        "2,4.5",
        "--shutters",
        "5,15",
        "--scene",
        "mixture",
        "--texture",
        "alpha_iron:110:0.7",
    ]
    assert niseg("simulate", "tof", tmp_path / "sim", *size, *ranges) == (0, "", "")
    made = json.loads((tmp_path / "sim" / "truth" / "simulation.json").read_text())
    assert made["wavelength_range_angstrom"] == [2.0, 4.5] and made["window_bins"] == [[0, 5], [5, 20]]
    for wrong in ("2", "2,x", "4,2"):
        status, _, err = niseg("simulate", "tof", tmp_path / "other", "--wavelength-range", wrong)
        assert status == 2 and err.count("\n") == 1 and "wavelength" in err.replace("-", "_")


def test_info(niseg) -> None:
    status, out, _ = niseg("info")
    assert status == 0 and all(step in out for step in OPS)
    machine = json.loads(niseg("info", "--json", "--kernels", "own")[1])
    assert machine["auto_takes"] in ("cpu", "gpu") and set(machine["steps"]) == set(OPS)
    assert "own kernel" in machine["steps"]["kmeans"]
    library = json.loads(niseg("info", "--json", "--kernels", "library")[1])
    assert "own kernel" not in library["steps"]["kmeans"]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["kmens", "a", "b"], "no COMMAND 'kmens'; did you mean 'kmeans'?"),
        (
            ["remove-spots", "a.tif", "b.tif", "--treshold", "3"],
            "no argument '--treshold'; did you mean '--threshold'?",
        ),
        (["remove-spots", "a.tif", "b.tif"], "remove_spots needs threshold"),
        (["remove-spots", "a.tif", "b.tif", "--threshold", "high"], "threshold is 'high'"),
        (["remove-spots", "no.tif", "b.tif", "--threshold", "3"], "no.tif does not exist"),
        (["remove-spots", "no.tif", "b.xyz", "--threshold", "3"], "b.xyz: unknown ending '.xyz'"),
        (["kmeans", "no.tif", "b.tif", "--device", "tpu"], "device is 'tpu'"),
        (["run"], "required: PIPELINE"),
        (["run", "no.yaml"], "can't read the pipeline"),
        ([], "required: COMMAND"),
        (["demo", "--size", "huge"], "no --size 'huge'; allowed: small, full"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(niseg, tmp_path: Path, monkeypatch, arguments, complaint) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = niseg(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("niseg-gpu: ") and err.count("\n") == 1 and complaint in err
    assert list(tmp_path.iterdir()) == []


def test_a_demanded_gpu_that_is_missing(niseg, pipeline: Path, monkeypatch) -> None:
    monkeypatch.setattr("niseg_gpu.backend.choose.why_no_gpu", lambda: "no CUDA device")
    for command in (["run", pipeline, "--device", "gpu"], ["demo", "--out", pipeline.parent / "d", "--device", "gpu"]):
        status, _, err = niseg(*command)
        assert status == 2 and "device is gpu, but no GPU can be used: no CUDA device" in err
    assert not (pipeline.parent / "d").exists()


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--wavelength-range", "a,b", "--wavelength-range: 'a,b' is no numbers with commas between"),
        ("--shutters", "3,x", "--shutters: '3,x' is no whole number, nor several with commas between"),
        ("--n-bins", "2.5", "--n-bins: invalid int value: '2.5'"),
    ],
)
def test_lists_of_numbers_are_refused_in_words(niseg, tmp_path: Path, option, value, complaint) -> None:
    status, _, err = niseg("simulate", "tof", tmp_path / "run", option, value)
    assert status == 2 and err.count("\n") == 1 and complaint in err and "_read" not in err


def test_help_of_generators_names_what_is_allowed(niseg) -> None:
    _, roots, _ = niseg("simulate", "roots", "--help")
    _, radiograph, _ = niseg("simulate", "radiograph", "--help")
    assert all(word in roots for word in ("taprooted:", "fibrous:", "zarr, tif, h5", "--overwrite"))
    assert "(default: )" not in radiograph and "--overwrite" in radiograph


def test_too_little_memory_is_one_line_for_the_user(niseg, pipeline: Path, monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise MemoryError("Unable to allocate 73 GiB")

    monkeypatch.setattr("niseg_gpu.pipeline.run.run_pipeline", fail)
    status, _, err = niseg("run", pipeline)
    assert status == 2 and err.count("\n") == 1 and "not enough memory; give smaller data" in err and "73 GiB" in err


def test_memory_that_the_system_refuses_is_one_line_for_the_user(
    niseg, frame: Path, tmp_path: Path, monkeypatch
) -> None:
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("niseg_gpu.io.save._store", refuse)
    status, _, err = niseg("remove-spots", frame, tmp_path / "out.npy", "--threshold", 9)
    assert status == 2 and err.count("\n") == 1 and "not enough memory; give smaller data" in err


def test_too_few_threads_are_one_line_for_the_user(niseg, pipeline: Path, monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("niseg_gpu.pipeline.run.run_pipeline", fail)
    status, _, err = niseg("run", pipeline)
    assert status == 2 and err.count("\n") == 1 and "no more threads may be started" in err


def test_a_fault_of_ours_is_status_1_and_no_traceback(niseg, pipeline: Path, monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise ValueError("two\nlines")

    monkeypatch.setattr("niseg_gpu.pipeline.run.run_pipeline", fail)
    status, _, err = niseg("run", pipeline)
    assert status == 1 and err.count("\n") == 1 and "a fault of ours: ValueError: two lines" in err


def test_an_interrupt_in_the_making_of_a_class_is_one_too(niseg, pipeline: Path, monkeypatch) -> None:
    class Interrupted:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt

    def import_a_library(*args, **kwargs):
        type("OfALibrary", (), {"member": Interrupted()})

    monkeypatch.setattr("niseg_gpu.pipeline.run.write_results", import_a_library)
    status, _, err = niseg("run", pipeline)
    assert status == 130 and "interrupted; nothing was left under a final name" in err


def test_an_interrupt_in_the_taking_of_a_lock_is_one_too(niseg, pipeline: Path, monkeypatch) -> None:
    def take_a_lock(*args, **kwargs):
        try:
            raise KeyboardInterrupt
        finally:
            error = RuntimeError("release unlocked lock")
            add_note(error, "3 of 5 blocks are done and kept; go on")
            error.add_note("what a library says\nin its own words")
            raise error

    monkeypatch.setattr("niseg_gpu.pipeline.run.run_pipeline", take_a_lock)
    status, _, err = niseg("run", pipeline)
    assert (status, err) == (130, "niseg-gpu: interrupted; 3 of 5 blocks are done and kept; go on\n")


def test_an_interrupt_is_status_130(niseg, pipeline: Path, monkeypatch) -> None:
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("niseg_gpu.pipeline.run.run_pipeline", interrupt)
    status, _, err = niseg("run", pipeline)
    assert status == 130 and "interrupted; nothing was left under a final name" in err


def test_an_interrupt_tells_what_is_kept(niseg, pipeline: Path, monkeypatch) -> None:
    def interrupt(*args, **kwargs):
        error = KeyboardInterrupt()
        add_note(error, "3 of 5 blocks are done and kept; go on")
        raise error

    monkeypatch.setattr("niseg_gpu.pipeline.run.run_pipeline", interrupt)
    status, _, err = niseg("run", pipeline)
    assert (status, err) == (130, "niseg-gpu: interrupted; 3 of 5 blocks are done and kept; go on\n")


def test_a_finished_run_is_not_run_again_to_resume_it(niseg, pipeline: Path) -> None:
    first = niseg("run", pipeline, "--resume")
    again = niseg("run", pipeline, "--resume")
    assert first[0] == again[0] == 0 and first[1] == again[1]


@pytest.mark.parametrize("command", [*(step.replace("_", "-") for step in OPS), "run", "check", "demo", "info"])
def test_every_command_explains_itself(niseg, command: str) -> None:
    status, out, _ = niseg(command, "--help")
    assert status == 0 and "--verbose" in out


def test_the_demo_is_the_whole_main_job(niseg, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("niseg_gpu.pipeline.demo.SIZES", {"small": {"height": 40, "width": 48, "n_bins": 60}})
    out = tmp_path / "demo"
    status, said, err = niseg("demo", "--out", out)
    assert (status, err) == (0, "") and f"report: {out / 'result' / 'report.html'}" in said
    assert {p.name for p in out.iterdir()} == {"data", "pipeline.yaml", "result"}
    status, _, err = niseg("demo", "--out", out)
    assert status == 2 and "exists" in err
    assert niseg("run", out / "pipeline.yaml", "--out", tmp_path / "again", "--quiet")[0] == 0
    assert niseg("demo", "--out", out, "--overwrite", "--quiet") == (0, "", "")


def test_objects_are_left_to_the_system_at_the_end():
    code = (
        "import atexit, gc; from niseg_gpu.cli import main; "
        "atexit.register(lambda: print('frozen', gc.get_freeze_count())); main(['--version'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.split("frozen ")[1]) > 10_000


def test_a_user_without_a_home_folder_is_given_the_name_of_none(niseg, monkeypatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as for a number that no name belongs to
    assert niseg("--version")[0] == 0
    assert Path.home() == Path("/nonexistent")

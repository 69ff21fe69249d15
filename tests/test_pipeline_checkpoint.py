"""A run that was cut goes on, and ends with the very bytes of one that was not."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from niseg_gpu import report
from niseg_gpu.errors import UserError
from niseg_gpu.knn_model import fit_knn, save_knn
from niseg_gpu.pipeline import ledger, sinks
from niseg_gpu.pipeline.parse import parse_pipeline
from niseg_gpu.pipeline.run import run_pipeline
from niseg_gpu.simulate.tof import simulate_tof

TOF = [
    "overlap_correct",
    {"remove_spots": {"threshold": 300}},
    {"normalize": {"dose_by_shutter_counts": True}},
    {"kmeans": {"n_clusters": 3}},
]
SCALED = ["overlap_correct", {"scale_spectra": {}}, {"kmeans": {"n_clusters": 3}}]
FRAMES = [{"remove_spots": {"threshold": 60}}]
VOLUME = [{"remove_spots": {"threshold": 60, "neighbourhood": "volume"}}, {"kmeans": {"n_clusters": 2}}]


class Cut(BaseException):
    """Ends a run at a block, as an interrupt would."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    simulate_tof(out / "tof", height=200, width=32, n_bins=30, seed=3)
    rng = np.random.default_rng(5)
    counts = rng.poisson(400, (40, 64, 48)).astype(np.uint16)
    counts[rng.random(counts.shape) < 0.01] += 500
    (out / "frames").mkdir()
    for i, frame in enumerate(counts):
        tifffile.imwrite(out / "frames" / f"frame_{i:03d}.tif", frame, compression="zlib")
    return out


@pytest.fixture(autouse=True)
def saving_after_each_block(monkeypatch) -> None:
    monkeypatch.setattr(ledger, "SAVE_EVERY_S", 0)


def describe(data: Path, out: Path, steps: list, *, workers: int = 2, **changes) -> dict:
    tof = {"path": str(data / "tof" / "sample"), "open_beam": str(data / "tof" / "open_beam")}
    source = tof if steps is TOF or steps is SCALED else {"path": str(data / "frames")}
    if steps is SCALED:
        del source["open_beam"]
    if steps is VOLUME:
        source["dims"] = ["z", "y", "x"]
    whole = {"input": source, "steps": steps, "output": {"path": str(out)}, "compute": {"workers": workers}}
    return {**whole, **changes}


def run(mapping: dict, **options) -> Path:
    return run_pipeline(parse_pipeline(mapping), quiet=True, **options)


def cut_at(write: int, mapping: dict, **options) -> None:
    """Run until blocks have been written that many times, all targets counted; then no more."""
    left, inside = [write], sinks.NotedTarget.__setitem__

    def count(self, region, block):
        left[0] -= 1
        if left[0] < 0:
            raise Cut
        inside(self, region, block)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(sinks.NotedTarget, "__setitem__", count)
        run(mapping, **options)


def read(out: Path) -> dict[str, bytes]:
    """Every file of a result but those that tell of times."""
    files = (path for path in out.rglob("*") if path.is_file())
    names = {path.relative_to(out).as_posix(): path for path in files}
    untimed = {name: path for name, path in names.items() if name not in ("run.json", "report.html", "log.txt")}
    return {name: path.read_bytes() for name, path in untimed.items()}


@pytest.fixture(scope="module", params=[TOF, SCALED, FRAMES, VOLUME], ids=["tof", "scaled", "frames", "volume"])
def whole(request, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list, Path]:
    out = tmp_path_factory.mktemp("whole") / "out"
    run(describe(data, out, request.param))
    return request.param, out


@pytest.mark.parametrize("choice", ["skip", "interpolate"])
def test_a_run_with_bad_frames_goes_on_while_they_are_the_same(data: Path, tmp_path: Path, choice: str) -> None:
    frames = tmp_path / "frames"
    shutil.copytree(data / "frames", frames)
    (frames / "frame_011.tif").unlink()
    (frames / "frame_030.tif").write_bytes(b"")
    written = (frames / "frame_030.tif").stat()
    mapping = describe(data, tmp_path / "out", FRAMES, input={"path": str(frames), "bad_frames": choice})
    run({**mapping, "output": {"path": str(tmp_path / "whole")}})
    cut_at(3, mapping)
    shutil.copyfile(data / "frames" / "frame_030.tif", frames / "frame_030.tif")
    with pytest.raises(UserError, match=r"frame_030\.tif changed after the run began|other blocks"):
        run(mapping, resume=True)
    (frames / "frame_030.tif").write_bytes(b"")
    os.utime(frames / "frame_030.tif", ns=(written.st_atime_ns, written.st_mtime_ns))
    run(mapping, resume=True)
    assert read(tmp_path / "out") == read(tmp_path / "whole")
    findings = [json.loads((tmp_path / name / "run.json").read_text())["findings"] for name in ("out", "whole")]
    assert sorted(findings[0]) == sorted(findings[1]) and any("2 bad frames" in line for line in findings[0])


@given(cuts=st.lists(st.integers(1, 45), min_size=1, max_size=3), workers=st.sampled_from([1, 2, 5]))
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_run_that_was_cut_ends_byte_identical(whole, data: Path, tmp_path_factory, cuts, workers) -> None:
    steps, expected = whole
    out = tmp_path_factory.mktemp("cut") / "out"
    for cut in cuts:  # each begins where the last was cut, with as many threads as it likes
        try:
            cut_at(cut, describe(data, out, steps), resume=True)
        except pytest.fail.Exception:
            break  # no block was left to cut it at
    else:
        assert not out.exists()
        run(describe(data, out, steps, workers=workers), resume=True)
    record, of_whole = (json.loads((folder / "run.json").read_text()) for folder in (out, expected))
    n_done = record["resumed_after_blocks"]
    assert n_done == sorted(n_done) and len(n_done) <= len(cuts)
    found, wanted = read(out), read(expected)
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []
    assert record["findings"] == of_whole["findings"] and record["results"] == of_whole["results"]
    assert not list(out.parent.glob(".*"))


def test_a_killed_process_loses_what_came_after_the_last_checkpoint_only(data: Path, tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO", "niseg_gpu")
    mapping = describe(data, tmp_path / "out", FRAMES)
    (tmp_path / "p.json").write_text(json.dumps(mapping))
    program = (
        "import os, signal\n"
        "from niseg_gpu.pipeline import ledger\n"
        "from niseg_gpu.pipeline.parse import read_pipeline\n"
        "from niseg_gpu.pipeline.run import run_pipeline\n"
        "ledger.SAVE_EVERY_S, note = 0, ledger.Ledger.note_write\n"
        "def note_write(self, region):\n"
        "    note(self, region)\n"
        "    if len(self.done) >= 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "ledger.Ledger.note_write = note_write\n"
        f"run_pipeline(read_pipeline({str(tmp_path / 'p.json')!r}), quiet=True)\n"
    )
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert ended.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="an unfinished run into .* is kept .*--resume, or begin anew with --overwrite"):
        run(mapping)
    out = run(mapping, resume=True)
    record = json.loads((out / "run.json").read_text())
    assert record["resumed_after_blocks"][0] >= 3
    whole = run(describe(data, tmp_path / "whole", FRAMES))
    assert read(out) == read(whole)
    assert "going on after" in (out / "log.txt").read_text()


def test_overwrite_begins_anew(data: Path, tmp_path: Path) -> None:
    mapping = describe(data, tmp_path / "out", FRAMES)
    cut_at(12, mapping)
    record = json.loads((run(mapping, overwrite=True) / "run.json").read_text())
    assert record["resumed_after_blocks"] == []


def test_what_has_ended_is_left_alone(data: Path, tmp_path: Path) -> None:
    mapping = describe(data, tmp_path / "out", FRAMES)
    record = run(mapping, resume=True) / "run.json"
    before = record.stat().st_mtime_ns
    assert run(mapping, resume=True) == tmp_path / "out"
    assert record.stat().st_mtime_ns == before
    other = describe(data, tmp_path / "out", [{"remove_spots": {"threshold": 61}}])
    with pytest.raises(UserError, match=r"steps.remove_spots.threshold 60.0, not 61.0; give another name"):
        run(other, resume=True)
    fewer = describe(data, tmp_path / "few", FRAMES, output={"path": str(tmp_path / "few"), "arrays": ["spots"]})
    run(fewer)
    with pytest.raises(UserError, match="keeps fewer arrays"):
        run({**fewer, "output": {"path": str(tmp_path / "few")}}, resume=True)


def test_it_may_be_gone_on_with_from_another_folder(data: Path, tmp_path: Path, monkeypatch) -> None:
    mapping = describe(data, tmp_path / "out", FRAMES)
    monkeypatch.chdir(data)
    cut_at(12, {**mapping, "input": {"path": "frames"}})
    monkeypatch.chdir(data / "frames")
    run({**mapping, "input": {"path": "../frames"}}, resume=True)
    run(mapping, resume=True)
    (tmp_path / "out" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="run.json in it does not tell of which run"):
        run(mapping, resume=True)


def test_an_image_that_kmeans_looks_at_must_be_the_same_from_wherever_it_is_named(
    data: Path, tmp_path: Path, monkeypatch
) -> None:
    shape = tifffile.imread(next((data / "frames").glob("*.tif"))).shape
    image = np.random.default_rng(0).random((len(list((data / "frames").glob("*.tif"))), *shape))
    np.save(tmp_path / "xray.npy", image)
    mapping = describe(data, tmp_path / "out", FRAMES)

    def steps(name: str) -> list:
        return [*FRAMES, {"kmeans": {"n_clusters": 2, "images": {name: 1.0}}}]

    monkeypatch.chdir(tmp_path)
    cut_at(12, {**mapping, "steps": steps("xray.npy")})
    monkeypatch.chdir(data)
    elsewhere = {**mapping, "steps": steps(os.path.relpath(tmp_path / "xray.npy"))}
    np.save(tmp_path / "xray.npy", image + 1)
    with pytest.raises(UserError, match=r"xray\.npy changed after the run began"):
        run(elsewhere, resume=True)


def test_an_unfinished_run_of_something_else_is_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    mapping = describe(data, tmp_path / "out", FRAMES)
    cut_at(12, mapping)
    others = {
        "steps.remove_spots.threshold 60.0, not 61.0": {"steps": [{"remove_spots": {"threshold": 61}}]},
        'input.bad_values "error", not "keep"': {"input": {**mapping["input"], "bad_values": "keep"}},
        'not ["image"]': {"output": {**mapping["output"], "arrays": ["image"]}},
        "kernels.remove_spots": {"compute": {"workers": 2, "kernels": "library"}},
    }
    for told, other in others.items():
        with pytest.raises(UserError, match=f"began with .*{re.escape(told)}.*; resume with what it began with"):
            run({**mapping, **other}, resume=True)
    run(mapping, resume=True)  # a refusal costs nothing


def test_a_frame_may_be_mended_but_not_one_that_was_read(data: Path, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for path in sorted((data / "frames").iterdir()):
        fits.writeto(folder / f"{path.stem}.fits", tifffile.imread(path).astype(np.int16))
    frames, good, note = sorted(folder.iterdir()), {}, ledger.Ledger.note_write

    def note_and_break(self, region):
        """Once a block is done, a frame of another is cut short."""
        note(self, region)
        if self.done and not good:
            other = self.regions[max(set(range(len(self.regions))) - self.done, key=lambda i: abs(i - min(self.done)))]
            broken = frames[(other[0].start + other[0].stop) // 2]
            good[broken] = broken.read_bytes()
            broken.write_bytes(good[broken][:2900])

    mapping = describe(data, tmp_path / "out", FRAMES, workers=1, input={"path": str(folder)})
    with monkeypatch.context() as patch, pytest.raises(UserError, match="frame_") as caught:
        patch.setattr(ledger.Ledger, "note_write", note_and_break)
        run(mapping)
    assert caught.value.__notes__[0].endswith("are done and kept; the same command with --resume goes on after them")
    ((broken, whole),) = good.items()
    assert broken.name in str(caught.value)
    broken.write_bytes(whole)
    before = {path: path.stat().st_mtime_ns for path in frames}
    for path in frames:
        os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match=r"frame_.* more files changed after the run began; begin anew"):
        run(mapping, resume=True)
    for path in frames:
        os.utime(path, ns=(before[path],) * 2)
    out = run(mapping, resume=True)
    assert json.loads((out / "run.json").read_text())["resumed_after_blocks"][0] > 0
    assert read(out) == read(run({**mapping, "output": {"path": str(tmp_path / "whole")}}))


def test_a_run_that_keeps_no_image_keeps_nothing_unfinished(data: Path, tmp_path: Path) -> None:
    mapping = describe(data, tmp_path / "out", TOF, output={"path": str(tmp_path / "out"), "arrays": ["labels"]})
    cut_at(9, mapping)
    assert list(tmp_path.iterdir()) == []
    run(mapping, resume=True)


def test_a_short_run_keeps_nothing_unfinished(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(ledger, "SAVE_EVERY_S", 3600)
    cut_at(12, describe(data, tmp_path / "out", FRAMES))
    assert list(tmp_path.iterdir()) == []


def test_a_broken_checkpoint_is_named(data: Path, tmp_path: Path) -> None:
    mapping = describe(data, tmp_path / "out", FRAMES)
    cut_at(12, mapping)
    file = tmp_path / ".out.unfinished" / "checkpoint.npz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"checkpoint.npz is broken .*; begin anew with --overwrite"):
        run(mapping, resume=True)


@pytest.mark.parametrize("pattern", ["image/c/*/*/*", "spots/zarr.json", "zarr.json"])
def test_what_blocks_have_written_must_be_there(data: Path, tmp_path: Path, pattern: str) -> None:
    mapping = describe(data, tmp_path / "out", FRAMES)
    cut_at(12, mapping)
    results = tmp_path / ".out.unfinished" / "result.zarr"
    file = min(results.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    name = file.relative_to(results).as_posix()
    written = file.read_bytes()
    if name != "zarr.json":
        file.write_bytes(written[:-1])
        with pytest.raises(
            UserError, match=f"{name} of the unfinished run has {len(written) - 1} bytes, not"
        ) as caught:
            run(mapping, resume=True)
        assert not hasattr(caught.value, "__notes__")  # nothing to go on with
    file.unlink()
    with pytest.raises(UserError, match=f"{name} of the unfinished run is missing; begin anew with --overwrite"):
        run(mapping, resume=True)
    file.write_bytes(written)
    run(mapping, resume=True)


@pytest.mark.parametrize("name", ["zarr.json", "image/zarr.json"])
def test_a_broken_description_of_the_arrays_is_named(data: Path, tmp_path: Path, name: str) -> None:
    mapping = describe(data, tmp_path / "out", FRAMES)
    cut_at(12, mapping)
    file = tmp_path / ".out.unfinished" / "result.zarr" / name
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(UserError, match=f"{name} of the unfinished run is broken; begin anew with --over") as caught:
        run(mapping, resume=True)
    assert not hasattr(caught.value, "__notes__")


def test_a_block_that_cannot_be_read_back_is_named(data: Path, tmp_path: Path) -> None:
    mapping = describe(data, tmp_path / "out", TOF)
    cut_at(16, mapping)
    for file in (tmp_path / ".out.unfinished" / "result.zarr" / "image").glob("c/*/*/*"):
        file.write_bytes(bytes(len(file.read_bytes())))  # as a disk may leave it that was switched off
    with pytest.raises(UserError, match="image of the unfinished run can't be read back .*; begin anew") as caught:
        run(mapping, resume=True)
    assert not hasattr(caught.value, "__notes__")


def test_every_mask_that_blocks_have_written_must_be_there(data: Path, tmp_path: Path) -> None:
    mapping = describe(data, tmp_path / "out", [*FRAMES, {"remove_spots": {"threshold": 30}}])
    cut_at(24, mapping)
    file = next((tmp_path / ".out.unfinished" / "result.zarr" / "spots_2").glob("c/*/*/*"))
    file.write_bytes(b"")
    with pytest.raises(UserError, match="spots_2/c/.* of the unfinished run has 0 bytes, not"):
        run(mapping, resume=True)


def test_arrays_that_a_crash_left_half_written_are_written_anew(whole, data: Path, tmp_path: Path, monkeypatch) -> None:
    steps, before = whole
    mapping = describe(data, tmp_path / "out", steps)

    def crash(*_, **__):
        raise Cut

    with monkeypatch.context() as patch, pytest.raises(Cut):
        patch.setattr(report, "write_report", crash)
        run(mapping)
    results = tmp_path / ".out.unfinished" / "result.zarr"
    for file in results.glob("[!is]*/zarr.json"):
        file.write_bytes(b"")
    assert read(run(mapping, resume=True)) == read(before)


def test_text_files_beside_the_frames_must_say_the_same(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "tof", tmp_path / "tof")
    mapping = describe(tmp_path, tmp_path / "out", TOF)
    cut_at(6, mapping)
    counts = tmp_path / "tof" / "open_beam" / "run_ShutterCount.txt"
    counts.write_text(re.sub(r"^0\t\d+", "0\t77777", counts.read_text()))
    with pytest.raises(UserError, match=r"began with .*shutter_counts \d+, not 77777; resume with"):
        run(mapping, resume=True)


def test_what_has_ended_is_not_taken_for_the_result_of_a_model_that_changed_since(data: Path, tmp_path: Path) -> None:
    frame = tifffile.imread(data / "frames" / "frame_000.tif")
    model = tmp_path / "spots.npz"
    save_knn(fit_knn(frame, frame > 700), model)
    mapping = describe(data, tmp_path / "out", [{"detect_spots": {"model": str(model)}}])
    before = read(run(mapping))
    assert read(run(mapping, resume=True)) == before
    save_knn(fit_knn(frame, frame > 430), model, overwrite=True)
    with pytest.raises(UserError, match=r"out exists, and .*/spots\.npz changed after that run began; .*--overwrite"):
        run(mapping, resume=True)
    assert read(run(mapping, resume=True, overwrite=True)) != before
    model.unlink()  # nothing is to be computed
    run(mapping, resume=True)


def test_a_full_disk_leaves_the_checkpoint_before(data: Path, tmp_path: Path, monkeypatch) -> None:
    mapping = describe(data, tmp_path / "out", FRAMES, workers=1)
    savez, saved = np.savez, []

    def fill(file, **arrays):
        saved.append(file)
        if len(saved) > 4:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(file, **arrays)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device") as caught:
        patch.setattr(np, "savez", fill)
        run(mapping)
    kept = re.match(r"(\d+) of \d+ blocks are done and kept; the same command with --resume", caught.value.__notes__[0])
    assert kept is not None and not list(tmp_path.rglob("*.partial"))
    record = json.loads((run(mapping, resume=True) / "run.json").read_text())
    assert record["resumed_after_blocks"] == [int(kept[1])]


def test_a_batch_system_that_ends_a_run_is_told_what_is_kept(data: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(describe(data, tmp_path / "out", FRAMES)))
    program = (
        "import os, signal, time\n"
        "from niseg_gpu.cli import main\n"
        "from niseg_gpu.pipeline import ledger\n"
        "ledger.SAVE_EVERY_S, note, sent = 0, ledger.Ledger.note_write, []\n"
        "def note_write(self, region):\n"
        "    note(self, region)\n"
        "    if len(self.done) >= 3 and not sent:\n"
        "        sent.append(os.kill(os.getpid(), signal.SIGTERM))\n"
        "        time.sleep(1)  # the main thread is told meanwhile\n"
        "ledger.Ledger.note_write = note_write\n"
        f"main(['run', {str(tmp_path / 'p.json')!r}, '--quiet'])\n"
    )
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 143
    assert re.fullmatch(
        r"niseg-gpu: ended by SIGTERM; [3-9] of \d+ blocks are done and kept; the same command with --resume goes on "
        r"after them\n",
        ended.stderr,
    )

"""What a pipeline does about bad frames: bins stay together, all is told, what can't be right is refused."""

import json
import os

import numpy as np
import pytest
import tifffile
from astropy.io import fits

from niseg_gpu.errors import UserError
from niseg_gpu.io.open import open_stack
from niseg_gpu.pipeline.clock import Clock
from niseg_gpu.pipeline.inputs import open_inputs
from niseg_gpu.pipeline.parse import Input

N, SHAPE = 12, (16, 18)
STEPS = "steps: [overlap_correct, normalize]\n"


def write_run(folder, *, seed, mean):
    """A ToF run of two shutter windows."""
    folder.mkdir()
    cube = np.random.default_rng(seed).poisson(mean, (N, *SHAPE)).astype("i2")
    for i, frame in enumerate(cube):
        fits.PrimaryHDU(frame).writeto(folder / f"r_{i:05d}.fits")
    times = 1e-3 + 1e-5 * np.arange(N) + 1e-4 * (np.arange(N) > 4)
    (folder / "r_Spectra.txt").write_text("".join(f"{t} 1\n" for t in times))
    (folder / "r_ShutterCount.txt").write_text("0 5000\n1 7000\n2 0\n")
    return cube


@pytest.fixture
def runs(tmp_path):
    """A run and its open beam with a broken frame each, and what was in the frames."""
    cubes = write_run(tmp_path / "run", seed=0, mean=40), write_run(tmp_path / "ob", seed=1, mean=90)
    os.truncate(tmp_path / "run" / "r_00002.fits", 3000)
    (tmp_path / "ob" / "r_00007.fits").unlink()
    (tmp_path / "p.yaml").write_text(f"input: {{path: run, open_beam: ob}}\n{STEPS}output: {{path: out}}\n")
    return cubes


def open_both(folder, choice):
    clock = Clock()
    spec = Input(path=str(folder / "run"), open_beam=str(folder / "ob"), bad_frames=choice)
    return open_inputs(spec, clock=clock), clock


def test_a_bin_that_one_run_has_lost_is_left_out_of_both(tmp_path, runs):
    inputs, clock = open_both(tmp_path, "skip")
    for stack, cube in zip((inputs.sample, inputs.open_beam), runs, strict=True):
        assert stack.attrs["bins_left_out"] == [2, 7]
        np.testing.assert_array_equal(stack.values, np.delete(cube, [2, 7], 0))
    lines = clock.findings()
    assert any(
        line.startswith("input: 1 bad frames left out: ") and "run/r_00002.fits is trunc" in line for line in lines
    )
    assert any(line.startswith("open beam: input: 1 bad frames") and "ob/r_00007.fits" in line for line in lines)
    assert "input: 1 frames left out, for they are bad in what goes with them: 7" in lines
    assert "open beam: input: 1 frames left out, for they are bad in what goes with them: 2" in lines


def test_filled_in_frames_reach_every_step(tmp_path, niseg, runs):
    status, out, err = niseg("run", tmp_path / "p.yaml", "--set", "input.bad_frames=interpolate", "--quiet")
    assert status == 0 and not out and not err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [os.path.basename(told.split(" is ")[0].split(": ")[0]) for told in record["input"]["bad_frames"]] == [
        "r_00002.fits",
        "r_00007.fits",
    ]
    assert sum("filled in from their neighbours" in line for line in record["findings"]) == 2
    log = (tmp_path / "out" / "log.txt").read_text()
    assert all(name in log for name in ("run/r_00002.fits is truncated", "ob/r_00007.fits"))
    mended = [cube.copy() for cube in runs]
    mended[0][2] = np.rint((runs[0][1].astype(float) + runs[0][3]) / 2)
    mended[1][7] = np.rint((runs[1][6].astype(float) + runs[1][8]) / 2)
    for name, cube in zip(("run", "ob"), mended, strict=True):
        for i, frame in enumerate(cube):
            fits.PrimaryHDU(frame).writeto(tmp_path / name / f"r_{i:05d}.fits", overwrite=True)
    assert niseg("run", tmp_path / "p.yaml", "--out", tmp_path / "whole", "--quiet")[0] == 0
    images = [open_stack(tmp_path / out / "result.zarr:image") for out in ("out", "whole")]
    np.testing.assert_array_equal(images[0].values, images[1].values)


def test_overlap_correction_needs_the_counts_that_skipping_loses(tmp_path, niseg, runs):
    status, _, err = niseg("check", tmp_path / "p.yaml", "--set", "input.bad_frames=skip")
    assert status == 2 and err.splitlines()[-1] == (
        "niseg-gpu: overlap_correct needs all bins of a shutter window, for what was counted in one blinds its pixels "
        "in the later ones; bad_frames: skip left out the bins 2, 7: use bad_frames: interpolate"
    )


def test_overlap_correction_goes_on_where_no_later_bin_was_blinded(tmp_path, niseg):
    cube = write_run(tmp_path / "run", seed=0, mean=40)
    whole, skipped = tmp_path / "whole.npy", tmp_path / "skipped.npy"
    assert niseg("overlap-correct", tmp_path / "run", whole)[0] == 0
    for i in (4, 11):  # the last bins of their windows
        os.truncate(tmp_path / "run" / f"r_{i:05d}.fits", 2900)
    status, out, _ = niseg("overlap-correct", tmp_path / "run", skipped, "--bad-frames", "skip")
    assert status == 0 and "input: 2 bad frames left out: " in out and "r_00004.fits is truncated" in out
    np.testing.assert_array_equal(np.load(skipped), np.delete(np.load(whole), [4, 11], 0))
    assert len(cube) == N


def test_an_error_tells_of_the_choice(tmp_path, niseg, runs):
    status, _, err = niseg("check", tmp_path / "p.yaml")
    assert status == 2 and len(err.splitlines()) == 1
    assert "r_00002.fits is truncated" in err and "bad_frames: skip or interpolate (--bad-frames interpolate)" in err
    (tmp_path / "run" / "r_00002.fits").unlink()
    assert "frames are missing" in (err := niseg("check", tmp_path / "p.yaml")[2]) and "bad_frames: skip" in err


def test_what_breaks_only_in_decoding_tells_of_the_choice_too(tmp_path, niseg):
    folder = tmp_path / "run"
    folder.mkdir()
    cube = np.random.default_rng(0).integers(0, 60000, (5, 40, 48)).astype("u2")
    for i, frame in enumerate(cube):
        tifffile.imwrite(folder / f"p_{i}.tif", frame, photometric="minisblack", compression="zlib")
    path = folder / "p_2.tif"
    with tifffile.TiffFile(path) as tiff:
        where = tiff.pages[0].dataoffsets[0]
    whole = bytearray(path.read_bytes())
    whole[where : where + 40] = b"\xff" * 40
    path.write_bytes(whole)
    command = ("remove-spots", folder, tmp_path / "out.npy", "--threshold", "70000")
    status, _, err = niseg(*command)
    assert status == 2 and f"{path} can't be decoded" in err and "bad_frames: skip or interpolate" in err
    assert niseg(*command, "--bad-frames", "skip")[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.delete(cube, 2, 0))
    np.save(tmp_path / "dark.npy", np.zeros((40, 48), "u2"))  # as good or bad as it is, beside frames
    inputs = open_inputs(Input(path=str(folder), dark=str(tmp_path / "dark.npy"), bad_frames="skip"), clock=Clock())
    assert inputs.sample.shape[0] == 4 and inputs.dark.shape == (40, 48)
    with pytest.raises(UserError, match=r"dark\.npy is one file"):
        open_inputs(Input(path=str(tmp_path / "dark.npy"), bad_frames="skip"), clock=Clock())


def test_many_bad_frames_are_counted_and_the_first_are_named(tmp_path):
    write_run(tmp_path / "run", seed=0, mean=40)
    for i in range(6):
        (tmp_path / "run" / f"r_{2 * i:05d}.fits").write_bytes(b"")
    clock = Clock()
    inputs = open_inputs(Input(path=str(tmp_path / "run"), bad_frames="skip"), clock=clock)
    (line,) = clock.findings()
    assert line.startswith("input: 6 bad frames left out: ") and line.endswith("; and 1 more")
    assert line.count("is empty") == 5 and len(inputs.bad_frames) == 6

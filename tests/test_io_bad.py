"""Bad frames: found when a run is opened, named, left out or filled in, whatever the chunks, threads and types."""

import os
import pickle
from fractions import Fraction

import dask
import numpy as np
import pytest
import tifffile
from astropy.io import fits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from niseg_gpu.errors import UserError
from niseg_gpu.io.bad import BadFrame, mean_of, unreadable
from niseg_gpu.io.open import open_source, open_stack

few = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
N, SHAPE = 10, (6, 5)
WINDOWS, TRIGGERS = [[0, 3], [4, 9]], [500, 700]
TOF = np.array([1e-3 + 1e-5 * i + 1e-4 * (i > 3) for i in range(N)])


def draw_cube(dtype, n=N, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1e3, (n, *SHAPE)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (n, *SHAPE), dtype, endpoint=True)


def write_frame(path, frame, i=0, **options):
    if path.suffix == ".fits":
        fits.PrimaryHDU(frame, fits.Header({"TOF": TOF[i], "TIMEBIN": 1e-5})).writeto(path, overwrite=True)
    else:
        tifffile.imwrite(path, frame, photometric="minisblack", **options)


def write_run(folder, cube, *, ending="fits", sidecars=True, **options):
    """A run of two shutter windows."""
    folder.mkdir()
    paths = [folder / f"r_{i:03d}.{ending}" for i in range(len(cube))]
    for i, (path, frame) in enumerate(zip(paths, cube, strict=True)):
        write_frame(path, frame, i, **options)
    if sidecars:
        (folder / "r_Spectra.txt").write_text("".join(f"{t} 1\n" for t in TOF[: len(cube)]))
        (folder / "r_ShutterCount.txt").write_text("0 500\n1 700\n2 0\n")
    return paths


def break_frame(path, how, *, dtype="u2"):
    """Break a frame in one of many ways; a missing one must not be the first or last."""
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("I am no image, though long enough to be taken for the head of one." * 9)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "truncated":
        os.truncate(path, 2900 if path.suffix == ".fits" else path.stat().st_size - 9)
    elif how == "shape":
        write_frame(path, np.zeros((SHAPE[0], SHAPE[1] + 1), dtype))
    elif how == "type":
        write_frame(path, np.zeros(SHAPE, "f8" if dtype != "f8" else "f4"))


HOW = ["missing", "empty", "text", "folder", "truncated", "shape", "type"]


def fill_by_hand(cube, bad, windows):
    """What interpolation gives, in numbers that don't overflow."""
    out = cube.copy()
    for first, last in windows:
        good = [i for i in range(first, last + 1) if i not in bad]
        for i in (i for i in range(first, last + 1) if i in bad):
            before, after = [g for g in good if g < i][-1:], [g for g in good if g > i][:1]
            around = [cube[g] for g in before + after]
            if cube.dtype.kind == "f":
                out[i] = sum(a * cube.dtype.type(1 / len(around)) for a in around)
            else:
                exact = zip(*(a.ravel().tolist() for a in around), strict=True)
                out[i] = np.reshape([round(Fraction(sum(values), len(values))) for values in exact], cube.shape[1:])
    return out


bad_sets = st.sets(st.integers(1, N - 2), min_size=1, max_size=4)


@few
@given(
    bad=bad_sets,
    dtype=st.sampled_from(["u1", "i2", "u2", "i4", "f4", "f8"]),
    ending=st.sampled_from(["fits", "tif", "packed"]),
    data=st.data(),
)
def test_interpolated_frames_whatever_the_chunks(tmp_path_factory, bad, dtype, ending, data):
    folder, cube = tmp_path_factory.mktemp("run") / "r", draw_cube(dtype)
    options = {"ending": "tif", "compression": "zlib"} if ending == "packed" else {"ending": ending}
    paths = write_run(folder, cube, **options)
    for i in bad:
        break_frame(paths[i], data.draw(st.sampled_from(HOW)), dtype=dtype)
    whole_windows = all(set(range(a, b + 1)) - bad for a, b in WINDOWS)
    if not whole_windows:
        with pytest.raises(UserError, match=r"no good frame in the shutter window of bins \d to \d: .*r_00\d"):
            open_stack(folder, bad_frames="interpolate")
        return
    chunks = tuple(data.draw(st.sampled_from([-1, 1, 2, 3, n])) for n in cube.shape)
    stack = open_stack(folder, bad_frames="interpolate", chunks=chunks)
    assert stack.dtype == cube.dtype and stack.dims == ("tof", "y", "x")
    expected = fill_by_hand(cube, bad, WINDOWS)
    key = tuple(slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in cube.shape)
    np.testing.assert_array_equal(stack[key].values, expected[key])
    with dask.config.set(scheduler="threads", num_workers=8):
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(stack)).values, expected)
    assert stack.attrs["shutter_windows"] == WINDOWS and stack.attrs["shutter_counts"] == TRIGGERS
    np.testing.assert_allclose(stack.tof, TOF)
    assert len(stack.attrs["bad_frames"]) == len(bad)
    for i, told in zip(sorted(bad), stack.attrs["bad_frames"], strict=True):
        assert str(paths[i]) in told and stack.attrs["files"][i] == str(paths[i])


@few
@given(bad=bad_sets, ending=st.sampled_from(["fits", "tif", "packed"]), data=st.data())
def test_skipped_frames_go_with_their_coordinates(tmp_path_factory, bad, ending, data):
    folder, cube = tmp_path_factory.mktemp("run") / "r", draw_cube("u2")
    options = {"ending": "tif", "compression": "zlib"} if ending == "packed" else {"ending": ending}
    paths = write_run(folder, cube, **options)
    for i in bad:
        break_frame(paths[i], data.draw(st.sampled_from(HOW)))
    kept = [i for i in range(N) if i not in bad]
    chunks = tuple(data.draw(st.sampled_from([-1, 1, 2, 3])) for _ in cube.shape)
    stack = open_stack(folder, bad_frames="skip", chunks=chunks)
    np.testing.assert_array_equal(stack.values, cube[kept])
    np.testing.assert_allclose(stack.tof, TOF[kept])
    assert stack.attrs["files"] == [str(paths[i]) for i in kept]
    assert stack.attrs["bins_left_out"] == sorted(bad)
    window_of = [int(i > 3) for i in kept]
    assert stack.attrs["bin_triggers"] == [TRIGGERS[w] for w in window_of]
    sizes = [window_of.count(w) for w in (0, 1) if w in window_of]
    assert stack.attrs["shutter_windows"] == [[sum(sizes[:k]), sum(sizes[: k + 1]) - 1] for k in range(len(sizes))]
    before_others = any(i < k <= last for first, last in WINDOWS for i in bad if i >= first for k in kept)
    expected = None if before_others else [TRIGGERS[w] for w in sorted(set(window_of))]
    assert stack.attrs["shutter_counts"] == expected


def test_the_whole_run_is_the_same_whatever_the_choice(tmp_path):
    cube = draw_cube("u2")
    write_run(tmp_path / "r", cube)
    stacks = {choice: open_stack(tmp_path / "r", bad_frames=choice) for choice in ("error", "skip", "interpolate")}
    for stack in stacks.values():
        np.testing.assert_array_equal(stack.values, cube)
        assert stack.attrs == stacks["error"].attrs
        assert stack.tof_width.equals(stacks["error"].tof_width)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("ending", ["fits", "tif"])
def test_each_kind_is_an_error_unless_told_otherwise(tmp_path, how, ending):
    paths = write_run(tmp_path / "r", draw_cube("u2"), ending=ending)
    break_frame(paths[4], how)
    with pytest.raises(BadFrame, match=r"r_00[345]") as refused:
        open_stack(tmp_path / "r")
    assert "\n" not in str(refused.value)
    copied = pickle.loads(pickle.dumps(refused.value))  # a worker's comes to us so
    assert str(copied) == str(refused.value) and copied.fault == refused.value.fault
    assert open_stack(tmp_path / "r", bad_frames="skip").shape[0] == N - 1


@pytest.mark.parametrize("how", ["shape", "type"])
@pytest.mark.parametrize("ending", ["fits", "tif"])
def test_what_most_frames_are_decides_which_are_bad(tmp_path, how, ending):
    cube = draw_cube("i2")
    paths = write_run(tmp_path / "r", cube, ending=ending)
    break_frame(paths[0], how, dtype="i2")
    break_frame(paths[1], "empty")
    source = open_source(tmp_path / "r", bad_frames="skip")
    assert sorted(source.faults) == [0, 1] and source.faults[0].endswith(", most others are 6x5 int16")
    np.testing.assert_array_equal(open_stack(tmp_path / "r", bad_frames="skip").values, cube[2:])


def test_a_stream_that_breaks_inside_a_whole_file_is_found_in_opening(tmp_path):
    cube = np.random.default_rng(0).integers(0, 60000, (N, 40, 48)).astype("u2")
    folder = tmp_path / "r"
    folder.mkdir()
    for i, frame in enumerate(cube):
        tifffile.imwrite(folder / f"p_{i}.tif", frame, photometric="minisblack", compression="zlib")
    path = folder / "p_3.tif"
    with tifffile.TiffFile(path) as tiff:
        where = tiff.pages[0].dataoffsets[0]
    whole = bytearray(path.read_bytes())
    whole[where : where + 40] = b"\xff" * 40
    path.write_bytes(whole)
    assert open_stack(folder).shape == cube.shape  # nothing is decoded to open it
    stack = open_stack(folder, bad_frames="interpolate")
    assert stack.attrs["bad_frames"][0].startswith(f"{path} can't be decoded")
    expected = fill_by_hand(cube, {3}, [[0, N - 1]])
    np.testing.assert_array_equal(stack.values, expected)
    np.testing.assert_array_equal(open_stack(folder, bad_frames="skip").values, np.delete(cube, 3, 0))


def test_wrapped_counts_are_averaged_as_what_the_detector_meant(tmp_path):
    counts = np.full((3, *SHAPE), 40000, "u2")
    counts[2] = 20000
    paths = write_run(tmp_path / "r", counts.view("i2"), sidecars=False)
    break_frame(paths[1], "truncated")
    stack = open_stack(tmp_path / "r", bad_frames="interpolate", unsigned=True)
    assert (stack.values[1] == 30000).all() and stack.dtype == np.uint16


@given(st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]), st.data())
def test_means_of_integers_are_exact_with_halves_to_even(dtype, data):
    info = np.iinfo(dtype)
    numbers = st.lists(st.integers(info.min, info.max), min_size=4, max_size=4)
    a, b = data.draw(numbers), data.draw(numbers)
    found = mean_of(np.array(a, dtype), np.array(b, dtype))
    assert found.dtype == dtype
    assert found.tolist() == [round(Fraction(x + y, 2)) for x, y in zip(a, b, strict=True)]


def test_means_of_floats_do_not_overflow():
    huge = np.full(3, np.finfo("f4").max)
    assert (mean_of(huge, huge) == huge).all() and mean_of(huge, -huge)[0] == 0


# the time of frames whose headers are gone -------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [{0}, {1}, {9}, {2, 6, 7}])
def test_times_of_headers_are_filled_in_where_they_go_on_evenly(tmp_path, bad):
    paths = write_run(tmp_path / "r", draw_cube("i2"), sidecars=False)
    for i in bad:
        break_frame(paths[i], "empty")
    stack = open_stack(tmp_path / "r", bad_frames="interpolate")
    np.testing.assert_allclose(stack.tof, TOF, rtol=1e-12)
    np.testing.assert_allclose(stack.tof_width, 1e-5)
    assert stack.attrs["shutter_windows"] == WINDOWS
    kept = [i for i in range(N) if i not in bad]
    np.testing.assert_allclose(open_stack(tmp_path / "r", bad_frames="skip").tof, TOF[kept])


def test_times_beside_a_closed_shutter_are_not_guessed(tmp_path):
    paths = write_run(tmp_path / "r", draw_cube("i2"), sidecars=False)
    break_frame(paths[4], "empty")
    with pytest.raises(UserError, match=r"r_004\.fits: its time is not known.*put the run's \*_Spectra\.txt"):
        open_stack(tmp_path / "r", bad_frames="interpolate")
    break_frame(paths[2], "missing")
    (tmp_path / "r" / "r_Spectra.txt").write_text("".join(f"{t} 1\n" for t in TOF))
    for tof in ("auto", "spectra"):
        stack = open_stack(tmp_path / "r", bad_frames="interpolate", tof=tof)
        np.testing.assert_allclose(stack.tof, TOF)


def test_a_header_that_can_be_read_keeps_its_time(tmp_path):
    paths = write_run(tmp_path / "r", draw_cube("i2"), sidecars=False)
    break_frame(paths[4], "truncated")
    np.testing.assert_allclose(open_stack(tmp_path / "r", bad_frames="interpolate").tof, TOF)


# what can't be helped ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["skip", "interpolate"])
def test_a_run_that_is_bad_for_the_most_part_is_refused(tmp_path, choice):
    paths = write_run(tmp_path / "r", draw_cube("u2"))
    for path in paths[3:9]:
        break_frame(path, "empty")
    with pytest.raises(UserError, match=r"6 of 10 frames are bad, the first: .*r_003\.fits is empty"):
        open_stack(tmp_path / "r", bad_frames=choice)
    for path in paths:
        break_frame(path, "text")
    with pytest.raises(UserError, match=r"r_000\.fits is not a FITS file"):
        open_stack(tmp_path / "r", bad_frames=choice)


@pytest.mark.parametrize("numbers", [[0, 1, 2, 9], [0, 2, 4, 7, 9]])
def test_gaps_too_wide_or_uneven_are_refused(tmp_path, numbers):
    for number in numbers:
        write_frame(tmp_path / f"r_{number}.tif", np.zeros(SHAPE, "u2"))
    with pytest.raises(UserError, match="too irregular to tell which"):
        open_stack(tmp_path, bad_frames="skip")


@pytest.mark.parametrize(("first", "width"), [(8, 1), (8, 3), (98, 2)])
def test_missing_frames_are_named_as_they_would_be(tmp_path, first, width):
    names = [f"a7_{number:0{width}d}_16bit.tif" for number in range(first, first + 4)]
    for i, name in enumerate(names):
        if i != 2:
            write_frame(tmp_path / name, np.full(SHAPE, i, "u2"))
    source = open_source(tmp_path, bad_frames="skip")
    assert [os.path.basename(file) for file in source.files] == names and list(source.faults) == [2]
    assert open_stack(tmp_path / "*.tif", bad_frames="skip").shape[0] == 3  # a glob takes what is there


def test_where_there_are_no_frames_to_be_bad(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 5)))
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((3, 4, 5), "u2"), photometric="minisblack")
    for name in ("a.npy", "pages.tif"):
        with pytest.raises(UserError, match=rf"skip, but .*{name} is one file.*leave it at error"):
            open_stack(tmp_path / name, bad_frames="skip")
    os.truncate(tmp_path / "pages.tif", 90)
    with pytest.raises(UserError) as refused:
        open_stack(tmp_path / "pages.tif")
    assert not isinstance(refused.value, BadFrame)
    with pytest.raises(UserError, match="bad_frames is 'drop'; allowed: error, skip, interpolate"):
        open_stack(tmp_path / "a.npy", bad_frames="drop")


def test_too_many_open_files_are_no_fault_of_a_frame():
    assert isinstance(unreadable("a.fits", OSError(5, "Input/output error")), BadFrame)
    told = unreadable("a.fits", OSError(24, "Too many open files"))
    assert not isinstance(told, BadFrame) and "close other programs" in str(told)

import shutil

import numpy as np
import pytest
from astropy.io import fits

from niseg_gpu.errors import UserError
from niseg_gpu.io.open import open_stack
from niseg_gpu.io.sidecars import read_sidecars

# two windows of 3 and 4 bins; the second with bins twice as wide
START = np.array([1.0, 1.1, 1.2, 2.0, 2.2, 2.4, 2.6]) * 1e-3
WIDTH = np.array([0.1, 0.1, 0.1, 0.2, 0.2, 0.2, 0.2]) * 1e-3
SPECTRA = [f"{t:.6g}\t{i}" for i, t in enumerate(START)]
TIMES = ["0\t0.001\t0.0003", "1\t0.0007\t0.0008", "2\t0\t0", "3\t0\t0"]
COUNTS = ["0\t5000", "1\t4000", "2\t0", "3\t0"]
WINDOWS = [[0, 2], [3, 6]]


@pytest.fixture
def run(tmp_path):
    """Frames that are names only, and what writes a text file beside them."""
    frames = [tmp_path / f"Run1_{i:03d}.tif" for i in range(len(START))]

    def write(kind="Spectra", lines=SPECTRA, *, newline="\r\n", prefix="Run1_", folder=tmp_path):
        (folder / f"{prefix}{kind}.txt").write_bytes("".join(line + newline for line in lines).encode())
        return frames

    return write


def refuse(message, *args, **options):
    with pytest.raises(UserError, match=message) as refused:
        read_sidecars(*args, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("newline", ["\r\n", "\n"])
@pytest.mark.parametrize("divider", ["\t", " ", ",", ", ", "  \t"])
@pytest.mark.parametrize(
    "kinds", [("Spectra", "ShutterTimes", "ShutterCount"), ("SPECTRA", "shuttertimes", "sHuTTerCOUNT")]
)
def test_all_three_files(run, newline, divider, kinds):
    for kind, lines in zip(kinds, (SPECTRA, TIMES, COUNTS), strict=True):
        frames = run(kind, [line.replace("\t", divider) for line in lines], newline=newline)
    coords, attrs = read_sidecars(frames, None)
    np.testing.assert_allclose(coords["tof"], START)
    np.testing.assert_allclose(coords["tof_width"], WIDTH)
    assert attrs == {
        "shutter_windows": WINDOWS,
        "shutter_counts": [5000, 4000],
        "bin_triggers": [5000] * 3 + [4000] * 4,
    }


def test_windows_follow_from_the_jumps_where_no_file_tells(run):
    coords, attrs = read_sidecars(run(), None)
    assert attrs == {"shutter_windows": WINDOWS}
    np.testing.assert_allclose(coords["tof_width"], WIDTH)


def test_widening_bins_are_one_window(run):
    start = 1e-3 * 1.2 ** np.arange(7)
    coords, attrs = read_sidecars(run(lines=[f"{t:.8g}\t0" for t in start]), None)
    assert attrs == {"shutter_windows": [[0, 6]]}
    np.testing.assert_allclose(coords["tof_width"][:-1], np.diff(start), rtol=1e-5)
    assert coords["tof_width"][-1] == coords["tof_width"][-2]


def test_unused_shutter_files_tell_nothing(run):
    run("ShutterTimes", ["0\t0\t0"])
    assert read_sidecars(run(), None)[1] == {"shutter_windows": WINDOWS}


def test_nothing_beside_the_frames(run, tmp_path):
    frames = run("notes")
    assert read_sidecars(frames, None) == ({}, {})
    assert read_sidecars(frames, np.full(7, 9.6e-7)) == ({}, {})  # repeated images: no time axis
    coords, attrs = read_sidecars(frames, START)
    np.testing.assert_array_equal(coords["tof"], START)
    assert attrs == {"shutter_windows": WINDOWS}


def test_byte_order_mark_blank_lines_and_a_line_of_names(run):
    coords, _ = read_sidecars(run(lines=["\ufeffshutter_time,counts", *SPECTRA, "", " "]), None)
    np.testing.assert_allclose(coords["tof"], START)
    coords, _ = read_sidecars(run(lines=["\ufeff" + SPECTRA[0], *SPECTRA[1:]]), None)
    np.testing.assert_allclose(coords["tof"], START)


def test_the_file_of_this_run_among_several(run, tmp_path):
    other = [f"{t:.6g}\t0" for t in START + 1]
    for prefix in ("Ru", "Run12_", "._Run1_"):
        run(lines=other, prefix=prefix)
    frames = run(prefix="Run1_")
    np.testing.assert_allclose(read_sidecars(frames, None)[0]["tof"], START)
    (tmp_path / "Run1_Spectra.txt").unlink()
    refuse(r"Run12_Spectra\.txt has 3 lines", run(lines=other[:3], prefix="Run12_"), None)
    run(lines=other, prefix="A_")
    refuse(r"holds 2 spectra files \(A_Spectra\.txt, Run12_Spectra\.txt\); keep the one", frames, None)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (SPECTRA[:-1], r"has 6 lines, the run 7 frames; copy the missing files again$"),
        ([*SPECTRA, "0.003\t1"], r"has 8 lines, the run 7 frames"),
        ([*SPECTRA[:3], SPECTRA[2], *SPECTRA[4:]], r"ToF 0\.0012 s follows 0\.0012 s, it must grow; repair"),
        (SPECTRA[::-1], r"ToF 0\.0024 s follows 0\.0026 s"),
        ([*SPECTRA[:3], "here it failed", *SPECTRA[4:]], r"line 4 is 'here it failed'; allowed: 2 numbers"),
        ([*SPECTRA[:3], "0.002", *SPECTRA[4:]], r"line 4 is '0\.002'; allowed: 2 numbers"),
        ([*SPECTRA[:3], "nan\t1", *SPECTRA[4:]], r"line 4 is 'nan.+1'"),
        ([line.replace(".", ",") for line in SPECTRA], r"line 1 is '0,001.+0'; allowed: 2 numbers with decimal points"),
        ([], "holds no line"),
    ],
)
def test_spectra_that_do_not_fit(run, tmp_path, lines, message):
    refuse(rf"Run1_Spectra\.txt.*{message}", run(lines=lines), None)


def test_a_binary_file_is_no_table(run, tmp_path):
    frames = run()
    (tmp_path / "Run1_Spectra.txt").write_bytes(bytes(range(128, 256)))
    refuse(r"Run1_Spectra\.txt can't be read", frames, None)


@pytest.mark.parametrize(
    ("kind", "lines", "message"),
    [
        ("ShutterTimes", ["0\t0.005\t0.0003"], r"the window 0\.005 s to 0\.0053 s does not fit the time axis"),
        ("ShutterTimes", TIMES[:1] + TIMES[2:], r"its windows end at bin 2, the run has 7 bins"),
        ("ShutterTimes", [TIMES[0], "1\t0.0009\t0.0006", "2\t0\t0"], "the window 0.0022 s to 0.0028 s does not fit"),
        ("ShutterTimes", ["0\t0.001"], r"line 1 is '0.+0\.001'; allowed: 3 numbers"),
        ("ShutterCount", COUNTS[:1] + COUNTS[2:], r"lists 1 used shutters, the time axis has 2 windows"),
        ("ShutterCount", ["0\t1", "1\t2", "2\t3"], r"lists 3 used shutters, the time axis has 2 windows"),
        ("ShutterCount", ["0\t100", "1\t-7"], "gives shutter 1 -7 triggers; allowed: whole numbers above 0"),
        ("ShutterCount", ["0\t100.5", "1\t7"], "gives shutter 0 100.5 triggers; allowed: whole numbers above 0"),
        ("ShutterCount", ["0\tmany"], "line 1 is '0.+many'; allowed: 2 numbers"),
    ],
)
def test_shutter_files_that_do_not_fit(run, kind, lines, message):
    run(kind, lines)
    refuse(rf"Run1_{kind}\.txt.*{message}", run(), None)


def test_whose_time_to_believe(run):
    frames, shifted = run(), START + 1e-3
    refuse(r"says 0\.00\d+ s for Run1_00\d\.tif, its header 0\.00\d+ s; choose with tof: headers or", frames, shifted)
    np.testing.assert_allclose(read_sidecars(frames, shifted, tof="spectra")[0]["tof"], START)
    np.testing.assert_array_equal(read_sidecars(frames, shifted, tof="headers")[0]["tof"], shifted)
    np.testing.assert_allclose(read_sidecars(frames, START + 1e-6)[0]["tof"], START)  # rounded otherwise: the same
    refuse(r"Run1_000\.tif: not every frame's header has TOF", frames, None, tof="headers")
    refuse(r"Run1_001\.tif: its header's TOF does not grow", frames, np.full(7, 1e-3), tof="headers")


@pytest.mark.parametrize("tof", ["auto", "headers"])
def test_part_of_a_run(run, tof):
    run("ShutterTimes", TIMES)
    run("ShutterCount", COUNTS)
    frames = run()
    coords, attrs = read_sidecars(frames[2:5], START[2:5], tof=tof, part=True)
    np.testing.assert_array_equal(coords["tof"], START[2:5])
    assert attrs == {}  # the counts before it are lost, so its windows are worth nothing
    if tof == "auto":
        refuse("has 7 lines, the run 3 frames; copy the missing.*or take the time", frames[:3], START[:3])
        refuse("has 7 lines, the run 3 frames; copy the missing files again$", frames[:3], None, part=True)


def test_a_run_that_lost_its_first_frame_has_no_shutter_windows(run):
    """What was counted in it blinded pixels in the rest of its window."""
    for kind, lines in (("ShutterTimes", TIMES), ("ShutterCount", COUNTS)):
        frames = run(kind, lines)
    run()
    coords, attrs = read_sidecars(frames[1:], START[1:], tof="headers")
    np.testing.assert_array_equal(coords["tof"], START[1:])
    assert attrs == {}
    run("Spectra", [*SPECTRA, "0.0028\t7"])  # a line too many says nothing of that
    assert read_sidecars(frames, START, tof="headers")[1]["shutter_windows"] == WINDOWS
    (frames[0].parent / "Run1_Spectra.txt").unlink()
    assert read_sidecars(frames, START)[1]["shutter_windows"] == WINDOWS
    refuse("the window 0.001 s to 0.0013 s does not fit the time axis.*or frames are missing", frames[1:], START[1:])


# measured runs ------------------------------------------------------------------------------------------------


def test_measured_run(data_dir):
    stack = open_stack(data_dir / "tof_mcp_crop")
    assert stack.dims == ("tof", "y", "x") and stack.shape == (916, 256, 256) and stack.dtype == np.int16
    assert [b for _, b in stack.attrs["shutter_windows"]] == [126, 431, 644, 915]
    assert stack.attrs["shutter_counts"] == [194873, 195956, 204702, 206068]
    assert len(stack.attrs["bin_triggers"]) == 916 and stack.attrs["bin_triggers"][127] == 195956
    triggers = [fits.getheader(stack.attrs["files"][i])["N_TRIGS"] for i in (0, 126, 127, 915)]
    assert triggers == [stack.attrs["bin_triggers"][i] for i in (0, 126, 127, 915)]
    np.testing.assert_allclose(stack.tof_width, 1.024e-5)
    spectra = np.loadtxt(data_dir / "tof_mcp_crop" / "OB_1_005_Spectra.txt")
    np.testing.assert_array_equal(stack.tof, spectra[:, 0])


def test_measured_run_without_its_shutter_times(data_dir, tmp_path):
    spectra = data_dir / "tof_mcp_crop" / "OB_1_005_Spectra.txt"
    shutil.copy(spectra, tmp_path)
    frames = [tmp_path / f"OB_1_005_{i:05d}.fits" for i in range(916)]
    coords, attrs = read_sidecars(frames, None)
    assert [b for _, b in attrs["shutter_windows"]] == [126, 431, 644, 915]
    np.testing.assert_allclose(coords["tof_width"], 1.024e-5, rtol=1e-2)  # it is rounded to six digits


def test_part_of_a_measured_run(data_dir):
    stack = open_stack(data_dir / "tof_mcp_crop" / "OB_1_005_001*.fits")
    assert stack.sizes["tof"] == 100 and "shutter_windows" not in stack.attrs
    assert float(stack.tof[0]) == fits.getheader(stack.attrs["files"][0])["TOF"]


def test_measured_run_whose_spectra_is_of_another(data_dir):
    with pytest.raises(
        UserError, match=r"Image019_Spectra\.txt.*choose with tof: headers or tof: spectra|tof: headers"
    ):
        open_stack(data_dir / "tof_ibeatles")
    stack = open_stack(data_dir / "tof_ibeatles", tof="headers")
    headers = [fits.getheader(path) for path in stack.attrs["files"]]
    assert stack.tof.values.tolist() == [h["TOF"] for h in headers]
    assert stack.tof_width.values.tolist() == [h["TIMEBIN"] for h in headers]

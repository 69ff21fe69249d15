import os

import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.io.frames import list_frames


def touch(folder, *names):
    for name in names:
        (folder / name).touch()
    return folder


def names(path):
    return [p.name for p in list_frames(path)]


def test_order_is_by_number_whatever_its_width(tmp_path):
    numbers = np.random.default_rng(0).permutation(np.arange(95, 106))
    touch(tmp_path, *(f"run_3_{n}.fits" for n in numbers))
    assert names(tmp_path) == [f"run_3_{n}.fits" for n in range(95, 106)]
    assert names(str(tmp_path)) == names(tmp_path)


def test_summed_hidden_and_foreign_files_are_left_out(tmp_path):
    touch(
        tmp_path, "a_00.fits", "a_01.fits", "a_SummedImg.fits", "._a_00.fits", ".b_1.tif", "a_Spectra.txt", "notes.md"
    )
    assert names(tmp_path) == ["a_00.fits", "a_01.fits"]
    assert names(tmp_path / "*") == ["a_00.fits", "a_01.fits"]


def test_a_summed_image_named_outright_is_taken(tmp_path):
    touch(tmp_path, "a_SummedImg.fits")
    assert names(tmp_path / "a_SummedImg.fits") == ["a_SummedImg.fits"]
    for path in (tmp_path, tmp_path / "*.fits"):
        with pytest.raises(UserError, match="only summed images"):
            list_frames(path)


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    touch(tmp_path, "a[1].fits", "a1.fits")
    assert names(tmp_path / "a[1].fits") == ["a[1].fits"]


def test_a_glob_in_a_folder_whose_name_looks_like_one(tmp_path):
    for folder in ("Probe [3]", "Probe 3"):
        (tmp_path / folder).mkdir()
        touch(tmp_path / folder, *(f"{folder[-2]}{n}.fits" for n in range(3)))
    assert names(tmp_path / "Probe [3]" / "*[12].fits") == ["31.fits", "32.fits"]
    assert names(tmp_path / "Probe [0-9]" / "*.fits") == [" 0.fits", " 1.fits", " 2.fits"]


@pytest.mark.parametrize("ending", ["fits", "FITS", "fit", "fts", "tif", "TIFF"])
def test_endings(tmp_path, ending):
    touch(tmp_path, f"a1.{ending}", f"a2.{ending}")
    assert len(names(tmp_path)) == 2


def test_the_counting_number_is_the_last_that_differs(tmp_path):
    touch(tmp_path, *(f"s2_{n:03d}_16bit.tif" for n in (11, 9, 10)))
    assert names(tmp_path) == ["s2_009_16bit.tif", "s2_010_16bit.tif", "s2_011_16bit.tif"]


def test_a_glob_takes_a_part(tmp_path):
    touch(tmp_path, *(f"a_{n}.fits" for n in range(12)))
    assert names(tmp_path / "a_1*.fits") == ["a_1.fits", "a_10.fits", "a_11.fits"]


def test_even_steps_are_no_gap(tmp_path):
    touch(tmp_path, *(f"angle_{n:03d}.tif" for n in range(0, 180, 36)))
    assert len(names(tmp_path)) == 5


def test_one_frame_without_a_number(tmp_path):
    assert names(touch(tmp_path, "dark.tif")) == ["dark.tif"]


@pytest.mark.parametrize(
    ("files", "glob", "message"),
    [
        ([], "", "holds no FITS or TIFF frame; name a folder"),
        (["a.txt"], "", "holds no FITS or TIFF frame"),
        (["a_1.fits"], "b*.fits", r"b\*\.fits matches no FITS or TIFF frame"),
        (
            ["a_0.fits", "a_1.fits", "a_3.fits", "a_4.fits"],
            "",
            r"missing: .*a_1\.fits is followed by a_3\.fits.* 1 else",
        ),
        (["a_0.tif", "a_2.tif", "a_5.tif"], "", r"a_2\.tif is followed by a_5\.tif.*rise by 2"),
        (["a_1.fits", "a_01.fits"], "", "bear the same number"),
        (["a_1.fits", "a_01.fits"], "a*", "bear the same number"),
        (
            ["a_1.fits", "a_2.fits", "b_1.fits"],
            "",
            r"holds 2 series of frames: a_\*\.fits \(2\), b_\*\.fits \(1\); name",
        ),
        (["a_1.fits", "a_2.fits", "a_1.tif"], "", r"2 series.*such as 'a_\*\.fits'"),
        ([f"{c}.tif" for c in "abcdefg"], "", "7 series.*and 3 more"),
    ],
)
def test_refused(tmp_path, files, glob, message):
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=message) as refused:
        list_frames(tmp_path / glob if glob else tmp_path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


def test_equal_names_of_several_folders_are_no_run(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        touch(tmp_path / folder, "a_1.tif", "a_2.tif")
    with pytest.raises(UserError, match="same number"):
        list_frames(tmp_path / "*" / "a*.tif")


def test_a_folder_that_can_not_be_listed(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(UserError, match=r"can't list .*Permission denied; ask"):
        list_frames(tmp_path)

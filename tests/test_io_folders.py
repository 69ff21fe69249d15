"""Folders of results: what can't be written is told with why, and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from niseg_gpu.errors import UserError
from niseg_gpu.io.folders import check_folder, staged_folder

FULL = Path("/dev/full")  # a disk without room, where the system has one
OPTIONS = {"overwrite": False, "sign": "sign"}


def write_bytes(path: Path) -> None:
    path.write_bytes(b"x" * 100)


def write_array(path: Path) -> None:
    with path.open("wb") as file:
        np.zeros(100_000).tofile(file)  # its error has no number


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("write", [write_bytes, write_array])
def test_a_full_disk_is_told_whoever_met_it(tmp_path: Path, write) -> None:
    with (
        pytest.raises(UserError, match=r"out can't be written: No space left on device.*; free some room, or write"),
        staged_folder(tmp_path / "out", **OPTIONS) as folder,
    ):
        (folder / "full").symlink_to(FULL)
        write(folder / "full")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_vanishes_is_told(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    with (
        pytest.raises(UserError, match=r"out can't be written: No such file or directory \(.*\); give another name"),
        staged_folder(tmp_path / "disk" / "out", **OPTIONS) as folder,
    ):
        folder.rmdir()
        folder.parent.rmdir()
        write_bytes(folder / "file")


@pytest.mark.parametrize("kind", ["dangling link", "file"])
def test_what_is_no_folder_holds_none(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    place.symlink_to(tmp_path / "nowhere") if kind == "dangling link" else place.write_text("")
    with pytest.raises(UserError, match=r"out can't be made: .*place is not a folder one may write to"):
        check_folder(place / "out", **OPTIONS)


def test_what_is_made_again_of_a_folder_that_vanished_gets_no_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out was taken away while it was being written, so it is not whole; begin"):
        with staged_folder(tmp_path / "out", **OPTIONS) as folder:
            folder.rmdir()
            folder.mkdir()
    assert os.listdir(tmp_path) == []

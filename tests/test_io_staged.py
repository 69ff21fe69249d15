"""A result is there when whole, or what was there before is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from niseg_gpu.io.staged import staged


def make(path: Path, kind: str, content: str) -> None:
    if kind == "folder":
        path.mkdir()
    (path / "content" if kind == "folder" else path).write_text(content)


def read(path: Path) -> str:
    return (path / "content" if path.is_dir() else path).read_text()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("before", [None, "file", "folder", "link"])
def test_it_takes_the_place_of_what_was_there(tmp_path: Path, kind: str, before: str | None) -> None:
    path = tmp_path / "result"
    if before == "link":
        make(tmp_path / "linked", "folder", "linked")
        path.symlink_to(tmp_path / "linked")
    elif before:
        make(path, before, "old")
    with staged(path) as partial:
        make(partial, kind, "new")
        assert partial.name.startswith(".result.") and os.path.lexists(path) == bool(before)
    assert read(path) == "new" and not path.is_symlink()
    assert sorted(os.listdir(tmp_path)) == (["linked", "result"] if before == "link" else ["result"])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, "file", "folder"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, before: str | None, error: type) -> None:
    path = tmp_path / "result"
    if before:
        make(path, before, "old")
    with pytest.raises(error, match="beam lost"), staged(path) as partial:
        make(partial, "folder", "new")
        raise error("beam lost")
    assert os.listdir(tmp_path) == (["result"] if before else [])
    assert not before or read(path) == "old"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_was_there_comes_back_where_moving_fails(tmp_path: Path, monkeypatch, error: type) -> None:
    path, rename = tmp_path / "result", os.rename
    make(path, "folder", "old")

    def fail(source: Path, target: Path) -> None:
        if ".partial-" in source.name:
            raise error("disk gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(error, match="disk gone"), staged(path) as partial:
        make(partial, "folder", "new")
    assert read(path) == "old" and os.listdir(tmp_path) == ["result"]


def test_a_name_without_a_folder_is_one_of_the_working_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with staged(Path("result")) as partial:
        monkeypatch.chdir("/")
        make(partial, "file", "new")
    assert read(tmp_path / "result") == "new"


LEFT = """
import os, signal, sys
from pathlib import Path
from niseg_gpu.io.staged import staged
with staged(Path(sys.argv[1])) as partial:
    (partial / "inner").mkdir(parents=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_is_swept_and_what_others_make_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "result"
    killed = subprocess.run([sys.executable, "-c", LEFT, path])
    (left,) = os.listdir(tmp_path)
    assert killed.returncode == -signal.SIGKILL and left.startswith(".result.partial-")
    place = left.removesuffix(left.split("-")[-1])
    running = f"{place}{os.getppid()}"
    elsewhere = f".result.partial-othermachine-0-{left.split('-')[-1]}"
    old = left.replace("partial", "old")
    for name in (running, elsewhere, old, f"{place}notes"):
        make(tmp_path / name, "folder", "mine")
    with staged(path) as partial:
        assert {*os.listdir(tmp_path)} == {running, elsewhere, old, f"{place}notes"}
        make(partial, "folder", "new")
    with staged(path) as partial:  # now there is a result, and what it replaced once is of no more use
        make(partial, "folder", "newer")
    assert {*os.listdir(tmp_path)} == {"result", running, elsewhere, f"{place}notes"} and read(path) == "newer"


def test_a_folder_that_cannot_be_listed_can_be_written_to(tmp_path: Path, monkeypatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        with staged(tmp_path / "result") as partial:
            make(partial, "file", "new")
    assert read(tmp_path / "result") == "new"

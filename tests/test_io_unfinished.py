"""One run at a time fills a folder, and what it leaves unfinished is there for the next."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from niseg_gpu.errors import UserError, add_note, notes_of
from niseg_gpu.io.unfinished import LOCK, unfinished_folder

OPTIONS = {"overwrite": False, "sign": "sign", "resume": False, "kept": "kept"}


def fill(folder: Path, text: str = "whole") -> None:
    (folder / "sign").write_text(text)
    (folder / "kept").write_text("so far")


def test_it_gets_its_name_when_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with unfinished_folder(out, **OPTIONS) as folder:
        assert folder == tmp_path / "deep" / ".out.unfinished" and not out.exists()
        fill(folder)
    assert [path.name for path in out.iterdir()] == ["sign"]
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_only_what_is_worth_keeping_stays(tmp_path: Path, error: type[BaseException]) -> None:
    out = tmp_path / "out"
    with pytest.raises(error), unfinished_folder(out, **OPTIONS) as folder:
        (folder / "half").write_text("of it")
        raise error
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(error), unfinished_folder(out, **OPTIONS) as folder:
        fill(folder, "half")
        raise error
    with (
        pytest.raises(UserError, match=r"an unfinished run into .*/out is kept in \.out\.unfinished; go on with"),
        unfinished_folder(out, **OPTIONS),
    ):
        pass
    with unfinished_folder(out, **{**OPTIONS, "resume": True}) as folder:
        assert (folder / "sign").read_text() == "half"
    assert [path.name for path in out.iterdir()] == ["sign"]


def test_overwriting_clears_what_is_unfinished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError), unfinished_folder(out, **OPTIONS) as folder:
        fill(folder, "half")
        (folder / "more").mkdir()
        raise ValueError
    with unfinished_folder(out, **{**OPTIONS, "overwrite": True}) as folder:
        assert [path.name for path in folder.iterdir()] == [LOCK]
        fill(folder)
    assert [path.name for path in out.iterdir()] == ["sign"]


def test_two_runs_do_not_fill_the_same_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    other = (
        "import sys\n"
        "from pathlib import Path\n"
        "from niseg_gpu.errors import UserError\n"
        "from niseg_gpu.io.unfinished import unfinished_folder\n"
        "try:\n"
        "    with unfinished_folder(Path(sys.argv[1]), overwrite=True, sign='sign', resume=False, kept='kept'):\n"
        "        pass\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    with unfinished_folder(out, **OPTIONS) as folder:
        fill(folder)
        said = subprocess.run([sys.executable, "-c", other, out], capture_output=True, text=True, check=True).stdout
        assert "another run is writing" in said and "wait for it, or give another name" in said
        assert (folder / "sign").exists()
    assert out.exists()


def test_a_disk_that_is_full_is_told_with_what_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="No space left") as caught,
        unfinished_folder(tmp_path / "out", **OPTIONS) as folder,
    ):
        fill(folder)
        error = OSError(28, "No space left on device", str(folder / "x"))
        add_note(error, "3 of 5 blocks are kept")
        raise error
    assert notes_of(caught.value) == ["3 of 5 blocks are kept"]
    assert (tmp_path / ".out.unfinished").is_dir()


@pytest.mark.parametrize("again", ["sign", "kept"])
def test_what_is_made_again_of_a_folder_that_vanished_gets_no_name(tmp_path: Path, again: str) -> None:
    with pytest.raises(UserError, match="out was taken away while it was being written, so it is not whole"):
        with unfinished_folder(tmp_path / "out", **OPTIONS) as folder:
            fill(folder)
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / again).write_text("")
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_run_that_began_after_ours_vanished_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="taken away"), unfinished_folder(tmp_path / "out", **OPTIONS) as folder:
        shutil.rmtree(folder)
        with pytest.raises(KeyboardInterrupt), unfinished_folder(tmp_path / "out", **OPTIONS):
            fill(folder)
            raise KeyboardInterrupt
    assert (folder / "kept").exists()

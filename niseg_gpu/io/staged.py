"""Results that appear under their name only when whole: made beside it under a hidden one, then moved into place."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from niseg_gpu.errors import UserError


@contextmanager
def staged(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """Give a hidden name beside `path` to make a file or folder under.

    Parameters
    ----------
    path : Path
        Where it is moved to when the block ends well, in the place of what is there. Else what was made is removed, and
        what was there stays.
    folder : bool
        Make a folder, and those above it. What writes into it may make folders of its own, and would so put half of the
        files back under the name of one that somebody took away meanwhile: that does not get its name.

    Yields
    ------
    Path
        Nothing is there yet, or an empty folder.

    Raises
    ------
    UserError
        The folder was taken away.
    """
    path = path.absolute()
    remove_left(path)
    partial = _hide(path, "partial")
    remove(partial)  # of a killed process with the same number
    try:
        with _held(partial, of=path) if folder else nullcontext():
            yield partial
        move_into_place(partial, path)
    finally:
        remove(partial)


@contextmanager
def _held(folder: Path, *, of: Path) -> Iterator[None]:
    """Make a folder, and refuse at the end of the block if it is no longer the one of its name."""
    folder.mkdir(parents=True)
    held = os.open(folder, os.O_RDONLY)  # while it is open, no other folder gets its number
    try:
        yield
        check_held(held, folder, of=of)
    finally:
        os.close(held)


def check_held(held: int, path: Path, *, of: Path) -> None:
    """Raise a UserError unless the open file or folder `held` still is what lies at `path`."""
    if not is_same(held, path):
        raise UserError(f"{of} was taken away while it was being written, so it is not whole; begin anew")


def is_same(held: int, path: Path) -> bool:
    """Whether an open file or folder still is the one of that name."""
    try:
        return os.path.samestat(os.fstat(held), os.stat(path))
    except FileNotFoundError:
        return False


def _hide(path: Path, kind: str) -> Path:
    """A hidden name beside `path`, of this process alone."""
    return path.with_name(f".{path.name}.{kind}-{_tell_place()}-{os.getpid()}")


def _tell_place() -> str:
    """Where numbers of processes mean the same ones: this machine, and on it this container."""
    machine = "".join(c if c.isalnum() else "_" for c in platform.node())
    try:
        container = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        container = 0
    return f"{machine}-{container}"


def remove_left(path: Path) -> None:
    """Remove what processes that were killed have left beside `path`; those of other machines can't be asked."""
    try:
        beside = os.listdir(path.parent)
    except OSError:  # not made yet, or one may write there but not look
        return
    for kind in ("partial", "old") if os.path.lexists(path) else ("partial",):  # else the old one is all there is
        start = f".{path.name}.{kind}-{_tell_place()}-"
        for name in beside:
            number = name.removeprefix(start)
            if name.startswith(start) and number.isdecimal() and not _is_running(int(number)):
                remove(path.with_name(name))


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def move_into_place(partial: Path, path: Path) -> None:
    """Put `partial` in the place of `path`, which comes back if that fails."""
    if not path.is_dir() or path.is_symlink():
        if partial.is_dir() and os.path.lexists(path):
            path.unlink()  # a folder cannot replace a file or link in one go
        os.replace(partial, path)
        return
    old = _hide(path, "old")
    os.rename(path, old)
    with ExitStack() as undo:
        undo.callback(os.rename, old, path)
        os.rename(partial, path)
        undo.pop_all()
    shutil.rmtree(old)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # an error of the block's own must not be lost over this
    else:
        path.unlink(missing_ok=True)

"""A folder of results that may stay unfinished and be gone on with: hidden beside its name, one run at a time."""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from niseg_gpu.errors import UserError, add_note, notes_of
from niseg_gpu.io.folders import check_folder, tell_unwritten
from niseg_gpu.io.staged import check_held, is_same, move_into_place, remove, remove_left

LOCK = "lock"  # held by the run that fills the folder, wherever on a shared disk that is
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def unfinished_folder(path: Path, *, overwrite: bool, sign: str, resume: bool, kept: str) -> Iterator[Path]:
    """Give a folder to fill, under a hidden name beside `path`; it gets its name when the block ends well.

    Parameters
    ----------
    path : Path
    overwrite : bool
        Replace an earlier result, at the end, and an unfinished one, at once.
    sign : str
        A file that an earlier result holds; what has none is never replaced.
    resume : bool
        Go on with what an earlier run has left there.
    kept : str
        The file that makes an unfinished folder worth keeping: where the block has written it and then ends badly, the
        folder stays. It is gone from what gets its name.

    Yields
    ------
    Path
        Empty but for what is resumed, and the lock.

    Raises
    ------
    UserError
        `path` may not be replaced; another run is filling the folder; an unfinished one is there, and neither to be
        resumed nor to be replaced.
    """
    check_folder(path, overwrite=overwrite, sign=sign)
    path = path.absolute()
    hidden = path.with_name(f".{path.name}.unfinished")
    try:
        remove_left(path)
        with _locked(hidden, of=path) as lock:
            if not resume:
                if (hidden / kept).exists() and not overwrite:
                    raise UserError(
                        f"an unfinished run into {path} is kept in {hidden.name}; go on with --resume, or begin anew "
                        "with --overwrite"
                    )
                _clear(hidden)
            try:
                yield hidden
                check_held(lock, hidden / LOCK, of=path)
                check_folder(path, overwrite=overwrite, sign=sign)  # another may have made it meanwhile
                move_into_place(hidden, path)
            except BaseException:
                ours = is_same(lock, hidden / LOCK)
                if not (ours and (hidden / kept).exists()) and (ours or not (hidden / LOCK).exists()):
                    remove(hidden)  # it is not worth keeping, and no run's that began after somebody took ours away
                raise
            for name in (kept, LOCK):
                (path / name).unlink(missing_ok=True)
    except OSError as error:
        told = UserError(tell_unwritten(path, error))
        for note in notes_of(error):
            add_note(told, note)
        raise told from None


@contextmanager
def _locked(folder: Path, *, of: Path) -> Iterator[int]:
    """Make the folder, and hold its lock, an open file; the system gives it back when the process ends."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOCK, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another run is writing {of}; wait for it, or give another name") from None
            except OSError as error:
                if error.errno not in _NO_LOCKS:  # a disk without locks: there users must keep runs apart
                    raise
            if is_same(file.fileno(), folder / LOCK):  # else another run has ended and taken the folder along
                yield file.fileno()
                return


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()

"""The streams that the commands print to: letters they lack, pipes that nobody reads, disks that are full."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
from pathlib import Path

NOBODY_READS = 128 + signal.SIGPIPE  # as shells show it


def open_missing_streams() -> None:
    """Give a process that was begun with closed streams ones that lead nowhere.

    Libraries would fail that write to them, and files of results get their numbers, where C writes its complaints to.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def stand_in_for_home() -> None:
    """Name a home folder that is not there to a user who has none: libraries look for settings in it, or fail."""
    try:
        Path.home()
    except RuntimeError:  # a number without a name, as in containers
        os.environ["HOME"] = "/nonexistent"


def show_any_name() -> None:
    """Let no letter stop the output: terminals that lack it, and names of files in another encoding, are there."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Write what is still held back, so that what fails does so here, and not when Python ends, in its own way."""
    sys.stdout.flush()


def is_output_closed() -> bool:
    """Whether the output goes to a pipe that nobody reads any more; a worker's connection may break, too."""
    output = select.poll()
    try:
        output.register(sys.stdout.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # it is no file of the system's
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def drop_unwritten() -> None:
    """Drop what nobody takes, or Python complains about it at its end and with a status of its own."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), stream.fileno())

"""What a batch system sends before it kills, taken as an interrupt: work is saved, and what is half made goes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from niseg_gpu.errors import add_note, notes_of

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as shells show them


class Terminated(KeyboardInterrupt):
    """The process was told to end."""


@contextmanager
def ending_on_request() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` in the main thread, once; after that it ends the process as ever.

    An interrupt comes out as itself where it led to another error: as Python made a class, or gave back a lock that it
    had not yet taken.
    """
    if threading.current_thread() is not threading.main_thread():  # others may not say what signals do
        yield
        return

    def end(number: int, frame: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, before)
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Exception as error:
        interrupt = _find_interrupt(error)
        if interrupt is None:
            raise
        for note in notes_of(error):
            add_note(interrupt, note)
        raise interrupt from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _find_interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error

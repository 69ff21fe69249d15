"""What a batch system sends before it kills, taken as an interrupt: work is saved, and what is half made goes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # as shells show them


class Terminated(KeyboardInterrupt):
    """The process was told to end."""


@contextmanager
def ending_on_request() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated` in the main thread, once; after that it ends the process as ever.

    An interrupt that Python has wrapped into another error, as where it makes a class, comes out as itself.
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
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise error.__cause__ from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)

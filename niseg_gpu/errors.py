"""What the user must mend, said in one line.

``UserError`` is the only exception the command line turns into exit status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A fault in the input, the parameters or the machine that the user can mend.

    The message is one line: what is wrong, what was got, what is allowed, what to do.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class _Note(str):
    """What this package adds to an exception: Python and libraries add notes of their own."""


def add_note(error: BaseException, note: str) -> None:
    """Have an exception tell something more, after what is told of it."""
    error.add_note(_Note(note))


def notes_of(error: BaseException) -> list[str]:
    """What `add_note` had an exception tell."""
    return [note for note in getattr(error, "__notes__", ()) if isinstance(note, _Note)]


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest allowed name, else the list of them.

    Names that the word is a part of come before one that is spelt alike: iron is alpha_iron rather than zirconium.
    """
    allowed = list(allowed)
    alike = {word.replace("-", "_"): word for word in allowed}
    holding = [repr(word) for key, word in alike.items() if "_" in key and name in key.split("_")]
    if holding:
        return f"; did you mean {' or '.join(holding)}?"
    near = [alike[word] for word in difflib.get_close_matches(name.replace("-", "_"), alike, n=1, cutoff=0.6)]
    return f"; did you mean {near[0]!r}?" if near else f"; allowed: {', '.join(allowed)}"

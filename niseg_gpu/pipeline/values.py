"""Looking at raw values as they come in: what can't be a count is named with its file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from niseg_gpu.errors import UserError
from niseg_gpu.findings import count

REMEDY = "mend or remove it, or go on and have it reported with bad_values: keep (--bad-values keep)"


class ValueCheck:
    """Checks blocks of one stack for NaN, Inf, negative counts and saturation.

    Parameters
    ----------
    files : sequence of str
        One a frame, or one for the whole stack.
    bad_values : {"error", "keep"}
        Refuse, or count.
    """

    def __init__(self, files: Sequence[str], *, bad_values: str) -> None:
        self.files, self.bad_values = tuple(files), bad_values

    def __call__(self, block: np.ndarray, region: tuple[slice, ...]) -> None:
        """Check one block that lies at `region` of its stack."""
        for what, bad in _tests(block):
            if self.bad_values == "keep":
                count(f"{what} values kept", bad)
                continue
            first = np.unravel_index(int(np.argmax(bad)), block.shape)
            place = [int(i) + (s.start or 0) for i, s in zip(first, region, strict=True)]
            raise UserError(self._describe(what, block[first], place, block.dtype))

    def _describe(self, what: str, value: Any, place: list[int], dtype: np.dtype) -> str:
        frame = place[0] if len(place) == 3 else 0
        file = (
            self.files[frame] if len(self.files) > 1 and frame < len(self.files) else (self.files or ("the stack",))[0]
        )
        where = f"{file}: frame {frame}, " if len(place) == 3 else f"{file}: "
        hint = ""
        if what == "negative":
            hint = "counts can't be; if 16-bit counts wrapped, read them with unsigned: true (--unsigned); else "
        elif what == "saturated":
            hint = f"the largest {dtype} has no counts beyond it; "
        return f"{where}row {place[-2]}, column {place[-1]} holds {value} ({what}): {hint}{REMEDY}"


def _tests(block: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The kinds of bad values that `block` holds, with where; cheap where it holds none."""
    if block.size == 0:
        return []
    found = []
    if block.dtype.kind == "f":
        # one sum finds NaN and Inf: any of them makes it not finite (an overflow of huge values does too)
        with np.errstate(over="ignore", invalid="ignore"):
            clean = np.isfinite(np.sum(block, dtype=np.result_type(block, np.float32)))
        if not clean:
            found = [("NaN", np.isnan(block)), ("Inf", np.isinf(block))]
    elif block.dtype.kind in "iu":
        if block.dtype.kind == "i" and block.min() < 0:
            found.append(("negative", block < 0))
        if block.dtype.itemsize <= 2 and block.max() == np.iinfo(block.dtype).max:
            found.append(("saturated", block == np.iinfo(block.dtype).max))
    return [(what, bad) for what, bad in found if bad.any()]

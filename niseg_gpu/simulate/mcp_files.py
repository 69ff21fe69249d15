"""Write what an MCP/Timepix detector writes: one FITS frame per ToF bin and three text files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

FITS_BLOCK = 2880
INT16_MAX = 32767

# The shutter files always list this many windows; the unused ones are zero.
SHUTTER_ROWS = 256


def write_frame(
    path: Path, counts: np.ndarray, *, tof_s: float, bin_width_s: float, n_counts: int, n_triggers: int
) -> None:
    """Write one frame as the primary image of a FITS file.

    The header is put together by hand, as for thousands of small frames a general FITS writer takes most of the time.

    Parameters
    ----------
    path : Path
        File to write.
    counts : (Y, X) ndarray of int16, any byte order
        Counts of the bin.
    tof_s, bin_width_s : float
        Start and width of the bin in s.
    n_counts, n_triggers : int
        Counts in the frame and triggers of its shutter window.
    """
    height, width = counts.shape
    header = (
        "SIMPLE  =                    T / conforms to FITS standard".ljust(80)
        + _format_card("BITPIX", "16", "array data type")
        + _format_card("NAXIS", "2", "number of array dimensions")
        + _format_card("NAXIS1", str(width), "pixels along x")
        + _format_card("NAXIS2", str(height), "pixels along y")
        + _format_card("TOF", f"{tof_s:.10G}", "time of flight from the external trigger (s)")
        + _format_card("TIMEBIN", f"{bin_width_s:.10G}", "time width of this image (s)")
        + _format_card("N_COUNTS", str(n_counts), "total counts in this image")
        + _format_card("N_TRIGS", str(n_triggers), "number of triggers acquired")
        + "END".ljust(80)
    )
    data = np.ascontiguousarray(counts, dtype=">i2")
    with path.open("wb") as file:
        for part in (header.ljust(FITS_BLOCK).encode("ascii"), data.data.cast("B"), bytes(-data.nbytes % FITS_BLOCK)):
            file.write(part)


def write_spectra(path: Path, *, tof_s: Sequence[float], n_counts: Sequence[int]) -> None:
    """Write ``*_Spectra.txt``: start of each bin in s, TAB, counts of the frame."""
    _write_rows(path, (f"{t:.10g}\t{n}" for t, n in zip(tof_s, n_counts, strict=True)))


def write_shutter_count(path: Path, *, n_triggers: Sequence[int]) -> None:
    """Write ``*_ShutterCount.txt``: index, TAB, triggers of each shutter window; zero rows up to 256."""
    filled = [*n_triggers, *[0] * (SHUTTER_ROWS - len(n_triggers))]
    _write_rows(path, (f"{i}\t{n}" for i, n in enumerate(filled)))


def write_shutter_times(path: Path, *, windows_s: Sequence[tuple[float, float]]) -> None:
    """Write ``*_ShutterTimes.txt``: index, TAB, delay since the end of the window before, TAB, width; in s.

    Parameters
    ----------
    path : Path
        File to write.
    windows_s : sequence of (start, stop)
        Times from the trigger, in s, rising.
    """
    rows, end = [], 0.0
    for start, stop in windows_s:
        rows.append(f"{start - end:.10g}\t{stop - start:.10g}")
        end = stop
    rows += ["0\t0"] * (SHUTTER_ROWS - len(rows))
    _write_rows(path, (f"{i}\t{row}" for i, row in enumerate(rows)))


def _format_card(keyword: str, value: str, comment: str) -> str:
    return f"{keyword:<8}= {value:>20} / {comment}".ljust(80)


def _write_rows(path: Path, rows) -> None:
    # The detector's own program runs on Windows and ends lines so.
    path.write_bytes("".join(f"{row}\r\n" for row in rows).encode("ascii"))

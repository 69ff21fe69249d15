"""Put the newest results into the README, in short, with a picture: ``python -m benchmarks.readme``, in a checkout."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from .detection import DETECTION
from .roofline import draw_roofline
from .summary import format_summary
from .table import MEASURED, PEAKS, format_conditions, format_table, put_into, tell_what

ROOT = Path(__file__).parents[1]
RESULTS, PICTURE = "benchmarks/results", ".images/roofline.png"
SOURCE = "Source"  # the picture's text that tells what it was drawn from


def find_newest(folder: Path) -> Path:
    """The newest file of timings: they are named by date first, then by device."""
    return max(_find_timings(folder))


def find_later(newest: Path) -> list[Path]:
    """Files of the same day and device with more in their names: rows measured after those of the whole."""
    found = newest.parent.glob(f"{newest.stem}-*.json")
    return sorted(path for path in found if not path.stem.endswith("-before"))


def has_limits(record: dict[str, Any]) -> bool:
    """Whether there is something to draw; the limits are measured since November 2026."""
    return any("of_limit" in row for row in record["rows"])


def format_newest(path: Path) -> str:
    """What stands between the README's marks: the picture and the rows in short, of a file and of later ones."""
    paths = [path, *find_later(path)]
    records = [_read(each) for each in paths]
    picture = [f"![The rows under the limits of the machine]({PICTURE})", ""] if has_limits(records[0]) else []
    what = {note.partition(":")[0]: note for record in records for note in tell_what(record["rows"])}
    tables = [
        f"[revision {record['revision']}]({RESULTS}/{each.with_suffix('.md').name})"
        for each, record in zip(paths, records, strict=True)
    ]
    later = "; where two have a row, the last counts" if len(tables) > 1 else ""
    return "\n".join(
        [
            *picture,
            *format_conditions(records[0]),
            f"Each row: our side beside the fastest of the others that ran in the same measurement. {PEAKS}",
            "",
            format_summary(records),
            "",
            f"All sides, with the spread of their times: {', '.join(tables)}{later}.",
            "",
            *(f"- {note}." for note in what.values()),
        ]
    )


def write_tables(folder: Path) -> None:
    """Write the whole table of each file of timings beside it."""
    for path in _find_timings(folder):
        path.with_suffix(".md").write_text(format_table(_read(path)) + "\n", encoding="utf-8")


def _find_timings(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not path.stem.endswith(f"-{DETECTION}"))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def draw_newest(path: Path) -> bytes:
    """The picture of a result file, with the file's SHA-256 in it."""
    from PIL import Image, PngImagePlugin

    content, drawn, note = path.read_bytes(), io.BytesIO(), PngImagePlugin.PngInfo()
    note.add_text(SOURCE, hashlib.sha256(content).hexdigest())
    Image.open(io.BytesIO(draw_roofline(json.loads(content)))).save(drawn, "PNG", pnginfo=note)
    return drawn.getvalue()


def show_newest(root: Path) -> Path:
    """Put the newest results of a checkout into its README, and each file's table beside it; return the newest file."""
    path = find_newest(root / RESULTS)
    write_tables(root / RESULTS)
    if has_limits(_read(path)):
        (root / PICTURE).write_bytes(draw_newest(path))
    put_into(root / "README.md", format_newest(path), name=MEASURED)
    return path


def main() -> int:
    print(f"README.md shows {show_newest(ROOT).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

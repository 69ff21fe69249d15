"""Put the newest results into the README, as a table and a picture: ``python -m benchmarks.readme``, in a checkout."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from .detection import DETECTION
from .roofline import draw_roofline
from .table import MEASURED, format_table, put_into

ROOT = Path(__file__).parents[1]
RESULTS, PICTURE = "benchmarks/results", ".images/roofline.png"
SOURCE = "Source"  # the picture's text that tells what it was drawn from


def find_newest(folder: Path) -> Path:
    """The newest file of timings: they are named by date first, then by device."""
    return max(path for path in folder.glob("*.json") if not path.stem.endswith(f"-{DETECTION}"))


def find_later(newest: Path) -> list[Path]:
    """Files of the same day and device with more in their names: rows measured after those of the whole."""
    found = newest.parent.glob(f"{newest.stem}-*.json")
    return sorted(path for path in found if not path.stem.endswith("-before"))


def has_limits(record: dict[str, Any]) -> bool:
    """Whether there is something to draw; the limits are measured since November 2026."""
    return any("of_limit" in row for row in record["rows"])


def format_newest(path: Path) -> str:
    """What stands between the README's marks: the picture and table of a file, and the tables of later ones."""
    record, *later = (json.loads(each.read_text(encoding="utf-8")) for each in (path, *find_later(path)))
    picture = [f"![The rows under the limits of the machine]({PICTURE})"] if has_limits(record) else []
    told = [
        f"Later on the same machine; where a row stands above too, this one counts.\n\n{format_table(each)}"
        for each in later
    ]
    return "\n\n".join([*picture, format_table(record), *told])


def draw_newest(path: Path) -> bytes:
    """The picture of a result file, with the file's SHA-256 in it."""
    from PIL import Image, PngImagePlugin

    content, drawn, note = path.read_bytes(), io.BytesIO(), PngImagePlugin.PngInfo()
    note.add_text(SOURCE, hashlib.sha256(content).hexdigest())
    Image.open(io.BytesIO(draw_roofline(json.loads(content)))).save(drawn, "PNG", pnginfo=note)
    return drawn.getvalue()


def show_newest(root: Path) -> Path:
    """Put the newest results of a checkout into its README; return their file."""
    path = find_newest(root / RESULTS)
    record = json.loads(path.read_text(encoding="utf-8"))
    if has_limits(record):
        (root / PICTURE).write_bytes(draw_newest(path))
    put_into(root / "README.md", format_newest(path), name=MEASURED)
    return path


def main() -> int:
    print(f"README.md shows {show_newest(ROOT).relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

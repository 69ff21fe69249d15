"""Put the newest results into the README: ``python -m benchmarks.readme``, in a checkout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .detection import DETECTION
from .table import MEASURED, format_table, put_into

ROOT = Path(__file__).parents[1]


def find_newest(folder: Path) -> Path:
    """The newest file of timings: they are named by date first, then by device."""
    return max(path for path in folder.glob("*.json") if not path.stem.endswith(f"-{DETECTION}"))


def format_newest(record: dict[str, Any]) -> str:
    """What stands between the README's marks."""
    return format_table(record)


def main() -> int:
    path = find_newest(ROOT / "benchmarks" / "results")
    record = json.loads(path.read_text(encoding="utf-8"))
    put_into(ROOT / "README.md", format_newest(record), name=MEASURED)
    print(f"README.md shows {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Byte order, in whole-array calls, the same on either device."""

from __future__ import annotations

from typing import Any


def swap_bytes(words: Any) -> Any:
    """Turn round the bytes of unsigned integers in place; return them."""
    if words.dtype.itemsize > 2:
        swap_bytes(words.view(f"u{words.dtype.itemsize // 2}"))
    half = 4 * words.dtype.itemsize
    high = words >> half
    words <<= half
    words |= high
    return words

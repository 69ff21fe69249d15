"""One store of memory for all that works on a device: who holds how much of it, and what can still be had."""

from __future__ import annotations

from typing import NamedTuple


class Budget(NamedTuple):
    """Bytes of a device's memory.

    On a GPU two libraries keep what they have once taken: CuPy, whose arrays all steps but U-Nets work on, and JAX,
    which computes these. Of what it doesn't use CuPy gives back when asked; JAX never does.

    Attributes
    ----------
    total : int
    free : int
        Held by nobody.
    arrays, arrays_idle : int
        Held by CuPy, and what of it no array uses.
    networks, networks_idle : int
        Held by JAX, and what of it no network uses.
    networks_most : int
        What JAX may hold at most.
    """

    total: int
    free: int
    arrays: int
    arrays_idle: int
    networks: int
    networks_idle: int
    networks_most: int

    @property
    def for_arrays(self) -> int:
        """What arrays have and can have: all but what networks and other programs hold."""
        return self.free + self.arrays

    @property
    def for_networks(self) -> int:
        """What a network can have besides what networks use: what is free or idle, within JAX's limit."""
        in_use = self.networks - self.networks_idle
        return max(0, min(self.free + self.arrays_idle + self.networks_idle, self.networks_most - in_use))

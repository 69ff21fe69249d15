"""Selection networks worked out by the computer: lists of exchanges of which only those stay that a result needs.

A network is a list of pairs of wires; for each, the lesser value goes to the first wire and the greater to the second.
Lists are merged by Batcher's odd-even merge (10.1145/1468075.1468121), which needs no branch and so vectorises.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

Wires = tuple[int, ...]
Exchanges = list[tuple[int, int]]

# the shortest known for so few (Knuth, The Art of Computer Programming 3, 5.3.4)
SORTS: dict[int, Exchanges] = {
    3: [(1, 2), (0, 2), (0, 1)],
    5: [(0, 1), (3, 4), (2, 4), (2, 3), (1, 4), (0, 3), (0, 2), (1, 3), (1, 2)],
    7: [
        *[(0, 6), (2, 3), (4, 5), (0, 2), (1, 4), (3, 6), (0, 1), (2, 5)],
        *[(3, 4), (1, 2), (4, 6), (2, 3), (4, 5), (1, 2), (3, 4), (5, 6)],
    ],
}


class Operation(NamedTuple):
    """The lesser of two values, the greater, or both; of the first wire, of the second.

    Attributes
    ----------
    one, two : int
        Wires.
    lesser, greater : bool
        Which of the results is needed: the lesser goes to wire `one`, the greater to wire `two`.
    """

    one: int
    two: int
    lesser: bool
    greater: bool


class Network(NamedTuple):
    """What to do with the values on `wires` wires, and which wires then hold the results, in order."""

    wires: int
    operations: tuple[Operation, ...]
    results: Wires


class Maker:
    """Writes a network down step by step; a wire is a number, a sorted list a tuple of wires."""

    def __init__(self) -> None:
        self.wires = 0
        self.exchanges: Exchanges = []

    def take(self, n: int) -> Wires:
        """Add `n` wires."""
        self.wires += n
        return tuple(range(self.wires - n, self.wires))

    def exchange(self, one: int, two: int) -> Wires:
        self.exchanges.append((one, two))
        return one, two

    def sort(self, values: Wires) -> Wires:
        """Sort by the shortest network known, or by merging two sorted halves."""
        if len(values) == 1:
            return values
        if len(values) in SORTS:
            self.exchanges += [(values[i], values[j]) for i, j in SORTS[len(values)]]
            return values
        half = len(values) // 2
        return self.merge(self.sort(values[:half]), self.sort(values[half:]))

    def merge(self, one: Wires, two: Wires) -> Wires:
        """Merge two sorted lists of any lengths."""
        if not one or not two:
            return one + two
        if len(one) == len(two) == 1:
            return self.exchange(one[0], two[0])
        even, odd = self.merge(one[::2], two[::2]), self.merge(one[1::2], two[1::2])
        merged = [even[0]]
        for low, high in zip(odd, even[1:], strict=False):
            merged += self.exchange(low, high)
        return (*merged, *odd[len(even) - 1 :], *even[len(odd) + 1 :])

    def copy(self, values: Wires) -> Wires:
        """The same values on wires of their own, for what is merged in two ways; see `finish`."""
        copies = self.take(len(values))
        self.exchanges += [(-1 - value, copy) for value, copy in zip(values, copies, strict=True)]
        return copies

    def median(self, one: Wires, two: Wires) -> int:
        """The middle one of two sorted lists: the least, over all splits of its lower half, of the greatest taken."""
        half = (len(one) + len(two) + 1) // 2
        found = None
        for n in range(max(0, half - len(two)), min(len(one), half) + 1):
            taken = ([one[n - 1]] if n else []) + ([two[half - n - 1]] if half - n else [])
            greatest = taken[0]
            if len(taken) == 2:
                low, greatest = self.copy(tuple(taken))
                self.exchange(low, greatest)
            if found is None:
                (found,) = self.copy((greatest,))
            else:
                self.exchange(found, self.copy((greatest,))[0])
        assert found is not None
        return found

    def finish(self, results: Iterable[int]) -> Network:
        """Leave out what no result needs."""
        results = tuple(results)
        needed, operations = set(results), []
        for one, two in reversed(self.exchanges):
            if one < 0:  # a copy
                if two in needed:
                    needed.discard(two)
                    needed.add(-1 - one)
                    operations.append(Operation(one, two, False, False))
                continue
            lesser, greater = one in needed, two in needed
            if lesser or greater:
                needed |= {one, two}
                operations.append(Operation(one, two, lesser, greater))
        return Network(self.wires, tuple(reversed(operations)), results)


def run_network(network: Network, values: Sequence, *, lesser, greater) -> list:  # type: ignore[no-untyped-def]
    """Send values through a network, with what takes the lesser and the greater of two."""
    held = [*values, *[None] * (network.wires - len(values))]
    for one, two, low, high in network.operations:
        if one < 0:
            held[two] = held[-1 - one]
        else:
            a, b = held[one], held[two]
            held[one], held[two] = lesser(a, b) if low else None, greater(a, b) if high else None
    return [held[wire] for wire in network.results]


@cache
def sorting(n: int) -> Network:
    """Sort a few values."""
    maker = Maker()
    return maker.finish(maker.sort(maker.take(n)))


@cache
def merging(one: int, two: int) -> Network:
    """Merge two sorted lists."""
    maker = Maker()
    return maker.finish(maker.merge(maker.take(one), maker.take(two)))


@cache
def two_medians(size: int) -> Network:
    """Medians of size x size values around two places one below the other.

    Takes the rows `size` // 2 + 1 and + 2 below the first place as they are, then, sorted, the row before these two,
    the older rows both windows share, two by two, and the row `size` // 2 above the first place. Gives both medians,
    the two rows sorted and, for sizes over 3, the first of them merged with the row before.
    """
    maker = Maker()
    third, fourth = maker.take(size), maker.take(size)
    second = maker.take(size)
    pairs = [maker.take(2 * size) for _ in range((size - 3) // 2)]
    outer = maker.take(size)
    third, fourth = maker.sort(third), maker.sort(fourth)
    kept = maker.copy(third)
    pair = maker.merge(maker.copy(second), third)
    shared = pair
    middle = maker.copy(pair)
    for older in pairs:
        middle = maker.merge(maker.copy(older), middle)
    if size > 3:
        first = (len(middle) - size - 1) // 2
        middle = middle[first : first + size + 1]
    medians = maker.median(middle, outer), maker.median(middle, fourth)
    return maker.finish([*medians, *kept, *fourth, *(shared if pairs else ())])


@cache
def two_nines() -> Network:
    """Sort 3 x 3 values around two places one below the other: takes the four rows of three, gives two nines."""
    maker = Maker()
    rows = [maker.sort(maker.take(3)) for _ in range(4)]
    shared = maker.merge(rows[1], rows[2])
    upper = maker.merge(maker.copy(shared), rows[0])
    return maker.finish([*upper, *maker.merge(shared, rows[3])])


@cache
def two_medians_of_nines() -> Network:
    """Medians of three nines each, the first two of four and the last two in both: takes all four sorted, in order."""
    maker = Maker()
    before, one, two, after = (maker.take(9) for _ in range(4))
    middle = maker.merge(one, two)[4:14]
    return maker.finish([maker.median(middle, before), maker.median(middle, after)])

"""Rows of 3 x 3 medians in vector instructions, several at a time, with or without the cleaning of spots.

The two rows above come sorted in threes; those below are sorted on the way, and the last two take their place. What
two windows one below the other share is put in order once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from niseg_gpu.kernels.lines import as_vector, choose, count_lanes
from niseg_gpu.kernels.spot_rules import Tally, is_far, spread

WHOLE = ir.IntType(64)
ROWS = 8  # at a time: more hardly share more, and need more registers than there are


def make_filter(rows: int) -> Any:
    """Return a function for compiled code that filters so many rows.

    Called with (frames, begins, first, end, above, centre, apart, out, o, pitch), it puts medians of columns `first` to
    `end` into `out`: those of the first row from `o` on, each other's `pitch` farther. `begins` says where in `frames`
    the left neighbours of column 0 lie, in as many rows, from the one below the first. `above` and `centre` are the
    row above the first and the first: least, middle and greatest of three neighbours, lines that lie `apart` from each
    other. The last two rows read take their place; if it is one alone, it takes that of `above`.
    """

    @intrinsic
    def filter_rows(typing, frames, begins, first, end, above, centre, apart, out, o, pitch):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start, step = arguments[8:10]
            outs = _places(builder, _data(context, builder, signature, arguments, 7), start, step, rows)

            def finish(row: int, x: Any, lanes: int, median: Any) -> None:
                builder.store(median, as_vector(builder, builder.gep(outs[row], [x]), lanes), align=1)

            _go_along(context, builder, signature, arguments, rows, lambda lanes: None, finish)
            return context.get_dummy_value()

        at = types.int64
        return types.void(frames, begins, at, at, above, centre, at, out, at, at), generate

    return filter_rows


def make_clean(rows: int) -> Any:
    """Return a function that cleans so many rows by the limits of a `Rule`.

    It takes (..., pitch, spots, limits, found) after what `make_filter` says, and puts spots + 2**32 times NaN of each
    row into `found`.
    """

    @intrinsic
    def clean_rows(typing, frames, begins, first, end, above, centre, apart, out, o, pitch, spots, limits, found):  # type: ignore[no-untyped-def]
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            tallies = [Tally(context, builder, frames.dtype) for _ in range(rows)]
            arrays = [_data(context, builder, signature, arguments, k) for k in (0, 7, 10, 11, 12)]
            begins_of = [_places(builder, array, *arguments[8:10], rows) for array in arrays[:3]]
            rule: list[Any] = []

            def start(lanes: int) -> None:
                for tally in tallies:
                    tally.start(lanes)
                both = (builder.load(builder.gep(arrays[3], [_number(k)])) for k in range(2))
                rule[:] = [spread(builder, limit, lanes) for limit in both]

            def finish(row: int, x: Any, lanes: int, median: Any) -> None:
                places = [as_vector(builder, builder.gep(begin[row], [x]), lanes) for begin in begins_of]
                value = builder.load(places[0], align=1)
                spot = is_far(builder, frames.dtype, value, median, *rule)
                tallies[row].add(value, spot)
                builder.store(builder.select(spot, median, value), places[1], align=1)
                builder.store(builder.zext(spot, places[2].type.pointee), places[2], align=1)

            def stop() -> None:
                for tally in tallies:
                    tally.stop()

            _go_along(context, builder, signature, arguments, rows, start, finish, stop)
            for k, tally in enumerate(tallies):
                builder.store(tally.total(), builder.gep(arrays[4], [_number(k)]))
            return context.get_dummy_value()

        at = types.int64
        return types.void(frames, begins, at, at, above, centre, at, out, at, at, spots, limits, found), generate

    return clean_rows


filter_rows3, filter_row3 = make_filter(ROWS), make_filter(1)
clean_rows3, clean_row3 = make_clean(ROWS), make_clean(1)


def _data(context: Any, builder: Any, signature: Any, arguments: Any, k: int) -> Any:
    return context.make_array(signature.args[k])(context, builder, arguments[k]).data


def _places(builder: Any, data: Any, start: Any, step: Any, n: int) -> list[Any]:
    return [builder.gep(data, [builder.add(start, builder.mul(step, _number(k)))]) for k in range(n)]


def _go_along(
    context: Any,
    builder: Any,
    signature: Any,
    arguments: Any,
    rows: int,
    start: Callable[[int], None],
    finish: Callable[[int, Any, int, Any], None],
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Write the loops, over whole vectors, then over quarters of them, then over what is left."""
    dtype, (first, end, apart) = signature.args[0].dtype, (arguments[k] for k in (2, 3, 6))
    frames, begins, *held = (_data(context, builder, signature, arguments, k) for k in (0, 1, 4, 5))
    below = [builder.gep(frames, [builder.load(builder.gep(begins, [_number(k)]))]) for k in range(rows)]
    lines = [line for row in held for line in _places(builder, row, _number(0), apart, 3)]
    lesser, greater = choose(builder, dtype)

    def sort(left: Any, centre: Any, right: Any) -> tuple[Any, ...]:
        low, high = lesser(centre, right), greater(centre, right)
        return lesser(left, low), greater(low, lesser(left, high)), greater(left, high)

    def load_sorted(row: Any, x: Any, lanes: int) -> tuple[Any, ...]:
        taps = (builder.gep(row, [builder.add(x, _number(k))]) for k in range(3))
        return sort(*(builder.load(as_vector(builder, tap, lanes), align=1) for tap in taps))

    def loop(first: Any, end: Any, lanes: int) -> None:
        start(lanes)
        with cgutils.for_range_slice(builder, first, end, _number(lanes)) as (x, _):
            kept = [as_vector(builder, builder.gep(line, [x]), lanes) for line in lines]
            values = [builder.load(place, align=1) for place in kept]
            threes = [values[:3], values[3:]]
            for k in range(0, rows, 2):
                threes += [load_sorted(row, x, lanes) for row in below[k : k + 2]]
                one, two = threes[k + 1 : k + 3]
                least, most = greater(one[0], two[0]), lesser(one[2], two[2])
                low, high = lesser(one[1], two[1]), greater(one[1], two[1])
                for row, other in zip((k, k + 1), (threes[k], *threes[k + 3 :]), strict=False):
                    a, b = greater(least, other[0]), lesser(most, other[2])
                    c = greater(low, lesser(high, other[1]))
                    finish(row, x, lanes, greater(lesser(a, c), lesser(greater(a, c), b)))
            last = [value for three in threes[2:][-2:] for value in three]
            for value, place in zip(last, kept, strict=False):
                builder.store(value, place, align=1)
        stop()

    lanes = count_lanes(context, dtype)
    for n in (lanes, lanes // 4, 1):
        whole = builder.sub(end, builder.srem(builder.sub(end, first), _number(n)))
        loop(first, whole, n)
        first = whole


def _number(n: int) -> Any:
    return ir.Constant(WHOLE, n)

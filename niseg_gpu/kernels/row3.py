"""One row of 3 x 3 medians in vector instructions, with or without the cleaning of spots.

The rows above come sorted in threes; that below is sorted on the way, and takes the place of the uppermost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from niseg_gpu.kernels.lines import VECTOR_BYTES, as_vector, choose
from niseg_gpu.kernels.spot_rules import Tally, is_far, spread

WHOLE = ir.IntType(64)


@intrinsic
def filter_row3(typing, frames, i, first, end, before, centre, apart, out, o):  # type: ignore[no-untyped-def]
    """Put medians of columns `first` to `end` into `out` from `o` on.

    Parameters
    ----------
    frames : 1-D array
    i : int
        Where the left neighbour of column 0 in the row below lies.
    before, centre : 1-D array
        The row above and the row itself: least, middle and greatest of three neighbours, `apart` from each other.
        Those of the row below take the place of those `before`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        begin = builder.gep(_data(context, builder, signature, arguments, 7), [arguments[8]])

        def finish(x: Any, lanes: int, median: Any) -> None:
            builder.store(median, as_vector(builder, builder.gep(begin, [x]), lanes), align=1)

        _go_along(context, builder, signature, arguments, lambda lanes: None, finish)
        return context.get_dummy_value()

    at = types.int64
    return types.void(frames, at, at, at, before, centre, at, out, at), generate


@intrinsic
def clean_row3(typing, frames, i, first, end, before, centre, apart, out, o, spots, limits):  # type: ignore[no-untyped-def]
    """Put cleaned values into `out`, by the limits of a `Rule`; return spots + 2**32 times NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        tally = Tally(context, builder, frames.dtype)
        values, out_, spots_ = (
            builder.gep(_data(context, builder, signature, arguments, k), [arguments[8]]) for k in (0, 7, 9)
        )
        limits_ = _data(context, builder, signature, arguments, 10)
        rule: list[Any] = []

        def start(lanes: int) -> None:
            tally.start(lanes)
            both = (builder.load(builder.gep(limits_, [ir.Constant(WHOLE, k)])) for k in range(2))
            rule[:] = [spread(builder, limit, lanes) for limit in both]

        def finish(x: Any, lanes: int, median: Any) -> None:
            places = [as_vector(builder, builder.gep(begin, [x]), lanes) for begin in (values, out_, spots_)]
            value = builder.load(places[0], align=1)
            spot = is_far(builder, frames.dtype, value, median, *rule)
            tally.add(value, spot)
            builder.store(builder.select(spot, median, value), places[1], align=1)
            builder.store(builder.zext(spot, places[2].type.pointee), places[2], align=1)

        _go_along(context, builder, signature, arguments, start, finish, stop=tally.stop)
        return tally.total()

    at = types.int64
    return types.int64(frames, at, at, at, before, centre, at, out, at, spots, limits), generate


def _data(context: Any, builder: Any, signature: Any, arguments: Any, k: int) -> Any:
    return context.make_array(signature.args[k])(context, builder, arguments[k]).data


def _go_along(
    context: Any,
    builder: Any,
    signature: Any,
    arguments: Any,
    start: Callable[[int], None],
    finish: Callable[[Any, int, Any], None],
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Write the loops, first over whole vectors, then over what is left."""
    dtype, (first, end, apart) = signature.args[0].dtype, (arguments[k] for k in (2, 3, 6))
    row, *both = (_data(context, builder, signature, arguments, k) for k in (0, 4, 5))
    row, steps = builder.gep(row, [arguments[1]]), [builder.mul(apart, _number(k)) for k in range(3)]
    above, centre = ([builder.gep(lines, [step]) for step in steps] for lines in both)
    lesser, greater = choose(builder, dtype)

    def middle(a: Any, b: Any, c: Any) -> Any:
        return greater(lesser(a, b), lesser(greater(a, b), c))

    def loop(first: Any, end: Any, lanes: int) -> None:
        start(lanes)
        with cgutils.for_range_slice(builder, first, end, _number(lanes)) as (x, _):
            kept = [as_vector(builder, builder.gep(line, [x]), lanes) for line in above]
            a = [builder.load(place, align=1) for place in kept]
            b = [builder.load(as_vector(builder, builder.gep(line, [x]), lanes), align=1) for line in centre]
            taps = [builder.gep(row, [builder.add(x, _number(k))]) for k in range(3)]
            left, c1, right = (builder.load(as_vector(builder, tap, lanes), align=1) for tap in taps)
            low, high = lesser(c1, right), greater(c1, right)
            c = lesser(left, low), greater(low, lesser(left, high)), greater(left, high)
            for value, place in zip(c, kept, strict=True):
                builder.store(value, place, align=1)
            least, most = greater(greater(a[0], b[0]), c[0]), lesser(lesser(a[2], b[2]), c[2])
            finish(x, lanes, middle(least, middle(a[1], b[1], c[1]), most))
        stop()

    lanes = _number(VECTOR_BYTES // context.get_abi_sizeof(context.get_data_type(dtype)))
    whole = builder.sub(end, builder.srem(builder.sub(end, first), lanes))
    loop(first, whole, lanes.constant)
    loop(whole, end, 1)


def _number(n: int) -> Any:
    return ir.Constant(WHOLE, n)

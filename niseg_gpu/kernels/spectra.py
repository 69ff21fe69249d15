"""What is done to the values of single pixels, eight or sixteen at a time, written out for LLVM.

As numba functions these loops would take a hold on each array that they see, once a pixel: that takes longer than they
do. Here arrays are places in memory, and whoever calls holds them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from niseg_gpu.kernels.vectors import FLOAT, INDEX, SIDE, point_to, spread, to_float

DOUBLE = ir.DoubleType()


def load(builder, place, n, bits=32):  # type: ignore[no-untyped-def]
    """A vector of the `n` values from `place` on, of so many bits."""
    return builder.load(builder.bitcast(place, ir.VectorType(place.type.pointee, n).as_pointer()), align=bits // 8)


def store(builder, value, place, bits=32):  # type: ignore[no-untyped-def]
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=bits // 8)


def call(builder, name, kind, *arguments, **options):  # type: ignore[no-untyped-def]
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [a.type for a in arguments]), f"llvm.{name}"
    )
    return builder.call(function, arguments, **options)


def variables(builder, values):  # type: ignore[no-untyped-def]
    """Places for what a loop changes; LLVM makes registers of them."""
    return [cgutils.alloca_once_value(builder, value) for value in values]


def loop(builder, end, step):  # type: ignore[no-untyped-def]
    return cgutils.for_range_slice(builder, end.type(0), end, end.type(step), end.type)


def fold(builder, lanes):  # type: ignore[no-untyped-def]
    """The sum of a vector's lanes, of which there are 2, 4, 8, ...: of halves, side by side, till one is left."""
    while (n := lanes.type.count) > 1:
        halves = [ir.Constant(ir.VectorType(INDEX, n // 2), list(range(i, i + n // 2))) for i in (0, n // 2)]
        lanes = builder.fadd(*(builder.shuffle_vector(lanes, lanes, half) for half in halves))
    return builder.extract_element(lanes, INDEX(0))


@intrinsic
def bare(typing, array):  # type: ignore[no-untyped-def]
    """The same array, held by the caller alone: the holds that calls and views take on it then cost next to nothing.

    Of arguments only. What a function has made itself it gives back after its last use by name, before that by this.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        view.meminfo, view.parent = (cgutils.get_null_value(place.type) for place in (view.meminfo, view.parent))
        return view._getvalue()

    return array(array), generate


@intrinsic
def bring_line(typing, flat, at, offsets, first, n, rows, to):  # type: ignore[no-untyped-def]
    """``rows[to + f] = flat[at + f] - offsets[first + f]`` for f below `n`, in float32."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        flat, at, offsets, first, n, rows, to = arguments
        kinds = signature.args
        source, offset, target = (
            point_to(context, builder, kinds[i], array, start)
            for i, array, start in ((0, flat, at), (2, offsets, first), (5, rows, to))
        )
        dtype = kinds[0].dtype

        def bring(f, count):  # type: ignore[no-untyped-def]
            line = load(builder, builder.gep(source, [f]), count, dtype.bitwidth)
            line = line if dtype == types.float32 else to_float(builder, line, dtype)
            line = builder.fsub(line, load(builder, builder.gep(offset, [f]), count))
            store(builder, line, builder.gep(target, [f]))

        whole = builder.and_(n, n.type(-SIDE))
        with loop(builder, whole, SIDE) as (f, _):
            bring(f, SIDE)
        with loop(builder, builder.sub(n, whole), 1) as (f, _):
            bring(builder.add(f, whole), 1)
        return context.get_dummy_value()

    index = types.intp
    return types.void(flat, index, offsets, index, index, rows, index), generate


def _make_add(subtract: bool) -> Any:
    @intrinsic
    def add(typing, rows, at, n, magic, sums, to):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            rows, at, n, magic, sums, to = arguments
            source = point_to(context, builder, signature.args[0], rows, at)
            target = point_to(context, builder, signature.args[4], sums, to)
            magic = spread(builder, magic)
            with loop(builder, n, SIDE) as (f, _):
                line = builder.fpext(load(builder, builder.gep(source, [f]), SIDE), ir.VectorType(DOUBLE, SIDE))
                line = builder.fsub(builder.fadd(line, magic), magic)
                place = builder.gep(target, [f])
                total = load(builder, place, SIDE, 64)
                store(builder, (builder.fsub if subtract else builder.fadd)(total, line), place, 64)
            return context.get_dummy_value()

        index = types.intp
        return types.void(rows, index, index, types.float64, sums, index), generate

    return add


# ``sums[to + f] += rows[at + f]``, or ``-=``, in float64, for f below `n`, a multiple of 8; that `magic` is added first
# and taken off again rounds to the quantum.
add_line, take_line = _make_add(False), _make_add(True)


@intrinsic
def square_line_wide(typing, rows, at, n):  # type: ignore[no-untyped-def]
    """The sum of the squares of `n` values, a multiple of 8, from ``rows[at]`` on; in float64, in eight lanes."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        rows, at, n = arguments
        source, vector = point_to(context, builder, signature.args[0], rows, at), ir.VectorType(DOUBLE, SIDE)
        (total,) = variables(builder, [ir.Constant(vector, [0.0] * SIDE)])
        with loop(builder, n, SIDE) as (f, _):
            line = builder.fpext(load(builder, builder.gep(source, [f]), SIDE), vector)
            builder.store(call(builder, f"fma.v{SIDE}f64", vector, line, line, builder.load(total)), total)
        return fold(builder, builder.load(total))

    return types.float64(rows, types.intp, types.intp), generate


@intrinsic
def spoil_line(typing, rows, at, n):  # type: ignore[no-untyped-def]
    """Zero where `n` values, a multiple of 8, from ``rows[at]`` on are all finite; else NaN."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        rows, at, n = arguments
        source = point_to(context, builder, signature.args[0], rows, at)
        vector = ir.VectorType(FLOAT, SIDE)
        zero = ir.Constant(vector, [0.0] * SIDE)
        (total,) = variables(builder, [zero])
        with loop(builder, n, SIDE) as (f, _):
            line = load(builder, builder.gep(source, [f]), SIDE)
            builder.store(call(builder, f"fma.v{SIDE}f32", vector, line, zero, builder.load(total)), total)
        lanes = builder.load(total)
        return call(builder, f"vector.reduce.fadd.v{SIDE}f32", FLOAT, FLOAT(0.0), lanes, fastmath=("reassoc",))

    return types.float32(rows, types.intp, types.intp), generate


@intrinsic
def widen_range(typing, values, at, step, n, low, high, to):  # type: ignore[no-untyped-def]
    """Take eight float32 values of each of `n` rows into the range from ``low[to]`` and ``high[to]`` on; no NaN.

    The rows begin at ``values[at]``, `step` apart.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        values, at, step, n, low, high, to = arguments
        kinds, vector = signature.args, ir.VectorType(FLOAT, SIDE)
        source = point_to(context, builder, kinds[0], values, at)
        bounds = [point_to(context, builder, kinds[i], array, to) for i, array in ((4, low), (5, high))]
        farthest = variables(builder, [load(builder, bound, SIDE) for bound in bounds])
        with loop(builder, n, 1) as (r, _):
            line = load(builder, builder.gep(source, [builder.mul(r, step)]), SIDE)
            # not compared and selected: that LLVM makes a masked store of, many times as slow on some processors
            for place, name in zip(farthest, ("minnum", "maxnum"), strict=True):
                old = builder.load(place)
                builder.store(call(builder, f"{name}.v{SIDE}f32", vector, line, old, fastmath=("nnan",)), place)
        for place, bound in zip(farthest, bounds, strict=True):
            store(builder, builder.load(place), bound)
        return context.get_dummy_value()

    index = types.intp
    return types.void(values, index, index, index, low, high, index), generate


@intrinsic
def add_rows(typing, values, at, step, n, magic, sums, to):  # type: ignore[no-untyped-def]
    """Add eight values of each of `n` rows as `add_line` does; the rows begin at ``values[at]``, `step` apart."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        values, at, step, n, magic, sums, to = arguments
        source = point_to(context, builder, signature.args[0], values, at)
        target = point_to(context, builder, signature.args[5], sums, to)
        magic = spread(builder, magic)
        (total,) = variables(builder, [load(builder, target, SIDE, 64)])
        with loop(builder, n, 1) as (r, _):
            line = load(builder, builder.gep(source, [builder.mul(r, step)]), SIDE)
            line = builder.fpext(line, ir.VectorType(DOUBLE, SIDE))
            line = builder.fsub(builder.fadd(line, magic), magic)
            builder.store(builder.fadd(builder.load(total), line), total)
        store(builder, builder.load(total), target, 64)
        return context.get_dummy_value()

    index = types.intp
    return types.void(values, index, index, index, types.float64, sums, index), generate


@intrinsic
def find_least(typing, known, by_rest, at, n, rest):  # type: ignore[no-untyped-def]
    """The least of ``known[at + b] - by_rest[at + b] * rest`` over b below `n`, a multiple of 8; float64, no NaN."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        known, by_rest, at, n, rest = arguments
        fixed = point_to(context, builder, signature.args[0], known, at)
        slope = point_to(context, builder, signature.args[1], by_rest, at)
        vector = ir.VectorType(DOUBLE, SIDE)
        rest = spread(builder, builder.fneg(rest))
        (least,) = variables(builder, [ir.Constant(vector, [float("inf")] * SIDE)])
        with loop(builder, n, SIDE) as (b, _):
            parts = (load(builder, builder.gep(one, [b]), SIDE, 64) for one in (slope, fixed))
            change, old = call(builder, f"fma.v{SIDE}f64", vector, next(parts), rest, next(parts)), builder.load(least)
            builder.store(builder.select(builder.fcmp_ordered("<", change, old), change, old), least)
        return call(builder, f"vector.reduce.fmin.v{SIDE}f64", DOUBLE, builder.load(least), fastmath=("nnan",))

    index = types.intp
    return types.float64(known, by_rest, index, index, types.float64), generate

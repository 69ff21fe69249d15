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

LANES = 16  # centroids side by side
DOUBLE = ir.DoubleType()


def _load(builder, place, n, bits=32):  # type: ignore[no-untyped-def]
    """A vector of the `n` values from `place` on, of so many bits."""
    return builder.load(builder.bitcast(place, ir.VectorType(place.type.pointee, n).as_pointer()), align=bits // 8)


def _store(builder, value, place, bits=32):  # type: ignore[no-untyped-def]
    builder.store(value, builder.bitcast(place, value.type.as_pointer()), align=bits // 8)


def _call(builder, name, kind, *arguments, **options):  # type: ignore[no-untyped-def]
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [a.type for a in arguments]), f"llvm.{name}"
    )
    return builder.call(function, arguments, **options)


def _variables(builder, values):  # type: ignore[no-untyped-def]
    """Places for what a loop changes; LLVM makes registers of them."""
    return [cgutils.alloca_once_value(builder, value) for value in values]


def _loop(builder, end, step):  # type: ignore[no-untyped-def]
    return cgutils.for_range_slice(builder, end.type(0), end, end.type(step), end.type)


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
            line = _load(builder, builder.gep(source, [f]), count, dtype.bitwidth)
            line = line if dtype == types.float32 else to_float(builder, line, dtype)
            line = builder.fsub(line, _load(builder, builder.gep(offset, [f]), count))
            _store(builder, line, builder.gep(target, [f]))

        whole = builder.and_(n, n.type(-SIDE))
        with _loop(builder, whole, SIDE) as (f, _):
            bring(f, SIDE)
        with _loop(builder, builder.sub(n, whole), 1) as (f, _):
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
            with _loop(builder, n, SIDE) as (f, _):
                line = builder.fpext(_load(builder, builder.gep(source, [f]), SIDE), ir.VectorType(DOUBLE, SIDE))
                line = builder.fsub(builder.fadd(line, magic), magic)
                place = builder.gep(target, [f])
                total = _load(builder, place, SIDE, 64)
                _store(builder, (builder.fsub if subtract else builder.fadd)(total, line), place, 64)
            return context.get_dummy_value()

        index = types.intp
        return types.void(rows, index, index, types.float64, sums, index), generate

    return add


# ``sums[to + f] += rows[at + f]``, or ``-=``, in float64, for f below `n`, a multiple of 8; that `magic` is added first
# and taken off again rounds to the quantum.
add_line, take_line = _make_add(False), _make_add(True)


def _make_square(dtype: Any) -> Any:
    kind = ir.DoubleType() if dtype == types.float64 else FLOAT
    vector, suffix = ir.VectorType(kind, SIDE), f"v{SIDE}f{dtype.bitwidth}"

    @intrinsic
    def square(typing, rows, at, n):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            rows, at, n = arguments
            source = point_to(context, builder, signature.args[0], rows, at)
            (total,) = _variables(builder, [ir.Constant(vector, [0.0] * SIDE)])
            with _loop(builder, n, SIDE) as (f, _):
                line = _load(builder, builder.gep(source, [f]), SIDE)
                line = builder.fpext(line, vector) if dtype == types.float64 else line
                builder.store(_call(builder, f"fma.{suffix}", vector, line, line, builder.load(total)), total)
            lanes = builder.load(total)
            return _call(builder, f"vector.reduce.fadd.{suffix}", kind, kind(0.0), lanes, fastmath=("reassoc",))

        return dtype(rows, types.intp, types.intp), generate

    return square


# The sum of the squares of `n` float32 values, a multiple of 8, from ``rows[at]`` on; in float32 or float64, in eight
# lanes.
square_line, square_line_wide = _make_square(types.float32), _make_square(types.float64)


@intrinsic
def spoil_line(typing, rows, at, n):  # type: ignore[no-untyped-def]
    """Zero where `n` values, a multiple of 8, from ``rows[at]`` on are all finite; else NaN."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        rows, at, n = arguments
        source = point_to(context, builder, signature.args[0], rows, at)
        vector = ir.VectorType(FLOAT, SIDE)
        zero = ir.Constant(vector, [0.0] * SIDE)
        (total,) = _variables(builder, [zero])
        with _loop(builder, n, SIDE) as (f, _):
            line = _load(builder, builder.gep(source, [f]), SIDE)
            builder.store(_call(builder, f"fma.v{SIDE}f32", vector, line, zero, builder.load(total)), total)
        lanes = builder.load(total)
        return _call(builder, f"vector.reduce.fadd.v{SIDE}f32", FLOAT, FLOAT(0.0), lanes, fastmath=("reassoc",))

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
        farthest = _variables(builder, [_load(builder, bound, SIDE) for bound in bounds])
        with _loop(builder, n, 1) as (r, _):
            line = _load(builder, builder.gep(source, [builder.mul(r, step)]), SIDE)
            # not compared and selected: that LLVM makes a masked store of, many times as slow on some processors
            for place, name in zip(farthest, ("minnum", "maxnum"), strict=True):
                old = builder.load(place)
                builder.store(_call(builder, f"{name}.v{SIDE}f32", vector, line, old, fastmath=("nnan",)), place)
        for place, bound in zip(farthest, bounds, strict=True):
            _store(builder, builder.load(place), bound)
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
        (total,) = _variables(builder, [_load(builder, target, SIDE, 64)])
        with _loop(builder, n, 1) as (r, _):
            line = _load(builder, builder.gep(source, [builder.mul(r, step)]), SIDE)
            line = builder.fpext(line, ir.VectorType(DOUBLE, SIDE))
            line = builder.fsub(builder.fadd(line, magic), magic)
            builder.store(builder.fadd(builder.load(total), line), total)
        _store(builder, builder.load(total), target, 64)
        return context.get_dummy_value()

    index = types.intp
    return types.void(values, index, index, index, types.float64, sums, index), generate


def _make_multiply(n_rows: int, n_vectors: int) -> Any:
    @intrinsic
    def multiply(typing, rows, row, row_step, n, panel, column, column_step, products, place, place_step):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            rows, row, row_step, n, panel, column, column_step, products, place, place_step = arguments
            kinds, index, vector = signature.args, n.type, ir.VectorType(FLOAT, LANES)

            def at(kind, array, start, step, number):  # type: ignore[no-untyped-def]
                return point_to(context, builder, kind, array, builder.add(start, builder.mul(step, index(number))))

            pixels = [at(kinds[0], rows, row, row_step, i) for i in range(n_rows)]
            columns = [at(kinds[4], panel, column, column_step, j) for j in range(n_vectors)]
            zero = ir.Constant(vector, [0.0] * LANES)
            sums = [_variables(builder, [zero] * n_vectors) for _ in pixels]
            with _loop(builder, n, 1) as (f, _):
                first = builder.mul(f, index(LANES))
                centroids = [_load(builder, builder.gep(one, [first]), LANES) for one in columns]
                for pixel, line in zip(pixels, sums, strict=True):
                    value = spread(builder, builder.load(builder.gep(pixel, [f])), LANES)
                    for centroid, total in zip(centroids, line, strict=True):
                        new = _call(builder, f"fma.v{LANES}f32", vector, value, centroid, builder.load(total))
                        builder.store(new, total)
            for i, line in enumerate(sums):
                for j, total in enumerate(line):
                    there = builder.gep(at(kinds[7], products, place, place_step, i), [index(j * LANES)])
                    _store(builder, builder.fadd(_load(builder, there, LANES), builder.load(total)), there)
            return context.get_dummy_value()

        index = types.intp
        return types.void(rows, index, index, index, panel, index, index, products, index, index), generate

    return multiply


# ``products[place + i * place_step + 16 * j + l] += sum(rows[row + i * row_step + f] * panel[column + j * column_step +
# 16 * f + l])`` over f below `n`, for eight rows i and 16 lanes l of one to three vectors j. Each sum is made in the
# order of f.
multiply_8x16, multiply_8x32, multiply_8x48 = (_make_multiply(8, n) for n in (1, 2, 3))


@intrinsic
def find_nearest(typing, products, at, norms, n, found, scores, r):  # type: ignore[no-untyped-def]
    """Score `n` centroids, a multiple of 16, by ``norms[c] - 2 * products[at + c]``.

    ``found[r]`` becomes the first with the least score, ``scores[0, r]`` that score, ``scores[1, r]`` the least of the
    others'.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        products, at, norms, n, found, scores, r = arguments
        kinds, vector, whole = signature.args, ir.VectorType(FLOAT, LANES), ir.VectorType(INDEX, LANES)
        source = point_to(context, builder, kinds[0], products, at)
        lengths = point_to(context, builder, kinds[2], norms, at.type(0))
        far, lanes = ir.Constant(vector, [float("inf")] * LANES), ir.Constant(whole, list(range(LANES)))
        best, second, which = _variables(builder, [far, far, lanes])
        with _loop(builder, n, LANES) as (c, _):
            product = _load(builder, builder.gep(source, [c]), LANES)
            twice = ir.Constant(vector, [-2.0] * LANES)
            score = _call(
                builder, f"fma.v{LANES}f32", vector, twice, product, _load(builder, builder.gep(lengths, [c]), LANES)
            )
            old, runner = builder.load(best), builder.load(second)
            nearer = builder.fcmp_ordered("<", score, old)
            loser = builder.select(nearer, old, score)
            builder.store(builder.select(builder.fcmp_ordered("<", loser, runner), loser, runner), second)
            number = builder.add(spread(builder, builder.trunc(c, INDEX), LANES), lanes)
            builder.store(builder.select(nearer, number, builder.load(which)), which)
            builder.store(builder.select(nearer, score, old), best)
        best, second, which = (builder.load(place) for place in (best, second, which))

        def least_of(values):  # type: ignore[no-untyped-def]
            return _call(builder, f"vector.reduce.fmin.v{LANES}f32", FLOAT, values, fastmath=("nnan",))

        least = least_of(best)
        none = ir.Constant(whole, [2**31 - 1] * LANES)
        candidates = builder.select(builder.fcmp_ordered("==", best, spread(builder, least, LANES)), which, none)
        nearest = _call(builder, f"vector.reduce.smin.v{LANES}i32", INDEX, candidates)
        others = builder.select(builder.icmp_signed("==", which, spread(builder, nearest, LANES)), far, best)
        closer = builder.select(builder.fcmp_ordered("<", others, second), others, second)
        builder.store(nearest, point_to(context, builder, kinds[4], found, r))
        builder.store(least, point_to(context, builder, kinds[5], scores, r))
        rows = cgutils.unpack_tuple(builder, context.make_array(kinds[5])(context, builder, scores).shape)[1]
        builder.store(least_of(closer), point_to(context, builder, kinds[5], scores, builder.add(rows, r)))
        return context.get_dummy_value()

    index = types.intp
    return types.void(products, index, norms, index, found, scores, index), generate


@intrinsic
def find_least(typing, known, by_rest, at, n, rest):  # type: ignore[no-untyped-def]
    """The least of ``known[at + b] - by_rest[at + b] * rest`` over b below `n`, a multiple of 8; float64, no NaN."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        known, by_rest, at, n, rest = arguments
        fixed = point_to(context, builder, signature.args[0], known, at)
        slope = point_to(context, builder, signature.args[1], by_rest, at)
        vector = ir.VectorType(DOUBLE, SIDE)
        rest = spread(builder, builder.fneg(rest))
        (least,) = _variables(builder, [ir.Constant(vector, [float("inf")] * SIDE)])
        with _loop(builder, n, SIDE) as (b, _):
            parts = (_load(builder, builder.gep(one, [b]), SIDE, 64) for one in (slope, fixed))
            change, old = _call(builder, f"fma.v{SIDE}f64", vector, next(parts), rest, next(parts)), builder.load(least)
            builder.store(builder.select(builder.fcmp_ordered("<", change, old), change, old), least)
        return _call(builder, f"vector.reduce.fmin.v{SIDE}f64", DOUBLE, builder.load(least), fastmath=("nnan",))

    index = types.intp
    return types.float64(known, by_rest, index, index, types.float64), generate

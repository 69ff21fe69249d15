"""Pixels side by side: what is done to many at once, each in a lane of its own, written out for LLVM.

A tile is (features, pixels) float32 here. How a pixel's values are summed does not depend on how many lanes the
processor has, nor on what lies beside it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import config, types
from numba.extending import intrinsic

from niseg_gpu.kernels.spectra import DOUBLE, call, fold, load, loop, store, variables
from niseg_gpu.kernels.vectors import FLOAT, INDEX, SIDE, point_to, spread, to_float, turn_lines


def _is_wide() -> bool:
    """Whether code is compiled for vectors of 16 values, on this processor or the one that numba is told of."""
    named = config.CPU_FEATURES
    return binding.get_host_cpu_features().get("avx512f", False) if named is None else "+avx512f" in named


WIDE = _is_wide()
LANES = 16 if WIDE else 8  # pixels of a vector
VECTORS = 6 if WIDE else 3  # of sums for each of four centroids: with what is multiplied they fill the registers
SPAN = LANES * VECTORS  # pixels worked on together
QUAD = 4  # centroids multiplied at a time
HALF = LANES // 2  # of them in float64
VECTOR, WIDER = ir.VectorType(FLOAT, LANES), ir.VectorType(DOUBLE, HALF)


@intrinsic
def bring_stretch(typing, flat, at, n, offset, tile, to):  # type: ignore[no-untyped-def]
    """``tile[to + p] = flat[at + p] - offset`` for p below `n`, in float32."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        flat, at, n, offset, tile, to = arguments
        kinds = signature.args
        source, target = point_to(context, builder, kinds[0], flat, at), point_to(context, builder, kinds[4], tile, to)
        dtype = kinds[0].dtype

        def bring(p, count):  # type: ignore[no-untyped-def]
            line = load(builder, builder.gep(source, [p]), count, dtype.bitwidth)
            line = line if dtype == types.float32 else to_float(builder, line, dtype)
            store(builder, builder.fsub(line, spread(builder, offset, count)), builder.gep(target, [p]))

        whole = builder.and_(n, n.type(-LANES))
        with loop(builder, whole, LANES) as (p, _):
            bring(p, LANES)
        with loop(builder, builder.sub(n, whole), 1) as (p, _):
            bring(builder.add(p, whole), 1)
        return context.get_dummy_value()

    index = types.intp
    return types.void(flat, index, index, types.float32, tile, index), generate


@intrinsic
def turn_listed(typing, flat, step, numbers, first, f, mean, tile, to, across):  # type: ignore[no-untyped-def]
    """Turn eight values, from the one of number `f` on, of the pixels ``numbers[first]`` to ``numbers[first + 7]``.

    ``tile[to + j * across + r] = flat[numbers[first + r] * step + f + j] - mean[f + j]`` in float32.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        flat, step, numbers, first, f, mean, tile, to, across = arguments
        kinds, index = signature.args, f.type
        offsets = load(builder, point_to(context, builder, kinds[5], mean, f), SIDE)
        listed, dtype = point_to(context, builder, kinds[2], numbers, first), kinds[0].dtype
        lines = []
        for r in range(SIDE):
            number = builder.load(builder.gep(listed, [index(r)]))
            number = number if number.type == index else builder.sext(number, index)
            at = builder.add(builder.mul(number, step), f)
            line = load(builder, point_to(context, builder, kinds[0], flat, at), SIDE, dtype.bitwidth)
            line = line if dtype == types.float32 else to_float(builder, line, dtype)
            lines.append(builder.fsub(line, offsets))
        for j, line in enumerate(turn_lines(builder, lines)):
            place = builder.add(to, builder.mul(across, index(j)))
            store(builder, line, point_to(context, builder, kinds[6], tile, place))
        return context.get_dummy_value()

    index = types.intp
    return types.void(flat, index, numbers, index, index, mean, tile, index, index), generate


def _make_multiply(n_centroids: int) -> Any:
    @intrinsic
    def multiply(typing, tile, at, across, n, panel, column, products):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            tile, at, across, n, panel, column, products = arguments
            kinds, index = signature.args, n.type
            pixels = point_to(context, builder, kinds[0], tile, at)
            centroids = point_to(context, builder, kinds[4], panel, column)
            out = point_to(context, builder, kinds[6], products, index(0))
            zero = ir.Constant(VECTOR, [0.0] * LANES)
            sums = [variables(builder, [zero] * VECTORS) for _ in range(n_centroids)]
            with loop(builder, n, 1) as (f, _):
                line, four = builder.mul(f, across), builder.mul(f, index(QUAD))
                values = [
                    load(builder, builder.gep(pixels, [builder.add(line, index(v * LANES))]), LANES)
                    for v in range(VECTORS)
                ]
                for c in range(n_centroids):
                    factor = builder.load(builder.gep(centroids, [builder.add(four, index(c))]))
                    factor = spread(builder, factor, LANES)
                    for value, total in zip(values, sums[c], strict=True):
                        new = call(builder, f"fma.v{LANES}f32", VECTOR, value, factor, builder.load(total))
                        builder.store(new, total)
            for c in range(n_centroids):
                for v, total in enumerate(sums[c]):
                    place = builder.gep(out, [index(c * SPAN + v * LANES)])
                    store(builder, builder.fadd(load(builder, place, LANES), builder.load(total)), place)
            return context.get_dummy_value()

        index = types.intp
        return types.void(tile, index, index, index, panel, index, products), generate

    return multiply


# ``products[c * SPAN + p] += sum(tile[at + f * across + p] * panel[column + 4 * f + c])`` over f below `n`, in order,
# for `SPAN` pixels p and one to four centroids c.
multiply_1, multiply_2, multiply_3, multiply_4 = (_make_multiply(c) for c in (1, 2, 3, 4))


@intrinsic
def score_span(typing, products, norms, first, n, found, scores):  # type: ignore[no-untyped-def]
    """Score `n` centroids from the one of number `first` on by ``norms[c] - 2 * products[(c - first) * SPAN + p]``.

    Of each pixel p of a span ``found[p]`` is the first with the least score so far, ``scores[p]`` that score,
    ``scores[SPAN + p]`` the least of the others'.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        products, norms, first, n, found, scores = arguments
        kinds, index = signature.args, n.type
        source = point_to(context, builder, kinds[0], products, index(0))
        lengths = point_to(context, builder, kinds[1], norms, first)
        twice = ir.Constant(VECTOR, [-2.0] * LANES)
        for v in range(VECTORS):
            places = [
                point_to(context, builder, kinds[i], array, index(start + v * LANES))
                for i, array, start in ((5, scores, 0), (5, scores, SPAN), (4, found, 0))
            ]
            best, second, which = variables(builder, [load(builder, place, LANES) for place in places])
            with loop(builder, n, 1) as (c, _):
                place = builder.add(builder.mul(c, index(SPAN)), index(v * LANES))
                product = load(builder, builder.gep(source, [place]), LANES)
                norm = spread(builder, builder.load(builder.gep(lengths, [c])), LANES)
                score = call(builder, f"fma.v{LANES}f32", VECTOR, twice, product, norm)
                old, runner = builder.load(best), builder.load(second)
                nearer = builder.fcmp_ordered("<", score, old)
                loser = builder.select(nearer, old, score)
                builder.store(builder.select(builder.fcmp_ordered("<", loser, runner), loser, runner), second)
                number = spread(builder, builder.trunc(builder.add(first, c), INDEX), LANES)
                builder.store(builder.select(nearer, number, builder.load(which)), which)
                builder.store(builder.select(nearer, score, old), best)
            for place, variable in zip(places, (best, second, which), strict=True):
                store(builder, builder.load(variable), place)
        return context.get_dummy_value()

    index = types.intp
    return types.void(products, norms, index, index, found, scores), generate


@intrinsic
def square_span(typing, tile, at, across, n, squares):  # type: ignore[no-untyped-def]
    """``squares[p] += sum(tile[at + f * across + p] ** 2)`` over f below `n`, in order, for `SPAN` pixels p."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        tile, at, across, n, squares = arguments
        kinds, index = signature.args, n.type
        pixels = point_to(context, builder, kinds[0], tile, at)
        out = point_to(context, builder, kinds[4], squares, index(0))
        sums = variables(builder, [ir.Constant(VECTOR, [0.0] * LANES)] * VECTORS)
        with loop(builder, n, 1) as (f, _):
            line = builder.mul(f, across)
            for v, total in enumerate(sums):
                value = load(builder, builder.gep(pixels, [builder.add(line, index(v * LANES))]), LANES)
                builder.store(call(builder, f"fma.v{LANES}f32", VECTOR, value, value, builder.load(total)), total)
        for v, total in enumerate(sums):
            place = builder.gep(out, [index(v * LANES)])
            store(builder, builder.fadd(load(builder, place, LANES), builder.load(total)), place)
        return context.get_dummy_value()

    index = types.intp
    return types.void(tile, index, index, index, squares), generate


@intrinsic
def spoil_stretch(typing, tile, at, n, spoilt):  # type: ignore[no-untyped-def]
    """Keep ``spoilt[p]`` at zero where ``tile[at + p]`` is finite, else make it NaN; p below `n`, of whole vectors."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        tile, at, n, spoilt = arguments
        source = point_to(context, builder, signature.args[0], tile, at)
        target = point_to(context, builder, signature.args[3], spoilt, n.type(0))
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        with loop(builder, n, LANES) as (p, _):
            place = builder.gep(target, [p])
            value, old = load(builder, builder.gep(source, [p]), LANES), load(builder, place, LANES)
            store(builder, call(builder, f"fma.v{LANES}f32", VECTOR, value, zero, old), place)
        return context.get_dummy_value()

    return types.void(tile, types.intp, types.intp, spoilt), generate


@intrinsic
def widen_by_stretch(typing, tile, at, n, low, high, f):  # type: ignore[no-untyped-def]
    """Take `n` values, whole vectors, from ``tile[at]`` on into the range from ``low[f]`` to ``high[f]``; no NaN."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        tile, at, n, low, high, f = arguments
        source = point_to(context, builder, signature.args[0], tile, at)
        bounds = [point_to(context, builder, signature.args[i], array, f) for i, array in ((3, low), (4, high))]
        farthest = variables(builder, [spread(builder, builder.load(bound), LANES) for bound in bounds])
        with loop(builder, n, LANES) as (p, _):
            line = load(builder, builder.gep(source, [p]), LANES)
            for place, name in zip(farthest, ("minnum", "maxnum"), strict=True):
                new = call(builder, f"{name}.v{LANES}f32", VECTOR, line, builder.load(place), fastmath=("nnan",))
                builder.store(new, place)
        for place, bound, name in zip(farthest, bounds, ("fmin", "fmax"), strict=True):
            lanes = builder.load(place)
            most = call(builder, f"vector.reduce.{name}.v{LANES}f32", FLOAT, lanes, fastmath=("nnan",))
            builder.store(most, bound)
        return context.get_dummy_value()

    index = types.intp
    return types.void(tile, index, index, low, high, index), generate


@intrinsic
def add_stretch(typing, tile, at, n, magic, sums, f):  # type: ignore[no-untyped-def]
    """Add `n` values, whole vectors, from ``tile[at]`` on to ``sums[f]``, rounded as by `add_line`: in any order."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        tile, at, n, magic, sums, f = arguments
        source = point_to(context, builder, signature.args[0], tile, at)
        place = point_to(context, builder, signature.args[4], sums, f)
        magic = spread(builder, magic, HALF)
        totals = variables(builder, [ir.Constant(WIDER, [0.0] * HALF)] * 2)
        with loop(builder, n, LANES) as (p, _):
            for i, total in enumerate(totals):
                line = load(builder, builder.gep(source, [builder.add(p, p.type(i * HALF))]), HALF)
                line = builder.fsub(builder.fadd(builder.fpext(line, WIDER), magic), magic)
                builder.store(builder.fadd(builder.load(total), line), total)
        lanes = builder.fadd(*map(builder.load, totals))
        builder.store(builder.fadd(builder.load(place), fold(builder, lanes)), place)
        return context.get_dummy_value()

    index = types.intp
    return types.void(tile, index, index, types.float64, sums, index), generate


@intrinsic
def square_pixels(typing, tile, at, across, n, squares, p):  # type: ignore[no-untyped-def]
    """``squares[p + l] += sum(tile[at + f * across + l] ** 2)`` over f below `n`, for `HALF` pixels l; in float64.

    Summed as `square_line_wide` does it; `n` is a multiple of 8.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        tile, at, across, n, squares, p = arguments
        index = n.type
        source = point_to(context, builder, signature.args[0], tile, at)
        place = point_to(context, builder, signature.args[4], squares, p)
        sums = variables(builder, [ir.Constant(WIDER, [0.0] * HALF)] * SIDE)
        with loop(builder, n, SIDE) as (f, _):
            for i, total in enumerate(sums):
                line = builder.mul(builder.add(f, index(i)), across)
                value = builder.fpext(load(builder, builder.gep(source, [line]), HALF), WIDER)
                builder.store(call(builder, f"fma.v{HALF}f64", WIDER, value, value, builder.load(total)), total)
        lines = [builder.load(total) for total in sums]
        while len(lines) > 1:  # as `fold`
            half = len(lines) // 2
            lines = [builder.fadd(one, other) for one, other in zip(lines[:half], lines[half:], strict=True)]
        store(builder, builder.fadd(load(builder, place, HALF, 64), lines[0]), place, 64)
        return context.get_dummy_value()

    index = types.intp
    return types.void(tile, index, index, index, squares, index), generate

"""What LLVM does not find by itself: turning a square of values in registers, and products that fill them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

SIDE = 8
CENTROIDS = 4  # multiplied at a time
FLOAT, INDEX = ir.FloatType(), ir.IntType(32)


@intrinsic
def turn_square(typing, flat, at, step, offsets, first, rows, to, row_step):  # type: ignore[no-untyped-def]
    """Write 8 x 8 values transposed, less their offsets: for r and f from 0 to 7,

    ``rows[to + r * row_step + f] = flat[at + f * step + r] - offsets[first + f]`` in the dtype of `rows` and `offsets`,
    float32 or that of `flat`.
    """

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        flat, at, step, offsets, first, rows, to, row_step = arguments
        kinds = signature.args
        lines = []
        for f in range(SIDE):
            number = at.type(f)
            source = builder.add(at, builder.mul(step, number))
            line = _load(context, builder, kinds[0], flat, source)
            if kinds[5].dtype != kinds[0].dtype:
                line = to_float(builder, line, kinds[0].dtype)
            offset = builder.load(point_to(context, builder, kinds[3], offsets, builder.add(first, number)))
            subtract = builder.sub if isinstance(kinds[5].dtype, types.Integer) else builder.fsub
            lines.append(subtract(line, spread(builder, offset)))
        for r, line in enumerate(_transpose(builder, lines)):
            target = builder.add(to, builder.mul(row_step, to.type(r)))
            place = point_to(context, builder, kinds[5], rows, target)
            builder.store(line, builder.bitcast(place, line.type.as_pointer()), align=kinds[5].dtype.bitwidth // 8)
        return context.get_dummy_value()

    index = types.intp
    return types.void(flat, index, index, offsets, index, rows, index, index), generate


def point_to(context, builder, kind, array, at):  # type: ignore[no-untyped-def]
    """Where the value of number `at` of an array lies."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _load(context, builder, kind, array, at):  # type: ignore[no-untyped-def]
    """Eight values from ``array[at]`` on."""
    place = point_to(context, builder, kind, array, at)
    vector = ir.VectorType(place.type.pointee, SIDE)
    return builder.load(builder.bitcast(place, vector.as_pointer()), align=kind.dtype.bitwidth // 8)


def to_float(builder, line, dtype):  # type: ignore[no-untyped-def]
    """A vector of the dtype's values in float32."""
    vector = ir.VectorType(FLOAT, line.type.count)
    if isinstance(dtype, types.Integer):
        return (builder.sitofp if dtype.signed else builder.uitofp)(line, vector)
    return builder.fptrunc(line, vector)


def spread(builder, value, n=SIDE):  # type: ignore[no-untyped-def]
    """A vector of `n` times the value."""
    vector = ir.VectorType(value.type, n)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, INDEX(0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(INDEX, n), [0] * n))


def _transpose(builder, lines):  # type: ignore[no-untyped-def]
    """Transpose eight lines of eight in three rounds: exchange blocks of 4 x 4, of 2 x 2, then single values."""
    for width in (4, 2, 1):
        low = [i for i in range(SIDE) if not i & width]
        first = [i if not i & width else SIDE + i - width for i in range(SIDE)]
        second = [i + width if not i & width else SIDE + i for i in range(SIDE)]
        turned = list(lines)
        for i in low:
            pair = lines[i], lines[i + width]
            turned[i] = builder.shuffle_vector(*pair, _numbers(first))
            turned[i + width] = builder.shuffle_vector(*pair, _numbers(second))
        lines = turned
    return lines


def _numbers(values):  # type: ignore[no-untyped-def]
    return ir.Constant(ir.VectorType(INDEX, SIDE), values)


def _make_multiply(n_rows: int, n_centroids: int) -> Any:
    @intrinsic
    def multiply(typing, rows, row, row_step, panel, column, width, products, place, place_step):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            rows, row, row_step, panel, column, width, products, place, place_step = arguments
            kinds, index = signature.args, row.type

            def at(kind, array, start, step, number):  # type: ignore[no-untyped-def]
                return point_to(context, builder, kind, array, builder.add(start, builder.mul(step, index(number))))

            lines = [at(kinds[0], rows, row, row_step, i) for i in range(n_rows)]
            columns = [at(kinds[3], panel, column, width, j) for j in range(n_centroids)]
            sums = _sum_products(builder, lines, columns, width)
            vector = ir.VectorType(FLOAT, CENTROIDS)
            for i in range(n_rows):
                target = builder.bitcast(at(kinds[6], products, place, place_step, i), vector.as_pointer())
                total = _add_up(builder, sums[i])
                builder.store(builder.fadd(builder.load(target, align=4), total), target, align=4)
            return context.get_dummy_value()

        index = types.intp
        return types.void(rows, index, index, panel, index, index, products, index, index), generate

    return multiply


# Twelve vectors of sums each, as many as sixteen registers hold beside what is multiplied.
# ``products[place + i * place_step + j] += sum(rows[row + i * row_step + f] * panel[column + j * width + f])`` for the
# rows i and centroids j of the name, over f below `width`, a multiple of 8; four products are written in any case.
# Eight sums side by side, each in order, then added in pairs: the rounding is the same whichever of them is taken, on
# every processor.
multiply_3x4, multiply_4x3, multiply_6x2, multiply_12x1 = (_make_multiply(12 // k, k) for k in (4, 3, 2, 1))


def _sum_products(builder, lines, columns, width):  # type: ignore[no-untyped-def]
    """The loop over the features: a vector of eight sums for every line and column."""
    vector = ir.VectorType(FLOAT, SIDE)
    fused = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{SIDE}f32"
    )
    before, loop = builder.block, builder.append_basic_block("features")
    after = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    f = builder.phi(width.type)
    f.add_incoming(width.type(0), before)
    sums = [[builder.phi(vector) for _ in columns] for _ in lines]

    def load(line):  # type: ignore[no-untyped-def]
        return builder.load(builder.bitcast(builder.gep(line, [f]), vector.as_pointer()), align=4)

    # the fewer are held, the others come one at a time: together with the sums they just fit the registers
    new = [[None] * len(columns) for _ in lines]
    fewer, more = (lines, columns) if len(lines) < len(columns) else (columns, lines)
    held = [load(one) for one in fewer]
    for m, one in enumerate(more):
        value = load(one)
        for h, other in enumerate(held):
            i, j = (h, m) if fewer is lines else (m, h)
            new[i][j] = builder.call(fused, [value, other, sums[i][j]])
    following = builder.add(f, width.type(SIDE))
    f.add_incoming(following, loop)
    for i in range(len(lines)):
        for j in range(len(columns)):
            sums[i][j].add_incoming(ir.Constant(vector, [0.0] * SIDE), before)
            sums[i][j].add_incoming(new[i][j], loop)
    builder.cbranch(builder.icmp_signed("<", following, width), loop, after)
    builder.position_at_end(after)
    return new


def _add_up(builder, four):  # type: ignore[no-untyped-def]
    """The sums of up to four vectors of eight, as a vector of four."""
    none = ir.Constant(ir.VectorType(FLOAT, SIDE), [0.0] * SIDE)
    four = [*four, *[none] * (CENTROIDS - len(four))]

    def pairs(one, other):  # type: ignore[no-untyped-def]
        """Sums of neighbours within each half: of `one`, then of `other`."""
        even = [0, 2, 8, 10, 4, 6, 12, 14]
        evens = builder.shuffle_vector(one, other, _numbers(even))
        return builder.fadd(evens, builder.shuffle_vector(one, other, _numbers([i + 1 for i in even])))

    total = pairs(pairs(four[0], four[1]), pairs(four[2], four[3]))
    halves = [ir.Constant(ir.VectorType(INDEX, 4), [h + i for i in range(4)]) for h in (0, 4)]
    return builder.fadd(*(builder.shuffle_vector(total, total, half) for half in halves))

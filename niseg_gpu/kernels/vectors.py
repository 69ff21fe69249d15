"""What LLVM does not find by itself: turning a square of values in registers."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

SIDE = 8
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
        for r, line in enumerate(turn_lines(builder, lines)):
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


def turn_lines(builder, lines):  # type: ignore[no-untyped-def]
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

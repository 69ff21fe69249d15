"""What LLVM does not find by itself: turning a square of values in registers, and asking for memory ahead of time."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

SIDE = 8
FLOAT, INDEX = ir.FloatType(), ir.IntType(32)


@intrinsic
def prefetch(typing, flat, at):  # type: ignore[no-untyped-def]
    """Have the line of ``flat[at]`` brought into the second cache."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        place = _pointer(context, builder, signature.args[0], *arguments)
        line = builder.bitcast(place, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [line.type, INDEX, INDEX, INDEX])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [line, INDEX(0), INDEX(2), INDEX(1)])  # to read, level 2, data
        return context.get_dummy_value()

    return types.void(flat, types.intp), generate


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
                line = _to_float(builder, line, kinds[0].dtype)
            offset = builder.load(_pointer(context, builder, kinds[3], offsets, builder.add(first, number)))
            subtract = builder.sub if isinstance(kinds[5].dtype, types.Integer) else builder.fsub
            lines.append(subtract(line, _spread(builder, offset)))
        for r, line in enumerate(_transpose(builder, lines)):
            target = builder.add(to, builder.mul(row_step, to.type(r)))
            place = _pointer(context, builder, kinds[5], rows, target)
            builder.store(line, builder.bitcast(place, line.type.as_pointer()), align=kinds[5].dtype.bitwidth // 8)
        return context.get_dummy_value()

    index = types.intp
    return types.void(flat, index, index, offsets, index, rows, index, index), generate


def _pointer(context, builder, kind, array, at):  # type: ignore[no-untyped-def]
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def _load(context, builder, kind, array, at):  # type: ignore[no-untyped-def]
    """Eight values from ``array[at]`` on."""
    place = _pointer(context, builder, kind, array, at)
    vector = ir.VectorType(place.type.pointee, SIDE)
    return builder.load(builder.bitcast(place, vector.as_pointer()), align=kind.dtype.bitwidth // 8)


def _to_float(builder, line, dtype):  # type: ignore[no-untyped-def]
    vector = ir.VectorType(FLOAT, SIDE)
    if isinstance(dtype, types.Integer):
        return (builder.sitofp if dtype.signed else builder.uitofp)(line, vector)
    return builder.fptrunc(line, vector)


def _spread(builder, value):  # type: ignore[no-untyped-def]
    vector = ir.VectorType(value.type, SIDE)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, INDEX(0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), _numbers([0] * SIDE))


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

"""Loops over lines of values written in vector instructions, as numba's own would not become, or not without checks.

A line is a stretch of one work array. A network's inputs and results lie in groups: each begins where the caller says
and holds lines one after another, or neighbours of one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from niseg_gpu.kernels.compiled import within
from niseg_gpu.kernels.selection import Network, run_network

VECTOR_BYTES = 32  # a machine with shorter ones takes several
LONGEST_BYTES = 64  # of vectors, and of a line of the cache: what begins at a multiple of it, none of them straddles


def loop_over(network: Network, *, inputs: Sequence[tuple[int, int]], results: Sequence[tuple[int, int]]) -> Any:
    """Return a function for compiled code that sends columns of lines through a network.

    Parameters
    ----------
    network : Network
    inputs, results : sequence of (int, int)
        Of each group, how many values it has in a column, and how far apart they lie.

    Returns
    -------
    callable
        ``(lines, begins, n)``: the work array, where each group begins (inputs, then results; an int64 array), and the
        number of columns, which is rounded up to whole vectors. A vector of results is written after those of the
        inputs are read; no other column may read what is written.
    """
    groups = [*inputs, *results]

    @intrinsic
    def run(typing: Any, lines: Any, begins: Any, n: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            lanes = count_lanes(context, lines.dtype)
            data = context.make_array(lines)(context, builder, arguments[0]).data
            first = context.make_array(begins)(context, builder, arguments[1]).data
            numbers = [builder.gep(first, [ir.Constant(ir.IntType(64), k)]) for k in range(len(groups))]
            begin = [builder.gep(data, [builder.load(number)]) for number in numbers]
            step = ir.Constant(arguments[2].type, lanes)
            vectors = builder.udiv(builder.add(arguments[2], ir.Constant(step.type, lanes - 1)), step)
            with cgutils.for_range(builder, vectors) as loop:
                x = builder.mul(loop.index, step)
                places = [
                    as_vector(builder, builder.gep(start, [builder.add(x, ir.Constant(x.type, k * apart))]), lanes)
                    for start, (count, apart) in zip(begin, groups, strict=True)
                    for k in range(count)
                ]
                taken = sum(count for count, _ in inputs)
                values = [builder.load(place, align=1) for place in places[:taken]]
                lesser, greater = choose(builder, lines.dtype)
                found = run_network(network, values, lesser=lesser, greater=greater)
                for value, place in zip(found, places[taken:], strict=True):
                    builder.store(value, place, align=1)
            return context.get_dummy_value()

        return types.void(lines, types.Array(types.int64, 1, "C"), types.int64), generate

    return run


def count_lanes(context: Any, dtype: Any) -> int:
    """Values of a vector on the machine that is compiled for.

    With AVX-512 it takes the least and greatest of 16 floats in the time of 8; with integers it gains nothing.
    """
    long = isinstance(dtype, types.Float) and "+avx512f" in context.codegen().magic_tuple()[2]
    return (LONGEST_BYTES if long else VECTOR_BYTES) // context.get_abi_sizeof(context.get_data_type(dtype))


@within
def from_cache_line(work):
    """What there is of a work array from where a line of the cache begins."""
    return work[-work.ctypes.data % LONGEST_BYTES // work.itemsize :]


def as_vector(builder: Any, place: Any, lanes: int) -> Any:
    """Let a pointer point to a vector."""
    return builder.bitcast(place, ir.VectorType(place.type.pointee, lanes).as_pointer())


def choose(builder: Any, dtype: Any) -> tuple[Any, Any]:
    """What takes the lesser and the greater of two vectors; both values stay where one is NaN."""

    def less(a: Any, b: Any) -> Any:
        if isinstance(dtype, types.Float):
            return builder.fcmp_ordered("<", a, b)
        return (builder.icmp_signed if dtype.signed else builder.icmp_unsigned)("<", a, b)

    return lambda a, b: builder.select(less(a, b), a, b), lambda a, b: builder.select(less(a, b), b, a)

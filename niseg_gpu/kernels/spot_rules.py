"""What makes a value a spot, and the loop over a row that replaces spots, in vector instructions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from niseg_gpu.kernels.compiled import within
from niseg_gpu.kernels.lines import as_vector, choose, count_lanes

FLOAT, DOUBLE, WHOLE = ir.FloatType(), ir.DoubleType(), ir.IntType(64)


class Tally:
    """Counts spots and NaN in loops over vectors, each lane for itself.

    Parameters
    ----------
    context, builder : object
        Of the function being compiled.
    dtype : numba type
        Of the values.
    """

    def __init__(self, context: Any, builder: Any, dtype: Any) -> None:
        self.builder, self.has_nan = builder, isinstance(dtype, types.Float)
        self.width = max(16, 8 * context.get_abi_sizeof(context.get_data_type(dtype)))
        self.sums = [cgutils.alloca_once_value(builder, ir.Constant(WHOLE, 0)) for _ in range(1 + self.has_nan)]
        self.counts: list[Any] = []

    def start(self, lanes: int) -> None:
        zeros = ir.Constant(ir.VectorType(ir.IntType(self.width), lanes), None)
        self.counts = [cgutils.alloca_once(self.builder, zeros.type) for _ in self.sums]
        for counts in self.counts:
            self.builder.store(zeros, counts)

    def add(self, value: Any, spot: Any) -> None:
        """Count where the bits of `spot` are set, and the NaN among values."""
        marks = [spot, self.builder.fcmp_unordered("uno", value, value)] if self.has_nan else [spot]
        for counts, where in zip(self.counts, marks, strict=True):
            new = self.builder.sub(self.builder.load(counts), self.builder.sext(where, counts.type.pointee))
            self.builder.store(new, counts)

    def stop(self) -> None:
        for total, counts in zip(self.sums, self.counts, strict=True):
            kind = counts.type.pointee
            function = _declare(self.builder, "llvm.vector.reduce.add", kind, result=kind.element)
            more = self.builder.zext(self.builder.call(function, [self.builder.load(counts)]), WHOLE)
            self.builder.store(self.builder.add(self.builder.load(total), more), total)

    def total(self) -> Any:
        """Spots + 2**32 times NaN."""
        spots, *nan = (self.builder.load(total) for total in self.sums)
        return self.builder.add(spots, self.builder.shl(nan[0], ir.Constant(WHOLE, 32))) if nan else spots


@intrinsic
def replace_spots(typing, values, i, medians, m, n, out, spots, limits, noise, blank):  # type: ignore[no-untyped-def]
    """Clean `n` values from `i`, whose medians lie from `m`, by a `Rule`; return spots + 2**32 times NaN."""
    dtype = values.dtype

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
            if isinstance(kind, types.Array)
        ]
        (v, middle, o, s, far, unlikely, empty), n = arrays, arguments[4]
        begins = (arguments[1], arguments[3], arguments[1], arguments[1])
        starts = [builder.gep(array.data, [at]) for array, at in zip((v, middle, o, s), begins, strict=True)]
        element, tally = context.get_data_type(dtype), Tally(context, builder, dtype)
        has_noise, has_blank = (
            builder.icmp_signed(">", cgutils.unpack_tuple(builder, a.shape)[0], ir.Constant(WHOLE, 0))
            for a in (unlikely, empty)
        )
        fill = cgutils.alloca_once_value(builder, ir.Constant(element, 0))
        with builder.if_then(has_blank):
            builder.store(builder.load(empty.data), fill)

        def loop(first: Any, stop: Any, lanes: int, *, by_noise: bool) -> None:
            tally.start(lanes)
            pair = (unlikely if by_noise else far).data
            rule = [builder.load(builder.gep(pair, [ir.Constant(WHOLE, k)])) for k in range(2)]
            rule = [spread(builder, limit, lanes) for limit in rule]
            filler = spread(builder, builder.load(fill), lanes) if isinstance(dtype, types.Float) else None
            with cgutils.for_range_slice(builder, first, stop, ir.Constant(WHOLE, lanes)) as (x, _):
                places = [as_vector(builder, builder.gep(start, [x]), lanes) for start in starts]
                value, median = (builder.load(place, align=1) for place in places[:2])
                spot = (_is_beyond if by_noise else is_far)(builder, dtype, value, median, *rule)
                tally.add(value, spot)
                new = median if filler is None else builder.select(has_blank, filler, median)
                builder.store(builder.select(spot, new, value), places[2], align=1)
                builder.store(builder.zext(spot, places[3].type.pointee), places[3], align=1)
            tally.stop()

        lanes = count_lanes(context, dtype)
        whole = builder.sub(n, builder.srem(n, ir.Constant(WHOLE, lanes)))
        with builder.if_else(has_noise) as (then, otherwise):
            for branch, by_noise in ((then, True), (otherwise, False)):
                with branch:
                    loop(ir.Constant(WHOLE, 0), whole, lanes, by_noise=by_noise)
                    loop(whole, n, 1, by_noise=by_noise)
        return tally.total()

    at = types.int64
    return types.int64(values, at, medians, at, at, out, spots, limits, noise, blank), generate


def spread(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of one value."""
    vector = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    for k in range(lanes):
        vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), k))
    return vector


def _declare(builder: Any, name: str, vector: Any, *, result: Any = None, arguments: int = 1) -> Any:
    """An instruction that LLVM knows as a function of vectors."""
    letter = {FLOAT: "f32"}.get(vector.element, f"i{getattr(vector.element, 'width', 0)}")
    kind = ir.FunctionType(result or vector, [vector] * arguments)
    return cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{vector.count}{letter}")


def is_far(builder: Any, dtype: Any, value: Any, median: Any, bright: Any, dark: Any) -> Any:
    """Whether values lie farther above their medians than `bright` or below them than `dark`.

    Both are of the type that holds every difference, see `limit_differences`.
    """
    if isinstance(dtype, types.Float):
        above, below = builder.fsub(value, median), builder.fsub(median, value)
        return builder.or_(builder.fcmp_ordered(">", above, bright), builder.fcmp_ordered(">", below, dark))
    if dtype.bitwidth > 16:
        compare = builder.icmp_signed if dtype.signed else builder.icmp_unsigned
        lesser, greater = (take(value, median) for take in choose(builder, dtype))
        limit = builder.select(compare(">", value, median), bright, dark)
        return builder.icmp_unsigned(">", builder.sub(greater, lesser), limit)
    if dtype.signed:  # moved up by half their range, signed values keep their order
        sign = ir.Constant(value.type, [1 << (dtype.bitwidth - 1)] * value.type.count)
        value, median = builder.xor(value, sign), builder.xor(median, sign)
    # up to 16 bit there are subtractions that stop at 0
    minus = _declare(builder, "llvm.usub.sat", value.type, arguments=2)
    above = builder.call(minus, [builder.call(minus, [value, median]), bright])
    below = builder.call(minus, [builder.call(minus, [median, value]), dark])
    return builder.icmp_unsigned("!=", builder.or_(above, below), ir.Constant(value.type, None))


def _is_beyond(builder: Any, dtype: Any, value: Any, median: Any, bright: Any, dark: Any) -> Any:
    """The same with limits over the square root of the median, in float32; differences are not rounded."""
    lanes = value.type.count
    single, double = ir.VectorType(FLOAT, lanes), ir.VectorType(DOUBLE, lanes)
    level, one = _as_floats(builder, dtype, median, single), ir.Constant(single, [1.0] * lanes)
    level = builder.select(builder.fcmp_ordered(">", level, one), level, one)
    root = builder.call(_declare(builder, "llvm.sqrt", single), [level])
    limits = [builder.fmul(bright, root), builder.fmul(dark, root)]
    exact = double if isinstance(dtype, types.Integer) and dtype.bitwidth > 16 else single
    value, median = (_as_floats(builder, dtype, x, exact) for x in (value, median))
    if exact is double:
        limits = [builder.fpext(limit, double) for limit in limits]
    gaps = builder.fsub(value, median), builder.fsub(median, value)
    return builder.or_(*(builder.fcmp_ordered(">", gap, limit) for gap, limit in zip(gaps, limits, strict=True)))


def _as_floats(builder: Any, dtype: Any, vector: Any, kind: Any) -> Any:
    if isinstance(dtype, types.Float):
        return vector
    return builder.sitofp(vector, kind) if dtype.signed else builder.uitofp(vector, kind)


@within
def clean_row(values, i, medians, m, n, out, spots, k, counts, limits, noise, blank):
    """Clean row `k`: `n` values from `i`, whose medians lie from `m`. The last three arrays are those of a `Rule`.

    The first half of `counts` gets the spots of each row, the second the NaN.
    """
    add_counts(counts, k, replace_spots(values, i, medians, m, n, out, spots, limits, noise, blank))


@within
def add_counts(counts, k, found):
    """Add what was found in row `k`: spots + 2**32 times NaN."""
    counts[k] += found & 0xFFFFFFFF
    counts[counts.size // 2 + k] += found >> 32


class Rule(NamedTuple):
    """What makes a value a spot and what takes its place, as arrays for compiled code.

    Attributes
    ----------
    limits : (2,) array
        Greatest difference above and below the median that is no spot, in the type that holds every difference.
    noise : (2,) float32 array
        The same over the square root of the median, instead of `limits`; empty where these hold.
    blank : (1,) array
        In the dtype of the values, what takes the place of a spot; empty where the median does.
    """

    limits: np.ndarray
    noise: np.ndarray
    blank: np.ndarray


def make_rule(dtype: np.dtype, *, threshold: float, kind: str, unit: str = "counts", blank: bool = False) -> Rule:
    """Prepare a rule for values of `dtype`; `unit` is counts or poisson, and `blank` for floats alone."""
    noise = np.array([-1.0 if kind == "dark" else threshold, -1.0 if kind == "bright" else threshold])
    noise = np.where(noise < 0, np.inf, noise).astype(np.float32) if unit == "poisson" else noise[:0].astype(np.float32)
    return Rule(limit_differences(dtype, threshold, kind), noise, np.full(int(blank), np.nan if blank else 0, dtype))


def limit_differences(dtype: np.dtype, threshold: float, kind: str) -> np.ndarray:
    """Greatest difference above and below the median that is no spot, in the type that holds every difference."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):  # NumPy too compares with the threshold in the dtype of the image
            limit, never = dtype.type(threshold), np.inf
        differences = dtype
    else:
        differences = np.dtype(f"u{dtype.itemsize}")
        never = np.iinfo(differences).max
        limit = math.floor(min(threshold, never))
    return np.array([never if kind == "dark" else limit, never if kind == "bright" else limit], differences)

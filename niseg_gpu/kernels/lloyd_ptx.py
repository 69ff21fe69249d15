"""The few PTX instructions that the k-means kernels need beyond what numba offers, each beside its meaning in Python.

The Python is what numba's simulator runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, types
from numba.cuda.extending import intrinsic

UNPACKED = 8_388_608  # 2**23: between it and its double, the last bits of a float32 are a whole number


def _load4_simulated(array, at, target, to):
    assert at % 4 == 0, "16 bytes are loaded from a multiple of 16 bytes only"
    target[to : to + 4] = array[at : at + 4]


@intrinsic
def _load4(typingctx, array, at, target, to):
    """Copy four words of shared memory, from a multiple of 16 bytes on, to a local array."""

    def generate(context, builder, signature, args):
        from llvmlite import ir

        word = context.get_data_type(signature.args[0].dtype)
        source = builder.gep(_data(context, builder, signature, args, 0), [args[1]])
        four = builder.load(builder.bitcast(source, ir.PointerType(ir.VectorType(word, 4))), align=16)
        target = _data(context, builder, signature, args, 2)
        for i in range(4):
            value = builder.extract_element(four, ir.Constant(ir.IntType(32), i))
            builder.store(value, builder.gep(target, [builder.add(args[3], ir.Constant(args[3].type, i))]))
        return context.get_dummy_value()

    return types.void(array, types.int32, target, types.int32), generate


def _copy16_simulated(shared, to, array, at, n_bytes):
    assert to * shared.itemsize % 16 == 0 and 0 <= n_bytes <= 16 and n_bytes % array.itemsize == 0
    n = n_bytes // array.itemsize
    piece = np.zeros(16 // array.itemsize, array.dtype)
    piece[:n] = array[at : at + n]
    shared[to : to + 16 // shared.itemsize] = piece.view(shared.dtype)


@intrinsic
def _copy16(typingctx, shared, to, array, at, n_bytes):
    """Start to copy `n_bytes` of an array to 16 bytes of shared memory, without waiting; the rest become zeros."""

    def generate(context, builder, signature, args):
        from llvmlite import ir

        target = builder.gep(_data(context, builder, signature, args, 0), [args[1]])
        source = builder.gep(_data(context, builder, signature, args, 2), [args[3]])
        in_shared = builder.addrspacecast(target, ir.PointerType(target.type.pointee, addrspace=3))
        address = builder.ptrtoint(in_shared, ir.IntType(32))
        kind = ir.FunctionType(ir.VoidType(), [address.type, source.type, ir.IntType(32)])
        code = "cp.async.cg.shared.global [$0], [$1], 16, $2;"
        builder.call(ir.InlineAsm(kind, code, "r,l,r,~{memory}", side_effect=True), [address, source, args[4]])
        return context.get_dummy_value()

    return types.void(shared, types.int32, array, types.int64, types.int32), generate


def _command(code: str) -> Any:
    """Return a function of no arguments that is one instruction, and nothing in the simulator."""

    def nothing():
        pass

    @intrinsic
    def command(typingctx):
        def generate(context, builder, signature, args):
            from llvmlite import ir

            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(ir.InlineAsm(kind, code, "~{memory}", side_effect=True), [])
            return context.get_dummy_value()

        return types.void(), generate

    return nothing if config.ENABLE_CUDASIM else command


def _unpack_simulated(word, bits, part):
    return np.float32(UNPACKED + (int(word) >> (bits * part)) % 2**bits)


@intrinsic
def _unpack(typingctx, word, bits, part):
    """The `part`-th number of 8 or 16 bits in a word, as a float32 on top of `UNPACKED`: one instruction."""

    def generate(context, builder, signature, args):
        from llvmlite import ir

        i32 = ir.IntType(32)
        # which byte of the word and of the exponent goes where: 0x7610 and 0x7632, or 0x7650 to 0x7653
        halves = builder.add(ir.Constant(i32, 0x7610), builder.mul(args[2], ir.Constant(i32, 0x22)))
        bytes_ = builder.add(ir.Constant(i32, 0x7650), args[2])
        order = builder.select(builder.icmp_unsigned("==", args[1], ir.Constant(i32, 16)), halves, bytes_)
        permute = ir.InlineAsm(ir.FunctionType(i32, [i32] * 3), "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r")
        value = builder.call(permute, [args[0], ir.Constant(i32, 0x4B000000), order])
        return builder.bitcast(value, ir.FloatType())

    return types.float32(types.uint32, types.uint32, types.uint32), generate


def _data(context: Any, builder: Any, signature: Any, args: Any, i: int) -> Any:
    return context.make_array(signature.args[i])(context, builder, value=args[i]).data


load4 = _load4_simulated if config.ENABLE_CUDASIM else _load4
copy16 = _copy16_simulated if config.ENABLE_CUDASIM else _copy16
unpack = _unpack_simulated if config.ENABLE_CUDASIM else _unpack
close_copies = _command("cp.async.commit_group;")  # what was started since the last time becomes a group
await_older_copies = _command("cp.async.wait_group 1;")  # all groups but the newest have come

"""Instructions of NVIDIA GPUs that numba has no function for, with Python in their place in its simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, types
from numba.cuda.extending import intrinsic


@intrinsic
def _settle(typingctx, array):
    """The array, its address worked out now: else each access would start from the whole array's, in 64 bit."""

    def generate(context, builder, signature, args):
        from llvmlite import ir

        word = ir.IntType(64)
        view = context.make_array(signature.args[0])(context, builder, args[0])
        move = ir.InlineAsm(ir.FunctionType(word, [word]), "cvta.to.global.u64 $0, $1;", "=l,l")
        address = builder.call(move, [builder.ptrtoint(view.data, word)])
        there = builder.inttoptr(address, ir.PointerType(view.data.type.pointee, addrspace=1))
        view.data = builder.addrspacecast(there, view.data.type)
        return view._getvalue()

    return array(array), generate


def choose_in_pairs(choose: Any) -> Any:
    """Return min or max of both halves of two registers: one PTX instruction, or Python in the simulator."""
    instruction = f"{choose.__name__}.u16x2 $0, $1, $2;"

    def simulate(a, b):
        low = np.uint32(0xFFFF)
        return choose(a & low, b & low) | choose(a & ~low, b & ~low)

    @intrinsic
    def apply(typingctx, a, b):
        def generate(context, builder, signature, args):
            from llvmlite import ir

            word = ir.IntType(32)
            return builder.call(ir.InlineAsm(ir.FunctionType(word, [word, word]), instruction, "=r,r,r"), args)

        return types.uint32(types.uint32, types.uint32), generate

    return simulate if config.ENABLE_CUDASIM else apply


settle = (lambda array: array) if config.ENABLE_CUDASIM else _settle

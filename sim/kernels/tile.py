"""Matrix products in registers: loops over K as LLVM instructions, for processors with a multiply-add of bytes or words."""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["ROWS", "STEP_BYTES", "emit_tile", "vpdpbusd", "vpmaddwd"]

ROWS = 4
"""Rows of a tile."""
STEP_BYTES = 64
"""Bytes of weights of 16 outputs in a step over K."""

Multiply = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value], ir.Value]
"""Sums (vector of i32) plus products of x and w, as an instruction."""


def vpdpbusd(builder: ir.IRBuilder, sums: ir.Value, x: ir.Value, w: ir.Value) -> ir.Value:
    """AVX512-VNNI: 16 sums of 4 products each, x unsigned bytes, w signed bytes; wraps, never saturates."""
    kind = ir.FunctionType(sums.type, [sums.type] * 3)
    name = "llvm.x86.avx512.vpdpbusd.512"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [sums, x, w])


def vpmaddwd(builder: ir.IRBuilder, sums: ir.Value, x: ir.Value, w: ir.Value) -> ir.Value:
    """AVX2: 8 sums of 2 products each of signed 16-bit numbers."""
    words = ir.VectorType(ir.IntType(16), 16)
    kind = ir.FunctionType(sums.type, [words] * 2)
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd")
    return builder.add(sums, builder.call(function, [builder.bitcast(v, words) for v in (x, w)]))


def emit_tile(vectors: int, lanes: int, multiply: Multiply):
    """A function for compiled code: the sums of a tile of ROWS rows by `vectors` * `lanes` outputs, int32.

    tile(x, rows, w, w_base, w_step, steps, out, out_base, out_stride, flip) reads 4 bytes of x in each step, from byte
    rows[r] on, takes them exclusive-or `flip`, and multiplies them with `lanes` * 4 bytes of w, from byte
    w_base + v * w_step on, 64 bytes a step. Sums go to entries out_base + r * out_stride + v * `lanes` of out.
    """

    @intrinsic
    def tile(typing, x, rows, w, w_base, w_step, steps, out, out_base, out_stride, flip):
        arguments = (x, rows, w, w_base, w_step, steps, out, out_base, out_stride, flip)

        def generate(context, builder, signature, values):
            x_, rows_, w_, w_base_, w_step_, steps_, out_, out_base_, out_stride_, flip_ = values
            i8, i32, i64 = (ir.IntType(bits) for bits in (8, 32, 64))
            vector = ir.VectorType(i32, lanes)
            zero = ir.Constant(vector, [0] * lanes)

            def start(position: int, value):
                data = context.make_array(signature.args[position])(context, builder, value).data
                return builder.bitcast(data, i8.as_pointer())

            def splat(value):
                undefined = ir.Constant(vector, ir.Undefined)
                return builder.shuffle_vector(
                    builder.insert_element(undefined, value, i32(0)), undefined, zero
                )

            x_rows = [builder.gep(start(0, x_), [row]) for row in cgutils.unpack_tuple(builder, rows_)]
            w_rows = [
                builder.gep(start(2, w_), [builder.add(w_base_, builder.mul(w_step_, i64(v)))])
                for v in range(vectors)
            ]
            out_start, flips = start(6, out_), splat(builder.trunc(flip_, i32))
            entry, loop, end = (
                builder.block,
                builder.append_basic_block("loop"),
                builder.append_basic_block("end"),
            )
            builder.branch(loop)
            builder.position_at_end(loop)
            k = builder.phi(i64)
            sums = [[builder.phi(vector) for _ in range(vectors)] for _ in range(ROWS)]
            weights = [
                builder.load(
                    builder.bitcast(
                        builder.gep(w_rows[v], [builder.mul(k, i64(STEP_BYTES))]), vector.as_pointer()
                    ),
                    align=1,
                )
                for v in range(vectors)
            ]
            added = []
            for r in range(ROWS):
                quad = builder.gep(x_rows[r], [builder.mul(k, i64(4))])
                codes = splat(builder.load(builder.bitcast(quad, i32.as_pointer()), align=1))
                codes = builder.xor(codes, flips)
                added.append([multiply(builder, sums[r][v], codes, weights[v]) for v in range(vectors)])
            following = builder.add(k, i64(1))
            k.add_incoming(i64(0), entry)
            k.add_incoming(following, loop)
            for r in range(ROWS):
                for v in range(vectors):
                    sums[r][v].add_incoming(zero, entry)
                    sums[r][v].add_incoming(added[r][v], loop)
            builder.cbranch(builder.icmp_signed("<", following, steps_), loop, end)
            builder.position_at_end(end)
            for r in range(ROWS):
                for v in range(vectors):
                    at = builder.add(out_base_, builder.add(builder.mul(out_stride_, i64(r)), i64(lanes * v)))
                    target = builder.gep(out_start, [builder.mul(at, i64(4))])
                    builder.store(added[r][v], builder.bitcast(target, vector.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(*arguments), generate

    return tile

"""Exact products of 8-bit codes: x (rows, K) times packed weights, accumulated modulo 2**32.

Where the processor multiplies four bytes per 32-bit lane (AVX512-VNNI's vpdpbusd, which neither rounds nor
saturates), a tile of 4 rows by 64 outputs stays in registers; elsewhere plain loops compute the same sums. Signed codes
are taken as code + 128: the products then hold 128 * sum(w) too much, which `excess` states.
"""

from __future__ import annotations

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import compiled

__all__ = [
    "LANES",
    "ROWS",
    "VNNI",
    "depth4",
    "excess",
    "multiply",
    "multiply_plain",
    "multiply_vnni",
    "pack",
    "product",
]

LANES = 16
"""Outputs per packed vector."""
ROWS = 4
"""Rows of a tile; arrays of accumulators have a multiple of it."""
_VECTORS = 4
_FLIP = np.int64(0x80808080)

VNNI = (
    numba.config.CPU_NAME is None
    and numba.config.CPU_FEATURES is None
    and llvmlite.binding.get_host_cpu_features().get("avx512vnni", False)
)
"""Whether this processor has the instruction."""


@numba.njit(inline="always")
def depth4(depth):
    """`depth` rounded up to a multiple of 4: the length of a row that `multiply` reads."""
    return (depth + 3) // 4 * 4


def _emit_tile(vectors: int):
    """A tile of ROWS rows and `vectors` * 16 outputs as an LLVM loop over K with its sums in registers."""

    @intrinsic
    def tile(typing, x, rows, w, w_base, w_step, quads, out, out_base, out_stride, flip):
        arguments = (x, rows, w, w_base, w_step, quads, out, out_base, out_stride, flip)

        def generate(context, builder, signature, values):
            x_, rows_, w_, w_base_, w_step_, quads_, out_, out_base_, out_stride_, flip_ = values
            i8, i32, i64 = (ir.IntType(bits) for bits in (8, 32, 64))
            vector = ir.VectorType(i32, LANES)
            zero = ir.Constant(vector, [0] * LANES)

            def start(position: int, value):
                data = context.make_array(signature.args[position])(context, builder, value).data
                return builder.bitcast(data, i8.as_pointer())

            def splat(value):
                undefined = ir.Constant(vector, ir.Undefined)
                return builder.shuffle_vector(
                    builder.insert_element(undefined, value, i32(0)), undefined, zero
                )

            multiply = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), "llvm.x86.avx512.vpdpbusd.512"
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
                        builder.gep(w_rows[v], [builder.mul(k, i64(4 * LANES))]), vector.as_pointer()
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
                added.append(
                    [builder.call(multiply, [sums[r][v], codes, weights[v]]) for v in range(vectors)]
                )
            following = builder.add(k, i64(1))
            k.add_incoming(i64(0), entry)
            k.add_incoming(following, loop)
            for r in range(ROWS):
                for v in range(vectors):
                    sums[r][v].add_incoming(zero, entry)
                    sums[r][v].add_incoming(added[r][v], loop)
            builder.cbranch(builder.icmp_signed("<", following, quads_), loop, end)
            builder.position_at_end(end)
            for r in range(ROWS):
                for v in range(vectors):
                    at = builder.add(out_base_, builder.add(builder.mul(out_stride_, i64(r)), i64(LANES * v)))
                    target = builder.gep(out_start, [builder.mul(at, i64(4))])
                    builder.store(added[r][v], builder.bitcast(target, vector.as_pointer()), align=1)
            return context.get_dummy_value()

        return numba.types.void(*arguments), generate

    return tile


_wide_tile, _narrow_tile = _emit_tile(_VECTORS), _emit_tile(1)


@compiled()
def multiply_vnni(x, count, w, signed, out):
    """`multiply` by vpdpbusd."""
    vectors, quads = w.shape[0], w.shape[1]
    stride, width, last = x.shape[1], out.shape[1], count - 1
    xs, ws, sums = x.reshape(-1), w.reshape(-1), out.reshape(-1)
    flip, step = _FLIP if signed else np.int64(0), quads * 4 * LANES
    wide = vectors // _VECTORS * _VECTORS
    for v in range(0, wide, _VECTORS):
        for i in range(0, count, ROWS):
            rows = (
                i * stride,
                min(i + 1, last) * stride,
                min(i + 2, last) * stride,
                min(i + 3, last) * stride,
            )
            _wide_tile(xs, rows, ws, v * step, step, quads, sums, i * width + v * LANES, width, flip)
    for v in range(wide, vectors):
        for i in range(0, count, ROWS):
            rows = (
                i * stride,
                min(i + 1, last) * stride,
                min(i + 2, last) * stride,
                min(i + 3, last) * stride,
            )
            _narrow_tile(xs, rows, ws, v * step, step, quads, sums, i * width + v * LANES, width, flip)


@compiled()
def multiply_plain(x, count, w, signed, out):
    """`multiply` on any processor: dot products of 4 rows by 4 outputs, which compilers turn into its widest
    multiply-add."""
    flip, depth, last = np.uint8(128 if signed else 0), w.shape[2], count - 1
    codes = np.empty((ROWS, depth), np.int16)
    for i in range(0, count, ROWS):
        for r in range(ROWS):
            for k in range(depth):
                codes[r, k] = np.uint8(x[min(i + r, last), k] ^ flip)
        x0, x1, x2, x3 = codes[0], codes[1], codes[2], codes[3]
        for v in range(w.shape[0]):
            for lane in range(0, LANES, 4):
                w0, w1, w2, w3 = w[v, lane], w[v, lane + 1], w[v, lane + 2], w[v, lane + 3]
                s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.int32(0)
                s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.int32(0)
                for k in range(depth):
                    a0, a1, a2, a3 = np.int32(x0[k]), np.int32(x1[k]), np.int32(x2[k]), np.int32(x3[k])
                    b0, b1, b2, b3 = np.int32(w0[k]), np.int32(w1[k]), np.int32(w2[k]), np.int32(w3[k])
                    s00, s01 = np.int32(s00 + np.int32(a0 * b0)), np.int32(s01 + np.int32(a0 * b1))
                    s02, s03 = np.int32(s02 + np.int32(a0 * b2)), np.int32(s03 + np.int32(a0 * b3))
                    s10, s11 = np.int32(s10 + np.int32(a1 * b0)), np.int32(s11 + np.int32(a1 * b1))
                    s12, s13 = np.int32(s12 + np.int32(a1 * b2)), np.int32(s13 + np.int32(a1 * b3))
                    s20, s21 = np.int32(s20 + np.int32(a2 * b0)), np.int32(s21 + np.int32(a2 * b1))
                    s22, s23 = np.int32(s22 + np.int32(a2 * b2)), np.int32(s23 + np.int32(a2 * b3))
                    s30, s31 = np.int32(s30 + np.int32(a3 * b0)), np.int32(s31 + np.int32(a3 * b1))
                    s32, s33 = np.int32(s32 + np.int32(a3 * b2)), np.int32(s33 + np.int32(a3 * b3))
                o = v * LANES + lane
                out[i, o], out[i, o + 1], out[i, o + 2], out[i, o + 3] = s00, s01, s02, s03
                out[i + 1, o], out[i + 1, o + 1], out[i + 1, o + 2], out[i + 1, o + 3] = s10, s11, s12, s13
                out[i + 2, o], out[i + 2, o + 1], out[i + 2, o + 2], out[i + 2, o + 3] = s20, s21, s22, s23
                out[i + 3, o], out[i + 3, o + 1], out[i + 3, o + 2], out[i + 3, o + 3] = s30, s31, s32, s33


multiply = multiply_vnni if VNNI else multiply_plain
"""Writes out[i, o] = sum over k of x[i, k] * w[o, k] modulo 2**32 for the rows i < `count` of x, uint8 (rows, K) with
K a multiple of 4; with `signed` the bytes of x are two's complement and the result is `excess` too large. `w` is from
`pack`; `out` is int32 with `count` rounded up to ROWS rows (those beyond are overwritten) and LANES columns per vector."""


@compiled()
def pack_vnni(w):
    """`pack` for `multiply_vnni`: (ceil(O / 16), ceil(K / 4), 16, 4), output, then K, innermost."""
    outputs, depth = w.shape
    packed = np.zeros(((outputs + LANES - 1) // LANES, depth4(depth) // 4, LANES, 4), np.int8)
    for o in range(outputs):
        v, lane = o // LANES, o % LANES
        for k in range(depth):
            packed[v, k // 4, lane, k % 4] = w[o, k]
    return packed


@compiled()
def pack_plain(w):
    """`pack` for `multiply_plain`: int16 (ceil(O / 16), 16, K rounded up to 4)."""
    outputs, depth = w.shape
    packed = np.zeros(((outputs + LANES - 1) // LANES, LANES, depth4(depth)), np.int16)
    for o in range(outputs):
        packed[o // LANES, o % LANES, :depth] = w[o]
    return packed


pack = pack_vnni if VNNI else pack_plain
"""Weights int8 (O, K) as `multiply` wants them, 16 outputs in each entry of the first axis, zero beyond O and K."""


def excess(w: np.ndarray) -> np.ndarray:
    """What products of signed codes hold too much, per output: 128 * sum(w), int64 (O,), of weights (O, ...)."""
    return 128 * w.reshape(len(w), -1).astype(np.int64).sum(axis=1)


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x @ w.T modulo 2**32, int32 (rows, O), of x int8 or uint8 (rows, K) and w int8 (O, K)."""
    rows, outputs = len(x), len(w)
    packed, missing = pack(w), -x.shape[1] % 4
    x_bytes = np.ascontiguousarray(np.pad(x, ((0, 0), (0, missing))) if missing else x).view(np.uint8)
    out = np.empty((-(-rows // ROWS) * ROWS, packed.shape[0] * LANES), np.int32)
    multiply(x_bytes, rows, packed, x.dtype == np.int8, out)
    sums = out[:rows, :outputs]
    return sums - excess(w).astype(np.int32) if x.dtype == np.int8 else sums

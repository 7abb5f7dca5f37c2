"""Exact products of 8-bit codes: x (rows, K) times packed weights, accumulated modulo 2**32.

Three forms, by what the processor has: AVX512-VNNI multiplies bytes, AVX2 words, both in tiles of sums that stay in
registers (`kernels.tile`); elsewhere loops compute the same sums. Signed codes
are taken as code + 128: the products then hold 128 * sum(w) too much, which `excess` states.
"""

from __future__ import annotations

import llvmlite.binding
import numba
import numpy as np

from ..compiled import compiled
from . import tile
from .tile import ROWS, STEP_BYTES, emit_tile, vpdpbusd, vpmaddwd

__all__ = [
    "AVX2",
    "LANES",
    "ROWS",
    "VNNI",
    "depth4",
    "excess",
    "multiply",
    "multiply_avx2",
    "multiply_plain",
    "multiply_vnni",
    "pack",
    "pack_avx2",
    "product",
]

LANES = 16
"""Outputs per packed vector."""
_VECTORS = 4
_FLIP = np.int64(0x80808080)


def _has(feature: str) -> bool:
    """Whether numba compiles for a processor with this feature."""
    named = numba.config.CPU_FEATURES
    if named is not None:
        return f"+{feature}" in named.split(",")
    return numba.config.CPU_NAME is None and llvmlite.binding.get_host_cpu_features().get(feature, False)


VNNI, AVX2 = _has("avx512vnni"), _has("avx2")
"""Whether this processor has the instructions."""


@numba.njit(inline="always")
def depth4(depth):
    """`depth` rounded up to a multiple of 4: the length of a row that `multiply` reads."""
    return (depth + 3) // 4 * 4


_wide_tile, _narrow_tile = emit_tile(_VECTORS, LANES, vpdpbusd), emit_tile(1, LANES, vpdpbusd)
_word_tile = emit_tile(2, LANES // 2, vpmaddwd)


@compiled(tile)
def multiply_vnni(x, count, w, signed, out):
    """`multiply` by vpdpbusd."""
    vectors, quads = w.shape[0], w.shape[1]
    stride, width, last = x.shape[1], out.shape[1], count - 1
    xs, ws, sums = x.reshape(-1), w.reshape(-1), out.reshape(-1)
    flip, step = _FLIP if signed else np.int64(0), quads * STEP_BYTES
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


@compiled(tile)
def multiply_avx2(x, count, w, signed, out):
    """`multiply` by vpmaddwd."""
    flip, depth, width = np.uint8(128 if signed else 0), x.shape[1], out.shape[1]
    codes = np.empty((ROWS, depth), np.int16)
    words, ws, sums = codes.reshape(-1), w.reshape(-1), out.reshape(-1)
    rows, step = (0, 2 * depth, 4 * depth, 6 * depth), depth // 2 * STEP_BYTES
    for i in range(0, count, ROWS):
        for r in range(ROWS):
            for k in range(depth):
                codes[r, k] = np.uint8(x[min(i + r, count - 1), k] ^ flip)
        for v in range(w.shape[0]):
            at = i * width + v * LANES
            _word_tile(words, rows, ws, v * step, STEP_BYTES // 2, depth // 2, sums, at, width, 0)


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


multiply = multiply_vnni if VNNI else multiply_avx2 if AVX2 else multiply_plain
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
def pack_avx2(w):
    """`pack` for `multiply_avx2`: int16 (ceil(O / 16), K rounded up to 4, halved, 16, 2), output, then K, innermost."""
    outputs, depth = w.shape
    packed = np.zeros(((outputs + LANES - 1) // LANES, depth4(depth) // 2, LANES, 2), np.int16)
    for o in range(outputs):
        v, lane = o // LANES, o % LANES
        for k in range(depth):
            packed[v, k // 2, lane, k % 2] = w[o, k]
    return packed


@compiled()
def pack_plain(w):
    """`pack` for `multiply_plain`: int16 (ceil(O / 16), 16, K rounded up to 4)."""
    outputs, depth = w.shape
    packed = np.zeros(((outputs + LANES - 1) // LANES, LANES, depth4(depth)), np.int16)
    for o in range(outputs):
        packed[o // LANES, o % LANES, :depth] = w[o]
    return packed


pack = pack_vnni if VNNI else pack_avx2 if AVX2 else pack_plain
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

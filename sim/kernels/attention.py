"""Multi-head attention, a head at a time: no (T, T) array outlives its head unless it is asked for."""

from __future__ import annotations

import numpy as np

from ..compiled import compiled
from . import products, rows
from .products import LANES, depth4, multiply, pack
from .rows import row_scale, softmax

__all__ = ["attention"]

_BLOCK = 64
"""Query rows per block of accumulators."""
_LOGIT_LIMIT = 1 << 11


@compiled(products, rows)
def attention(q, k, v, heads, scales, exp, recip, lo, hi, out, keep, logits, exps, row_m, row_n):
    """`arch.graph.Attention` of one image: q (T, C), k and v (S, C), int8, into out (T, C).

    `scales` = (m, n, C, m2, n2), each int64 (heads,); `exp` uint8 (256,), `recip` int64 (256,). With `keep` also
    fills logits and exps (heads, T, S) and row_m and row_n (heads, T), int64.
    """
    tokens, channels = q.shape
    keys, size = len(k), channels // heads
    m, n, constant, m2, n2 = scales
    flip = np.uint8(128)
    queries = np.zeros((_BLOCK, depth4(size)), np.uint8)
    wide_keys, wide_size = (keys + LANES - 1) // LANES * LANES, (size + LANES - 1) // LANES * LANES
    scores, mixed = np.empty((_BLOCK, wide_keys), np.int32), np.empty((_BLOCK, wide_size), np.int32)
    probabilities = np.zeros((_BLOCK, depth4(keys)), np.uint8)
    block_m, block_n = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    surplus, line = np.empty(keys, np.int64), np.empty(keys, np.int32)
    for h in range(heads):
        first = h * size
        packed_keys = pack(k[:, first : first + size])
        packed_values = pack(v[:, first : first + size].T)
        for j in range(keys):
            total = np.int64(0)
            for c in range(size):
                total += k[j, first + c]
            surplus[j] = constant[h] - 128 * total * m[h]
        for start in range(0, tokens, _BLOCK):
            count = min(_BLOCK, tokens - start)
            for i in range(count):
                for c in range(size):
                    queries[i, c] = np.uint8(q[start + i, first + c]) ^ flip
            multiply(queries, count, packed_keys, False, scores)
            for i in range(count):
                for j in range(keys):
                    score = (np.int64(scores[i, j]) * m[h] + surplus[j]) >> n[h]
                    line[j] = min(max(score, -_LOGIT_LIMIT), _LOGIT_LIMIT - 1)
                if keep:
                    for j in range(keys):
                        logits[h, start + i, j] = line[j]
                total = softmax(line, keys, exp, probabilities[i])
                block_m[i], block_n[i] = row_scale(total, m2[h], n2[h], recip)
                if keep:
                    for j in range(keys):
                        exps[h, start + i, j] = probabilities[i, j]
                    row_m[h, start + i], row_n[h, start + i] = block_m[i], block_n[i]
            multiply(probabilities, count, packed_values, False, mixed)
            for i in range(count):
                rounding = np.int64(1) << (block_n[i] - 1)
                for c in range(size):
                    y = (np.int64(mixed[i, c]) * block_m[i] + rounding) >> block_n[i]
                    out[start + i, first + c] = min(max(y, lo), hi)

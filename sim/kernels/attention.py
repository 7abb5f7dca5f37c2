"""Multi-head attention, a head at a time: no (T, T) array outlives its head unless it is asked for."""

from __future__ import annotations

import numpy as np

from ...arch.numerics import MASKED
from ..compiled import compiled
from . import products, rows, tile
from .products import LANES, depth4, multiply, pack
from .rows import row_scale, softmax

__all__ = ["attention"]

_BLOCK = 64
"""Query rows per block of accumulators."""
_LOGIT_LIMIT = 1 << 11


@compiled(products, rows, tile)
def attention(
    q, k, v, heads, windows, scales, bias, exp, recip, lo, hi, out, keep, logits, exps, row_m, row_n
):
    """`arch.operators.Attention` of one image: q (T, heads * d), k (S, heads * d) and v (S, heads * e), int8, into out
    (T, heads * e), int8 or int16.

    `scales` = (m, n, C, m2, n2), each int64 (heads,); `bias` int16, of no entries for none; `exp` uint8 (256,), `recip`
    int64 (256,). With `keep` also fills logits and exps (heads, T, S / windows) and row_m and row_n (heads, T).
    """
    tokens, keys = len(q) // windows, len(k) // windows
    size, mixed_size = q.shape[1] // heads, v.shape[1] // heads
    m, n, constant, m2, n2 = scales
    flip = np.uint8(128)
    queries = np.zeros((_BLOCK, depth4(size)), np.uint8)
    wide_keys, wide_size = (keys + LANES - 1) // LANES * LANES, (mixed_size + LANES - 1) // LANES * LANES
    scores, mixed = np.empty((_BLOCK, wide_keys), np.int32), np.empty((_BLOCK, wide_size), np.int32)
    probabilities = np.zeros((_BLOCK, depth4(keys)), np.uint8)
    block_m, block_n = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    surplus, line = np.empty(keys, np.int64), np.empty(keys, np.int32)
    for window in range(windows):
        queries_at, keys_at = window * tokens, window * keys
        for h in range(heads):
            first, mixed_first = h * size, h * mixed_size
            packed_keys = pack(k[keys_at : keys_at + keys, first : first + size])
            packed_values = pack(v[keys_at : keys_at + keys, mixed_first : mixed_first + mixed_size].T)
            for j in range(keys):
                total = np.int64(0)
                for c in range(size):
                    total += k[keys_at + j, first + c]
                surplus[j] = constant[h] - 128 * total * m[h]
            for start in range(0, tokens, _BLOCK):
                count, at = min(_BLOCK, tokens - start), queries_at + start
                for i in range(count):
                    for c in range(size):
                        queries[i, c] = np.uint8(q[at + i, first + c]) ^ flip
                multiply(queries, count, packed_keys, False, scores)
                for i in range(count):
                    for j in range(keys):
                        score = (np.int64(scores[i, j]) * m[h] + surplus[j]) >> n[h]
                        line[j] = min(max(score, -_LOGIT_LIMIT), _LOGIT_LIMIT - 1)
                    if bias.size:
                        add = bias[window % bias.shape[0], h % bias.shape[1], start + i]
                        for j in range(keys):
                            biased = min(max(line[j] + np.int32(add[j]), -32768), 32767)
                            line[j] = MASKED if add[j] == MASKED else biased
                    if keep:
                        for j in range(keys):
                            logits[h, at + i, j] = line[j]
                    total = softmax(line, keys, bias.size > 0, exp, probabilities[i])
                    block_m[i], block_n[i] = row_scale(total, m2[h], n2[h], recip)
                    if keep:
                        for j in range(keys):
                            exps[h, at + i, j] = probabilities[i, j]
                        row_m[h, at + i], row_n[h, at + i] = block_m[i], block_n[i]
                multiply(probabilities, count, packed_values, False, mixed)
                for i in range(count):
                    rounding = np.int64(1) << (block_n[i] - 1)
                    for c in range(mixed_size):
                        y = (np.int64(mixed[i, c]) * block_m[i] + rounding) >> block_n[i]
                        out[at + i, mixed_first + c] = min(max(y, lo), hi)

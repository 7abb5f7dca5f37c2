"""LayerNorm and softmax of `arch.numerics`, a row at a time."""

from __future__ import annotations

import numba
import numpy as np

from ...arch.numerics import MASKED
from ..compiled import compiled

__all__ = ["layernorm", "row_scale", "softmax"]


@compiled()
def layernorm(x, g, b, n, eps, rsqrt, lo, hi, out):
    """numerics.layernorm of x (rows, D) into `out`; g, b, rsqrt are int64."""
    rows, d = x.shape
    for i in range(rows):
        s = q = np.int64(0)
        for c in range(d):
            s += x[i, c]
            q += np.int64(x[i, c]) * np.int64(x[i, c])
        v = d * q - s * s + eps
        bits = np.int64(0)
        while v >> bits > 1:
            bits += 1
        e = (bits - 14) & ~1
        mantissa = v >> e if e >= 0 else v << -e
        r = rsqrt[mantissa >> 6]
        k = 13 + e // 2
        rounding = np.int64(1) << (k - 1)
        for c in range(d):
            t = ((d * np.int64(x[i, c]) - s) * r + rounding) >> k
            t = min(max(t, -(1 << 17)), (1 << 17) - 1)
            out[i, c] = min(max((t * g[c] + b[c]) >> n, lo), hi)


@compiled()
def softmax(logits, count, masks, exp, out):
    """numerics.softmax_exp of the first `count` entries of a row of int32 logits into uint8 `out`; returns the sum.

    With `masks`, entries of numerics.MASKED are masked. Overwrites the logits.
    """
    top = np.int32(-(1 << 20))
    for j in range(count):
        top = max(top, np.int32(-(1 << 20)) if masks and logits[j] == MASKED else logits[j])
    for j in range(count):
        distance = min(np.int32(top - logits[j]), np.int32(255))
        logits[j] = np.int32(255) if masks and logits[j] == MASKED else distance
    total = np.int64(0)
    for j in range(count):
        value = exp[logits[j]]
        out[j] = value
        total += value
    return total


@numba.njit(cache=True, nogil=True)
def row_scale(total, m2, n2, recip):
    """numerics.softmax_row_scale of one row: (m, n)."""
    if total == 0:
        return np.int64(0), np.int64(1)
    e = np.int64(0)
    while total >> e > 1:
        e += 1
    index = (total >> (e - 8) if e >= 8 else total << (8 - e)) & 255
    p = m2 * recip[index]
    h = np.int64(1) if p >= 1 << 31 else np.int64(0)
    return min((p + (np.int64(1) << (14 + h))) >> (15 + h), np.int64(65535)), n2 + e + 1 - h

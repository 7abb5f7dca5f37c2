"""What follows an accumulator, in one pass: requantize, table or residual, clamp, second output."""

from __future__ import annotations

import numpy as np

from ..compiled import compiled

__all__ = ["finish"]


@compiled()
def finish(acc, count, m, n, constant, lo, hi, table, residual, addend, out, second, other):
    """Writes out[i, o] for rows i < `count` as `arch.graph.Drain` defines it, from accumulators acc[i, o] (any integer).

    m, n, constant: int64 (O,). `table`: int8, empty for none. `residual` = (m_r, n_r) with `addend` (rows, O), n_r = 0
    for none. `second` = (m, n, C, lo, hi) with `other` (rows, O) for the second output, n = 0 for none.
    """
    outputs = out.shape[1]
    index, half = np.empty(outputs, np.int16), len(table) // 2
    m_r, n_r = residual
    m_2, n_2, c_2, lo_2, hi_2 = second
    rounding = np.int64(1) << max(n_r - 1, 0)
    for i in range(count):
        if half > 0:
            for o in range(outputs):
                v = (np.int64(acc[i, o]) * m[o] + constant[o]) >> n[o]
                index[o] = min(max(v, -half), half - 1) + half
            for o in range(outputs):
                out[i, o] = min(max(np.int64(table[index[o]]), lo), hi)
        elif n_r > 0:
            for o in range(outputs):
                t = (np.int64(acc[i, o]) * m[o] + constant[o]) >> n[o]
                v = min(max(t, -32768), 32767) + ((addend[i, o] * m_r + rounding) >> n_r)
                out[i, o] = min(max(min(max(v, -32768), 32767), lo), hi)
        else:
            for o in range(outputs):
                v = (np.int64(acc[i, o]) * m[o] + constant[o]) >> n[o]
                out[i, o] = min(max(v, lo), hi)
        if n_2 > 0:
            for o in range(outputs):
                v = (np.int64(out[i, o]) * m_2 + c_2) >> n_2
                other[i, o] = min(max(v, lo_2), hi_2)

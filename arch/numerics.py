"""Integer semantics: every number that leaves the quantizer, as plain functions on int64 arrays.

This file is the definition; simulators and hardware are verified against it. Shifts are arithmetic. Nothing
here divides except the tables, which are data that a program ships.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "ACCUMULATOR_BITS",
    "EXP_STEP",
    "LOGIT_BIAS_RANGE",
    "LOGIT_BITS",
    "MASKED",
    "SQUARES_BITS",
    "SUM_BITS",
    "RowScale",
    "average_pool_scale",
    "clamp",
    "exp_table",
    "layernorm",
    "logit_bias",
    "lookup",
    "quantize_input",
    "recip_table",
    "requantize",
    "residual_add",
    "round_constant",
    "rsqrt_table",
    "saturate",
    "scale_to_mn",
    "softmax_exp",
    "softmax_row_scale",
]

ACCUMULATOR_BITS = 27
LOGIT_BITS = 12
SUM_BITS, SQUARES_BITS = 28, 42
"""Sums of up to 4,095 s16 codes, signed, and of their squares."""
LOGIT_BIAS_RANGE = (-30719, 30720)
"""Biases that cannot saturate a sum with a logit."""
MASKED = -32768
"""A bias that hides its key."""
EXP_STEP = 6.3 / 255
"""Step of attention logits, in nats; the exponential table spans 255 of them."""
_CONSTANT_BITS = 48


def clamp(x: np.ndarray, lo: int, hi: int) -> np.ndarray:
    """min(max(x, lo), hi)."""
    return np.minimum(np.maximum(x, lo), hi)


def saturate(x: np.ndarray, bits: int) -> np.ndarray:
    """Clamp to the range of a signed number of `bits` bits."""
    return clamp(x, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def scale_to_mn(scale: float, *, n_max: int = 47) -> tuple[int, int]:
    """The pair (m, n) with m * 2**-n closest to `scale`, 2**15 <= m < 2**16 and 1 <= n <= n_max.

    Raises ValueError where no such pair exists (scale not positive, or out of range on the large side). A scale
    too small for n_max gives m below 2**15, which is exact arithmetic with less precision; zero gives (0, 1).
    """
    if not np.isfinite(scale) or scale < 0:
        raise ValueError(f"requantization scale must be finite and not negative, not {scale}")
    if scale == 0:
        return 0, 1
    mantissa, exponent = np.frexp(scale)
    m, n = int(np.floor(mantissa * 65536 + 0.5)), 16 - int(exponent)
    if m == 65536:
        m, n = 32768, n - 1
    if n > n_max:
        m, n = int(np.floor(scale * 2.0**n_max + 0.5)), n_max
    if n < 1:
        raise ValueError(f"requantization scale must be below 32768, not {scale}")
    return m, n


def round_constant(bias: int, m: int, n: int, zero_point: int = 0) -> int:
    """C of a requantizer: bias * m + (zero_point << n) + (1 << (n - 1)), checked to fit 48 bits signed."""
    constant = int(bias) * int(m) + (int(zero_point) << int(n)) + (1 << (int(n) - 1))
    if not -(1 << (_CONSTANT_BITS - 1)) <= constant < 1 << (_CONSTANT_BITS - 1):
        raise ValueError(f"requantization constant must fit 48 bits signed, not {constant}")
    return constant


def requantize(acc, m, n, constant, lo: int, hi: int) -> np.ndarray:
    """clamp((acc * m + C) >> n, lo, hi): round half up, one multiplier per output."""
    acc, m, n, constant = (np.asarray(v, dtype=np.int64) for v in (acc, m, n, constant))
    return clamp((acc * m + constant) >> n, lo, hi)


def residual_add(t, r, m_r: int, n_r: int, lo: int = -32768, hi: int = 32767) -> np.ndarray:
    """clamp(sat16(sat16(t) + ((r * m_r + (1 << (n_r - 1))) >> n_r)), lo, hi)."""
    t, r = np.asarray(t, dtype=np.int64), np.asarray(r, dtype=np.int64)
    scaled = (r * m_r + (1 << (n_r - 1))) >> n_r
    return clamp(saturate(saturate(t, 16) + scaled, 16), lo, hi)


def lookup(index, table: np.ndarray) -> np.ndarray:
    """table[clamp(index) + len/2]: a unary function of a signed 8- or 10-bit code."""
    half = len(table) // 2
    return np.asarray(table, dtype=np.int64)[clamp(np.asarray(index, dtype=np.int64), -half, half - 1) + half]


def average_pool_scale(scale_in: float, scale_out: float, count: int) -> tuple[int, int]:
    """(m, n) of an average over `count` codes: 1/count is folded into m."""
    return scale_to_mn(scale_in / scale_out / count)


def exp_table(step: float = EXP_STEP) -> np.ndarray:
    """EXP[d] = round(255 * exp(-d * step)), u8, 256 entries, the last one 0."""
    table = np.floor(255 * np.exp(-np.arange(256) * step) + 0.5).astype(np.int64)
    table[255] = 0
    return table


def recip_table() -> np.ndarray:
    """RECIP[i] = round(2**24 / (256.5 + i)), u16, 256 entries."""
    return np.floor(2**24 / (256.5 + np.arange(256)) + 0.5).astype(np.int64)


def rsqrt_table() -> np.ndarray:
    """RSQRT[i] = round(2**23 / sqrt(64 * (i + 0.5))), u16, 1024 entries; only 256..1023 are ever indexed."""
    return np.minimum(np.floor(2**23 / np.sqrt(64 * (np.arange(1024) + 0.5)) + 0.5), 65535).astype(np.int64)


def logit_bias(logits: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """sat16(l + bias) of 12-bit logits, or MASKED where the bias is MASKED."""
    bias = np.asarray(bias, dtype=np.int64)
    return np.where(bias == MASKED, MASKED, saturate(np.asarray(logits, dtype=np.int64) + bias, 16))


def softmax_exp(logits: np.ndarray, exp: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """E = EXP[min(rowmax - l, 255)] along the last axis; masked entries (mask False) give EXP[255]."""
    logits = np.asarray(logits, dtype=np.int64)
    visible = logits if mask is None else np.where(mask, logits, -(1 << 20))
    d = np.minimum(visible.max(axis=-1, keepdims=True) - visible, 255)
    if mask is not None:
        d = np.where(mask, d, 255)
    return np.asarray(exp, dtype=np.int64)[d]


class RowScale:
    """m, n and C of one softmax row each: the deferred division."""

    def __init__(self, m: np.ndarray, n: np.ndarray):
        self.m, self.n = m, n

    @property
    def constant(self) -> np.ndarray:
        """1 << (n - 1)."""
        return np.int64(1) << (self.n - 1)


def softmax_row_scale(total: np.ndarray, m2, n2, recip: np.ndarray) -> RowScale:
    """The requantizer of sum(E * V) for rows whose sum of E is `total` (int64, any shape).

    A row with total 0 (everything masked) gets m = 0, n = 1.
    """
    total = np.asarray(total, dtype=np.int64)
    safe = np.maximum(total, 1)
    e = np.floor(np.log2(safe)).astype(np.int64)
    e = np.where((safe >> e) > 1, e + 1, np.where((safe >> e) < 1, e - 1, e))
    index = np.where(e >= 8, safe >> np.maximum(e - 8, 0), safe << np.maximum(8 - e, 0)) & 255
    p = np.asarray(m2, dtype=np.int64) * np.asarray(recip, dtype=np.int64)[index]
    h = (p >= 1 << 31).astype(np.int64)
    m = np.minimum((p + (np.int64(1) << (14 + h))) >> (15 + h), 65535)
    n = np.asarray(n2, dtype=np.int64) + e + 1 - h
    return RowScale(np.where(total == 0, 0, m), np.where(total == 0, 1, n))


def layernorm(x, g, b, n: int, eps: int, rsqrt: np.ndarray, lo: int, hi: int) -> np.ndarray:
    """LayerNorm of s16 codes along the last axis (D <= 2048 channels), without divider or square root.

    `g` s16 and `b` s48 per channel hold gamma, beta, output scale, zero point and rounding; `eps` = eps_I >= 1.
    """
    x = np.asarray(x, dtype=np.int64)
    d = x.shape[-1]
    s = x.sum(axis=-1, keepdims=True)
    q = (x * x).sum(axis=-1, keepdims=True)
    v = d * q - s * s + eps
    e = np.zeros_like(v)
    for shift in range(-14, 42, 2):  # the one even e with 2**14 <= v * 2**-e < 2**16
        scaled = v >> shift if shift >= 0 else v << -shift
        e = np.where((scaled >= 1 << 14) & (scaled < 1 << 16), shift, e)
    mantissa = np.where(e >= 0, v >> np.maximum(e, 0), v << np.maximum(-e, 0))
    r = np.asarray(rsqrt, dtype=np.int64)[mantissa >> 6]
    k = 13 + e // 2
    t = saturate(((d * x - s) * r + (np.int64(1) << (k - 1))) >> k, 18)
    return clamp((t * np.asarray(g, dtype=np.int64) + np.asarray(b, dtype=np.int64)) >> n, lo, hi)


def quantize_input(x: np.ndarray, scale: float, zero_point: int, lo: int, hi: int) -> np.ndarray:
    """Float (already preprocessed) to codes: round half to even in float64, then clamp."""
    return clamp(np.rint(np.asarray(x, dtype=np.float64) / scale).astype(np.int64) + zero_point, lo, hi)

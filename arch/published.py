"""Functions of published integer transformers as contents of our tables.

I-ViT (Li and Gu, 2023, arXiv 2207.01405, algorithms 1 and 2) computes exponentials by shifts. Where the paper and the
authors' program differ, the program counts: 1 / step is rounded up, and exponents end at -bits. HeatViT (Dong et al.,
2023, arXiv 2211.08110, equations 13 and 14) takes the polynomial of I-BERT for the exponential.

Both divide by the sum of a row; here the division is that of numerics.softmax_row_scale for every table.
"""

from __future__ import annotations

import math

import numpy as np

from .numerics import EXP_STEP, exp_table

__all__ = [
    "EXP_TABLES",
    "SHIFT_GELU_SLOPE",
    "shift_exp",
    "shift_gelu",
    "shift_gelu_fits",
]

_SHIFTMAX_BITS, _SHIFT_GELU_BITS = 15, 23
SHIFT_GELU_SLOPE = 1.702
"""GELU(x) is taken as x * sigmoid(1.702 x)."""
_LN2 = math.log(2)


def _unit(step: float) -> int:
    return math.ceil(1 / step)


def _times_log2_e(codes: np.ndarray) -> np.ndarray:
    return codes + (codes >> 1) - (codes >> 4)


def shift_exp(codes, step: float, bits: int) -> np.ndarray:
    """ShiftExp: about exp(code * step) * ceil(1 / step) * 2**bits, int64, with no exponent below -bits."""
    unit = _unit(step)
    p = np.maximum(_times_log2_e(np.asarray(codes, dtype=np.int64)), -bits * unit)
    q, r = np.divmod(-p, unit)
    return ((2 * unit - r) << (bits - q)) >> 1


def shift_gelu(codes, step: float) -> np.ndarray:
    """ShiftGELU of codes at `step`, in units of step / 128, int64: code * floor(128 sigmoid(1.702 code * step)).

    The published operator subtracts the maximum of a row from its codes and from 0, which cancels in real numbers; here
    nothing is subtracted, so that the function is one of a code alone, and the division is exact.
    """
    codes = np.asarray(codes, dtype=np.int64)
    e, one = (shift_exp(c, step * SHIFT_GELU_SLOPE, _SHIFT_GELU_BITS) for c in (codes, 0))
    return codes * (128 * e // (e + one))


def shift_gelu_fits(step: float, top: int) -> bool:
    """Whether the published operator can have a row with the maximum `top`: exp(-top) is above its least exponent.

    That is 9.40 = 23 / 1.4375 / 1.702 at fine steps, and more at coarse ones, where 1 / step is rounded up. Beyond it all
    negative values have the sigmoid 1 / 2; from 16 / 23 of it on, 6.54, those far below 0 have more than 1 / 128.
    """
    reached = int(_times_log2_e(np.int64(-top)))
    return reached >= -_SHIFT_GELU_BITS * _unit(step * SHIFT_GELU_SLOPE)


def _shift_exp_table() -> np.ndarray:
    """EXP of Shiftmax: round(255 * ShiftExp(-d) / ShiftExp(0))."""
    found = shift_exp(-np.arange(256), EXP_STEP, _SHIFTMAX_BITS)
    return _last_zero(found / found[0])


def _polynomial_exp_table() -> np.ndarray:
    """EXP of HeatViT: 0.3585 (p + 1.353)^2 + 0.344, halved z times, where -d * step = p - z ln 2."""
    x = -np.arange(256) * EXP_STEP
    z = np.floor(-x / _LN2)
    found = (0.3585 * (x + z * _LN2 + 1.353) ** 2 + 0.344) * 2.0**-z
    return _last_zero(found / found[0])


def _last_zero(relative: np.ndarray) -> np.ndarray:
    table = np.floor(255 * relative + 0.5).astype(np.int64)
    table[255] = 0
    return table


EXP_TABLES = {"exact": exp_table, "shift": _shift_exp_table, "polynomial": _polynomial_exp_table}
"""Contents of the table EXP: functions to int64 (256,), 255 first and 0 last."""

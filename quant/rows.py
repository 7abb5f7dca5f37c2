"""Weight rows: which scheme each one takes, at which scale, and with which codes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..arch.errors import UserError
from ..arch.numerics import ACCUMULATOR_BITS
from ..arch.schemes import Scheme, codebook
from .adaround import adaround
from .gptq import descend, nearest, round_rows, weighted_error

__all__ = [
    "MixtureError",
    "Rows",
    "accumulator_range",
    "assign",
    "check_mixture",
    "fit_scale",
    "quantize_rows",
]

_CLIPS = np.geomspace(1.0, 0.35, 48)
_COARSE_CLIPS = np.geomspace(1.0, 0.05, 96)
"""Of ternary and binary rows, whose best scale is about the mean magnitude."""
_COARSE = (Scheme.TERNARY, Scheme.BINARY)
_GROWTH = 1.02
_WORST_DB, _FALLBACK_DB = 15.0, 9.0
"""Signal to noise below which AdaRound is tried, and below which a layer takes Fixed-8 rows instead."""
_ROUNDS = 3
"""How often scales and codes are improved in turn."""


class MixtureError(UserError):
    """Lane counts that no hardware can have; the message says which."""


@dataclasses.dataclass
class Rows:
    """The rows of one layer."""

    codes: np.ndarray
    """int64 (O, K)."""
    scale: np.ndarray
    """float64 (O,)."""
    schemes: np.ndarray
    """uint8 (O,)."""
    grown: int
    """Rows whose scale had to grow to keep the accumulator within its bits."""
    sqnr_db: float = math.inf
    """Power of the layer's sums against the noise that rounded weights add to them."""
    fell_back: bool = False
    """Whether the mixture was given up for Fixed-8 rows, because it was too coarse for the layer."""


def check_mixture(mixture: dict[Scheme, int], drain: int) -> None:
    """Raise MixtureError unless all counts are multiples of `drain` and Fixed-8 lanes exist."""
    wrong = [f"{scheme.name} {count}" for scheme, count in mixture.items() if count < 0 or count % drain]
    if wrong or drain < 1:
        raise MixtureError(
            f"lanes of each scheme must be a multiple of drain ({drain}), not {', '.join(wrong)}"
        )
    if not mixture.get(Scheme.FIXED8):
        raise MixtureError("mixture must have FIXED8 lanes, not 0: they run attention and incomplete blocks")


def fit_scale(weight: np.ndarray, scheme: Scheme, importance: np.ndarray) -> np.ndarray:
    """The scale (O,) of each row with the least squared error, columns weighted by `importance` (K,)."""
    top = np.abs(weight).max(axis=1)
    top = np.where(top > 0, top, max(float(top.max()), 1e-6)) / codebook(scheme).max()
    errors, clips = [], _COARSE_CLIPS if scheme in _COARSE else _CLIPS
    for clip in clips:
        scale = (top * clip)[:, None]
        errors.append((weight - nearest(weight / scale, scheme) * scale) ** 2 @ importance)
    return top * clips[np.argmin(errors, axis=0)]


def assign(cost: dict[Scheme, np.ndarray], mixture: dict[Scheme, int], drain: int) -> np.ndarray:
    """The scheme uint8 (O,) of every row: least total `cost[scheme]` (O,) under the lane counts.

    A block is sum(mixture) successive rows; of the rows of one block with equal r = row % drain, exactly
    mixture[s] / drain take scheme s. Rows after the last whole block are Fixed-8.
    """
    rows, lanes = len(cost[Scheme.FIXED8]), sum(mixture.values())
    slots = np.array([s for s in sorted(mixture) for _ in range(mixture[s] // drain)], dtype=np.uint8)
    schemes = np.full(rows, Scheme.FIXED8, dtype=np.uint8)
    for start in range(0, rows - lanes + 1, lanes):
        for residue in range(drain):
            cell = np.arange(start + residue, start + lanes, drain)
            table = np.stack([cost[Scheme(slot)][cell] for slot in slots], axis=1)
            row, slot = linear_sum_assignment(table)
            schemes[cell[row]] = slots[slot]
    return schemes


def accumulator_range(codes: np.ndarray, lo: int, hi: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest sum of codes * x of every row over all inputs lo <= x <= hi."""
    a, b = codes * lo, codes * hi
    return np.minimum(a, b).sum(axis=1), np.maximum(a, b).sum(axis=1)


def quantize_rows(
    weight: np.ndarray,
    hessian: np.ndarray,
    fisher: np.ndarray,
    mixture: dict[Scheme, int],
    drain: int,
    lo: int,
    hi: int,
) -> Rows:
    """Schemes, scales and codes of the rows `weight` (groups, O, K) that see inputs lo..hi.

    `hessian` (groups, K, K), `fisher` (groups * O,). Grouped layers (groups > 1) take Fixed-8 rows throughout, and so do those
    that the mixture is too coarse for; not where it has ternary or binary rows, which always are until they are trained.
    """
    groups, outputs, _ = weight.shape
    fixed8 = np.full(outputs, Scheme.FIXED8, np.uint8)
    if groups > 1:
        parts = [_round_group(weight[g], hessian[g], fixed8, lo, hi) for g in range(groups)]
        return Rows(
            np.concatenate([p.codes for p in parts]),
            np.concatenate([p.scale for p in parts]),
            np.concatenate([p.schemes for p in parts]),
            sum(p.grown for p in parts),
            min(p.sqnr_db for p in parts),
        )
    importance = np.diag(hessian[0]) + 1e-12
    cost = {}
    for scheme in mixture:
        scale = fit_scale(weight[0], scheme, importance)[:, None]
        rounded = nearest(weight[0] / scale, scheme) * scale
        cost[scheme] = (fisher + 1e-12 * max(fisher.max(), 1)) * weighted_error(
            weight[0] - rounded, hessian[0]
        )
    schemes = assign(cost, mixture, drain)
    rows = _round_group(weight[0], hessian[0], schemes, lo, hi)
    if rows.sqnr_db < _WORST_DB:
        found = adaround(weight[0], rows.scale, schemes, hessian[0], rows.codes)
        fits = _excess(found, lo, hi, 1 << (ACCUMULATOR_BITS - 1)) < 1
        rows.codes = np.where(fits[:, None], found, rows.codes)
        rows.sqnr_db = _sqnr_db(weight[0], rows, hessian[0])
    if rows.sqnr_db < _FALLBACK_DB and (schemes != Scheme.FIXED8).any() and not set(_COARSE) & set(mixture):
        rows = _round_group(weight[0], hessian[0], fixed8, lo, hi)
        rows.fell_back = True
    return rows


def _sqnr_db(weight: np.ndarray, rows: Rows, hessian: np.ndarray) -> float:
    signal = weighted_error(weight, hessian).sum()
    noise = weighted_error(weight - rows.codes * rows.scale[:, None], hessian).sum()
    return float(10 * np.log10(signal / noise)) if min(signal, noise) > 0 else math.inf


def _round_group(weight: np.ndarray, hessian: np.ndarray, schemes: np.ndarray, lo: int, hi: int) -> Rows:
    importance = np.diag(hessian) + 1e-12
    scale = np.ones(len(weight))
    for scheme in np.unique(schemes):
        rows = schemes == scheme
        scale[rows] = fit_scale(weight[rows], Scheme(scheme), importance)
    codes = round_rows(weight, scale, schemes, hessian)
    limit, grown = 1 << (ACCUMULATOR_BITS - 1), np.zeros(len(weight), bool)
    while (over := (excess := _excess(codes, lo, hi, limit)) >= 1).any():
        grown |= over
        scale[over] *= _GROWTH * excess[over]
        codes[over] = round_rows(weight[over], scale[over], schemes[over], hessian)
    scale = _refit(weight, codes, scale, hessian)
    for _ in range(_ROUNDS):
        again = descend(weight, scale, schemes, hessian, codes)
        fits = _excess(again, lo, hi, limit) < 1
        codes = np.where(fits[:, None], again, codes)
        scale = _refit(weight, codes, scale, hessian)
    rows = Rows(codes, scale, schemes, int(grown.sum()))
    rows.sqnr_db = _sqnr_db(weight, rows, hessian)
    return rows


def _excess(codes: np.ndarray, lo: int, hi: int, limit: int) -> np.ndarray:
    least, greatest = accumulator_range(codes, lo, hi)
    return np.maximum(-least, greatest) / limit


def _refit(weight: np.ndarray, codes: np.ndarray, scale: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """The scale that minimises (w - s q)^T H (w - s q) for the codes as they are."""
    projected = codes @ hessian
    below = np.einsum("ok,ok->o", projected, codes)
    best = np.einsum("ok,ok->o", projected, weight) / np.maximum(below, 1e-30)
    return np.where((below > 1e-20) & (best > 0.25 * scale) & (best < 4 * scale), best, scale)

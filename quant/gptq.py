"""Rounding of weight rows onto their codebooks, column by column, each error fed into the columns not yet rounded
(GPTQ: Frantar et al., 2022, algorithm 1), for any codebook; then descent over single codes (QuantEase: Behdin et al.,
2023), which takes codes back that later ones made worse."""

from __future__ import annotations

import numba
import numpy as np

from ..arch.schemes import Scheme, codebook

__all__ = ["descend", "nearest", "round_rows", "weighted_error"]

_DAMPING = 0.01
_SWEEPS = 8
_BLOCK = 64
"""Columns whose errors reach the columns behind the block in one product."""


def nearest(values: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The code of `scheme` nearest to each real value, int64."""
    codes = codebook(scheme)
    if scheme in (Scheme.FIXED8, Scheme.FIXED4):
        return np.clip(np.rint(values), codes[0], codes[-1]).astype(np.int64)
    return codes[np.searchsorted((codes[1:] + codes[:-1]) / 2, values)]


def weighted_error(difference: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """d^T H d for every row d of `difference` (O, K)."""
    return np.einsum("ok,ok->o", difference @ hessian, difference)


def round_rows(weight: np.ndarray, scale: np.ndarray, schemes: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """Codes int64 (O, K) of real rows `weight`, row r on the codebook of `schemes[r]` at step `scale[r]`.

    Minimises the H-weighted error greedily; a row for which plain rounding is better is rounded plainly.
    """
    plain = _round(weight / scale[:, None], schemes)
    depth = weight.shape[1]
    damped = hessian + np.eye(depth) * max(_DAMPING * float(np.trace(hessian)) / depth, 1e-12)
    order = np.argsort(-np.diag(hessian), kind="stable")
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    factor = np.linalg.cholesky((inverse + inverse.T) / 2).T  # upper: inverse = factor.T @ factor
    rest = weight[:, order].copy()
    codes = np.zeros(weight.shape, dtype=np.int64)
    for first in range(0, depth, _BLOCK):
        last = min(first + _BLOCK, depth)
        errors = np.empty((len(weight), last - first))
        for column in range(first, last):
            codes[:, column] = _round(rest[:, column : column + 1] / scale[:, None], schemes)[:, 0]
            error = (rest[:, column] - codes[:, column] * scale) / factor[column, column]
            errors[:, column - first] = error
            rest[:, column + 1 : last] -= np.outer(error, factor[column, column + 1 : last])
        rest[:, last:] -= errors @ factor[first:last, last:]
    restored = np.empty_like(codes)
    restored[:, order] = codes
    better = weighted_error(weight - restored * scale[:, None], hessian) <= weighted_error(
        weight - plain * scale[:, None], hessian
    )
    return descend(weight, scale, schemes, hessian, np.where(better[:, None], restored, plain))


def descend(
    weight: np.ndarray, scale: np.ndarray, schemes: np.ndarray, hessian: np.ndarray, codes: np.ndarray
) -> np.ndarray:
    """Codes like `codes` (O, K) of which no single one can change without a larger H-weighted error of its row (or
    nearly so, after a few sweeps); no row becomes worse."""
    books = [codebook(Scheme(scheme)).astype(np.float64) for scheme in schemes]
    lengths = np.array([len(book) for book in books])
    table = np.zeros((len(books), max(lengths)))
    for row, book in enumerate(books):
        table[row, : len(book)] = book
    found = codes.astype(np.float64)
    hessian = np.ascontiguousarray(hessian)
    start = (weight - found * scale[:, None]) @ hessian
    _sweep(np.ascontiguousarray(weight), np.asarray(scale), found, hessian, start, table, lengths, _SWEEPS)
    return found.astype(np.int64)


@numba.njit(cache=True)
def _sweep(weight, scale, codes, hessian, pulls, books, lengths, sweeps):
    outputs, depth = weight.shape
    for row in range(outputs):
        pull, step = pulls[row], scale[row]
        for _ in range(sweeps):
            changed = False
            for k in range(depth):
                curvature = hessian[k, k]
                if curvature <= 0:
                    continue
                error = weight[row, k] - step * codes[row, k]
                wanted = (weight[row, k] + pull[k] / curvature - error) / step
                low, high = 0, lengths[row] - 1
                while high - low > 1:
                    middle = (low + high) // 2
                    if books[row, middle] <= wanted:
                        low = middle
                    else:
                        high = middle
                code = books[row, low]
                if books[row, high] - wanted < wanted - code:
                    code = books[row, high]
                if abs(code - wanted) < abs(codes[row, k] - wanted) - 1e-9:
                    difference = step * (codes[row, k] - code)
                    codes[row, k] = code
                    for j in range(depth):
                        pull[j] += difference * hessian[k, j]
                    changed = True
            if not changed:
                break


def _round(values: np.ndarray, schemes: np.ndarray) -> np.ndarray:
    codes = np.zeros(values.shape, dtype=np.int64)
    for scheme in np.unique(schemes):
        rows = schemes == scheme
        codes[rows] = nearest(values[rows], Scheme(scheme))
    return codes

"""Rounding of weight rows onto their codebooks, column by column, each error fed into the columns not yet rounded
(GPTQ: Frantar et al., 2022, algorithm 1), for any codebook."""

from __future__ import annotations

import numpy as np

from ..arch.schemes import Scheme, codebook

__all__ = ["nearest", "round_rows", "weighted_error"]

_DAMPING = 0.01


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
    for column in range(depth):
        codes[:, column] = _round(rest[:, column : column + 1] / scale[:, None], schemes)[:, 0]
        error = (rest[:, column] - codes[:, column] * scale) / factor[column, column]
        rest[:, column + 1 :] -= np.outer(error, factor[column, column + 1 :])
    restored = np.empty_like(codes)
    restored[:, order] = codes
    better = weighted_error(weight - restored * scale[:, None], hessian) <= weighted_error(
        weight - plain * scale[:, None], hessian
    )
    return np.where(better[:, None], restored, plain)


def _round(values: np.ndarray, schemes: np.ndarray) -> np.ndarray:
    codes = np.zeros(values.shape, dtype=np.int64)
    for scheme in np.unique(schemes):
        rows = schemes == scheme
        codes[rows] = nearest(values[rows], Scheme(scheme))
    return codes

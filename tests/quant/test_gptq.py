"""Rounding with error feedback beats rounding each weight to the nearest code."""

import numpy as np
import pytest

from terrazzo.arch.schemes import Scheme, codebook
from terrazzo.quant.gptq import descend, nearest, round_rows, weighted_error


def correlated(depth, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * depth, depth // 3)) @ rng.normal(size=(depth // 3, depth))
    x += 0.2 * rng.normal(size=x.shape)
    return x.T @ x / len(x)


@pytest.mark.parametrize("scheme", Scheme)
def test_nearest_is_nearest(scheme):
    values = np.linspace(-140, 140, 5001) + 0.003
    codes = codebook(scheme)
    best = codes[np.abs(values[:, None] - codes).argmin(axis=1)]
    assert np.array_equal(np.abs(nearest(values, scheme) - values), np.abs(best - values))


@pytest.mark.parametrize("scheme", Scheme)
@pytest.mark.parametrize("depth", [6, 48])
def test_error_feedback_beats_rounding(scheme, depth):
    rng = np.random.default_rng(1)
    weight, hessian = rng.normal(size=(64, depth)), correlated(depth)
    scale = np.abs(weight).max(axis=1) / codebook(scheme).max()
    codes = round_rows(weight, scale, np.full(64, scheme), hessian)
    plain = nearest(weight / scale[:, None], scheme)
    assert np.isin(codes, codebook(scheme)).all()
    fed = weighted_error(weight - codes * scale[:, None], hessian)
    rounded = weighted_error(weight - plain * scale[:, None], hessian)
    assert (fed <= rounded).all()
    assert fed.sum() < 0.7 * rounded.sum()


def test_error_is_the_output_error():
    rng = np.random.default_rng(2)
    x, difference = rng.normal(size=(200, 9)), rng.normal(size=(5, 9))
    error = weighted_error(difference, x.T @ x / len(x))
    assert np.allclose(error, ((x @ difference.T) ** 2).mean(axis=0))


def test_rows_of_several_schemes_and_dead_inputs():
    rng = np.random.default_rng(3)
    hessian = correlated(12)
    hessian[:, 4] = hessian[4] = 0  # a pixel that is never lit
    schemes = np.array([0, 1, 2, 3, 2, 1])
    weight = rng.normal(size=(6, 12))
    tops = np.array([codebook(Scheme(s)).max() for s in schemes])
    codes = round_rows(weight, np.abs(weight).max(axis=1) / tops, schemes, hessian)
    for row, scheme in zip(codes, schemes, strict=True):
        assert np.isin(row, codebook(Scheme(scheme))).all()
    assert np.array_equal(round_rows(weight, np.ones(6), schemes, np.zeros((12, 12))) * 0, codes * 0)


@pytest.mark.parametrize("scheme", Scheme)
def test_descent_ends_where_no_single_code_helps(scheme):
    rng = np.random.default_rng(4)
    weight, hessian = rng.normal(size=(9, 20)), correlated(20)
    scale = np.abs(weight).max(axis=1) / codebook(scheme).max()
    schemes, book = np.full(9, scheme), codebook(scheme)
    start = nearest(weight / scale[:, None], scheme)
    codes = descend(weight, scale, schemes, hessian, start)
    error = weighted_error(weight - codes * scale[:, None], hessian)
    assert (error <= weighted_error(weight - start * scale[:, None], hessian) + 1e-12).all()
    assert error.sum() < 0.8 * weighted_error(weight - start * scale[:, None], hessian).sum()
    for column in range(20):
        for code in book:
            other = codes.copy()
            other[:, column] = code
            assert (weighted_error(weight - other * scale[:, None], hessian) >= error - 1e-9).all()

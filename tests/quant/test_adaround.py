"""Learned rounding never loses, finds what single changes cannot, and what stays too coarse takes more bits."""

import itertools

import numpy as np
import pytest

from terrazzo.arch.schemes import Scheme, codebook
from terrazzo.quant.adaround import adaround
from terrazzo.quant.gptq import nearest, weighted_error
from terrazzo.quant.rows import quantize_rows


def problem(outputs, depth, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3 * depth, depth)) @ rng.normal(size=(depth, depth))
    return rng.normal(size=(outputs, depth)), x.T @ x / len(x)


@pytest.mark.parametrize("scheme", [Scheme.FIXED4, Scheme.POT4, Scheme.SP2_4])
def test_close_to_the_best_of_all_roundings(scheme):
    weight, hessian = problem(12, 8, 0)
    scale = np.abs(weight).max(axis=1) / codebook(scheme).max()
    schemes = np.full(12, scheme)
    plain = nearest(weight / scale[:, None], scheme)
    codes = adaround(weight, scale, schemes, hessian, plain)
    assert np.isin(codes, codebook(scheme)).all()
    found = weighted_error(weight - codes * scale[:, None], hessian)
    assert (found <= weighted_error(weight - plain * scale[:, None], hessian) + 1e-12).all()
    book = codebook(scheme)
    best = np.empty(12)
    for row in range(12):
        place = np.clip(np.searchsorted(book, weight[row] / scale[row]), 1, len(book) - 1)
        options = np.array(list(itertools.product(*zip(book[place - 1], book[place], strict=True))))
        best[row] = weighted_error(weight[row] - options * scale[row], hessian).min()
    assert found.sum() < 1.5 * best.sum()
    assert found.sum() < 0.5 * weighted_error(weight - plain * scale[:, None], hessian).sum()


def test_a_layer_that_four_bits_cannot_hold_takes_eight():
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(-4, 0, 32))
    coarse = rng.normal(size=(16, 32)) * size  # small weights meet large inputs: all matter equally
    hessian = np.diag(1 / size**2)[None]
    mixture, fisher = {Scheme.FIXED8: 1, Scheme.FIXED4: 15}, np.ones(16)
    rows = quantize_rows(coarse[None], hessian, fisher, mixture, 1, -128, 127)
    assert rows.fell_back and (rows.schemes == Scheme.FIXED8).all() and rows.sqnr_db > 15
    even = quantize_rows(rng.normal(size=(1, 16, 32)), np.eye(32)[None], fisher, mixture, 1, -128, 127)
    assert not even.fell_back and (even.schemes == Scheme.FIXED4).sum() == 15 and even.sqnr_db > 15

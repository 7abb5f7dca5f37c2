"""How far our forms of published functions are from the published integer algorithms, in codes."""

import math

import numpy as np
import pytest

from terrazzo.arch import numerics
from terrazzo.arch.numerics import EXP_STEP
from terrazzo.arch.published import EXP_TABLES, shift_exp, shift_gelu, shift_gelu_fits

from .. import literal

TOKENS, SIZE = 197, 64


@pytest.mark.parametrize("step", [EXP_STEP, 0.011, 0.3, 1 / 64])
@pytest.mark.parametrize("bits", [15, 23])
def test_shift_exp_is_the_published_one(step, bits):
    codes = -np.arange(0, 1500, 7)
    expected = [literal.shift_exp(code, step, bits) for code in codes.tolist()]
    assert shift_exp(codes, step, bits).tolist() == expected


def test_tables_are_legal_and_differ():
    tables = {name: make() for name, make in EXP_TABLES.items()}
    for table in tables.values():
        assert table[0] == 255 and table[255] == 0 and (np.diff(table) <= 0).all()
    away = {name: int(np.abs(table - tables["exact"]).max()) for name, table in tables.items()}
    assert away == {"exact": 0, "shift": 14, "polynomial": 1}


def attended(logits, values, exp, share, step):
    """Our attention behind the logits: output codes of `step` for values of step 1."""
    m2, n2 = numerics.scale_to_mn(share / step, n_max=30)
    e = numerics.softmax_exp(logits, EXP_TABLES[exp]())
    row = numerics.softmax_row_scale(e.sum(axis=-1), m2, n2, numerics.recip_table())
    parts = (part[:, None] for part in (row.m, row.n, row.constant))
    return numerics.requantize(e @ values, *parts, -128, 127)


def deviation(spread, exp, share, probabilities):
    """Absolute differences in output codes of random attention whose logits deviate by `spread` nats."""
    rng = np.random.default_rng(0)
    logits = np.rint(rng.normal(0, spread / EXP_STEP, (16, TOKENS))).clip(-2048, 2047).astype(np.int64)
    values = np.rint(rng.normal(0, 40, (TOKENS, SIZE))).clip(-127, 127).astype(np.int64)
    real = np.array([probabilities(row) for row in logits.tolist()]) @ values
    soft = np.exp(logits * EXP_STEP)
    step = share * float(np.abs(soft / soft.sum(axis=-1, keepdims=True) @ values).max()) / 127
    expected = np.rint(real / step).clip(-128, 127)
    return np.abs(attended(logits, values, exp, share, step) - expected)


@pytest.mark.parametrize(("spread", "mean", "most"), [(1, 0.3, 2), (2, 0.4, 7), (4, 0.4, 2)])
def test_attention_is_shiftmax_with_16_bits(spread, mean, most):
    """Shiftmax whose probabilities have 16 bits; what is left is E in steps of 1 / 255 and its tail."""
    found = deviation(spread, "shift", 1.0, lambda row: np.array(literal.shiftmax(row, EXP_STEP, 16)) / 2**15)
    assert found.mean() < mean and found.max() <= most


@pytest.mark.parametrize(("spread", "lost"), [(0.3, 0.93), (1, 0.59), (4, 0.09)])
def test_published_probabilities_of_8_bits_lose_their_sum(spread, lost):
    """Rounded down to 1 / 128, probabilities of 197 tokens do not add up to 1: here our form is the more exact one."""
    rng = np.random.default_rng(0)
    logits = np.rint(rng.normal(0, spread / EXP_STEP, (8, TOKENS))).astype(int).tolist()
    sums = [sum(literal.shiftmax(row, EXP_STEP)) / 128 for row in logits]
    assert abs(1 - np.mean(sums) - lost) < 0.04
    e = numerics.softmax_exp(np.array(logits), EXP_TABLES["shift"]())
    row = numerics.softmax_row_scale(e.sum(axis=-1), 32768, 15, numerics.recip_table())
    ours = (e.sum(axis=-1) * row.m) * 2.0**-row.n
    np.testing.assert_allclose(ours, 1, atol=0.004)


@pytest.mark.parametrize(("spread", "mean", "most"), [(0.3, 0.15, 1), (1, 0.2, 1), (2, 0.35, 6), (4, 0.3, 2)])
def test_attention_is_heatvits(spread, mean, most):
    found = deviation(spread, "polynomial", 0.5, lambda row: literal.polynomial_softmax(row, EXP_STEP))
    assert found.mean() < mean and found.max() <= most


def rows_of(top, step):
    """Rows of codes like those of DeiT-Tiny's hidden layers, with maxima up to `top`."""
    values = np.random.default_rng(1).normal(-0.8, 0.2 * top, (24, 768))
    return np.rint(np.clip(values, -8, top) / step).astype(np.int64)


@pytest.mark.parametrize("top", [3.3, 5.9, 6.5])
@pytest.mark.parametrize(
    ("levels", "dividend", "share", "most"), [(127, 62, 0.99, 2), (127, 31, 0.98, 8), (600, 62, 0.99, 2)]
)
def test_shift_gelu_needs_no_row_maximum(top, levels, dividend, share, most):
    """Codes of 8-bit outputs against the operator that subtracts each row's maximum: 99 % differ by one code at most
    where it divides exactly, 98 % with the program's dividend of 31 bits."""
    step, scale = top / levels, top / 220
    codes = rows_of(top, step)
    wanted = np.array([literal.shift_gelu(row, step, dividend) for row in codes.tolist()]) * step / 128
    found = shift_gelu(codes, step) * step / 128
    away = np.abs(np.rint(found / scale) - np.rint(wanted / scale))
    assert (away <= 1).mean() >= share and away.max() <= most


@pytest.mark.parametrize(("step", "limit"), [(0.01, 9.4), (0.03, 9.6), (0.07, 10.1)])
def test_the_published_operator_fails_where_we_refuse(step, limit):
    """Above the limit every negative value of the row has the sigmoid 1 / 2."""
    last = max(top for top in range(int(12 / step)) if shift_gelu_fits(step, top))
    assert last * step == pytest.approx(limit, abs=0.05 + step)
    low = -round(8 / step)
    sigmoids = [literal.shift_gelu([low, top], step, 62)[0] / low / 128 for top in (last, last + 1)]
    assert 0.4 < sigmoids[0] <= sigmoids[1] and sigmoids[1] == pytest.approx(0.5, abs=1 / 128)
    good = [literal.shift_gelu([low, int(top / step)], step, 62)[0] / low for top in (6.4, 6.9)]
    assert good[0] == 0 and (good[1] > 0 or step > 0.02)
    assert shift_gelu(np.array([low]), step)[0] == 0


@pytest.mark.parametrize(
    ("channels", "deviates", "mean", "most"), [(192, 2000, 0.03, 1), (192, 300, 0.05, 1), (768, 40, 0.3, 1)]
)
def test_layernorm_is_the_iterated_one(channels, deviates, mean, most):
    """With eps_I = 1. Its mean is rounded to a code, which shows where codes deviate little."""
    rng, scale = np.random.default_rng(2), 4 / 127
    x = np.rint(rng.normal(rng.normal(0, deviates, (24, 1)), deviates, (24, channels))).astype(np.int64)
    wanted = np.array([literal.layernorm(row) for row in x.tolist()]) * math.sqrt(channels) / 2**30
    n = int(math.log2(32766 * 1024 * scale))
    g, b = np.full(channels, round(2**n / (1024 * scale))), np.full(channels, 1 << (n - 1))
    found = numerics.layernorm(x, g, b, n, 1, numerics.rsqrt_table(), -128, 127)
    away = np.abs(found - np.rint(wanted / scale).clip(-128, 127))
    assert away.mean() < mean and away.max() <= most


def test_the_iteration_does_not_converge_for_small_codes():
    """Ten steps from 2**16 end at 64 or above, so that deviations in sum below 64 codes come out too small."""
    row = [-3, 3] * 32
    assert max(literal.layernorm(row)) * 8 / 2**30 < 0.4

"""The integer semantics against exact rational arithmetic, Python integers, torch and the mathematics it stands for."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.arch import numerics

accumulators = st.integers(-(1 << 26), (1 << 26) - 1)
multipliers = st.integers(1 << 15, (1 << 16) - 1)


@settings(derandomize=True, max_examples=300)
@given(accumulators, multipliers, st.integers(1, 47), st.integers(-128, 127))
def test_requantize_rounds_half_up(acc, m, n, zero_point):
    n = min(n, 39)
    constant = numerics.round_constant(0, m, n, zero_point)
    exact = math.floor(Fraction(acc * m, 1 << n) + zero_point + Fraction(1, 2))
    assert numerics.requantize(acc, m, n, constant, -(1 << 62), 1 << 62) == exact
    assert numerics.requantize(acc, m, n, constant, -128, 127) == max(-128, min(127, exact))


@settings(derandomize=True, max_examples=200)
@given(st.integers(-(1 << 20), 1 << 20), multipliers, st.integers(1, 30), st.integers(-(1 << 20), 1 << 20))
def test_bias_in_the_constant_is_bias_in_the_accumulator(acc, m, n, bias):
    wide = -(1 << 62), 1 << 62
    constant = numerics.round_constant(bias, m, n)
    assert numerics.requantize(acc, m, n, constant, *wide) == numerics.requantize(
        acc + bias, m, n, numerics.round_constant(0, m, n), *wide
    )


def test_constant_must_fit_48_bits():
    assert numerics.round_constant((1 << 31) - 1, 1 << 15, 1) < 1 << 47
    with pytest.raises(ValueError, match=r"^requantization constant must fit 48 bits signed, not \d+$"):
        numerics.round_constant(1 << 32, 1 << 15, 1)


@settings(derandomize=True, max_examples=300)
@given(st.floats(2.0**-31, 32767.0))
def test_scale_is_normalised_and_close(scale):
    m, n = numerics.scale_to_mn(scale)
    assert 1 << 15 <= m < 1 << 16 and 1 <= n <= 47
    assert abs(m * 2.0**-n / scale - 1) <= 2.0**-16


def test_scales_at_the_edges():
    assert numerics.scale_to_mn(0.0) == (0, 1)
    assert numerics.scale_to_mn(1.0) == (1 << 15, 15)
    assert numerics.scale_to_mn(np.nextafter(1.0, 0)) == (1 << 15, 15)
    m, n = numerics.scale_to_mn(2.0**-40)
    assert n == 47 and m == 1 << 7
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="must be finite and not negative"):
            numerics.scale_to_mn(bad)
    with pytest.raises(ValueError, match="must be below 32768, not 65536"):
        numerics.scale_to_mn(65536.0)


@settings(derandomize=True, max_examples=300)
@given(st.integers(-70000, 70000), st.integers(-32768, 32767), multipliers, st.integers(1, 31))
def test_residual_add_saturates_twice(t, r, m, n):
    def sat(x):
        return max(-32768, min(32767, x))

    scaled = math.floor(Fraction(r * m, 1 << n) + Fraction(1, 2))
    assert numerics.residual_add(t, r, m, n) == sat(sat(t) + scaled)
    assert numerics.residual_add(t, r, m, n, -5, 9) == max(-5, min(9, sat(sat(t) + scaled)))


@pytest.mark.parametrize("size", [256, 1024])
def test_lookup_clamps_its_index(size):
    table = np.random.default_rng(0).integers(-128, 128, size)
    for index in range(-size, size):
        assert numerics.lookup(index, table) == table[max(0, min(size - 1, index + size // 2))]


def test_tables():
    exp, recip, rsqrt = numerics.exp_table(), numerics.recip_table(), numerics.rsqrt_table()
    assert len(exp) == 256 and exp[0] == 255 and exp[255] == 0 and (np.diff(exp) <= 0).all()
    assert np.abs(exp[:255] - 255 * np.exp(-np.arange(255) * 6.3 / 255)).max() <= 0.5
    assert len(recip) == 256 and recip.max() <= 65535 and recip.min() >= 32768
    significand = np.linspace(256, 511.99, 20001)
    assert np.abs(recip[significand.astype(int) - 256] * significand / 2**24 - 1).max() < 1 / 510
    assert len(rsqrt) == 1024 and rsqrt[256:].max() <= 65535
    mantissa = np.arange(1 << 14, 1 << 16)
    assert np.abs(rsqrt[mantissa >> 6] * np.sqrt(mantissa) / 2**23 - 1).max() < 0.001


@settings(derandomize=True, max_examples=300)
@given(st.integers(0, 255 * 4096), multipliers, st.integers(1, 30))
def test_row_scale_in_python_integers(total, m2, n2):
    row = numerics.softmax_row_scale(np.array([total]), m2, n2, numerics.recip_table())
    if total == 0:
        assert (row.m[0], row.n[0]) == (0, 1)
        return
    e = total.bit_length() - 1
    index = int((Fraction(total) / (1 << e) - 1) * 256)
    p = m2 * int(Fraction(1 << 24) / (Fraction(513, 2) + index) + Fraction(1, 2))
    h = p >> 31
    assert row.m[0] == min((p + (1 << (14 + h))) >> (15 + h), 65535)
    assert row.n[0] == n2 + e + 1 - h and row.constant[0] == 1 << (n2 + e - h)
    assert abs(float(row.m[0]) * total * 2.0 ** float(n2 - row.n[0]) / m2 - 1) < 0.0025


@pytest.mark.parametrize("tokens", [1, 2, 17, 197])
def test_attention_without_a_divider_is_close_to_softmax(tokens):
    rng = np.random.default_rng(tokens)
    logits = np.clip(np.rint(rng.normal(0, 60, (50, tokens))), -2048, 2047).astype(np.int64)
    values = rng.integers(-128, 128, (tokens, 16))
    exp = numerics.softmax_exp(logits, numerics.exp_table())
    m2, n2 = numerics.scale_to_mn(1.0)
    row = numerics.softmax_row_scale(exp.sum(axis=1), m2, n2, numerics.recip_table())
    y = numerics.requantize(exp @ values, row.m[:, None], row.n[:, None], row.constant[:, None], -128, 127)
    wanted = torch.softmax(torch.from_numpy(logits) * numerics.EXP_STEP, dim=1).numpy() @ values
    assert np.abs(y - wanted).max() < 3 and np.abs(y - wanted).mean() < 0.6


def test_masked_keys_have_no_weight():
    logits = np.array([[5, 900, 7], [1, 2, 3]])
    mask = np.array([[True, False, True], [False, False, False]])
    exp = numerics.softmax_exp(logits, numerics.exp_table(), mask)
    assert exp[0].tolist() == [int(numerics.exp_table()[2]), 0, 255] and exp[1].tolist() == [0, 0, 0]


def test_bias_is_added_after_the_logit_is_clamped():
    bias = np.array([0, 30720, -30719, -32768, 32767])
    assert numerics.logit_bias(np.array([-2048, 2047, -2048, 2047, 2047]), bias).tolist() == [
        -2048, 32767, -32767, numerics.MASKED, 32767,
    ]  # fmt: skip


def python_layernorm(x, g, b, n, eps, lo, hi):
    """The page of the specification, one number at a time."""
    d, s, q = len(x), sum(x), sum(v * v for v in x)
    v = d * q - s * s + eps
    e = v.bit_length() - 15
    e -= e % 2
    mantissa = math.floor(Fraction(v) / Fraction(2) ** e)
    assert 1 << 14 <= mantissa < 1 << 16
    r = int(np.float64(2**23) / np.sqrt(64 * ((mantissa >> 6) + 0.5)) + 0.5)
    k = 13 + e // 2
    out = []
    for value, gain, offset in zip(x, g, b, strict=True):
        t = max(-(1 << 17), min((1 << 17) - 1, ((d * value - s) * r + (1 << (k - 1))) >> k))
        out.append(max(lo, min(hi, (t * gain + offset) >> n)))
    return out


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.data())
def test_layernorm_in_python_integers(data):
    d = data.draw(st.integers(1, 40))
    limit = data.draw(st.sampled_from([1, 3, 100, 32767]))
    x = data.draw(st.lists(st.integers(-limit, limit), min_size=d, max_size=d))
    g = data.draw(st.lists(st.integers(-32768, 32767), min_size=d, max_size=d))
    b = data.draw(st.lists(st.integers(-(1 << 40), 1 << 40), min_size=d, max_size=d))
    n, eps = data.draw(st.integers(1, 38)), data.draw(st.integers(1, 1 << data.draw(st.integers(0, 40))))
    got = numerics.layernorm(np.array(x), np.array(g), np.array(b), n, eps, numerics.rsqrt_table(), -128, 127)
    assert got.tolist() == python_layernorm(x, g, b, n, eps, -128, 127)


def test_layernorm_at_the_largest_sum():
    x = np.tile([32767, -32768], 1024)
    ones = np.full(2048, 1 << 10)
    got = numerics.layernorm(x, ones, np.full(2048, 1 << 19), 20, 1, numerics.rsqrt_table(), -128, 127)
    assert got.tolist() == python_layernorm(x.tolist(), ones.tolist(), [1 << 19] * 2048, 20, 1, -128, 127)


@pytest.mark.parametrize("channels", [3, 96, 768])
@pytest.mark.parametrize("spread", [40, 4000])
def test_layernorm_is_close_to_torch(channels, spread):
    rng = np.random.default_rng(channels)
    x = np.clip(rng.normal(200, spread, (20, channels)), -32768, 32767).astype(np.int64)
    gamma, beta = rng.normal(1, 0.3, channels), rng.normal(0, 0.3, channels)
    step, n = 4 / 127, 16
    g = np.rint(gamma / 1024 / step * 2**n).astype(np.int64)
    b = np.rint(beta / step * 2**n).astype(np.int64) + (1 << (n - 1))
    y = numerics.layernorm(x, g, b, n, 1, numerics.rsqrt_table(), -128, 127)
    wanted = torch.nn.functional.layer_norm(
        torch.from_numpy(x).double(), (channels,), torch.from_numpy(gamma), torch.from_numpy(beta), 0.0
    )
    assert np.abs(y - np.clip(wanted.numpy() / step, -128, 127)).max() < 0.8


def test_input_rounds_half_to_even():
    got = numerics.quantize_input(np.array([0.5, 1.5, 2.5, -0.5, 1e9, -1e9]), 1.0, 3, -128, 127)
    assert got.tolist() == [3, 5, 5, 3, 127, -128]


def test_average_folds_the_count():
    m, n = numerics.average_pool_scale(0.5, 0.25, 49)
    assert abs(m * 2.0**-n * 49 / 2 - 1) < 2**-16

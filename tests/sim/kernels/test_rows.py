"""LayerNorm, softmax and row scales: equal to arch.numerics."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.arch import numerics
from terrazzo.sim.kernels.rows import layernorm, row_scale, softmax


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    width=st.sampled_from([1, 2, 7, 192, 2048]),
    spread=st.sampled_from([0, 1, 30, 3000, 32767]),
    extreme=st.booleans(),
    n=st.integers(1, 40),
    eps=st.sampled_from([1, 2, 3, 255, 1 << 20, 1 << 40]),
    seed=st.integers(0, 2**32 - 1),
)
def test_layernorm_is_that_of_numerics(width, spread, extreme, n, eps, seed):
    random = np.random.default_rng(seed)
    x = random.integers(-spread - 1, spread + 1, (4, width))
    if extreme:
        x[0], x[1] = random.choice([-32768, 32767], width), -32768
        x[2] = np.where(np.arange(width) == 0, 32767, -32768)
    g = random.choice([-32768, 32767, 0, 1, -700], width).astype(np.int64)
    b = random.integers(-(1 << 47), 1 << 47, width) >> random.integers(0, 47, width)
    rsqrt = numerics.rsqrt_table()
    found = np.zeros((4, width), np.int16)
    layernorm(x.astype(np.int16), g, b, n, eps, rsqrt, -32768, 32767, found)
    assert np.array_equal(found, numerics.layernorm(x, g, b, n, eps, rsqrt, -32768, 32767))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 300),
    spread=st.sampled_from([1, 100, 300, 2048, 32767]),
    hidden=st.sampled_from([None, 0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_softmax_is_that_of_numerics(count, spread, hidden, seed):
    random = np.random.default_rng(seed)
    logits, mask = random.integers(-spread, spread, count), None
    if hidden is not None:
        mask = random.random(count) >= hidden
        logits[~mask] = numerics.MASKED
    table = random.integers(0, 256, 256) if seed % 2 else numerics.exp_table()
    found, expected = np.zeros(count, np.uint8), numerics.softmax_exp(logits, table, mask)
    total = softmax(logits.astype(np.int32), count, mask is not None, table.astype(np.uint8), found)
    assert total == expected.sum()
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("m2", [0, 1, 32768, 40000, 65535])
def test_row_scale_is_that_of_numerics(m2):
    recip = numerics.recip_table()
    totals = np.unique(np.concatenate([np.arange(3000), 2 ** np.arange(1, 40), 2 ** np.arange(1, 40) - 1]))
    expected = numerics.softmax_row_scale(totals, m2, 7, recip)
    found = np.array([row_scale(total, m2, 7, recip) for total in totals])
    assert np.array_equal(found[:, 0], expected.m) and np.array_equal(found[:, 1], expected.n)

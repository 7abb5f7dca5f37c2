"""The fused drain: equal to arch.numerics, table, residual and second output included."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.arch import numerics
from terrazzo.sim.kernels.drain import finish

NOTHING = np.empty((0, 1), np.int16)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["plain", "table256", "table1024", "residual"]),
    acc_type=st.sampled_from([np.int32, np.int16, np.int8]),
    out_type=st.sampled_from([np.int8, np.int16]),
    second=st.booleans(),
    outputs=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_drain_is_that_of_numerics(kind, acc_type, out_type, second, outputs, seed):
    random = np.random.default_rng(seed)
    rows = 5
    limit = min(1 << 26, np.iinfo(acc_type).max)
    acc = random.integers(-limit, limit, (rows, outputs))
    acc[0], acc[1] = random.choice([-limit, limit, 0, -1], outputs), random.integers(-3, 4, outputs)
    m = random.choice([0, 1, 32768, 65535, int(random.integers(0, 65536))], outputs)
    n = random.integers(1, 48, outputs)
    constant = random.integers(-(1 << 47), 1 << 47, outputs) >> random.integers(0, 40, outputs)
    info = np.iinfo(out_type)
    lo, hi = sorted(int(v) for v in random.choice([info.min, info.max, 0, -5, 9], 2))
    table, residual, addend, other_spec = np.empty(0, np.int8), (0, 0), NOTHING, (0, 0, 0, 0, 0)
    raw = numerics.requantize(acc, m, n, constant, -(1 << 62), 1 << 62)
    if kind.startswith("table"):
        table = random.integers(-128, 128, int(kind[5:])).astype(np.int8)
        expected = numerics.clamp(numerics.lookup(raw, table), lo, hi)
    elif kind == "residual":
        residual = (int(random.integers(0, 65536)), int(random.integers(1, 48)))
        addend = random.choice([-32768, 32767, 0, 1, -1, 1234], (rows, outputs)).astype(np.int16)
        expected = numerics.residual_add(raw, addend, *residual, lo, hi)
    else:
        expected = numerics.clamp(raw, lo, hi)
    out, other = np.zeros((rows, outputs), out_type), np.zeros((rows if second else 0, outputs), np.int8)
    if second:
        other_spec = (
            int(random.integers(0, 65536)),
            int(random.integers(1, 40)),
            int(random.integers(-(1 << 39), 1 << 39)),
        )
        other_spec += (-100, 90)
    finish(
        acc.astype(acc_type), rows, m, n, constant, lo, hi, table, residual, addend, out, other_spec, other
    )
    assert np.array_equal(out, expected)
    if second:
        assert np.array_equal(other, numerics.requantize(expected, *other_spec))

"""Arithmetic of one drain output at the edges of its ranges, against arch.numerics."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from terrazzo.arch import numerics
from terrazzo.hw.output import Output


def edgy(random, lo, hi):
    """A number of lo..hi, often at an edge or small."""
    pick = random.integers(4)
    if pick == 0:
        return int(random.choice([lo, hi]))
    if pick == 1:
        return int(np.clip(random.integers(-300, 300), lo, hi))
    return int(random.integers(lo, hi, endpoint=True))


def case(random, kind):
    """Inputs of an Output, and its two results."""
    acc, constant = edgy(random, -(1 << 26), (1 << 26) - 1), edgy(random, -(1 << 47), (1 << 47) - 1)
    m, n = edgy(random, 0, 65535), edgy(random, 1, 47)
    lo, hi = sorted(edgy(random, -32768, 32767) for _ in range(2))
    r, r_m, r_n = edgy(random, -32768, 32767), edgy(random, 0, 65535), edgy(random, 1, 47)
    wide = int(random.integers(2))
    table = random.integers(-128, 128, 1024 if wide else 256)
    m2, n2, c2 = edgy(random, 0, 65535), edgy(random, 1, 47), edgy(random, -(1 << 39), (1 << 39) - 1)
    lo2, hi2 = sorted(edgy(random, -128, 127) for _ in range(2))
    v = numerics.requantize(acc, m, n, constant, -(1 << 60), 1 << 60)
    if kind == "table":
        v = numerics.lookup(v, table)
    if kind == "residual":
        v = numerics.residual_add(v, r, r_m, r_n, lo, hi)
    v = int(numerics.clamp(v, lo, hi))
    inputs = {
        "p2_sum": acc,
        "p2_m": m,
        "p5_constant": constant,
        "p6_n": n,
        "p6_residual": r,
        "p6_residual_m": r_m,
        "p7_residual_round": 1 << (r_n - 1),
        "p8_residual_n": r_n,
        "p8_wide": wide,
        "p10_add": kind == "residual",
        "p11_table": kind == "table",
        "p11_lo": lo,
        "p11_hi": hi,
        "p12_m": m2,
        "p14_constant": c2,
        "p15_n": n2,
        "p16_lo": lo2,
        "p16_hi": hi2,
        "p16_least": lo2 << n2 % 4,
        "p16_most": ((hi2 + 1) << n2 % 4) - 1,
    }
    return inputs, table, v, int(numerics.requantize(v, m2, n2, c2, lo2, hi2))


@pytest.mark.parametrize("kind", ["plain", "table", "residual"])
def test_output_equals_numerics(kind):
    dut, random = Output(), np.random.default_rng(7)
    simulator = Simulator(dut)
    simulator.add_clock(1e-9)

    async def testbench(ctx):
        for _ in range(250):
            inputs, table, first, second = case(random, kind)
            for name, value in inputs.items():
                ctx.set(getattr(dut, name), value)
            for _ in range(17):
                row = ctx.get(dut.p9_index) // 8 * 8
                octet = table[row : row + 8] if row < len(table) else np.zeros(8, dtype=int)
                await ctx.tick()
                ctx.set(dut.p11_row, int.from_bytes(bytes(int(v) & 255 for v in octet), "little"))
            assert (ctx.get(dut.p16), ctx.get(dut.p17_second)) == (first, second), inputs

    simulator.add_testbench(testbench)
    simulator.run()

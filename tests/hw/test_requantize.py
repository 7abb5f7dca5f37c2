"""Shifting and saturating in one piece."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.sim import Simulator

from terrazzo.hw.requantize import shifted


@pytest.mark.parametrize(
    "width, bits", [(4, 8), (16, 16), (17, 16), (18, 2), (30, 17), (45, 20), (49, 16), (70, 16)]
)
def test_shifted(width, bits):
    """All amounts; values of every magnitude, and around the ends of the result's range."""
    m, value, amount, result = Module(), Signal(signed(width)), Signal(6), Signal(signed(width + bits))
    m.d.comb += result.eq(shifted(value, amount, bits))
    simulator, rng = Simulator(m), np.random.default_rng(width)
    lo, hi = -(1 << (bits - 1)), (1 << (bits - 1)) - 1

    async def drive(ctx):
        for n in range(64):
            ends = [(end + by << n) + low for end in (lo, hi) for by in (-1, 0, 1, 2) for low in (-1, 0)]
            magnitudes = [int(rng.integers(-(1 << 62), 1 << 62)) >> int(rng.integers(64)) for _ in range(20)]
            for x in [*ends, *magnitudes, -(1 << (width - 1)), (1 << (width - 1)) - 1]:
                if not -(1 << (width - 1)) <= x < 1 << (width - 1):
                    continue
                ctx.set(value, x)
                ctx.set(amount, n)
                assert ctx.get(result) == min(max(x >> n, lo), hi), (x, n)

    simulator.add_testbench(drive)
    simulator.run()

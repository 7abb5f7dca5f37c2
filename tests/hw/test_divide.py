"""Division by constants against Python's, for numbers of both signs."""

import numpy as np
import pytest
from amaranth.hdl import Module, Signal, signed
from amaranth.sim import Simulator

from terrazzo.hw.divide import divided, folded


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 6, 7, 8, 12])
@pytest.mark.parametrize("shape", [9, signed(9), 22, signed(22)])
def test_quotient_and_remainder(divisor, shape):
    m, value = Module(), Signal(shape)
    sign = value.shape().signed
    quotient, remainder = divided(m, folded(value) if sign else value, divisor, "test", sign=sign)
    lo, hi = (
        (-(1 << value.shape().width - 1), 1 << value.shape().width - 1)
        if value.shape().signed
        else (0, 1 << value.shape().width)
    )
    numbers = (
        np.arange(lo, hi)
        if hi - lo < 1000
        else np.unique(
            np.concatenate(
                [
                    np.arange(lo, lo + 40),
                    np.arange(hi - 40, hi),
                    np.random.default_rng(1).integers(lo, hi, 200),
                ]
            )
        )
    )

    async def bench(ctx):
        for number in numbers:
            ctx.set(value, int(number))
            await ctx.tick()
            assert (ctx.get(quotient), ctx.get(remainder)) == divmod(int(number), divisor)

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()

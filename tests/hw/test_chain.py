"""The cascade of multipliers against sums of products, and its form with a multiplier for each product."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from terrazzo.hw.lanes.chain import PAIR, QUAD, TAPS, Chain, SplitChain

LIMITS = {
    "pair": (PAIR, (-128, 127), (-128, 255)),
    "quad": (QUAD, (-7, 7), (-32, 31)),
    "keys and values": (QUAD, (-8, 7), (-31, 31)),
}


@pytest.mark.parametrize("kind", [Chain, SplitChain])
@pytest.mark.parametrize("packing, weights, operands", LIMITS.values(), ids=LIMITS)
def test_fields_are_sums_of_products(kind, packing, weights, operands):
    """Random and extreme values, a new chunk in every cycle."""
    rng = np.random.default_rng(packing.fields)
    chunks, places = 120, packing.fields // 2

    def values(limits, *shape):
        some = rng.integers(limits[0], limits[1] + 1, shape)
        return np.where(
            rng.random((chunks,) + (1,) * (len(shape) - 1)) < 0.3,
            rng.choice(limits, (chunks,) + (1,) * (len(shape) - 1)),
            some,
        )

    low, high = values(weights, chunks, TAPS), values(weights, chunks, TAPS)
    operand = values(operands, chunks, places, TAPS)
    word = sum(operand[:, place] << (place * packing.field_bits) for place in range(places))
    expected = [
        (lane[:, None] * operand).sum(axis=2)[:, place] for lane in (low, high) for place in range(places)
    ]
    chain, seen = kind(packing), []

    async def testbench(ctx):
        for cycle in range(chunks + Chain.LATENCY):
            for i, delay in enumerate(Chain.DELAYS):
                if 0 <= cycle - delay < chunks:
                    ctx.set(chain.low[i], int(low[cycle - delay, i]))
                    ctx.set(chain.high[i], int(high[cycle - delay, i]))
                    ctx.set(chain.operand[i], int(word[cycle - delay, i]))
            seen.append(ctx.get(chain.sum))
            await ctx.tick()

    simulator = Simulator(chain)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    half = 1 << (packing.field_bits - 1)
    for number in range(chunks):
        found = seen[number + Chain.LATENCY]
        fields = [found >> (i * packing.field_bits) & (2 * half - 1) for i in range(packing.fields)]
        fields = [field - half for field in fields[:-1]] + [(fields[-1] ^ half) - half]
        assert fields == [int(sums[number]) for sums in expected], number

"""Row modules against the code tables of `arch.schemes` and numpy sums."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from terrazzo.arch.schemes import Scheme, decode, storage_bits
from terrazzo.hw.lanes import KINDS, LATENCY, Row

SCHEMES = list(Scheme)


def pack(patterns: np.ndarray, bits: int) -> int:
    """Codes, lowest first, as one integer."""
    return sum(int(code) << (i * bits) for i, code in enumerate(patterns.flat))


def sums_of(row: Row, cycles: list[dict]) -> list[np.ndarray]:
    """`sums` [lane, column] of each cycle, with `cycles` presented one after another and LATENCY more."""
    bits = storage_bits(row.kind)
    seen = []

    async def testbench(ctx):
        for cycle in cycles + [{}] * LATENCY:
            ctx.set(row.valid, int("weights" in cycle))
            ctx.set(row.first, int(cycle.get("first", False)))
            if row.kind == Scheme.FIXED8:
                ctx.set(row.maximum, int(cycle.get("maximum", False)))
            if "weights" in cycle:
                ctx.set(row.weights, pack(cycle["weights"], bits))
                ctx.set(row.operand.as_value(), pack(cycle["operand"] & 511, 9))
            word = ctx.get(row.sums.as_value())
            words = [(word >> (27 * i)) & (2**27 - 1) for i in range(row.lanes * row.columns)]
            seen.append(((np.array(words) ^ 2**26) - 2**26).reshape(row.lanes, row.columns))
            await ctx.tick()

    simulator = Simulator(row)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return seen


def product(operand, weights, kind) -> np.ndarray:
    """Chunk sums [lane, column] of operand [column, i] and patterns [lane, i]."""
    return decode(weights, kind) @ operand.T


@pytest.mark.parametrize("kind", SCHEMES, ids=lambda kind: kind.name)
def test_every_product(kind):
    """Each pair of activation and code, in every position; a Fixed-8 pair with unrelated codes in its lanes."""
    depth, columns, codes = 4, 4, 2 ** storage_bits(kind)
    row = Row(kind, columns, depth)
    activations = np.arange(-256, 256).reshape(-1, columns)
    cycles = []
    for number, (code, values) in enumerate((c, a) for c in range(codes) for a in activations):
        weights = np.zeros((row.lanes, depth), dtype=np.int64)
        operand = np.zeros((columns, depth), dtype=np.int64)
        i = (number + number // depth) % depth
        weights[:, i] = [(code + lane * number) % codes for lane in range(row.lanes)]
        operand[:, i] = values
        cycles.append({"weights": weights, "operand": operand, "first": True})
    seen = sums_of(row, cycles)
    for x, cycle in enumerate(cycles):
        assert (seen[x + LATENCY] == product(cycle["operand"], cycle["weights"], kind)).all(), (x, cycle)


@pytest.mark.parametrize("columns, depth", [(2, 4), (4, 8), (2, 16), (2, 64)])
@pytest.mark.parametrize("kind", SCHEMES, ids=lambda kind: kind.name)
def test_blocks(kind, columns, depth):
    """Random blocks with gaps between the chunks; sums in every cycle, extreme operands among random ones."""
    rng = np.random.default_rng(depth * 8 + columns)
    row = Row(kind, columns, depth)
    cycles, expected, held = [], [], np.zeros((row.lanes, columns), dtype=np.int64)
    for block in range(24):
        maximum = kind == Scheme.FIXED8 and block % 3 == 2
        extreme = block % 4 == 1
        for chunk in range(rng.integers(1, 6)):
            while rng.random() < 0.3:
                cycles.append({"first": True, "maximum": True})
                expected.append(held)
            weights = rng.integers(0, 2 ** storage_bits(kind), (row.lanes, depth))
            operand = rng.integers(-128, 256, (columns, depth))
            if extreme:
                weights[:] = rng.choice([2 ** storage_bits(kind) - 1, 2 ** (storage_bits(kind) - 1)])
                operand[:] = rng.choice([-128, 255])
            value = product(operand, weights, kind)
            if chunk:
                value = np.maximum(held, value) if maximum else held + value
            held = value
            cycles.append({"weights": weights, "operand": operand, "first": chunk == 0, "maximum": maximum})
            expected.append(held)
    seen = sums_of(row, cycles)
    for x, value in enumerate(expected):
        assert (seen[x + LATENCY] == value).all(), x


def test_kinds_cover_the_schemes():
    assert set(KINDS) == set(Scheme)
    assert [KINDS[kind].lanes for kind in Scheme] == [2, 1, 1, 1]

"""Row modules against the code tables of `arch.schemes` and numpy sums."""

import numpy as np
import pytest
from amaranth.hdl import Module, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In
from amaranth.sim import Simulator

from terrazzo.arch.schemes import Scheme, codebook, decode, encode, storage_bits
from terrazzo.hw.lanes import KINDS, LATENCY, OTHERS, Row
from terrazzo.hw.lanes.fixed4_quads import Fixed4Quads
from terrazzo.hw.lanes.fixed4_triples import Fixed4Triples

ROWS = [(kind, "", 9) for kind in KINDS] + [(Scheme[name[:6].upper()], name, 9) for name in OTHERS]
ROWS += [(Scheme.FIXED4, "", bits) for bits in (4, 5, 8)]
IDS = [(other or kind.name) + (f"-{bits}" if bits < 9 else "") for kind, other, bits in ROWS]


def pack(patterns: np.ndarray, bits: int) -> int:
    """Codes, lowest first, as one integer."""
    return sum(int(code) << (i * bits) for i, code in enumerate(patterns.flat))


class Prepared(wiring.Component):
    """A row behind the preparation of its operand, which takes a cycle: weights and control come a cycle later."""

    def __init__(self, row: Row):
        self.row = row
        members = dict(row.signature.members)
        columns = data.ArrayLayout(data.ArrayLayout(signed(9), row.depth), row.columns)
        super().__init__({**members, "operand": In(columns)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.row = row = self.row
        operand = [[column[i] for i in range(row.depth)] for column in self.operand]
        m.d.comb += row.operand.eq(row.arithmetic.operands.prepared(m, operand))
        for name in row.signature.members:
            if name == "sums":
                m.d.comb += self.sums.eq(row.sums)
            elif name != "operand":
                m.d.sync += getattr(row, name).eq(getattr(self, name))
        return m


def sums_of(row: Row, cycles: list[dict]) -> list[np.ndarray]:
    """`sums` [lane, column] of each cycle, with `cycles` presented one after another and LATENCY more."""
    bits = storage_bits(row.kind)
    whole, seen = Prepared(row), []

    async def testbench(ctx):
        for cycle in cycles + [{}] * (LATENCY + 1):
            ctx.set(whole.valid, int("weights" in cycle))
            ctx.set(whole.first, int(cycle.get("first", False)))
            if row.arithmetic.maximum:
                ctx.set(whole.maximum, int(cycle.get("maximum", False)))
            if "weights" in cycle:
                ctx.set(whole.weights, pack(cycle["weights"], bits))
                ctx.set(whole.operand.as_value(), pack(cycle["operand"] & 511, 9))
            word = ctx.get(whole.sums.as_value())
            words = [(word >> (27 * i)) & (2**27 - 1) for i in range(row.lanes * row.columns)]
            seen.append(((np.array(words) ^ 2**26) - 2**26).reshape(row.lanes, row.columns))
            await ctx.tick()

    simulator = Simulator(whole)
    simulator.add_clock(1e-6)
    simulator.add_testbench(testbench)
    simulator.run()
    return seen[1:]


def operand_limits(row: Row, bits: int, dynamic: bool = False) -> tuple[int, int]:
    """Least and largest operand of a kind, of weights or of `dynamic` codes: keys and values, -8 among them."""
    if isinstance(row.arithmetic, Fixed4Quads):
        return -32 + dynamic, 31
    if isinstance(row.arithmetic, Fixed4Triples):
        return -128 + dynamic, 127
    return (-128, 255) if bits == 9 else (-(1 << bits - 1), (1 << bits - 1) - 1)


def patterns(kind: Scheme, dynamic: bool) -> np.ndarray:
    """Stored codes, ascending by value."""
    return np.arange(-8, 8) & 15 if dynamic and kind == Scheme.FIXED4 else encode(codebook(kind), kind)


def product(operand, weights, kind) -> np.ndarray:
    """Chunk sums [lane, column] of operand [column, i] and patterns [lane, i]."""
    return decode(weights, kind) @ operand.T


@pytest.mark.parametrize("kind, other, bits", ROWS, ids=IDS)
def test_every_product(kind, other, bits):
    """Each pair of activation and code, in every position; a pair of lanes with unrelated codes."""
    depth, columns = 4, 4
    row = Row(kind, columns, depth, other, bits)
    codes = patterns(kind, True)
    least, largest = operand_limits(row, bits)
    activations = np.arange(least, largest + 1).reshape(-1, columns)
    cycles = []
    for number, (code, values) in enumerate((c, a) for c in range(len(codes)) for a in activations):
        weights = np.zeros((row.lanes, depth), dtype=np.int64)
        operand = np.zeros((columns, depth), dtype=np.int64)
        i = (number + number // depth) % depth
        weights[:, i] = [codes[(code + lane * number) % len(codes)] for lane in range(row.lanes)]
        operand[:, i] = values
        cycles.append({"weights": weights, "operand": operand, "first": True})
    seen = sums_of(row, cycles)
    for x, cycle in enumerate(cycles):
        assert (seen[x + LATENCY] == product(cycle["operand"], cycle["weights"], kind)).all(), (x, cycle)


@pytest.mark.parametrize("columns, depth", [(2, 4), (4, 8), (3, 16), (2, 64)])
@pytest.mark.parametrize("kind, other, bits", ROWS, ids=IDS)
def test_blocks(kind, other, bits, columns, depth):
    """Random blocks with gaps between the chunks; sums in every cycle, extreme operands among random ones."""
    rng = np.random.default_rng(depth * 8 + columns)
    row = Row(kind, columns, depth, other, bits)
    cycles, expected, held = [], [], np.zeros((row.lanes, columns), dtype=np.int64)
    for block in range(24):
        maximum = row.arithmetic.maximum and block % 3 == 2
        extreme, dynamic = block % 4 == 1, block % 8 < 4
        codes, (least, largest) = patterns(kind, dynamic), operand_limits(row, bits, dynamic)
        for chunk in range(rng.integers(1, 6)):
            while rng.random() < 0.3:
                cycles.append({"first": True, "maximum": True})
                expected.append(held)
            weights = codes[rng.integers(0, len(codes), (row.lanes, depth))]
            operand = rng.integers(least, largest + 1, (columns, depth))
            if extreme:
                weights[:] = rng.choice(codes[[0, -1]])
                operand[:] = rng.choice([least, largest])
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
    assert [KINDS[kind].lanes for kind in Scheme] == [2, 1, 1, 1, 1, 1]

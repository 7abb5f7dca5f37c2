"""Fixed-4 on multipliers: three lanes share one."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import C, Cat, Module, Value

from ..delay import delayed
from ..shared import Shared
from .operands import Parities
from .sums import added, groups, register, registers_behind
from .triple_chain import FIELD_BITS, TAPS, TripleChain

__all__ = ["Fixed4Triples", "fields"]

START = 1
"""Cycles from the weights at a row to those at its chains, and so of the operand's delay."""


class Fixed4Triples:
    """Weights -7..7 of three lanes, times one activation -128..127 (or keys and values -8..7, times -127..127), in cascades of two
    multipliers (`TripleChain`), whose sums have a bit more than their fields (`fields`).

    Cost: a third of a multiplier per product and 7.6 LUTs.
    """

    lanes = 3
    maximum = False
    carries = True
    operands = Parities(lambda i: START, TripleChain.LATENCY)

    def chunk_sums(self, m: Module, operand, codes, registers: int) -> list[list[Value]]:
        late = [[delayed(m, code, START) for code in lane] for lane in codes]
        odd = [[delayed(m, code[0], TripleChain.LATENCY) for code in lane] for lane in late[1:]]
        columns = [column_sums(m, x, late, odd, registers, f"column_{c}") for c, x in enumerate(operand)]
        return [list(lane) for lane in zip(*columns, strict=True)]


def column_sums(
    m: Module,
    operand: Sequence[Value],
    codes: Sequence[Sequence[Value]],
    odd: Sequence[Sequence[Value]],
    registers: int,
    name: str,
) -> list[Value]:
    """The chunk sums of one column. `odd` has the lowest bits of the upper lanes' codes, when their chains' sums are there."""
    found = []
    for start in range(0, len(operand), TAPS):
        taps = slice(start, start + TAPS)
        m.submodules[f"{name}_chain_{start}"] = chain = Shared(TripleChain)
        m.d.comb += [
            chain.weights.eq(
                Cat(code for tap in zip(*(lane[taps] for lane in codes), strict=True) for code in tap)
            ),
            chain.operand.eq(Cat(x[: Parities.BITS] for x in operand[taps])),
        ]
        parities = [
            Cat(low & x[Parities.BITS] for low, x in zip(lane[taps], operand[taps], strict=True)).xor()
            for lane in odd
        ]
        found.append(fields(chain.sum, parities))
    return [
        joined(m, list(lane), registers, f"{name}_{i}") for i, lane in enumerate(zip(*found, strict=True))
    ]


def fields(word: Value, odd: Sequence[Value]) -> list[tuple[Value, Value]]:
    """The sums in a `TripleChain`'s word, lowest first: each is a signed value and a bit to be added. `odd` tells of
    the upper two sums whether they are odd.

    A sum that is negative takes one from the field above, which is seen at that field's lowest bit: so its sign is
    known, which is the bit that its field lacks. Sums are -2047..2047.
    """
    low, middle, high = word[:FIELD_BITS], word[FIELD_BITS : 2 * FIELD_BITS], word[2 * FIELD_BITS :]
    first, second = middle[0] ^ odd[0], high[0] ^ odd[1]
    return [
        (Cat(low, first).as_signed(), C(0, 1)),
        (Cat(middle, second).as_signed(), first),
        (high.as_signed(), second),
    ]


def joined(m: Module, parts: Sequence[tuple[Value, Value]], registers: int, name: str) -> Value:
    """The sum of values and bits but for one bit, which is its lowest, 2 + registers cycles later. Each addition of their
    tree takes a bit."""
    values, carries = map(list, zip(*parts, strict=True))
    for level, count in enumerate(registers_behind(len(values), 1 + registers)):
        for at in range(count):
            values, carries = (
                [register(m, value, f"{name}_{kind}_{level}_{at}_{i}") for i, value in enumerate(kept)]
                for kind, kept in (("sum", values), ("carry", carries))
            )
        values = [added(*pair, carries.pop()) if len(pair) == 2 else pair[0] for pair in groups(values, 2)]
    return register(m, Cat(carries[0], values[0]).as_signed(), name)

"""A cascade of multipliers that take two weights each: what a board may replace by its own primitives."""

from __future__ import annotations

import dataclasses

from amaranth.hdl import C, Cat, Module, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .sums import register

__all__ = ["PAIR", "QUAD", "TAPS", "Chain", "Packing", "SplitChain"]

TAPS = 4
"""Multipliers of a cascade."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """How weights and operands share a multiplier of 27 x 18 bits, and the fields of the sum."""

    weight_bits: int
    operand_bits: int
    """Of the word that multiplies the weights: one operand, or two."""
    shift: int
    """Distance of the two weights."""
    field_bits: int
    """Of the sum's fields."""
    fields: int
    """In the sum; the lower ones have half their range added, so that they take nothing from those above."""

    @property
    def sum_bits(self) -> int:
        return self.fields * self.field_bits

    @property
    def offset(self) -> int:
        """What is added to the sum of the products."""
        return sum(1 << ((i + 1) * self.field_bits - 1) for i in range(self.fields - 1))

    def split(self, word: Value) -> list[Value]:
        """The fields, lowest first: unsigned with their half range, the highest signed without."""
        *lower, highest = (word[i * self.field_bits :][: self.field_bits] for i in range(self.fields))
        return [*lower, highest.as_signed()]


PAIR = Packing(weight_bits=8, operand_bits=9, shift=18, field_bits=18, fields=2)
"""Two weights times an operand -128..255: 4 * 128 * 255 < 2 ** 17. Method: Xilinx WP486 (Fu et al., 2017)."""
QUAD = Packing(weight_bits=4, operand_bits=18, shift=22, field_bits=11, fields=4)
"""Two weights -7..7 times two operands -32..31, in the word left + (right << 11): 4 * 7 * 32 < 2 ** 10. Or two keys or values
-8..7 times two operands -31..31: 4 * 8 * 31 < 2 ** 10."""


class Chain(wiring.Component):
    """A sum of products whose fields are sums, LATENCY cycles after tap 0.

    `sum` = sum of (low[i] + (high[i] << shift)) * operand[i] + offset. Tap i's weights and operand are of one cycle,
    DELAYS[i] cycles after those of tap 0. This is the portable form, and the model of the primitives that take its
    place (`hw.shared.Registry`).
    """

    DELAYS = (0, 0, 1, 2)
    """The first two taps are of one cycle: tap 0 has a register less in front of its multiplier."""
    LATENCY = 6

    def __init__(self, packing: Packing):
        self.packing = packing
        super().__init__(self.ports(packing))

    @staticmethod
    def ports(packing: Packing) -> dict[str, wiring.Member]:
        """Of this component and of what takes its place."""
        return {
            "low": In(data.ArrayLayout(signed(packing.weight_bits), TAPS)),
            "high": In(data.ArrayLayout(signed(packing.weight_bits), TAPS)),
            "operand": In(data.ArrayLayout(signed(packing.operand_bits), TAPS)),
            "sum": Out(signed(packing.sum_bits)),
        }

    def elaborate(self, platform):
        m = Module()
        bits = self.packing.sum_bits
        products = [register(m, self.product(i), f"product_{i}") for i in range(TAPS)]
        total = products[0] + products[1] + self.packing.offset
        for i in range(1, TAPS):
            total = register(m, total[:bits].as_signed(), f"sum_{i}")
            if i + 1 < TAPS:
                total = total + products[i + 1]
        for stage in range(self.LATENCY - TAPS):
            total = register(m, total, f"late_{stage}")
        m.d.comb += self.sum.eq(total)
        return m

    def product(self, i: int) -> Value:
        """Of tap i."""
        packing = self.packing
        high = Cat(C(0, packing.shift), self.high[i]).as_signed()
        weights = (self.low[i] + high)[: packing.shift + packing.weight_bits + 1].as_signed()
        return (weights * self.operand[i])[: packing.sum_bits].as_signed()


class SplitChain(Chain):
    """`Chain` of one multiplier and one sum for each field, for devices whose multipliers hold no two products.

    The same as long as weights and operands are legal: then no field takes from or gives to another.
    """

    def elaborate(self, platform):
        m = Module()
        bits, fields = self.packing.field_bits, self.packing.fields
        sums = []
        for field in range(fields):
            weights = self.high if field >= fields // 2 else self.low
            products = [
                register(m, weights[i] * self.part(i, field % (fields // 2)), f"product_{field}_{i}")
                for i in range(TAPS)
            ]
            total = products[0] + products[1]
            for i in range(1, TAPS):
                total = register(m, total[:bits].as_signed(), f"sum_{field}_{i}")
                if i + 1 < TAPS:
                    total = total + products[i + 1]
            for stage in range(self.LATENCY - TAPS):
                total = register(m, total, f"late_{field}_{stage}")
            # The offset of the lower fields is half their range.
            sums.append(total if field + 1 == fields else Cat(total[:-1], ~total[-1]))
        m.d.comb += self.sum.eq(Cat(sums))
        return m

    def part(self, i: int, place: int) -> Value:
        """Operand `place` of the word of tap i, signed."""
        word, bits = self.operand[i], self.packing.field_bits
        if self.packing.fields == 2:
            return word
        return word[bits:].as_signed() + word[bits - 1] if place else word[:bits].as_signed()

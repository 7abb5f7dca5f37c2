"""Binary: signs of pairs of operands."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Value

from . import terms
from .operands import Twins

__all__ = ["Binary"]


class Binary:
    """Weights -1 and 1, times an activation -128..255. Two neighbouring products are the sum or the difference of their
    operands, or its inversion: one term.

    Cost: half a LUT for each bit of an operand per product: 8.9; and an adder and a subtractor for each pair of operands,
    for all rows together.
    """

    lanes = 1
    maximum = False
    carries = False
    operands = Twins(terms.delay)

    def chunk_sums(self, m: Module, operand, codes, registers: int) -> list[list[Value]]:
        signs = codes[0]
        twins = [Cat(signs[i : i + 2]) for i in range(0, len(signs), 2)]
        return [terms.term_sums(m, operand, twins, registers, lambda pair: {0: Twin.of(pair)})]


class Twin(terms.Term):
    """The operands' sum, or their `difference` (the first less the second); negated if `negative`."""

    def __init__(self, *, difference: Value, negative: Value):
        self.difference, self.negative = difference, negative

    @classmethod
    def of(cls, signs: Value) -> Twin:
        return cls(difference=signs[0] ^ signs[1], negative=signs[0])

    def limit(self, operand: Value) -> int:
        return 2 * terms.largest(operand[: len(operand) // 2 - 1])

    def inverted(self, m: Module, operand: Value) -> Value:
        half = len(operand) // 2
        value = terms.masked(operand[:half], ~self.difference) | terms.masked(operand[half:], self.difference)
        return (value ^ self.negative.replicate(half)).as_signed()

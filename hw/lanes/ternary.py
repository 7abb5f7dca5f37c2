"""Ternary: signs and zeros."""

from __future__ import annotations

from amaranth.hdl import Module, Value

from . import terms
from .operands import Late

__all__ = ["Ternary"]


class Ternary:
    """Weights -1, 0 and 1, times an activation -128..255: the activation, nothing, or its inversion.

    Cost: a LUT for each bit of an operand per product: 14.2.
    """

    lanes = 1
    maximum = False
    carries = False
    operands = Late(terms.delay)

    def chunk_sums(self, m: Module, operand, codes, registers: int) -> list[list[Value]]:
        return [terms.term_sums(m, operand, codes[0], registers, lambda code: {0: Sign.of(code)})]


class Sign(terms.Term):
    """x where `present`, else 0; negated if `negative`."""

    def __init__(self, *, present: Value, negative: Value):
        self.present, self.negative = present, negative

    @classmethod
    def of(cls, code: Value) -> Sign:
        return cls(present=code[0], negative=code[1])

    def limit(self, operand: Value) -> int:
        return terms.largest(operand)

    def inverted(self, m: Module, operand: Value) -> Value:
        value = terms.masked(operand.as_unsigned(), self.present)
        return (value ^ self.negative.replicate(len(operand))).as_signed()

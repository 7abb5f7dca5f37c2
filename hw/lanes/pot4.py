"""PoT-4: powers of two."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value

from . import terms
from .operands import Late

__all__ = ["PoT4"]

PRODUCT_BITS = 15
"""Of an activation of 9 bits shifted by at most 6."""
NEAR_BITS = 12
"""Of one shifted by at most 3."""


class PoT4:
    """Weights 0 and plus or minus 1, 2, ... 64, times an activation -128..255: a shift, and an inversion for the
    sign.

    Cost: 34.0 LUTs per product.
    """

    lanes = 1
    maximum = False
    carries = False
    operands = Late(terms.delay)

    def chunk_sums(self, m: Module, operand, codes, registers: int) -> list[list[Value]]:
        return [terms.term_sums(m, operand, codes[0], registers, lambda code: {0: Power.of(code)})]


class Power(terms.Term):
    """A code: its shift in two steps, the second of which shares the LUTs of the addition."""

    def __init__(self, *, shift: Value, far: Value, present: Value, negative: Value):
        self.shift, self.far, self.present, self.negative = shift, far, present, negative

    @classmethod
    def of(cls, code: Value) -> Power:
        index = code[:3]
        return cls(shift=(index - 1)[:2], far=index.matches(5, 6, 7), present=index.any(), negative=code[3])

    def limit(self, operand: Value) -> int:
        return 64 * terms.largest(operand)

    def inverted(self, m: Module, operand: Value) -> Value:
        near = Signal(PRODUCT_BITS)
        m.d.comb += near.eq((operand << self.shift)[:NEAR_BITS].as_signed())
        value = terms.masked(near, self.present & ~self.far) | terms.masked(
            (near << 4)[:PRODUCT_BITS], self.far
        )
        return (value ^ self.negative.replicate(PRODUCT_BITS)).as_signed()

"""Fixed-8 without multipliers: four digits of radix 4, in LUTs."""

from __future__ import annotations

from amaranth.hdl import Module, Value

from . import terms
from .operands import Late

__all__ = ["Fixed8Luts"]


class Fixed8Luts:
    """Weights -128..127 of a lane, times an activation -128..255, as four digits of radix 4 (`terms.digit`).

    Cost: 59.8 LUTs per product.
    """

    lanes = 1
    maximum = True
    carries = False
    operands = Late(terms.delay)

    def chunk_sums(self, m: Module, operand, codes, registers: int) -> list[list[Value]]:
        return [terms.term_sums(m, operand, codes[0], registers, digits)]


def digits(code: Value) -> dict[int, terms.Digit]:
    return {at: terms.digit(code[at - 1] if at else 0, code[at], code[at + 1]) for at in range(0, 8, 2)}

"""Fixed-4: two digits of radix 4, in LUTs."""

from __future__ import annotations

from amaranth.hdl import Module, Value

from . import terms
from .operands import OPERAND_BITS, Late

__all__ = ["Fixed4"]


class Fixed4:
    """Weights -8..7 (codes -7..7), times an activation of `operand_bits` bits, as two digits of radix 4 (`terms.digit`).

    Cost: two LUTs for each bit of an operand per product: 29.9 with 9 bits, two less for each bit less.
    """

    lanes = 1
    maximum = False
    carries = False

    def __init__(self, operand_bits: int = OPERAND_BITS):
        self.operands = Late(terms.delay, operand_bits)

    def chunk_sums(self, m: Module, operand, codes, registers: int) -> list[list[Value]]:
        return [terms.term_sums(m, operand, codes[0], registers, digits)]


def digits(code: Value) -> dict[int, terms.Digit]:
    return {0: terms.digit(0, code[0], code[1]), 2: terms.digit(code[1], code[2], code[3])}

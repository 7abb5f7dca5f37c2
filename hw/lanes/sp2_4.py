"""SP2-4: sums of two powers of two."""

from __future__ import annotations

from amaranth.hdl import Module, Value

from . import terms
from .operands import Late

__all__ = ["SP2"]


class SP2:
    """Weights 0 and plus or minus 1, 2, 4, 5, 6, 8, times an activation -128..255: two shifts and one addition.

    Cost: that of Fixed-4, 29.9 LUTs per product.
    The magnitude is a + 4 * b with a, b in 0, 1, 2 (8 = 4 * 2). Source: Chang et al., "Mix and Match", HPCA 2021.
    """

    lanes = 1
    maximum = False
    carries = False
    operands = Late(terms.delay)

    def chunk_sums(self, m: Module, operand, codes, registers: int) -> list[list[Value]]:
        return [terms.term_sums(m, operand, codes[0], registers, digits)]


def digits(code: Value) -> dict[int, terms.Digit]:
    # Magnitudes by index: 0, 1, 2, 4, 5, 6, 8, and 0 for the pattern 7, which no code uses.
    index, negative = code[:3], code[3]
    return {
        0: terms.Digit(one=index.matches(1, 4), two=index.matches(2, 5), negative=negative),
        2: terms.Digit(one=index.matches(3, 4, 5), two=index.matches(6), negative=negative),
    }

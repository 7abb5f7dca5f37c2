"""PoT-4: powers of two."""

from __future__ import annotations

from amaranth.hdl import Module, Value

from .sums import register, total
from .terms import add_carries, two_stage

__all__ = ["PoT4"]

PRODUCT_BITS = 15
"""Of an activation of 9 bits shifted by at most 6."""


class PoT4:
    """Weights 0 and plus or minus 1, 2, ... 64, times an activation: a shift, and an inversion for the sign.

    The inversion lacks one for each negative code; a row counts those once for all columns.
    """

    lanes = 1
    maximum = False

    def chunk_sums(self, m: Module, operand, codes) -> list[list[Value]]:
        (lane,) = codes
        carries = add_carries(m, {0: [code[3] for code in lane]})
        return [[self.column(m, x, lane, carries, f"column_{c}") for c, x in enumerate(operand)]]

    @classmethod
    def column(cls, m: Module, operand, lane, carries: Value, name: str) -> Value:
        """Chunk sum of one column."""
        values = [cls.inverted(x, code) for x, code in zip(operand, lane, strict=True)]
        return register(m, total([carries, *two_stage(m, values, name)]), f"{name}_sum")

    @staticmethod
    def inverted(operand: Value, code: Value) -> Value:
        """x << (index - 1), or 0 for index 0; its one's complement where the sign bit is set."""
        shifted = (operand << code[:3])[1 : PRODUCT_BITS + 1] & code[:3].any().replicate(PRODUCT_BITS)
        return (shifted ^ code[3].replicate(PRODUCT_BITS)).as_signed()

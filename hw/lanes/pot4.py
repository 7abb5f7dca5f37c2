"""PoT-4: powers of two."""

from __future__ import annotations

from amaranth.hdl import Module, Signal, Value

from .sums import register, total
from .terms import add_carries, decoded, masked, two_stage

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
        lane = [Power(m, f"power_{i}", code) for i, code in enumerate(lane)]
        carries = add_carries(m, {0: [power.negative for power in lane]})
        return [[self.column(m, x, lane, carries, f"column_{c}") for c, x in enumerate(operand)]]

    @staticmethod
    def column(m: Module, operand, lane, carries: Value, name: str) -> Value:
        """Chunk sum of one column."""
        values = [power.inverted(m, x) for x, power in zip(operand, lane, strict=True)]
        return register(m, total([carries, *two_stage(m, values, name)]), f"{name}_sum")


class Power:
    """A code, decoded once for all columns."""

    def __init__(self, m: Module, name: str, code: Value):
        self.shift = decoded(2, f"{name}_shift")
        self.near = decoded(1, f"{name}_near")
        self.far = decoded(1, f"{name}_far")
        self.negative = decoded(1, f"{name}_negative")
        m.d.comb += [
            self.shift.eq(code[:2] - 1),
            self.near.eq(code[:3].matches(1, 2, 3, 4)),
            self.far.eq(code[:3].matches(5, 6, 7)),
            self.negative.eq(code[3]),
        ]

    def inverted(self, m: Module, operand: Value) -> Value:
        """x << shift, or 0 if not present; its one's complement where the code is negative."""
        near, far = Signal(PRODUCT_BITS), Signal(PRODUCT_BITS)
        m.d.comb += [near.eq(operand << self.shift[:2]), far.eq(near << 4)]
        value = masked(near, self.near) | masked(far, self.far)
        return (value ^ self.negative.replicate(PRODUCT_BITS)).as_signed()

"""Fixed-4 on multipliers: two lanes and two columns share one."""

from __future__ import annotations

from amaranth.hdl import Module, Value

from .chain import QUAD
from .fixed8 import chain_delay, chain_sums, late_codes
from .operands import Pairs

__all__ = ["OPERAND_LIMIT", "Fixed4Quads"]

OPERAND_BITS = 6
OPERAND_LIMIT = 1 << (OPERAND_BITS - 1)
"""Operands are -OPERAND_LIMIT..OPERAND_LIMIT - 1."""


class Fixed4Quads:
    """Weights -7..7 of two lanes, times activations -32..31 of two columns (or keys and values -8..7, times -31..31), in
    cascades of multipliers (`Chain`).

    Cost: a quarter of a multiplier per product (a half in an odd last column) and 3.9 LUTs.
    """

    lanes = 2
    maximum = False
    carries = False
    operands = Pairs(chain_delay, OPERAND_BITS, QUAD.field_bits)

    def chunk_sums(self, m: Module, operand, codes, registers: int) -> list[list[Value]]:
        late = late_codes(m, codes)
        pairs = [chain_sums(m, QUAD, x, late, registers, f"columns_{c}") for c, x in enumerate(operand)]
        # Lowest first: lane 0 in the left and the right column, lane 1 in them.
        return [[field for pair in pairs for field in pair[2 * lane :][:2]] for lane in range(2)]

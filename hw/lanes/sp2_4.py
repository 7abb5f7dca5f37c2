"""SP2-4: sums of two powers of two."""

from __future__ import annotations

from amaranth.hdl import Module, Value

from .terms import Term, term_sums

__all__ = ["SP2"]


class SP2:
    """Weights 0 and plus or minus 1, 2, 4, 5, 6, 8, times an activation: two shifts and one addition.

    The magnitude is a + 4 * b with a, b in 0, 1, 2 (8 = 4 * 2). Source: Chang et al., "Mix and Match", HPCA 2021.
    """

    lanes = 1
    maximum = False

    def chunk_sums(self, m: Module, operand, codes) -> list[list[Value]]:
        (lane,) = codes
        # Magnitudes by index: 0, 1, 2, 4, 5, 6, 8, and 0 for the pattern 7, which no code uses.
        low = [
            Term(m, f"low_{i}", one=code[:3].matches(1, 4), two=code[:3].matches(2, 5), negative=code[3])
            for i, code in enumerate(lane)
        ]
        high = [
            Term(m, f"high_{i}", one=code[:3].matches(3, 4, 5), two=code[:3].matches(6), negative=code[3])
            for i, code in enumerate(lane)
        ]
        return [term_sums(m, operand, {0: low, 2: high})]

"""SP2-4: sums of two powers of two."""

from __future__ import annotations

from amaranth.hdl import C, Module, Value

from .terms import Term, term_sums

__all__ = ["SP2"]


class SP2:
    """Weights 0 and plus or minus 1, 2, 4, 5, 6, 8, times an activation: two shifts and one addition.

    The magnitude is a + 4 * b with a, b in 0, 1, 2 (8 = 4 * 2). Source: Chang et al., "Mix and Match", HPCA 2021.
    """

    lanes = 1
    maximum = False

    def chunk_sums(self, m: Module, operand, codes) -> list[list[Value]]:
        def index(code: Value, *members: int) -> Value:
            return C(sum(1 << member for member in members), 8).bit_select(code[:3], 1)

        (lane,) = codes
        # Magnitudes by index: 0, 1, 2, 4, 5, 6, 8, and 0 for the pattern 7, which no code uses.
        low = [Term(one=index(code, 1, 4), two=index(code, 2, 5), negative=code[3]) for code in lane]
        high = [Term(one=index(code, 3, 4, 5), two=index(code, 6), negative=code[3]) for code in lane]
        return [term_sums(m, operand, {0: low, 2: high})]

"""Fixed-4: two digits of radix 4, each a choice and a shift, in LUTs."""

from __future__ import annotations

from amaranth.hdl import Module, Value

from .terms import Term, term_sums

__all__ = ["Fixed4"]


class Fixed4:
    """Weights -8..7 (codes -7..7), times an activation, without multiplier.

    w = d0 + 4 * d1 with digits d0 = b0 - 2 * b1 and d1 = b1 + b2 - 2 * b3 (Booth, radix 4), so that a product is
    the sum of two terms, each 0, x or 2 * x with a sign.
    """

    lanes = 1
    maximum = False

    def chunk_sums(self, m: Module, operand, codes) -> list[list[Value]]:
        (lane,) = codes
        low = [
            Term(m, f"low_{i}", one=code[0], two=code[1] & ~code[0], negative=code[1])
            for i, code in enumerate(lane)
        ]
        high = [
            Term(
                m,
                f"high_{i}",
                one=code[1] ^ code[2],
                two=(code[1] == code[2]) & (code[3] ^ code[1]),
                negative=code[3],
            )
            for i, code in enumerate(lane)
        ]
        return [term_sums(m, operand, {0: low, 2: high})]

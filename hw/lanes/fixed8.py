"""Fixed-8: two lanes share a multiplier."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Value

from .sums import groups, register, total

__all__ = ["Fixed8Pair"]

FIELD_BITS = 18
"""Distance of the two products. A field holds the sum of four products: 4 * 128 * 255 < 2 ** 17."""
FIELD_SUMS = 4


class Fixed8Pair:
    """Weights -128..127 of two lanes, times one activation -128..255, in a 27 x 18 multiplier.

    ((w1 << 18) + w0) * x = (w1 * x << 18) + w0 * x. Four such words are summed before they are split: the low
    field is the signed sum of lane 0; the high field is lane 1's sum less one where the low field is negative.
    Method: Xilinx WP486 (Fu et al., 2017), with the sum in LUTs. Cost: half a multiplier per product.
    """

    lanes = 2
    maximum = True

    def chunk_sums(self, m: Module, operand, codes) -> list[list[Value]]:
        weights = [self.packed(low, high) for low, high in zip(*codes, strict=True)]
        columns = [self.column(m, weights, x, f"column_{c}") for c, x in enumerate(operand)]
        return [list(lane) for lane in zip(*columns, strict=True)]

    @staticmethod
    def packed(low: Value, high: Value) -> Value:
        """(high << 18) + low of two's complement codes: a decrement of `high` where `low` is negative."""
        borrowed = (high.as_signed() - low[-1])[:9]
        return Cat(low, low[-1].replicate(FIELD_BITS - 8), borrowed).as_signed()

    @staticmethod
    def column(m: Module, weights, operand, name: str) -> tuple[Value, Value]:
        """Chunk sums of lane 0 and lane 1 in one column."""
        products = [
            register(m, (w * x)[: 2 * FIELD_BITS - 1].as_signed(), f"{name}_product_{i}")
            for i, (w, x) in enumerate(zip(weights, operand, strict=True))
        ]
        packed = [
            register(m, total(group), f"{name}_group_{i}")
            for i, group in enumerate(groups(products, FIELD_SUMS))
        ]
        low = [word[:FIELD_BITS].as_signed() for word in packed]
        # The added bit is the borrow of the low field, as carry-in of the adder.
        high = [(word[FIELD_BITS:].as_signed(), word[FIELD_BITS - 1]) for word in packed]
        return (
            register(m, total(low), f"{name}_low"),
            register(m, total([field + borrow for field, borrow in high]), f"{name}_high"),
        )

"""A cascade of multipliers that take three weights each: what a board may replace by its own primitives."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import C, Cat, Module, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .sums import register

__all__ = ["FIELD_BITS", "TAPS", "TripleChain", "packed"]

TAPS = 2
"""Multipliers of a cascade."""
WEIGHTS, WEIGHT_BITS, OPERAND_BITS = 3, 4, 8
FIELD_BITS = 11
"""Distance of the weights, and so of the sums: a bit less than these have, 2 * 7 * 128 < 2 ** 11."""


class TripleChain(wiring.Component):
    """Three sums of two products in a word, LATENCY cycles after its inputs.

    `sum` = sum over i of (w[0] + (w[1] << FIELD_BITS) + (w[2] << 2 * FIELD_BITS)) * operand[i], w = weights[i], two's
    complement. This is the portable form, and the model of the primitives that take its place (`hw.shared.Registry`).
    """

    LATENCY = 4

    def __init__(self):
        super().__init__(self.ports())

    @staticmethod
    def ports() -> dict[str, wiring.Member]:
        """Of this component and of what takes its place."""
        return {
            "weights": In(data.ArrayLayout(data.ArrayLayout(WEIGHT_BITS, WEIGHTS), TAPS)),
            "operand": In(data.ArrayLayout(signed(OPERAND_BITS), TAPS)),
            "sum": Out(signed(WEIGHTS * FIELD_BITS + 1)),
        }

    def elaborate(self, platform):
        m = Module()
        products = []
        for i in range(TAPS):
            positive, negative = packed([self.weights[i][lane] for lane in range(WEIGHTS)])
            product = ((positive - negative) * self.operand[i])[: len(self.sum)].as_signed()
            products.append(register(m, product, f"product_{i}"))
        total = (products[0] + products[1])[: len(self.sum)].as_signed()
        for stage in range(self.LATENCY - 1):
            total = register(m, total, f"sum_{stage}")
        m.d.comb += self.sum.eq(total)
        return m


def packed(weights: Sequence[Value]) -> tuple[Value, Value]:
    """Two words whose difference holds the weights FIELD_BITS apart: their bits but the sign's, and the signs."""
    value = WEIGHT_BITS - 1
    apart = C(0, FIELD_BITS - value), C(0, FIELD_BITS - 1)
    bits = Cat(part for weight in weights for part in (weight[:value], apart[0]))
    signs = Cat(part for weight in weights for part in (weight[value], apart[1]))
    return bits[: -len(apart[0])], Cat(C(0, value), signs[: -len(apart[1])])

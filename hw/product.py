"""A product between registers: what a family's multipliers hold, or parts of it."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .lanes.sums import register

__all__ = ["PRODUCT_LATENCY", "Product", "SplitProduct"]

PRODUCT_LATENCY = 2
_WIDEST = 27
"""Bits of a signed factor of DSP48E2's multiplier; the other one has 18."""
_PART = 17
"""Bits of an unsigned part of a factor, for multipliers of 18 x 18 signed bits."""


class Product(wiring.Component):
    """`p` = `a` * `b` of PRODUCT_LATENCY cycles before, all signed; `b` has at most 18 bits.

    This is the portable form: one multiplier of 27 x 18 bits, the lowest bit of a wider `a` apart.
    """

    def __init__(self, a_bits: int, b_bits: int):
        super().__init__(
            {"a": In(signed(a_bits)), "b": In(signed(b_bits)), "p": Out(signed(a_bits + b_bits))}
        )

    def elaborate(self, platform):
        m = Module()
        extra = max(0, len(self.a) - _WIDEST)
        product = register(m, self.a[extra:].as_signed() * self.b, "product_1")
        if extra:
            assert extra == 1
            lowest = register(m, Mux(self.a[0], self.b, 0), "lowest_1")
            product = (product << 1) + lowest
        m.d.comb += self.p.eq(register(m, product[: len(self.p)].as_signed(), "product_2"))
        return m


class SplitProduct(Product):
    """`Product` of two multipliers of 18 x 18 bits and an adder behind their registers, or of one."""

    def elaborate(self, platform):
        if len(self.a) <= _PART + 1:
            return super().elaborate(platform)
        m = Module()
        low = register(m, Cat(self.a[:_PART], 0).as_signed() * self.b, "low_1")
        high = register(m, self.a[_PART:].as_signed() * self.b, "high_1")
        upper = register(m, (low >> _PART) + high, "upper_2")
        m.d.comb += self.p.eq(Cat(register(m, low[:_PART], "low_2"), upper))
        return m

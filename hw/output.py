"""Arithmetic of one output of the drain. Inputs and outputs carry their cycle in the drain's pipeline as a prefix."""

from __future__ import annotations

from amaranth.hdl import Array, C, Cat, Module, Mux, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..arch.accelerator import TABLE_ROW_BYTES
from ..arch.numerics import ACCUMULATOR_BITS
from .delay import delayed
from .product import Product
from .requantize import saturate, shifted
from .shared import Shared

__all__ = ["Output", "PlainOutput"]


def clamped(value, lo, hi):
    """min(max(value, lo), hi)."""
    return Mux(value > hi, hi, Mux(value < lo, lo, value))


def requantized(m: Module, sum: Value, factor: Value, constant: Value, n: Value) -> Value:
    """(p2 sum * p2 factor + p5 constant) >> p6 n, 16 bits in p8."""
    m.submodules.product = product = Shared(Product, ACCUMULATOR_BITS, 17)
    m.d.comb += [product.a.eq(delayed(m, sum, 1)), product.b.eq(delayed(m, factor, 1))]
    p6_total = delayed(m, product.p + constant, 1)
    return delayed(m, shifted(p6_total, n, 16, lambda value: delayed(m, value, 1)), 1)


class Output(wiring.Component):
    """One output channel in one column, with `table` a unary table, and with `squares` the output and its square, where the
    instruction says so (`p12_square`), in place of a second output."""

    def __init__(self, table: bool = True, squares: bool = False):
        self.table, self.squares = table, squares
        super().__init__(
            {
                "p2_sum": In(signed(ACCUMULATOR_BITS)),
                "p2_m": In(16),
                "p5_constant": In(signed(48)),
                "p6_n": In(6),
                "p6_residual": In(signed(16)),
                "p6_residual_m": In(16),
                "p7_residual_round": In(48),
                "p8_residual_n": In(6),
                "p8_wide": In(1),
                "p9_index": Out(10),
                "p10_add": In(1),
                "p11_row": In(TABLE_ROW_BYTES * 8),
                "p11_table": In(1),
                "p11_lo": In(signed(16)),
                "p11_hi": In(signed(16)),
                "p13": Out(signed(16)),
                "p12_m": In(16),
                "p14_constant": In(signed(40)),
                "p15_n": In(6),
                "p16_lo": In(signed(8)),
                "p16_hi": In(signed(8)),
                # What is below and above them with as many bits as `p15_n`'s last two say: lo << n, ((hi + 1) << n) - 1.
                "p16_least": In(signed(11)),
                "p16_most": In(signed(11)),
                "p16": Out(signed(16)),
                "p17_second": Out(signed(8)),
                **({"p12_square": In(1), "p14": Out(signed(16)), "p14_square": Out(31)} if squares else {}),
            }
        )

    def elaborate(self, platform):
        m = Module()

        def register(value):
            return delayed(m, value, 1)

        p8 = requantized(m, self.p2_sum, self.p2_m, self.p5_constant, self.p6_n)
        p7_scaled = register(self.p6_residual * self.p6_residual_m)
        p8_scaled = register(p7_scaled + self.p7_residual_round)
        p10_scaled = register(shifted(p8_scaled, self.p8_residual_n, 17, register))
        p10 = delayed(m, p8, 2)
        p11 = register(Mux(self.p10_add, saturate(p10 + p10_scaled, 16), p10))
        if self.table:
            index = Mux(self.p8_wide, saturate(p8, 10) ^ 0x200, (saturate(p8, 8) ^ 0x80)[:8])
            p9_index = register(index)
            entries = Array(self.p11_row.word_select(i, 8).as_signed() for i in range(TABLE_ROW_BYTES))
            m.d.comb += self.p9_index.eq(p9_index)
            p11 = Mux(self.p11_table, entries[delayed(m, p9_index[:3], 2)], p11)
        p12_clamped = clamped(register(p11), register(self.p11_lo), register(self.p11_hi))
        p14 = delayed(m, p12_clamped, 2)
        m.d.comb += [self.p13.eq(register(p12_clamped)), self.p16.eq(delayed(m, p14, 2))]

        p13_factor = register(Mux(self.p12_square, p12_clamped, self.p12_m) if self.squares else self.p12_m)
        p14_product = register(self.p13 * p13_factor)
        if self.squares:
            m.d.comb += [self.p14.eq(p14), self.p14_square.eq(p14_product)]
        p15_total = register(p14_product + self.p14_constant)
        # The limits are compared while the last two bits are applied.
        p16_part = shifted(p15_total, Cat(C(0, 2), self.p15_n[2:]), 11, register, left=2)
        p16_second = (p16_part >> register(self.p15_n[:2]))[:8].as_signed()
        above = Mux(p16_part > self.p16_most, self.p16_hi, p16_second)
        m.d.comb += self.p17_second.eq(register(Mux(p16_part < self.p16_least, self.p16_lo, above)))
        return m


class PlainOutput(wiring.Component):
    """`Output` without residual, table and second output."""

    def __init__(self):
        super().__init__(
            {
                "p2_sum": In(signed(ACCUMULATOR_BITS)),
                "p2_m": In(16),
                "p5_constant": In(signed(48)),
                "p6_n": In(6),
                "p11_lo": In(signed(16)),
                "p11_hi": In(signed(16)),
                "p13": Out(signed(16)),
                "p16": Out(signed(16)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        p8 = requantized(m, self.p2_sum, self.p2_m, self.p5_constant, self.p6_n)
        p12_lo, p12_hi = delayed(m, self.p11_lo, 1), delayed(m, self.p11_hi, 1)
        p13 = delayed(m, clamped(delayed(m, p8, 4), p12_lo, p12_hi), 1)
        m.d.comb += [self.p13.eq(p13), self.p16.eq(delayed(m, p13, 3))]
        return m

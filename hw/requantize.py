"""The requantizer: multiply, add, shift, saturate."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Shape, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .lanes.sums import register

__all__ = ["Requantizer", "saturate"]


def saturate(value: Value, bits: int) -> Value:
    """`value` (signed) clamped to the range of a signed number of `bits` bits."""
    width = len(value)
    assert Shape.cast(value.shape()).signed
    if width <= bits:
        return value
    sign, upper = value[-1], value[bits - 1 : -1]
    fits = Mux(sign, upper.all(), ~upper.any())
    limit = Cat((~sign).replicate(bits - 1), sign)
    return Mux(fits, value[:bits], limit).as_signed()


class Requantizer(wiring.Component):
    """v = sat16((acc * m + constant) >> n), three cycles after its inputs, one result per cycle.

    `n` must be stable while results that use it are in the pipeline; 0..63 are legal. A clamp to any range of 16
    bits may follow: it gives the same as a clamp without the saturation.
    """

    LATENCY = 3

    def __init__(self, acc_bits: int, m_bits: int = 17):
        self.acc_bits = acc_bits
        self.m_bits = m_bits
        super().__init__(
            {
                "acc": In(signed(acc_bits)),
                "m": In(signed(m_bits)),
                "constant": In(signed(48)),
                "n": In(6),
                "v": Out(signed(16)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        product = register(m, self.acc * self.m, "product")
        constant = register(m, self.constant, "constant_1")
        rounded = register(m, product + constant, "rounded")
        v = register(m, saturate(rounded >> self.n, 16), "v_3")
        m.d.comb += self.v.eq(v)
        return m

"""The requantizer: multiply, add, shift, saturate."""

from __future__ import annotations

from collections.abc import Callable

from amaranth.hdl import C, Cat, Module, Mux, Shape, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .delay import delayed
from .lanes.sums import register
from .product import PRODUCT_LATENCY, Product
from .shared import Shared

__all__ = ["Requantizer", "saturate", "shifted"]


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


def shifted(
    value: Value,
    amount: Value,
    bits: int,
    halfway: Callable[[Value], Value] = lambda value: value,
    left: int = 4,
) -> Value:
    """`saturate(value >> amount, bits)` of a signed `value` and an `amount` of 6 bits, at under half the LUTs.

    The amount is applied two bits at a time, the highest first; each time only the bits are kept that can still
    become part of the result, and whether others differ from the sign is noted. `halfway` is applied to all that goes
    on when `left` (4 or 2) bits of the amount are left: a register, so that the result comes a cycle later, at half the levels of LUTs.
    """
    assert Shape.cast(value.shape()).signed and len(amount) == 6
    sign, over = value[-1], C(0, 1)
    for low in (4, 2, 0):
        digit, unit = amount[low : low + 2], 1 << low
        kept = bits - 1 + unit - 1
        if len(value) <= kept + 1:
            value = Cat(value, sign.replicate(kept + 2 - len(value)))
        ends = [(choice + 1) * unit + kept for choice in range(3)] + [len(value)]
        for choice, end in enumerate(ends):
            dropped = value[choice * unit + kept : end]
            if len(dropped):
                reached = digit <= choice if choice < 3 else C(1, 1)
                over = over | (reached & (dropped ^ sign.replicate(len(dropped))).any())
        words = [Cat(value[choice * unit :], sign.replicate(kept))[:kept] for choice in range(4)]
        value = Cat(Mux(digit[1], Mux(digit[0], words[3], words[2]), Mux(digit[0], words[1], words[0])), sign)
        if low == left:
            value, over, amount = halfway(value), halfway(over), halfway(amount[:low])
            sign = value[-1]
    return Mux(over, Cat((~sign).replicate(bits - 1), sign), value).as_signed()


class Requantizer(wiring.Component):
    """v = sat16((acc * m + constant) >> n), LATENCY cycles after `acc` and `m`, one result per cycle.

    `constant` belongs to the cycle after theirs. `n` must be stable while results that use it are in the pipeline; 0..63 are
    legal. A clamp to any range of 16 bits may follow: it gives the same as a clamp without the saturation.
    """

    LATENCY = PRODUCT_LATENCY + 3

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
        m.submodules.product = product = Shared(Product, self.acc_bits, self.m_bits)
        m.d.comb += [product.a.eq(self.acc), product.b.eq(self.m)]
        constant = register(m, self.constant, "constant_2")
        rounded = register(m, product.p + constant, "rounded")
        v = shifted(rounded, self.n, 16, lambda value: delayed(m, value, 1))
        m.d.comb += self.v.eq(register(m, v, "v_5"))
        return m

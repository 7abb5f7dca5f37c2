"""Softmax's row scales: the deferred division, one column per cycle."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ...arch.accelerator import Accelerator
from ..lanes.sums import groups, register
from ..ports import row_scale_layout

__all__ = ["TOTAL_BITS", "RowScales", "leading_one"]

TOTAL_BITS = 20
"""The sum of 4,095 values of 8 bits."""


def leading_one(m: Module, value: Value, name: str) -> Signal:
    """The number of the highest bit of `value` that is 1 (0 where there is none); a tree, so that its levels are few."""
    places = [(value[i], []) for i in range(len(value))]
    """Whether a part has such a bit, and the bits of its place there, the lowest first."""
    while len(places) > 1:
        pairs, places = list(groups(places, 2)), []
        for (some, low), *above in pairs:
            found, high = above[0] if above else (C(0, 1), low)
            bits = [Mux(found, *both) for both in zip(high, low, strict=True)] + [found]
            place, either = Signal(len(bits), name=f"{name}_place"), Signal(name=f"{name}_found")
            m.d.comb += [place.eq(Cat(bits)), either.eq(some | found)]
            places.append((either, list(place)))
    position = Signal(range(len(value)), name=name)
    m.d.comb += position.eq(Cat(places[0][1]))
    return position


class RowScales(wiring.Component):
    """numerics.softmax_row_scale of every column's total, taken in the cycle of `capture`.

    `valid` is high for one cycle, columns + 7 cycles after `capture`, with the scales of all columns. Captures must
    be at least `columns` cycles apart; `m2` and `n2` must be stable from a capture until `valid`. `index` and
    `value` go to the RECIP table.
    """

    def __init__(self, accelerator: Accelerator):
        self.columns = accelerator.columns
        super().__init__(
            {
                "capture": In(1),
                "totals": In(data.ArrayLayout(TOTAL_BITS, self.columns)),
                "m2": In(16),
                "n2": In(6),
                "index": Out(8),
                "value": In(16),
                "valid": Out(1),
                "scales": Out(row_scale_layout(accelerator)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns = self.columns
        shadow = Signal(data.ArrayLayout(TOTAL_BITS, columns), reset_less=True)
        scales = Signal(self.scales.shape(), reset_less=True)
        left = Signal(ceil_log2(columns + 1))

        with m.If(self.capture):
            m.d.sync += [shadow.eq(self.totals), left.eq(columns)]
        with m.Elif(left.any()):
            m.d.sync += [shadow[c].eq(shadow[c + 1]) for c in range(columns - 1)]
            m.d.sync += left.eq(left - 1)

        total = register(m, shadow[0], "total_1")
        exponent = register(m, leading_one(m, shadow[0], "exponent"), "exponent_1")
        index = register(m, ((total << 8) >> exponent)[:8], "index_2")
        m.d.comb += self.index.eq(index)
        empty = register(m, total == 0, "empty_2")
        exponent = register(m, exponent, "exponent_2")
        for stage in range(3, 7):
            empty, exponent = (
                register(m, value, f"{name}_{stage}")
                for name, value in (("empty", empty), ("exponent", exponent))
            )
        product = register(m, self.m2 * self.value, "product_6")

        high = product[31]
        shown = Mux(high, product[15:], product[14:])
        rounded = (shown + 1) >> 1
        scale = scales[columns - 1]
        active, last = left.any(), left == 1
        for stage in range(1, 7):
            active, last = self.delayed(m, active, f"active_{stage}"), self.delayed(m, last, f"last_{stage}")
        with m.If(active):
            m.d.sync += [scales[c].eq(scales[c + 1]) for c in range(columns - 1)]
            m.d.sync += [
                scale.m.eq(Mux(empty, 0, Mux(rounded[16:].any(), 0xFFFF, rounded[:16]))),
                scale.n.eq(Mux(empty, 1, self.n2 + exponent + Mux(high, 0, 1))),
            ]
        m.d.comb += [self.valid.eq(self.delayed(m, last, "last_7")), self.scales.eq(scales)]
        return m

    def delayed(self, m: Module, value: Value, name: str) -> Signal:
        """`value` one cycle later, 0 after a reset."""
        following = Signal(name=name)
        m.d.sync += following.eq(value)
        return following

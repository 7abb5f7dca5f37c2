"""COMPACT: the numbers of the positions that are kept, one column per cycle."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ...arch.accelerator import Accelerator
from ...arch.isa import REGISTER_BITS
from ..ports import IndexWrite, RegisterWrite

__all__ = ["Compactor"]


class Compactor(wiring.Component):
    """Writes entries of the index memory from `index` on, then their number to a register.

    `start` begins with position 0; `index`, `positions` and `register` must be stable afterwards. `kept` is taken in
    the cycle of `capture`; captures must be at least `columns` cycles apart. The cycle after each capture treats the
    first column; the register is written while the last column of the last tile is treated.
    """

    def __init__(self, accelerator: Accelerator):
        self.columns = accelerator.columns
        super().__init__(
            {
                "start": In(1),
                "index": In(16),
                "positions": In(18),
                "register": In(4),
                "capture": In(1),
                "kept": In(self.columns),
                "entries": Out(IndexWrite()),
                "count": Out(RegisterWrite()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        kept = Signal(self.columns, reset_less=True)
        left = Signal(ceil_log2(self.columns + 1))
        position, count = Signal(REGISTER_BITS), Signal(REGISTER_BITS)
        with m.If(self.capture):
            m.d.sync += [kept.eq(self.kept), left.eq(self.columns)]
        with m.Elif(left.any()):
            m.d.sync += [kept.eq(kept >> 1), left.eq(left - 1)]
        following = Mux(self.entries.valid, count + 1, count)[:REGISTER_BITS]
        with m.If(self.start):
            m.d.sync += [position.eq(0), count.eq(0)]
        with m.Elif(left.any()):
            m.d.sync += [position.eq(position + 1), count.eq(following)]
        m.d.comb += [
            self.entries.valid.eq(left.any() & kept[0] & (position < self.positions)),
            self.entries.entry.eq(self.index + count),
            self.entries.value.eq(position),
            self.count.valid.eq((left == 1) & (position + 1 >= self.positions)),
            self.count.register.eq(self.register),
            self.count.value.eq(following),
        ]
        return m

"""The vector engine's memory of row moments, which the drain writes."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ...arch.accelerator import Accelerator
from ..ports import ROW_BITS, RowMomentsPort, sums_layout

__all__ = ["Summed"]


class Summed(wiring.Component):
    """Sums of the tiles of a LAYERNORM, whose first row comes with `start`: with `prepare` those of the next tile begin to
    come two cycles later on `sums`, a column per cycle. `bank` is the tile's number modulo 2."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "write": In(RowMomentsPort(accelerator)),
                "start": In(1),
                "row": In(ROW_BITS),
                "prepare": In(1),
                "valid": Out(1),
                "bank": Out(1),
                "sums": Out(sums_layout()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        a, bits = self.accelerator, ceil_log2(self.accelerator.columns)
        m.submodules.rows = rows = memory.Memory(
            shape=sums_layout().size, depth=a.row_moments << bits, init=[]
        )
        read, write = rows.read_port(), rows.write_port()
        row, column = Signal(ROW_BITS, reset_less=True), Signal(bits)
        active, bank = Signal(), Signal()
        last = column == a.columns - 1
        m.d.comb += [
            write.en.eq(self.write.valid),
            write.addr.eq(self.write.entry),
            write.data.eq(self.write.moments),
            read.addr.eq(Cat(column, row)),
            self.sums.eq(read.data),
        ]
        m.d.sync += [self.valid.eq(active), self.bank.eq(bank)]
        with m.If(active):
            m.d.sync += [column.eq(column + 1), active.eq(~last)]
            with m.If(last):
                m.d.sync += [row.eq(row + 1), bank.eq(~bank)]
        with m.If(self.prepare):
            m.d.sync += [active.eq(1), column.eq(0)]
        with m.If(self.start):
            m.d.sync += [row.eq(self.row), bank.eq(0)]
        return m

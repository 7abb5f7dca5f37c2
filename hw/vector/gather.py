"""GATHER: rows and columns of the input positions that the index memory names."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ...arch.accelerator import Accelerator
from ..divide import divided
from ..lanes.sums import register
from ..ports import ROW_BITS, IndexRead

__all__ = ["Gatherer"]


class Gatherer(wiring.Component):
    """The first row and the column of one input position after the other.

    `start` begins with entry `index`; `take` moves on. Outputs belong to the new entry from GATHER_LATENCY + 1 cycles
    after `start` or `take` on; with `first` low they are those of the entry that was taken last.
    """

    def __init__(self, accelerator: Accelerator):
        self.columns = accelerator.columns
        super().__init__(
            {
                "start": In(1),
                "take": In(1),
                "first": In(1),
                "index": In(16),
                "src": In(ROW_BITS),
                "src_stride": In(12),
                "entries": Out(IndexRead()),
                "row": Out(ROW_BITS),
                "column": Out(range(self.columns)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        entry = Signal(16, reset_less=True)
        with m.If(self.start):
            m.d.sync += entry.eq(self.index)
        with m.Elif(self.take):
            m.d.sync += entry.eq(entry + 1)
        m.d.comb += self.entries.entry.eq(entry)

        position = self.entries.value
        tile, word = divided(m, position, self.columns, "position")
        offset = register(m, (tile * self.src_stride)[:ROW_BITS], "offset_3")
        row = register(m, (self.src + offset)[:ROW_BITS], "row_4")
        column = register(m, register(m, word, "column_3"), "column_4")
        for output, following, name in ((self.row, row, "row"), (self.column, column, "column")):
            taken = Signal.like(output, name=f"{name}_taken", reset_less=True)
            m.d.comb += output.eq(Mux(self.first, following, taken))
            m.d.sync += taken.eq(Mux(self.take, following, taken))
        return m

"""Tables of the vector engine: unary functions, EXP, RECIP, RSQRT."""

from __future__ import annotations

from amaranth.hdl import Array, Module
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ...arch.accelerator import TABLE_ROW_BYTES
from ..lanes.sums import register

__all__ = ["Table"]


class Table(wiring.Component):
    """A table of `entries` values of `bits` (8 or 16) bits, loaded in rows of 8 bytes, zero at power-up.

    `value[r]` is the entry `index[r]` of three cycles before. Every reader has a read port; synthesis makes as many
    copies of the memory as it needs.
    """

    def __init__(self, entries: int, bits: int, readers: int):
        self.entries = entries
        self.bits = bits
        self.readers = readers
        self.rows = entries * bits // 8 // TABLE_ROW_BYTES
        super().__init__(
            {
                "index": In(data.ArrayLayout(ceil_log2(entries), readers)),
                "value": Out(data.ArrayLayout(bits, readers)),
                "load_valid": In(1),
                "load_row": In(ceil_log2(self.rows)),
                "load_data": In(TABLE_ROW_BYTES * 8),
            }
        )

    def elaborate(self, platform):
        m = Module()
        per_row = TABLE_ROW_BYTES * 8 // self.bits
        select_bits = ceil_log2(per_row)
        for reader in range(self.readers):
            # A copy for each reader: a block RAM has one port beside that which loads it.
            rows = memory.Memory(shape=TABLE_ROW_BYTES * 8, depth=self.rows, init=[])
            m.submodules[f"rows_{reader}"] = rows
            read, write = rows.read_port(), rows.write_port()
            index = self.index[reader]
            # A block RAM answers late in its cycle: its row has a register, too.
            row, select = register(m, read.data, f"row_{reader}"), index[:select_bits]
            for stage in range(1, 3):
                select = register(m, select, f"select_{reader}_{stage}")
            entries = Array(row[i * self.bits :][: self.bits] for i in range(per_row))
            value = register(m, entries[select], f"value_{reader}")
            m.d.comb += [
                write.en.eq(self.load_valid),
                write.addr.eq(self.load_row),
                write.data.eq(self.load_data),
                read.en.eq(1),
                read.addr.eq(index[select_bits:]),
                self.value[reader].eq(value),
            ]
        return m

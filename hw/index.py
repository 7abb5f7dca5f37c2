"""Index memory: what gathers take their rows, weights and positions from."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from ..arch import isa
from ..arch.accelerator import Accelerator
from .ports import IndexRead, IndexWrite, LoadPort

__all__ = ["READERS", "IndexMemory"]

READERS = ("load_read", "matrix_read", "vector_read")
_ENTRIES = 4
"""In a row of LOAD."""


class IndexMemory(wiring.Component):
    """A copy for each of `READERS`. `write` may have entries from the cycle after `claimed` rises to the one after it falls; rows of LOAD wait then. A write
    shows in the next cycle."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "load": In(LoadPort(accelerator)),
                "write": In(IndexWrite()),
                "claimed": In(1),
                **{name: In(IndexRead()) for name in READERS},
            }
        )

    def elaborate(self, platform):
        m = Module()
        part_bits = (_ENTRIES - 1).bit_length()
        entry, part = self.write.entry >> part_bits, self.write.entry[:part_bits]
        claimed = Signal()
        m.d.comb += self.load.ready.eq(~claimed)
        m.d.sync += claimed.eq(self.claimed)
        for name in READERS:
            reader = getattr(self, name)
            m.submodules[name] = storage = memory.Memory(
                shape=_ENTRIES * isa.INDEX_BITS, depth=self._accelerator.index_rows // _ENTRIES, init=[]
            )
            read, write = storage.read_port(), storage.write_port(granularity=isa.INDEX_BITS)
            shown = Signal(part_bits, name=f"{name}_part")
            m.d.sync += shown.eq(reader.entry)
            m.d.comb += [
                write.addr.eq(Mux(claimed, entry, self.load.row)),
                write.data.eq(Mux(claimed, self.write.value.replicate(_ENTRIES), self.load.data)),
                write.en.eq(
                    Mux(
                        claimed,
                        Cat(self.write.valid & (part == i) for i in range(_ENTRIES)),
                        self.load.valid.replicate(_ENTRIES),
                    )
                ),
                read.addr.eq(reader.entry >> part_bits),
                reader.value.eq(read.data.word_select(shown, isa.INDEX_BITS)),
            ]
        return m

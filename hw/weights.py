"""Weight memory: a memory per lane, filled by LOAD and, on the first lanes, by the drain."""

from __future__ import annotations

import math

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..arch.accelerator import Accelerator
from ..arch.schemes import storage_bits
from .ports import ROW_BITS

__all__ = ["PART_BITS", "DrainWrite", "Memory", "word_parts"]

PART_BITS = 8
"""Of a place in a block of lanes (`dst_part`)."""


def word_parts(accelerator: Accelerator) -> int:
    """Tiles of tokens in a word of values."""
    return accelerator.depth // accelerator.columns


class DrainWrite(wiring.Signature):
    """One drain step of KEYS or VALUES, facing the drain; always accepted.

    KEYS: with T = depth // columns, column c goes to lane part // T * depth + part % T * columns + c, its `drain` values to codes block * drain and up.
    VALUES: bank i goes to lane part * drain + i, its `columns` values to codes block * columns and up.
    Lanes of 4 bits take the low ones.
    """

    def __init__(self, accelerator: Accelerator):
        blocks = max(word_parts(accelerator), accelerator.depth // accelerator.drain)
        super().__init__(
            {
                "valid": Out(1),
                "keys": Out(1),
                "row": Out(ROW_BITS),
                "part": Out(PART_BITS),
                "block": Out(range(blocks)),
                "values": Out(data.ArrayLayout(data.ArrayLayout(8, accelerator.drain), accelerator.columns)),
            }
        )


class Memory(wiring.Component):
    """Reads a row per cycle: `weights` belongs to the `row` of the cycle before.

    A write of the drain has priority over one from LOAD; both reach the memory a cycle later.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.rams = [
            memory.MemoryData(
                shape=storage_bits(kind) * accelerator.depth, depth=accelerator.weight_rows, init=[]
            )
            for kind in accelerator.lanes.kinds
        ]
        super().__init__(
            {
                "row": In(ROW_BITS),
                "drain": In(DrainWrite(accelerator)),
                "load": In(1),
                "load_row": In(ROW_BITS),
                "load_data": In(accelerator.weight_row_bytes * 8),
                **{
                    f"weights_{lane}": Out(storage_bits(kind) * accelerator.depth)
                    for lane, kind in enumerate(accelerator.lanes.kinds)
                },
            }
        )

    @property
    def weights(self) -> list[Signal]:
        """What each lane reads."""
        return [getattr(self, f"weights_{lane}") for lane in range(self.accelerator.lanes.total)]

    def elaborate(self, platform):
        m = Module()
        columns, depth, drain = self.accelerator.columns, self.accelerator.depth, self.accelerator.drain
        small, tiles = math.gcd(columns, drain), word_parts(self.accelerator)
        row = Signal(ceil_log2(self.accelerator.weight_rows), reset_less=True)
        m.d.sync += row.eq(Mux(self.drain.valid, self.drain.row, self.load_row))
        kinds = self.accelerator.lanes.kinds
        words = {
            bits: self.words(m, bits)
            for bits in sorted({storage_bits(k) for k in kinds[: self.accelerator.lanes.dynamic]})
        }
        masks = {}
        for keys, width in ((True, drain), (False, columns)):
            hits = [self.drain.block == b for b in range(depth // width)]
            masks[keys] = Cat(hit.replicate(width // small) for hit in hits)
        mask = Signal(depth // small)
        m.d.comb += mask.eq(Mux(self.drain.keys, masks[True], masks[False]))

        offset = 0
        for lane, kind in enumerate(kinds):
            bits, dynamic = storage_bits(kind), lane < self.accelerator.lanes.dynamic
            width = bits * depth
            ram = memory.Memory(self.rams[lane])
            m.submodules[f"lane_{lane}"] = ram
            loaded = self.load_data[offset : offset + width]
            write = ram.write_port(granularity=small * bits if dynamic else None)
            word, enable = Signal(width, reset_less=True), Signal(len(write.en))
            if dynamic:
                tile, column = divmod(lane % depth, columns)
                part, keyed = lane // depth * tiles + tile, tile < tiles
                mine = Mux(
                    self.drain.keys, (self.drain.part == part) & keyed, self.drain.part == lane // drain
                )
                of_columns, of_banks = words[bits]
                drained = Mux(self.drain.keys, of_columns[column], of_banks[lane % drain])
                m.d.sync += [
                    word.eq(Mux(self.drain.valid, drained, loaded)),
                    enable.eq(Mux(self.drain.valid, Mux(mine, mask, 0), self.load.replicate(len(enable)))),
                ]
            else:
                m.d.sync += [word.eq(loaded), enable.eq(self.load & ~self.drain.valid)]
            read = ram.read_port()
            m.d.comb += [
                write.addr.eq(row),
                write.data.eq(word),
                write.en.eq(enable),
                read.addr.eq(self.row),
                self.weights[lane].eq(read.data),
            ]
            offset += width
        return m

    def words(self, m: Module, bits: int) -> tuple[list[Signal], list[Signal]]:
        """What the drain writes to lanes whose codes have `bits` bits: the words of each column's keys, of each bank's
        values."""
        columns, depth, drain = self.accelerator.columns, self.accelerator.depth, self.accelerator.drain
        codes = [[self.drain.values[c][i][:bits] for i in range(drain)] for c in range(columns)]
        keys = [Signal(depth * bits, name=f"column_word_{c}_{bits}") for c in range(columns)]
        values = [Signal(depth * bits, name=f"bank_word_{i}_{bits}") for i in range(drain)]
        for c, word in enumerate(keys):
            m.d.comb += word.eq(Cat(codes[c]).replicate(depth // drain))
        for i, word in enumerate(values):
            m.d.comb += word.eq(
                Cat(codes[c][i] for c in range(columns)).replicate(word_parts(self.accelerator))
            )
        return keys, values

"""Weight memory: a memory per lane, filled by LOAD and, on Fixed-8 lanes, by the drain."""

from __future__ import annotations

import math

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..arch.accelerator import Accelerator
from ..arch.schemes import Scheme, storage_bits
from .ports import ROW_BITS

__all__ = ["DrainWrite", "Memory", "key_parts", "word_parts"]


def word_parts(accelerator: Accelerator) -> int:
    """Tiles of tokens in a word of values."""
    return accelerator.depth // accelerator.columns


def key_parts(accelerator: Accelerator) -> int:
    """Tiles of keys in a block of Fixed-8 lanes."""
    return word_parts(accelerator) * accelerator.lanes.fixed8 // accelerator.depth


class DrainWrite(wiring.Signature):
    """One drain step of KEYS or VALUES, facing the drain; always accepted.

    KEYS: with T = depth // columns, column c goes to lane part // T * depth + part % T * columns + c, its `drain` values to codes block * drain and up.
    VALUES: bank i goes to lane part * drain + i, its `columns` values to codes block * columns and up.
    """

    def __init__(self, accelerator: Accelerator):
        parts = max(key_parts(accelerator), accelerator.lanes.fixed8 // accelerator.drain)
        blocks = max(word_parts(accelerator), accelerator.depth // accelerator.drain)
        super().__init__(
            {
                "valid": Out(1),
                "keys": Out(1),
                "row": Out(ROW_BITS),
                "part": Out(range(parts)),
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
        column_words = [Signal(depth * 8, name=f"column_word_{c}") for c in range(columns)]
        bank_words = [Signal(depth * 8, name=f"bank_word_{i}") for i in range(drain)]
        for c, word in enumerate(column_words):
            m.d.comb += word.eq(self.drain.values[c].as_value().replicate(depth // drain))
        for i, word in enumerate(bank_words):
            values = Cat(self.drain.values[c][i] for c in range(columns))
            m.d.comb += word.eq(values.replicate(tiles))
        masks = {}
        for keys, width in ((True, drain), (False, columns)):
            hits = [self.drain.block == b for b in range(depth // width)]
            masks[keys] = Cat(hit.replicate(width // small) for hit in hits)
        mask = Signal(depth // small)
        m.d.comb += mask.eq(Mux(self.drain.keys, masks[True], masks[False]))

        offset = 0
        for lane, kind in enumerate(self.accelerator.lanes.kinds):
            width = storage_bits(kind) * depth
            ram = memory.Memory(self.rams[lane])
            m.submodules[f"lane_{lane}"] = ram
            loaded = self.load_data[offset : offset + width]
            write = ram.write_port(granularity=small * 8 if kind == Scheme.FIXED8 else None)
            word, enable = Signal(width, reset_less=True), Signal(len(write.en))
            if kind == Scheme.FIXED8:
                tile, column = divmod(lane % depth, columns)
                part, keyed = lane // depth * tiles + tile, tile < tiles
                mine = Mux(
                    self.drain.keys, (self.drain.part == part) & keyed, self.drain.part == lane // drain
                )
                drained = Mux(self.drain.keys, column_words[column], bank_words[lane % drain])
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

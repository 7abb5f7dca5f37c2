"""From rows of the scratchpad to chunks in the operand buffer."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, enum, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from ..arch.accelerator import Accelerator
from .delay import delayed
from .operand import WriteSignature

__all__ = ["ALIGN_CYCLES", "Align", "Source", "element_layout"]

ALIGN_CYCLES = 3
"""From a row at the port to its words at the operand buffer."""


class Source(enum.Enum, shape=2):
    """A row that words are taken from."""

    OLDER = 0
    """The one before the last that arrived."""
    NEWER = 1
    """The last that arrived."""
    ARRIVING = 2


def element_layout(accelerator: Accelerator) -> data.StructLayout:
    """What becomes of rows: each column in `writes` gets a word of the rows, or padding.

    Rows of words follow each other as `low`, `high`; column c takes word `words[c]` of `high` if that is below
    `first`, else of `low`. `join`: of word 0's number and the one before it, bytes from `shift`; of those, bytes
    first_byte <= i < last_byte are data, others padding. `private`: the same of every row that was read,
    of `odd` taps in the order of the other half.
    """
    columns, byte_bits = accelerator.columns, exact_log2(accelerator.depth)
    word_bits = ceil_log2(columns)
    return data.StructLayout(
        {
            "keep": 1,
            "serve": 1,
            "writes": columns,
            "padding": columns,
            "counts": 1,
            "address": exact_log2(accelerator.operand_chunks),
            "words": data.ArrayLayout(word_bits, columns),
            "first": word_bits,
            "low": Source,
            "high": Source,
            "pad_value": 8,
            "join": 1,
            "private": 1,
            "odd": 1,
            "shift": byte_bits,
            "first_byte": byte_bits + 1,
            "last_byte": byte_bits + 1,
        }
    )


class Align(wiring.Component):
    """Takes an element with its row (if it is to `keep` one) in every cycle; the last two rows kept are at hand."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "valid": In(1),
                "element": In(element_layout(accelerator)),
                "row": In(accelerator.private * accelerator.scratchpad_row_bytes * 8),
                "write": Out(WriteSignature(accelerator)),
                "counts": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns, bits = self.accelerator.columns, self.accelerator.depth * 8
        banks = range(self.accelerator.private)

        # One row of words out of up to two.
        older, newer = Signal.like(self.row, reset_less=True), Signal.like(self.row, reset_less=True)
        with m.If(self.valid & self.element.keep):
            m.d.sync += [older.eq(newer), newer.eq(self.row)]
        mixed = [[] for _ in banks]
        for number in range(columns):
            source = self.element.low
            if number < columns - 1:  # `first` is at most columns - 1
                source = Mux(number < self.element.first, self.element.high, source)
            for bank in banks:
                at = bank * columns + number
                part = [row.word_select(at, bits) for row in (older, newer, self.row)]
                word = Mux(source == Source.ARRIVING, part[2], Mux(source == Source.NEWER, part[1], part[0]))
                mixed[bank].append(delayed(m, word, 1))
        s1_serve = delayed(m, self.valid & self.element.serve, 1, reset_less=False)
        s1 = delayed(m, self.element, 1)

        # A word for each column.
        words = [[delayed(m, Array(row)[s1.words[column]], 1) for column in range(columns)] for row in mixed]
        s2_serve, s2 = delayed(m, s1_serve, 1, reset_less=False), delayed(m, s1, 1)

        joined = self.joined(m, s2_serve, s2, words[0][0])
        m.d.comb += [
            self.write.address.eq(delayed(m, s2.address, 1)),
            self.write.wide.eq(delayed(m, s2.private, 1)),
        ]
        m.d.sync += self.counts.eq(s2_serve & s2.counts)
        for column in range(columns):
            m.d.sync += self.write.enable[column].eq(s2_serve & s2.writes[column])
            for bank in banks:
                word = words[bank][column]
                if self.accelerator.private_taps > 1:
                    word = Mux(s2.odd, words[bank ^ len(banks) // 2][column], word)
                if bank:
                    word = Mux(s2.private, word, words[0][column])
                padded = Mux(s2.padding[column], s2.pad_value.replicate(self.accelerator.depth), word)
                word = delayed(m, Mux(s2.join, joined, padded), 1)
                m.d.comb += self.write.data[bank * columns + column].eq(word)
        return m

    def joined(self, m: Module, serve, element, word):
        """Adjacent bytes of an image row, any alignment."""
        depth = self.accelerator.depth
        previous = Signal(depth * 8, reset_less=True)
        m.d.sync += previous.eq(Mux(serve, word, previous))
        shifted = Signal(depth * 8)
        m.d.comb += shifted.eq(Cat(previous, word) >> (element.shift << 3))
        return Cat(
            Mux(
                (element.first_byte <= i) & (element.last_byte > i),
                shifted.word_select(i, 8),
                element.pad_value,
            )
            for i in range(depth)
        )

"""Operand fetch: reads what a MATRIX instruction's array needs from the scratchpad into the operand buffer.

An element is one step of the walk: a row for all columns (LINEAR), or for one column, in the order window rows,
window columns, columns, chunks. JOIN takes one row more per window row than it makes chunks, and shifts pairs of them.
"""

from __future__ import annotations

import itertools

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..arch import isa
from ..arch.accelerator import Accelerator
from .decode import instruction_layout
from .delay import delayed
from .operand import WriteSignature, count_bits
from .ports import ROW_BITS, ReadPort

__all__ = ["Fetch"]

COORDINATE = signed(16)
"""Of window origins, in rows, columns or bytes; legal images keep them well inside."""


class Walk(wiring.Component):
    """Loop counters of one instruction: an element in every cycle with `advance`, while `valid`."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "start": In(1),
                "ins": In(instruction_layout(isa.Opcode.MATRIX)),
                "advance": In(1),
                "valid": Out(1),
                "column": Out(exact_log2(accelerator.columns)),
                "index": Out(count_bits(accelerator)),
                "writes": Out(1),
                "counts": Out(1),
                "tile": Out(18),
                "offset": Out(ROW_BITS),
                "padding": Out(1),
                "y": Out(COORDINATE),
                "x": Out(COORDINATE),
            }
        )

    def elaborate(self, platform):
        m = Module()
        ins = self.ins
        linear, conv, join = (ins.mode == mode for mode in isa.FetchMode)
        left, group, group_row = Signal(18), Signal(11), Signal(ROW_BITS)
        tap_y, tap_x, inner = Signal(8), Signal(4), Signal(12)
        base = Signal.like(self.index)
        Origin = data.StructLayout({"skip": 4, "out_x": 10, "x": COORDINATE, "y": COORDINATE})
        # Window of the tile's first column, of this column and of the next one.
        first, origin, following = Signal(Origin), Signal(Origin), Signal(Origin)

        inner_count = Mux(linear, ins.chunks, ins.tap_chunks + join)
        inner_last, tap_x_last, tap_y_last = Signal(), Signal(), Signal()
        column_last, group_last, tile_last = Signal(), Signal(), Signal()
        m.d.comb += [
            inner_last.eq(inner + 1 == inner_count),
            column_last.eq(inner_last & (linear | (self.column == self.accelerator.columns - 1))),
            tap_x_last.eq(column_last & (~conv | (tap_x + 1 == ins.taps_x))),
            tap_y_last.eq(tap_x_last & (linear | (tap_y + 1 == ins.taps_y))),
            group_last.eq(tap_y_last & (group + 1 == ins.groups)),
            tile_last.eq(group_last & (left <= self.accelerator.columns)),
            following.eq(origin),
            self.writes.eq(~join | (inner != 0)),
            self.counts.eq(self.writes & (linear | (self.column == self.accelerator.columns - 1))),
            self.offset.eq(group_row + inner),
            self.padding.eq(origin.skip != 0),
            self.y.eq(origin.y + tap_y),
            self.x.eq(origin.x + Mux(join, inner << exact_log2(self.accelerator.depth), tap_x)),
        ]
        with m.If(origin.skip != 0):
            m.d.comb += following.skip.eq(origin.skip - 1)
        with m.Elif(origin.out_x + 1 == ins.out_width):
            m.d.comb += [
                following.out_x.eq(0),
                following.x.eq(ins.start_x),
                following.y.eq(origin.y + ins.stride_y),
            ]
        with m.Else():
            m.d.comb += [following.out_x.eq(origin.out_x + 1), following.x.eq(origin.x + ins.stride_x)]

        with m.If(self.advance):
            m.d.sync += [
                inner.eq(Mux(inner_last, 0, inner + 1)),
                tap_x.eq(Mux(tap_x_last, 0, tap_x + column_last)),
                tap_y.eq(Mux(tap_y_last, 0, tap_y + tap_x_last)),
                self.index.eq(self.index + self.writes),
            ]
            with m.If(inner_last):
                m.d.sync += [
                    self.column.eq(Mux(column_last, 0, self.column + 1)),
                    self.index.eq(Mux(column_last, self.index + 1, base)),
                    base.eq(Mux(column_last, self.index + 1, base)),
                    origin.eq(Mux(column_last & ~group_last, first, following)),
                ]
            with m.If(tap_y_last):
                m.d.sync += [
                    group.eq(Mux(group_last, 0, group + 1)),
                    group_row.eq(Mux(group_last, 0, group_row + Mux(linear, ins.chunks, ins.tap_chunks))),
                ]
            with m.If(group_last):
                m.d.sync += [
                    self.tile.eq(self.tile + 1),
                    left.eq(left - self.accelerator.columns),
                    first.eq(following),
                    self.valid.eq(~tile_last),
                ]
        start = Signal(Origin)
        m.d.comb += [start.skip.eq(ins.prefix), start.x.eq(ins.start_x), start.y.eq(ins.start_y)]
        with m.If(self.start):
            m.d.sync += [
                self.valid.eq(1),
                self.tile.eq(0),
                left.eq(ins.positions),
                first.eq(start),
                origin.eq(start),
            ]
        return m


def element_layout(accelerator: Accelerator) -> data.StructLayout:
    """What becomes of a row of the scratchpad: bytes low <= i < high are data, others padding."""
    byte_bits = exact_log2(accelerator.depth)
    return data.StructLayout(
        {
            "writes": 1,
            "counts": 1,
            "address": exact_log2(accelerator.operand_chunks),
            "column": exact_log2(accelerator.columns),
            "word": exact_log2(accelerator.columns),
            "shift": byte_bits,
            "low": byte_bits + 1,
            "high": byte_bits + 1,
        }
    )


class Align(wiring.Component):
    """From scratchpad rows to chunks in the operand buffer, two cycles later."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "ins": In(instruction_layout(isa.Opcode.MATRIX)),
                "valid": In(1),
                "element": In(element_layout(accelerator)),
                "row": In(accelerator.scratchpad_row_bytes * 8),
                "write": Out(WriteSignature(accelerator)),
                "counts": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        columns, depth = self.accelerator.columns, self.accelerator.depth
        mode = self.ins.mode
        words = [self.row.word_select(column, depth * 8) for column in range(columns)]

        s1_valid = delayed(m, self.valid, 1, reset_less=False)
        s1 = delayed(m, self.element, 1)
        s1_row = [delayed(m, word, 1) for word in words]
        s1_word = delayed(m, Array(words)[self.element.word], 1)
        previous = Signal(depth * 8, reset_less=True)
        m.d.sync += previous.eq(Mux(s1_valid, s1_word, previous))

        joined = Signal(depth * 8)
        m.d.comb += joined.eq(Cat(previous, s1_word) >> (s1.shift << 3))
        word = Mux(mode == isa.FetchMode.JOIN, joined, s1_word)
        padded = Cat(
            Mux((s1.low <= i) & (s1.high > i), word[i * 8 : i * 8 + 8], self.ins.pad_value)[:8]
            for i in range(depth)
        )
        linear = mode == isa.FetchMode.LINEAR
        writes = s1_valid & s1.writes
        m.d.sync += [self.write.address.eq(s1.address), self.counts.eq(s1_valid & s1.counts)]
        for column in range(columns):
            m.d.sync += [
                self.write.enable[column].eq(writes & (linear | (s1.column == column))),
                self.write.data[column].eq(Mux(linear, s1_row[column], padded)),
            ]
        return m


class Fetch(wiring.Component):
    """Accepts an instruction when the previous one's chunks are all written. One element per cycle.

    Padding needs no read. While a request is not granted the address pipeline stands; rows already granted go on.
    `written` counts complete chunks since reset, 9 cycles after their last element left the walk.
    CONV and JOIN take a column at a time; the buffer must hold the chunks of one tap (window row).
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "i": In(stream.Signature(instruction_layout(isa.Opcode.MATRIX))),
                "halt": In(1),
                "busy": Out(1),
                "read": Out(ReadPort(accelerator)),
                "write": Out(WriteSignature(accelerator)),
                "freed": In(count_bits(accelerator)),
                "written": Out(count_bits(accelerator)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.walk = walk = Walk(self.accelerator)
        m.submodules.align = align = Align(self.accelerator)
        ins = Signal(instruction_layout(isa.Opcode.MATRIX), reset_less=True)
        start = Signal()
        start_walk = delayed(m, start, 1, reset_less=False)
        moves, enters = Signal(), Signal()
        with m.If(start):
            m.d.sync += ins.eq(self.i.payload)

        valids = [enters]
        for _ in range(4):
            valids.append(Signal(name=f"s{len(valids)}_valid"))
        with m.If(moves):
            m.d.sync += [stage.eq(before) for before, stage in itertools.pairwise(valids)]
        element, request = self.addresses(m, walk, ins, moves)

        granted = Signal()
        m.d.comb += [
            self.read.valid.eq(valids[-1] & request & ~self.halt),
            moves.eq(~self.halt & (~self.read.valid | self.read.ready)),
            granted.eq(valids[-1] & moves),
            enters.eq(
                walk.valid & ((walk.index - self.freed)[: len(walk.index)] < self.accelerator.operand_chunks)
            ),
            walk.start.eq(start_walk),
            walk.ins.eq(ins),
            walk.advance.eq(enters & moves),
        ]
        arriving = [granted]
        for _ in range(4):
            arriving.append(delayed(m, arriving[-1], 1, reset_less=False))
        m.d.comb += [
            align.ins.eq(ins),
            align.valid.eq(arriving[2]),
            align.element.eq(delayed(m, element, 2)),
            align.row.eq(self.read.data),
        ]
        wiring.connect(m, align.write, wiring.flipped(self.write))
        m.d.sync += self.written.eq(self.written + align.counts)
        m.d.comb += [
            self.busy.eq(walk.valid | start_walk | Cat(*valids[1:], *arriving[1:]).any()),
            self.i.ready.eq(~self.busy & ~self.halt),
            start.eq(self.i.valid & self.i.ready),
        ]
        return m

    def addresses(self, m: Module, walk: Walk, ins, moves):
        """Four stages from loop counters to the request's row; returns its element and whether it reads."""
        columns, depth = self.accelerator.columns, self.accelerator.depth
        column_bits, byte_bits = exact_log2(columns), exact_log2(depth)
        linear, conv, join = (ins.mode == mode for mode in isa.FetchMode)
        layout = element_layout(self.accelerator)
        low = Signal(signed(17))  # bytes of this chunk before the image row, and before its end
        high = Signal(signed(18))
        m.d.comb += [low.eq(depth - walk.x), high.eq(ins.width + depth - walk.x)]
        y_inside = ~walk.padding & (walk.y >= 0) & (walk.y < ins.height)
        x_inside = (walk.x >= 0) & (walk.x < ins.width)
        row_inside = (walk.x >= 0) & ((walk.x & ~(depth - 1)) < ins.width)

        def clip(value):
            return Mux(value < 0, 0, Mux(value > depth, depth, value[: byte_bits + 1]))

        s1, s2, s3, s4 = (Signal(layout, name=f"s{i}", reset_less=True) for i in range(1, 5))
        s1_request, s2_request, s3_request, s4_request = (
            Signal(name=f"s{i}_request", reset_less=True) for i in range(1, 5)
        )
        s1_y, s1_x = Signal(10, reset_less=True), Signal(COORDINATE, reset_less=True)
        s1_tile, s1_offset = Signal(18, reset_less=True), Signal(ROW_BITS, reset_less=True)
        s2_position, s2_offset = Signal(22, reset_less=True), Signal(ROW_BITS, reset_less=True)
        s3_row, s3_offset = Signal(ROW_BITS, reset_less=True), Signal(ROW_BITS, reset_less=True)
        s4_row = Signal(ROW_BITS, reset_less=True)
        s1_position = Mux(conv, s1_y * ins.width + s1_x, s1_y)
        with m.If(moves):
            m.d.sync += [
                s1.writes.eq(walk.writes),
                s1.counts.eq(walk.counts),
                s1.address.eq(walk.index),
                s1.column.eq(walk.column),
                s1.shift.eq(walk.x),
                s1.low.eq(Mux(join, clip(low), 0)),
                s1.high.eq(Mux(y_inside & (join | x_inside), Mux(join, clip(high), depth), 0)),
                s1_request.eq(linear | (y_inside & Mux(join, row_inside, x_inside))),
                s1_y.eq(walk.y),
                s1_x.eq(walk.x),
                s1_tile.eq(walk.tile),
                s1_offset.eq(Mux(join, walk.x >> byte_bits, walk.offset)),
                s2.eq(s1),
                s2_request.eq(s1_request),
                s2_position.eq(Mux(linear, s1_tile << column_bits, s1_position)),
                s2_offset.eq(s1_offset),
                s3.eq(s2),
                s3.word.eq(s2_position),
                s3_request.eq(s2_request),
                s3_row.eq((s2_position >> column_bits) * ins.src_stride),
                s3_offset.eq(s2_offset),
                s4.eq(s3),
                s4_request.eq(s3_request),
                s4_row.eq(ins.src + s3_row + s3_offset),
            ]
        m.d.comb += self.read.row.eq(s4_row)
        return s4, s4_request

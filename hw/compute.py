"""Compute issue: one (weights, operand chunk) pair per cycle, in the order of a MATRIX instruction's loops."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..arch import isa
from ..arch.accelerator import Accelerator
from .decode import instruction_layout
from .operand import aligned, count_bits
from .ports import ROW_BITS, IndexRead

__all__ = ["BlockLayout", "ChunkLayout", "Compute"]

ChunkLayout = data.StructLayout(
    {
        "valid": 1,
        "first": 1,
        "last": 1,
        "maximum": 1,
        "unsigned": 1,
        "private": 1,
        "high": 1,
        "single": 1,
        "tap": 6,
        "bank": 4,
    }
)
"""What accompanies an operand chunk: position within its block, how to accumulate it, and which chunk of those that the
buffer shows it is. `private`: it is all of them, and of every lane's weights number `tap` counts; of two taps (then the next
weight too, unless `single`) the first has the lower half of the chunks, or with `high` the other half."""

BlockLayout = data.StructLayout({"valid": 1, "tile_end": 1, "end": 1})
"""A block's last chunk: whether it is the last block of its tile of positions and of its instruction."""


class Compute(wiring.Component):
    """Walks tiles, groups, blocks and chunks. All outputs of an issue are registered: valid a cycle after it.

    `i` holds the next instruction while one runs; it moves to `o` (the drain) in the cycle before its first
    possible issue. A chunk is issued once written; a block's last chunk no sooner than as many cycles after the
    previous block's as that block's drain takes. Without such waits there is an issue in every cycle.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        layout = instruction_layout(isa.Opcode.MATRIX)
        super().__init__(
            {
                "i": In(stream.Signature(layout)),
                "o": Out(stream.Signature(layout)),
                "halt": In(1),
                "written": In(count_bits(accelerator)),
                "freed": Out(count_bits(accelerator)),
                "chunk": Out(ChunkLayout),
                "block": Out(BlockLayout),
                "address": Out(exact_log2(accelerator.operand_chunks)),
                "address_high": Out(exact_log2(accelerator.operand_chunks)),
                "row": Out(ROW_BITS),
                "index": Out(IndexRead()),
                "issue": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        layout = instruction_layout(isa.Opcode.MATRIX)
        pending, pending_valid = Signal(layout, reset_less=True), Signal()
        ins, valid = Signal(layout, reset_less=True), Signal()
        left, group, block, chunk = Signal(18), Signal(11), Signal(11), Signal(12)
        block_row, row = Signal(ROW_BITS), Signal(ROW_BITS)
        base, index, following = (Signal.like(self.written) for _ in range(3))
        countdown = Signal(9)

        private, taps, tap_bits = (
            self.accelerator.private,
            self.accelerator.private_taps,
            exact_log2(self.accelerator.depth),
        )
        step, tap, chunk_last = 1, chunk[:tap_bits], chunk + 1 == ins.chunks
        present, row_end, high, single = index != self.written, tap.all(), 0, 0
        if private > 1:
            step = Mux(ins.private, private, 1)
            present = Mux(ins.private, aligned(self.written, private) != index, present)
        if taps > 1:  # a chunk is two taps, but for the last of an odd number
            single = chunk + 1 == ins.chunks
            step = Mux(ins.private, Mux(single, private, 2 * private), 1)
            ready = (aligned(self.written, private) - index)[: len(index)]
            present = Mux(ins.private, ready >= step, present)
            chunk_last = single | (ins.private & (chunk + 2 == ins.chunks))
            row_end, high = tap[1:].all(), ins.private & block[0]
        block_last = block + 1 == ins.blocks
        group_last = group + 1 == ins.groups
        tile_end = Signal()
        end, finish, take = Signal(), Signal(), Signal()
        m.d.comb += [
            following.eq(index + step),
            tile_end.eq(block_last & group_last),
            end.eq(tile_end & (left <= self.accelerator.columns)),
            self.issue.eq(valid & ~self.halt & present & ~(chunk_last & (countdown != 0))),
            finish.eq(self.issue & chunk_last & end),
            self.o.valid.eq(pending_valid & (~valid | finish) & ~self.halt),
            self.o.payload.eq(pending),
            take.eq(self.o.valid & self.o.ready),
            self.i.ready.eq(~pending_valid & ~self.halt),
            self.busy.eq(valid | pending_valid),
        ]
        with m.If(countdown != 0):
            m.d.sync += countdown.eq(countdown - 1)
        with m.If(self.issue):
            ahead = Mux(ins.private, taps, 1)
            m.d.sync += [chunk.eq(chunk + ahead), row.eq(row + (~ins.private | row_end)), index.eq(following)]
            with m.If(block_last):
                m.d.sync += self.freed.eq(following)
            with m.If(chunk_last):
                next_row = Mux(tile_end, ins.weight, (block_row + ins.weight_stride)[:ROW_BITS])
                m.d.sync += [
                    chunk.eq(0),
                    index.eq(Mux(block_last, following, base)),
                    base.eq(Mux(block_last, following, base)),
                    block.eq(Mux(block_last, 0, block + 1)),
                    group.eq(Mux(block_last, Mux(group_last, 0, group + 1), group)),
                    left.eq(Mux(tile_end, left - self.accelerator.columns, left)),
                    block_row.eq(next_row),
                    row.eq(next_row),
                    countdown.eq(Mux(ins.second, ins.steps << 1, ins.steps) - 1),
                ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [pending.eq(self.i.payload), pending_valid.eq(1)]
        with m.If(finish):
            m.d.sync += valid.eq(0)
        with m.If(take):
            m.d.sync += [pending_valid.eq(0), valid.eq(1), ins.eq(pending), left.eq(pending.positions)]
            m.d.sync += [row.eq(pending.weight), block_row.eq(pending.weight)]
            if private > 1:
                start = aligned(Mux(valid, following, index), private)
                with m.If(pending.private):
                    m.d.sync += [index.eq(start), base.eq(start)]

        # Gather: the entry of the next issue is read ahead of it.
        entry, next_entry = Signal(16, reset_less=True), Signal(16)
        m.d.comb += [next_entry.eq(entry), self.index.entry.eq(next_entry)]
        m.d.sync += entry.eq(next_entry)
        with m.If(take):
            m.d.comb += next_entry.eq(pending.index)
        with m.Elif(self.issue):
            m.d.comb += next_entry.eq(Mux(chunk_last & tile_end, ins.index, entry + 1))
        m.d.sync += [
            self.chunk.valid.eq(self.issue),
            self.chunk.first.eq(chunk == 0),
            self.chunk.last.eq(chunk_last),
            self.chunk.maximum.eq(ins.maximum),
            self.chunk.unsigned.eq(ins.unsigned),
            self.chunk.private.eq(ins.private),
            self.chunk.high.eq(high),
            self.chunk.single.eq(single),
            self.chunk.tap.eq(tap),
            self.chunk.bank.eq(index & (private - 1)),
            self.block.valid.eq(self.issue & chunk_last),
            self.block.tile_end.eq(tile_end),
            self.block.end.eq(end),
            self.address.eq(Mux(high, index + private, index) if taps > 1 else index),
            self.address_high.eq(Mux(ins.private & ~high, index + private, index) if taps > 1 else index),
            self.row.eq(Mux(ins.gather, ins.weight + self.index.value, row)),
        ]
        return m

"""Compute issue: one (weights, operand chunk) pair per cycle, in the order of a MATRIX instruction's loops."""

from __future__ import annotations

from amaranth.hdl import C, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..arch import isa
from ..arch.accelerator import Accelerator
from .decode import instruction_layout
from .loop import loop
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
        "digits": 1,
        "low": 1,
        "shift": 1,
        "tap": 6,
        "bank": 4,
    }
)
"""What accompanies an operand chunk: position within its block, how to accumulate it, and which chunk of those that the
buffer shows it is. `private`: it is all of them, and of every lane's weights number `tap` counts; of two taps (then the next
weight too, unless `single`) the first has the lower half of the chunks, or with `high` the other half. `digits`: of every
operand one digit counts, the high one or the `low` one; before the first of these, `shift`, what Fixed-4 lanes have is multiplied by 16."""

BlockLayout = data.StructLayout({"valid": 1, "tile_end": 1, "end": 1, "step_top": 8})
"""A block's last chunk: whether it is the last block of its tile of positions and of its instruction, and its last drain step."""


class Compute(wiring.Component):
    """Walks tiles, groups, blocks and chunks. All outputs of an issue are registered: valid a cycle after it.

    `i` holds the next instruction while one runs; it begins in the cycle before its first possible issue, with `private` a cycle
    earlier, where `o` (the drain) is ready for one more than it is being given, and is given to it a cycle later. A chunk is issued once written (`counts`: `written` has one more in the next cycle); a block's last chunk no sooner than as many cycles after the
    previous block's as that block's drain takes. Without such waits there is an issue in every cycle. With `digits` each block's
    chunks are issued twice.
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
                "counts": In(1),
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
        tap, odd, first = Signal(exact_log2(self.accelerator.depth)), Signal(), Signal(init=1)
        block_row, row = Signal(ROW_BITS), Signal(ROW_BITS)
        base, index, following = (Signal.like(self.written) for _ in range(3))
        countdown, waits = Signal(9), Signal()
        cycles, cycles_end, step_top, step_top_end = Signal(9), Signal(9), Signal(8), Signal(8)

        private, taps = self.accelerator.private, self.accelerator.private_taps
        take, loads, step_block, step_tile, finish = (
            Signal(name=name) for name in ("take", "loads", "step_block", "step_tile", "finish")
        )
        ahead, pending_ahead = 1, 1
        if taps > 1:
            ahead, pending_ahead = Mux(ins.private, taps, 1), Mux(pending.private, taps, 1)
        chunks_left, chunk_last, next_chunk_last = loop(
            m, self.issue, loads, ins.chunks, pending.chunks, ahead, pending_ahead
        )
        _, block_last, _ = loop(m, step_block, loads, ins.blocks, pending.blocks)
        _, group_last, _ = loop(m, step_block & block_last, loads, ins.groups, pending.groups)
        columns = self.accelerator.columns
        _, tile_last, _ = loop(m, step_tile, loads, ins.positions, pending.positions, columns, columns)
        tile_end, end, again, begins = Signal(), Signal(), Signal(), Signal()

        low, shift, pass_last, next_pass_last = Signal(), Signal(), Signal(), Signal()
        present, next_waits, stop = Signal(), Signal(), Signal()
        """`stop`: the issue would be a block's last one, too soon."""
        step, row_end, high, single, next_single = 1, tap.all(), 0, 0, 1
        if private > 1:
            step = Mux(ins.private, private, 1)
        if taps > 1:  # a chunk is two taps, but for the last of an odd number
            single = Signal()
            next_single = Mux(chunk_last, ins.chunks == 1, chunks_left == ahead + 1)
            with m.If(self.issue):
                m.d.sync += single.eq(next_single)
            with m.If(loads):
                m.d.sync += single.eq(pending.chunks == 1)
            step = Mux(ins.private, Mux(single, private, 2 * private), 1)
            row_end, high = tap[1:].all(), ins.private & odd

        def written(at, one):
            """Whether the chunk or two at an index are written in the next cycle."""
            some = (at != self.written) | self.counts
            if private == 1:
                return some
            ready = (aligned(self.written, private) - at)[exact_log2(private) : len(index)]
            if taps == 1:
                return Mux(ins.private, (ready != 0) | self.counts, some)
            both = ready[1:].any() | (self.counts & ready[0])
            return Mux(ins.private, Mux(one, (ready != 0) | self.counts, both), some)

        m.d.sync += present.eq(
            Mux(self.issue, again | written(following, next_single), written(index, single)) & ~self.halt
        )
        m.d.comb += [
            following.eq(index + step),
            tile_end.eq(block_last & group_last),
            end.eq(tile_end & tile_last),
            again.eq(chunk_last & ~(block_last & pass_last)),
            self.issue.eq(valid & present & ~stop),
            next_waits.eq(Mux(step_block, Mux(tile_end, cycles_end != 0, cycles != 0), countdown > 1)),
            step_block.eq(self.issue & chunk_last & pass_last),
            step_tile.eq(step_block & tile_end),
            finish.eq(step_block & end),
            self.o.payload.eq(pending),  # still what was taken
            # Registers of many bits take what is pending without a look at whether it is an instruction that may begin.
            loads.eq(~valid | finish),
            begins.eq(~valid | (chunk_last & pass_last & end)),
            take.eq(pending_valid & loads & self.o.ready),
            self.i.ready.eq(~pending_valid & ~self.halt),
            self.busy.eq(valid | pending_valid),
        ]
        m.d.sync += [
            self.o.valid.eq(take),
            countdown.eq(Mux(step_block, Mux(tile_end, cycles_end, cycles), Mux(waits, countdown - 1, 0))),
            waits.eq(next_waits),
            stop.eq(next_chunk_last & next_pass_last & next_waits),
        ]
        with m.If(self.issue):
            m.d.sync += [
                first.eq(chunk_last & pass_last),
                shift.eq(0),
                low.eq(low & ~chunk_last),
                tap.eq(Mux(chunk_last, 0, tap + ahead)),
                index.eq(Mux(again, base, following)),
            ]
            with m.If(chunk_last & ~pass_last):
                m.d.sync += [shift.eq(1), low.eq(1)]
            with m.If(block_last & pass_last):
                m.d.sync += self.freed.eq(following)
        with m.If(step_block):
            m.d.sync += [odd.eq(~odd & ~block_last), base.eq(Mux(block_last, following, base))]
        # Enables of registers of many bits look at as little as they can.
        next_block = Mux(tile_end, ins.weight, (block_row + ins.weight_stride)[:ROW_BITS])
        next_row = Mux(chunk_last, Mux(pass_last, next_block, block_row), row + (~ins.private | row_end))
        with m.If(self.issue | ~valid):
            m.d.sync += row.eq(Mux(begins, pending.weight, next_row))
        with m.If(step_block | ~valid):
            m.d.sync += block_row.eq(Mux(begins, pending.weight, next_block))
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [pending.eq(self.i.payload), pending_valid.eq(1)]
        with m.If(finish):
            m.d.sync += valid.eq(0)
        fewer = (pending.steps - pending.skip)[:8]
        with m.If(take):
            m.d.sync += [pending_valid.eq(0), valid.eq(1)]
            if private > 1:
                m.d.sync += present.eq(0)
                start = aligned(Mux(valid, following, index), private)
                with m.If(pending.private):
                    m.d.sync += [index.eq(start), base.eq(start)]
        with m.If(loads):
            m.d.sync += [
                ins.eq(pending),
                cycles.eq(Mux(pending.second, pending.steps << 1, pending.steps) - 1),
                cycles_end.eq(Mux(pending.second, fewer << 1, fewer) - 1),
                step_top.eq(pending.steps - 1),
                step_top_end.eq(fewer - 1),
            ]

        gather = ins.gather if self.accelerator.index_rows else C(0)
        # The entry of the next issue is read ahead of it.
        entry, next_entry = Signal(16, reset_less=True), Signal(16)
        m.d.comb += [next_entry.eq(entry), self.index.entry.eq(next_entry)]
        m.d.sync += entry.eq(next_entry)
        with m.If(loads):
            m.d.comb += next_entry.eq(pending.index)
        with m.Elif(self.issue):
            m.d.comb += next_entry.eq(Mux(chunk_last & tile_end, ins.index, entry + 1))
        m.d.sync += [
            self.chunk.valid.eq(self.issue),
            self.chunk.first.eq(first),
            self.chunk.last.eq(chunk_last & pass_last),
            self.chunk.maximum.eq(ins.maximum),
            self.chunk.unsigned.eq(ins.unsigned),
            self.chunk.private.eq(ins.private),
            self.chunk.high.eq(high),
            self.chunk.single.eq(single),
            self.chunk.low.eq(low),
            self.chunk.shift.eq(shift),
            self.chunk.tap.eq(tap),
            self.chunk.bank.eq(index & (private - 1)),
            self.block.valid.eq(step_block),
            self.block.tile_end.eq(tile_end),
            self.block.end.eq(end),
            self.block.step_top.eq(Mux(tile_end, step_top_end, step_top)),
            self.address.eq(Mux(high, index + private, index) if taps > 1 else index),
            self.address_high.eq(Mux(ins.private & ~high, index + private, index) if taps > 1 else index),
            self.row.eq(Mux(gather, ins.weight + self.index.value, row)),
        ]
        if self.accelerator.lanes.fixed4_digits:
            m.d.comb += [
                pass_last.eq(~ins.digits | low),
                next_pass_last.eq(
                    Mux(
                        loads,
                        ~pending.digits,
                        Mux(self.issue & chunk_last, ~pass_last | ~ins.digits, pass_last),
                    )
                ),
            ]
            m.d.sync += self.chunk.digits.eq(ins.digits)
        else:
            m.d.comb += [pass_last.eq(1), next_pass_last.eq(1)]
        return m

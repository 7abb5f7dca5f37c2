"""Store engine: rows of the scratchpad to DRAM."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator
from ..arch.registers import Cause
from .axi import ADDRESS_BITS, LENGTH_BITS, WriteChannel
from .bursts import FAULT, REGIONS, Bursts
from .ports import EngineSignature, ReadPort

__all__ = ["PENDING", "Engine"]

PENDING = 255
"""Most bursts that wait for their response."""


class Engine(wiring.Component):
    """Reads rows, one ahead of the row that is being sent, and writes them in bursts; one instruction at a time.

    An instruction is done when all its responses have arrived. Only the bytes of rows are strobed. `axi.bready` is
    always 1. `stalled` is high in the cycles in which an instruction is worked on but no beat is put on the bus. With
    `halt` no row is read and no burst is begun; the burst that was begun is finished with all strobes low; `quiet`
    rises when it is and all responses have arrived.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "control": Out(EngineSignature(isa.Opcode.STORE)),
                "regions": In(REGIONS),
                "read": Out(ReadPort(accelerator)),
                "axi": Out(WriteChannel(accelerator)),
                "fault": Out(FAULT),
                "quiet": Out(1),
            }
        )

    def elaborate(self, platform):
        accelerator, control, axi, read = self._accelerator, self.control, self.axi, self.read
        m = Module()
        m.submodules.bursts = bursts = Bursts(accelerator)
        instruction, halt = control.i.payload, control.halt
        row_bytes, bus_bytes = accelerator.scratchpad_row_bytes, accelerator.bus_bytes
        row_beats = accelerator.beats(row_bytes)

        active, start, finished = Signal(), Signal(), Signal()
        row, rows, rows_left = Signal(16), Signal(16), Signal(16)
        m.d.comb += [
            control.i.ready.eq(~active),
            start.eq(control.i.valid & ~active),
            bursts.regions.eq(self.regions),
            bursts.start.eq(start),
            bursts.region.eq(instruction.region),
            bursts.offset.eq(instruction.offset),
            bursts.rows.eq(instruction.rows),
            bursts.row_beats.eq(row_beats),
            bursts.enable.eq(1),
        ]
        with m.If(start):
            m.d.sync += [
                active.eq(1),
                row.eq(instruction.row),
                rows.eq(instruction.rows),
                control.done_signal.eq(instruction.signal),
                control.done_tag.eq(instruction.tag),
            ]

        # Rows: `ahead` takes what the scratchpad returns, `current` is shifted out beat by beat.
        ahead, current = Signal(row_bytes * 8), Signal(row_beats * bus_bytes * 8)
        claimed, arriving, ahead_full = Signal(), Signal(2), Signal()
        current_beats = Signal(range(row_beats + 1))
        grant, move, send = Signal(), Signal(), Signal()
        m.d.comb += [
            read.valid.eq((rows_left != 0) & (~claimed | move) & ~halt),
            read.row.eq(row),
            grant.eq(read.valid & read.ready),
            move.eq(ahead_full & ((current_beats == 0) | ((current_beats == 1) & send))),
        ]
        m.d.sync += [
            arriving.eq(grant | (arriving << 1)),
            claimed.eq(grant | (claimed & ~move)),
            ahead_full.eq(arriving[1] | (ahead_full & ~move)),
        ]
        with m.If(bursts.begin):
            m.d.sync += rows_left.eq(rows)
        with m.Elif(grant):
            m.d.sync += [row.eq(row + 1), rows_left.eq(rows_left - 1)]
        with m.If(arriving[1]):
            m.d.sync += ahead.eq(read.data)
        with m.If(move):
            m.d.sync += [current.eq(ahead), current_beats.eq(row_beats)]
        with m.Elif(send & (current_beats != 0)):
            m.d.sync += [current.eq(current >> (bus_bytes * 8)), current_beats.eq(current_beats - 1)]

        # Bursts: the next one is opened in the cycle in which the last beat of the one before is put on the bus.
        beats_left = Signal(LENGTH_BITS)
        opened, pending = Signal(), Signal(range(PENDING + 1))
        m.d.comb += [
            send.eq((beats_left != 0) & ((current_beats != 0) | halt) & (~axi.wvalid | axi.wready)),
            opened.eq(
                bursts.o.valid
                & ~halt
                & (~axi.awvalid | axi.awready)
                & ((beats_left == 0) | ((beats_left == 1) & send))
                & (pending != PENDING)
            ),
            bursts.o.ready.eq(opened),
            axi.bready.eq(1),
        ]
        m.d.sync += [
            beats_left.eq(Mux(opened, bursts.o.payload.length, beats_left - send)),
            pending.eq(pending + opened - axi.bvalid),
        ]
        with m.If(~axi.awvalid | axi.awready):
            m.d.sync += [
                axi.awvalid.eq(opened),
                axi.awaddr.eq(bursts.o.payload.address),
                axi.awlen.eq(bursts.o.payload.length - 1),
            ]
        with m.If(~axi.wvalid | axi.wready):
            m.d.sync += [
                axi.wvalid.eq(send),
                axi.wdata.eq(current[: bus_bytes * 8]),
                axi.wstrb.eq(Mux(halt, 0, (1 << min(row_bytes, bus_bytes)) - 1)),
                axi.wlast.eq(beats_left == 1),
            ]

        # Completion and errors: responses come in order, so their bursts' addresses are counted.
        m.d.comb += [
            finished.eq(active & bursts.idle & (beats_left == 0) & (pending == 0)),
            control.done.eq(finished & ~halt),
            control.busy.eq(active),
            control.stalled.eq(active & ~send),
            self.quiet.eq((beats_left == 0) & ~axi.awvalid & ~axi.wvalid & (pending == 0)),
        ]
        with m.If(control.done):
            m.d.sync += active.eq(0)
        response_address = Signal(ADDRESS_BITS)
        burst_bytes = accelerator.burst_beats * bus_bytes
        m.d.comb += self.fault.info.eq(response_address)
        with m.If(bursts.begin):
            m.d.sync += response_address.eq(bursts.o.payload.address)
        with m.Elif(axi.bvalid):
            m.d.sync += response_address.eq((response_address | (burst_bytes - 1)) + 1)
        with m.If(axi.bvalid & axi.bresp[1]):
            m.d.comb += self.fault.cause.eq(Cause.WRITE_ERROR)
        with m.Elif(bursts.fault.cause != Cause.NONE):
            m.d.comb += self.fault.eq(bursts.fault)
        return m

"""Load engine: rows of DRAM to the memories of the machine."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator
from ..arch.registers import Cause
from .axi import ADDRESS_BITS, ReadChannel
from .bursts import FAULT, REGIONS, Bursts, row_beats_limit
from .items import TRANSFER, Items
from .ports import EngineSignature, IndexRead, LoadPort, load_bytes
from .queue import Queue

__all__ = ["BUFFER_BEATS", "TRANSFERS", "Engine"]

BUFFER_BEATS = 512
"""Beats requested but not yet taken from the buffer; a burst is requested when it surely fits."""
TRANSFERS = 4
"""Instructions whose bursts are requested or under way, besides the one that is being checked."""


class Engine(wiring.Component):
    """Requests bursts ahead of the data, buffers the beats, joins them to rows and writes one beat per cycle.

    `axi.rready` is always 1. An instruction may start while earlier ones are waiting for data. `stalled` is high in the
    cycles in which an instruction is worked on but no beat leaves the buffer. A beat with an error response raises
    `fault` when it leaves the buffer, and no row follows it. With `halt` no burst is requested and nothing is written;
    `quiet` rises when all requested beats have arrived.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "control": Out(EngineSignature(isa.Opcode.LOAD)),
                "regions": In(REGIONS),
                "bus": Out(LoadPort(accelerator)),
                "index_read": Out(IndexRead()),
                "axi": Out(ReadChannel(accelerator)),
                "fault": Out(FAULT),
                "quiet": Out(1),
            }
        )

    def elaborate(self, platform):
        accelerator, control, axi, bus = self._accelerator, self.control, self.axi, self.bus
        m = Module()
        m.submodules.bursts = bursts = Bursts(accelerator)
        m.submodules.items = items = Items(accelerator)
        kept = ("target", "row", "rows", "signal", "tag", "last")
        transfer_layout = data.StructLayout(
            {**{name: TRANSFER[name].shape for name in kept}, "address": ADDRESS_BITS}
        )
        m.submodules.transfers = transfers = Queue(transfer_layout, TRANSFERS)
        item = items.o.payload
        beats = Array(accelerator.beats(load_bytes(accelerator, target)) for target in isa.LoadTarget)
        halt, begin = control.halt, bursts.begin

        # Transfers to bursts; the checked one is described once more for the side of the rows.
        wiring.connect(m, wiring.flipped(control.i), items.i)
        wiring.connect(m, items.index, wiring.flipped(self.index_read))
        described = Signal(transfer_layout)
        m.d.comb += [
            items.o.ready.eq(bursts.idle),
            bursts.regions.eq(self.regions),
            bursts.start.eq(items.o.valid & bursts.idle),
            bursts.region.eq(item.region),
            bursts.offset.eq(item.offset),
            bursts.rows.eq(item.rows),
            bursts.row_beats.eq(beats[item.target]),
            bursts.enable.eq(transfers.i.ready & ~halt),
            transfers.i.valid.eq(begin),
            transfers.i.payload.eq(described),
            transfers.i.payload.address.eq(bursts.o.payload.address),
        ]
        with m.If(bursts.start):
            m.d.sync += [getattr(described, name).eq(getattr(item, name)) for name in kept]

        # Bursts to addresses, as many as the buffer has room for.
        room = Signal(range(BUFFER_BEATS + 1), init=BUFFER_BEATS)
        owed = Signal(range(BUFFER_BEATS + 1))
        issue, read = Signal(), Signal()
        length = Mux(issue, bursts.o.payload.length, 0)
        m.d.comb += [
            issue.eq(
                bursts.o.valid & ~halt & (room >= accelerator.burst_beats) & (~axi.arvalid | axi.arready)
            ),
            bursts.o.ready.eq(issue),
            axi.rready.eq(1),
            self.quiet.eq(~axi.arvalid & (owed == 0)),
        ]
        m.d.sync += [room.eq(room - length + read), owed.eq(owed + length - axi.rvalid)]
        with m.If(~axi.arvalid | axi.arready):
            m.d.sync += [
                axi.arvalid.eq(issue),
                axi.araddr.eq(bursts.o.payload.address),
                axi.arlen.eq(bursts.o.payload.length - 1),
            ]

        # Beats through the buffer; `beat` is its output register.
        beat_layout = data.StructLayout({"data": accelerator.bus_bytes * 8, "error": 1})
        m.submodules.buffer = buffer = memory.Memory(shape=beat_layout, depth=BUFFER_BEATS, init=[])
        write, beat = buffer.write_port(), buffer.read_port()
        level = Signal(range(BUFFER_BEATS + 1))
        read_index = Signal(range(BUFFER_BEATS))
        beat_valid, row_valid, advance = Signal(), Signal(), Signal()
        m.d.comb += [
            write.en.eq(axi.rvalid),
            write.data.data.eq(axi.rdata),
            write.data.error.eq(axi.rresp[1]),
            beat.addr.eq(read_index),
            beat.en.eq(read),
            read.eq((level != 0) & (~beat_valid | advance)),
            advance.eq(beat_valid & ~beat.data.error & (~row_valid | bus.ready) & ~halt),
        ]
        m.d.sync += [
            write.addr.eq(write.addr + axi.rvalid),
            read_index.eq(read_index + read),
            level.eq(level + axi.rvalid - read),
            beat_valid.eq(read | (beat_valid & ~advance)),
        ]

        # Beats to rows: `row` collects them and is written when it is complete.
        transfer = transfers.o.payload
        segments = [
            Signal(accelerator.bus_bytes * 8, name=f"segment_{i}")
            for i in range(row_beats_limit(accelerator))
        ]
        position, rows_done = Signal(range(len(segments))), Signal(16)
        row_last, row_signal, row_tag = Signal(), Signal(16), Signal(10)
        last_beat, last_row = Signal(), Signal()
        m.d.comb += [
            last_beat.eq(position == beats[transfer.target] - 1),
            last_row.eq(rows_done == transfer.rows - 1),
            transfers.o.ready.eq(advance & last_beat & last_row),
            bus.valid.eq(row_valid & ~halt),
            bus.data.eq(Cat(segments)),
        ]
        with m.If(bus.ready):
            m.d.sync += row_valid.eq(0)
        with m.If(advance):
            for i, segment in enumerate(segments):
                with m.If(position == i):
                    m.d.sync += segment.eq(beat.data.data)
            m.d.sync += [
                row_valid.eq(last_beat),
                position.eq(Mux(last_beat, 0, position + 1)),
                bus.target.eq(transfer.target),
                bus.row.eq(transfer.row + rows_done),
                row_last.eq(last_row & transfer.last),
                row_signal.eq(transfer.signal),
                row_tag.eq(transfer.tag),
            ]
            with m.If(last_beat):
                m.d.sync += rows_done.eq(Mux(last_row, 0, rows_done + 1))
        m.d.sync += [
            control.done.eq(bus.valid & bus.ready & row_last),
            control.done_signal.eq(row_signal),
            control.done_tag.eq(row_tag),
        ]
        m.d.comb += [
            control.busy.eq(items.busy | ~bursts.idle | transfers.o.valid | row_valid | control.done),
            control.stalled.eq(control.busy & ~advance),
        ]

        # Errors: the address of a beat's burst is followed from the transfer's first address.
        burst_bytes = accelerator.burst_beats * accelerator.bus_bytes
        next_address, burst_address, address = (Signal(ADDRESS_BITS) for _ in range(3))
        first = (position == 0) & (rows_done == 0)
        boundary = Signal()
        m.d.comb += [
            address.eq(Mux(first, transfer.address, next_address)),
            boundary.eq(first | ((address & (burst_bytes - 1)) == 0)),
            self.fault.info.eq(Mux(boundary, address, burst_address)),
        ]
        with m.If(advance):
            m.d.sync += [next_address.eq(address + accelerator.bus_bytes), burst_address.eq(self.fault.info)]
        with m.If(beat_valid & beat.data.error):
            m.d.comb += self.fault.cause.eq(Cause.READ_ERROR)
        with m.Elif(bursts.fault.cause != Cause.NONE):
            m.d.comb += self.fault.eq(bursts.fault)
        return m

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
        m = Module()
        m.submodules.bursts = bursts = Bursts(self._accelerator)
        m.submodules.items = items = Items(self._accelerator)
        kept = ("target", "row", "rows", "signal", "tag", "last")
        layout = data.StructLayout({**{name: TRANSFER[name].shape for name in kept}, "address": ADDRESS_BITS})
        m.submodules.transfers = transfers = Queue(layout, TRANSFERS)

        # Transfers to bursts; the checked one is described once more for the side of the rows.
        item, described = items.o.payload, Signal(layout)
        wiring.connect(m, wiring.flipped(self.control.i), items.i)
        wiring.connect(m, items.index, wiring.flipped(self.index_read))
        m.d.comb += [
            items.o.ready.eq(bursts.idle),
            bursts.regions.eq(self.regions),
            bursts.start.eq(items.o.valid & bursts.idle),
            bursts.region.eq(item.region),
            bursts.offset.eq(item.offset),
            bursts.rows.eq(item.rows),
            bursts.row_beats.eq(self._beats(item.target)),
            bursts.enable.eq(transfers.i.ready & ~self.control.halt),
            transfers.i.valid.eq(bursts.begin),
            transfers.i.payload.eq(described),
            transfers.i.payload.address.eq(bursts.o.payload.address),
        ]
        with m.If(bursts.start):
            m.d.sync += [getattr(described, name).eq(getattr(item, name)) for name in kept]

        read, beat, held = Signal(), Signal(_beat_layout(self._accelerator)), Signal()
        self._requests(m, bursts.o, read)
        advance = self._buffer(m, beat, held, read)
        first, row_valid = self._rows(m, transfers.o, beat, advance)
        m.d.comb += [
            advance.eq(held & ~beat.error & (~row_valid | self.bus.ready) & ~self.control.halt),
            self.control.busy.eq(
                items.busy | ~bursts.idle | transfers.o.valid | row_valid | self.control.done
            ),
            self.control.stalled.eq(self.control.busy & ~advance),
        ]
        self._faults(m, transfers.o.payload.address, first, advance)
        with m.If(held & beat.error):
            m.d.comb += self.fault.cause.eq(Cause.READ_ERROR)
        with m.Elif(bursts.fault.cause != Cause.NONE):
            m.d.comb += self.fault.eq(bursts.fault)
        return m

    def _beats(self, target):
        """Beats of a row of the memory `target`."""
        accelerator = self._accelerator
        return Array(accelerator.beats(load_bytes(accelerator, t)) for t in isa.LoadTarget)[target]

    def _requests(self, m: Module, bursts, read) -> None:
        """Bursts to addresses, as many as the buffer has room for; `read` is a beat that leaves it."""
        axi, halt = self.axi, self.control.halt
        room = Signal(range(BUFFER_BEATS + 1), init=BUFFER_BEATS)
        owed = Signal(range(BUFFER_BEATS + 1))
        issue, free = Signal(), ~axi.arvalid | axi.arready
        length = Mux(issue, bursts.payload.length, 0)
        m.d.comb += [
            issue.eq(bursts.valid & ~halt & (room >= self._accelerator.burst_beats) & free),
            bursts.ready.eq(issue),
            axi.rready.eq(1),
            self.quiet.eq(~axi.arvalid & (owed == 0)),
        ]
        m.d.sync += [room.eq(room - length + read), owed.eq(owed + length - axi.rvalid)]
        with m.If(free):
            m.d.sync += [
                axi.arvalid.eq(issue),
                axi.araddr.eq(bursts.payload.address),
                axi.arlen.eq(bursts.payload.length - 1),
            ]

    def _buffer(self, m: Module, beat, held, read) -> Signal:
        """Beats through the buffer: `beat` (valid while `held`) is its output register, `read` a beat on the way there.
        Returns the signal with which the beat is taken."""
        axi, advance = self.axi, Signal(name="advance")
        m.submodules.buffer = buffer = memory.Memory(shape=beat.shape(), depth=BUFFER_BEATS, init=[])
        write, output = buffer.write_port(), buffer.read_port()
        level = Signal(range(BUFFER_BEATS + 1))
        read_index = Signal(range(BUFFER_BEATS))
        m.d.comb += [
            write.en.eq(axi.rvalid),
            write.data.data.eq(axi.rdata),
            write.data.error.eq(axi.rresp[1]),
            output.addr.eq(read_index),
            output.en.eq(read),
            beat.eq(output.data),
            read.eq((level != 0) & (~held | advance)),
        ]
        m.d.sync += [
            write.addr.eq(write.addr + axi.rvalid),
            read_index.eq(read_index + read),
            level.eq(level + axi.rvalid - read),
            held.eq(read | (held & ~advance)),
        ]
        return advance

    def _rows(self, m: Module, transfers, beat, advance):
        """Beats to rows: segments collect a row, which is written when it is complete. Returns whether the beat is the
        first of its transfer and whether a row waits to be written."""
        control, bus, transfer = self.control, self.bus, transfers.payload
        segments = [
            Signal(self._accelerator.bus_bytes * 8, name=f"segment_{i}")
            for i in range(row_beats_limit(self._accelerator))
        ]
        position, rows_done = Signal(range(len(segments))), Signal(16)
        row_valid, row_last, row_signal, row_tag = Signal(), Signal(), Signal(16), Signal(10)
        last_beat, last_row = Signal(), Signal()
        m.d.comb += [
            last_beat.eq(position == self._beats(transfer.target) - 1),
            last_row.eq(rows_done == transfer.rows - 1),
            transfers.ready.eq(advance & last_beat & last_row),
            bus.valid.eq(row_valid & ~control.halt),
            bus.data.eq(Cat(segments)),
        ]
        with m.If(bus.ready):
            m.d.sync += row_valid.eq(0)
        with m.If(advance):
            for i, segment in enumerate(segments):
                with m.If(position == i):
                    m.d.sync += segment.eq(beat.data)
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
        return (position == 0) & (rows_done == 0), row_valid

    def _faults(self, m: Module, start, first, advance) -> None:
        """The address of a beat's burst, followed from the transfer's first address, in `fault`."""
        bus_bytes = self._accelerator.bus_bytes
        burst_bytes = self._accelerator.burst_beats * bus_bytes
        next_address, burst_address, address = (Signal(ADDRESS_BITS) for _ in range(3))
        boundary = Signal()
        m.d.comb += [
            address.eq(Mux(first, start, next_address)),
            boundary.eq(first | ((address & (burst_bytes - 1)) == 0)),
            self.fault.info.eq(Mux(boundary, address, burst_address)),
        ]
        with m.If(advance):
            m.d.sync += [next_address.eq(address + bus_bytes), burst_address.eq(self.fault.info)]


def _beat_layout(accelerator: Accelerator) -> data.StructLayout:
    return data.StructLayout({"data": accelerator.bus_bytes * 8, "error": 1})

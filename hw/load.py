"""Load engine: rows of DRAM to the memories of the machine."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator
from ..arch.registers import Cause
from .axi import ADDRESS_BITS, ReadChannel, port_address
from .bursts import FAULT, REGIONS, Bursts, row_beats_limit
from .delay import delayed
from .items import TRANSFER, Items
from .lines import Lines
from .ports import EngineSignature, IndexRead, LoadPort, load_bytes
from .queue import Queue

__all__ = ["TRANSFERS", "Engine"]

TRANSFERS = 4
"""Instructions whose bursts are requested or under way, besides the one that is being checked."""


class Engine(wiring.Component):
    """Requests bursts ahead of the data, buffers the lines, joins them to rows: a line per cycle.

    `to` has a bit for each target, high with `bus.valid` for the one that the row is for. An instruction may start while earlier ones are waiting for data. `stalled` is high in the cycles in which an
    instruction is worked on but no line leaves the buffer. A line with an error response on any port raises `fault`
    two cycles after it left the buffer, and no row follows it. With `halt` no burst is requested and nothing is written; `quiet`
    rises when all requested beats have arrived.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "control": Out(EngineSignature(isa.Opcode.LOAD)),
                "regions": In(REGIONS),
                "bus": Out(LoadPort(accelerator)),
                "to": Out(len(isa.LoadTarget)),
                "index_read": Out(IndexRead()),
                "axi": Out(ReadChannel(accelerator)).array(accelerator.ports),
                "fault": Out(FAULT),
                "quiet": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self.halted = delayed(m, self.control.halt, 1, reset_less=False)
        m.submodules.bursts = bursts = Bursts(self._accelerator)
        m.submodules.items = items = Items(self._accelerator)
        kept = {name: TRANSFER[name].shape for name in ("target", "row", "signal", "tag", "last")}
        last = {"last_row": 16, "one_row": 1, "last_line": range(row_beats_limit(self._accelerator))}
        m.submodules.transfers = transfers = Queue(
            data.StructLayout({**kept, **last, "address": ADDRESS_BITS}), TRANSFERS
        )

        # Transfers to bursts; the checked one is described once more for the side of the rows.
        item, described = items.o.payload, Signal(data.StructLayout({**kept, "rows": 16}))
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
            bursts.enable.eq(transfers.i.ready & ~self.halted),
            transfers.i.valid.eq(bursts.begin),
            *(transfers.i.payload[name].eq(described[name]) for name in kept),
            transfers.i.payload.last_row.eq(described.rows - 1),
            transfers.i.payload.one_row.eq(described.rows == 1),
            transfers.i.payload.last_line.eq(self._beats(described.target) - 1),
            transfers.i.payload.address.eq(bursts.o.payload.address),
        ]
        with m.If(bursts.start):
            m.d.sync += [described[name].eq(item[name]) for name in (*kept, "rows")]

        m.submodules.lines = lines = Lines(self._accelerator)
        wiring.connect(m, bursts.o, lines.i)
        for outer, inner in zip(self.axi, lines.axi, strict=True):
            wiring.connect(m, wiring.flipped(outer), inner)
        advance = lines.o.ready
        self.failed = Signal.like(lines.o.payload.errors)
        """By port, of the last line; a row with such a line is not written, and none follows."""
        first, row_valid = self._rows(m, transfers.o, lines.o.payload, advance)
        m.d.comb += [
            lines.halt.eq(self.halted),
            self.quiet.eq(lines.quiet),
            advance.eq(lines.o.valid & ~self.failed.any() & (~row_valid | self.bus.ready)),
            self.control.busy.eq(
                items.busy | ~bursts.idle | transfers.o.valid | row_valid | self.control.done
            ),
        ]
        m.d.sync += self.control.stalled.eq(self.control.busy & ~advance)
        self._faults(m, transfers.o.payload.address, first, advance, lines.o.payload.errors)
        with m.If(self.failed.any()):
            m.d.sync += self.fault.cause.eq(Cause.READ_ERROR)
        with m.Elif(bursts.fault.cause != Cause.NONE):
            m.d.sync += self.fault.eq(bursts.fault)
        return m

    def _beats(self, target):
        """Lines of a row of the memory `target`."""
        accelerator = self._accelerator
        return Array(accelerator.beats(load_bytes(accelerator, t)) for t in isa.LoadTarget)[target]

    def _rows(self, m: Module, transfers, line, advance):
        """Lines to rows: segments collect a row, which is written when it is complete. Returns whether the line is the
        first of its transfer and whether a row waits to be written."""
        control, bus, transfer = self.control, self.bus, transfers.payload
        segments = [
            Signal(self._accelerator.line_bytes * 8, name=f"segment_{i}", reset_less=True)
            for i in range(row_beats_limit(self._accelerator))
        ]
        position, rows_done, rows_left = Signal(range(len(segments))), Signal(16), Signal(16)
        row_valid, row_last, row_signal, row_tag = Signal(), Signal(), Signal(16), Signal(10)
        first_line, first_row, later_last = Signal(init=1), Signal(init=1), Signal()
        last_line, last_row, complete = Signal(), Signal(), Signal()
        m.d.comb += [
            last_line.eq(position == transfer.last_line),
            complete.eq(last_line & ~line.errors.any()),
            last_row.eq(Mux(first_row, transfer.one_row, later_last)),
            transfers.ready.eq(advance & last_line & last_row),
            bus.valid.eq(row_valid),
            bus.data.eq(Cat(segments)),
        ]
        with m.If(bus.ready):
            m.d.sync += [row_valid.eq(0), self.to.eq(0)]
        with m.If(advance):
            for i, segment in enumerate(segments):
                with m.If(position == i):
                    m.d.sync += segment.eq(line.data)
            m.d.sync += [
                row_valid.eq(complete),
                self.to.eq(Mux(complete, 1 << transfer.target, 0)),
                position.eq(Mux(last_line, 0, position + 1)),
                bus.target.eq(transfer.target),
                bus.row.eq(transfer.row + rows_done),
                row_last.eq(last_row & transfer.last),
                row_signal.eq(transfer.signal),
                row_tag.eq(transfer.tag),
            ]
            m.d.sync += first_line.eq(last_line & last_row)
            with m.If(last_line):
                m.d.sync += [
                    rows_done.eq(Mux(last_row, 0, rows_done + 1)),
                    first_row.eq(last_row),
                    rows_left.eq(Mux(first_row, transfer.last_row, rows_left) - 1),
                    later_last.eq(Mux(first_row, transfer.last_row, rows_left) == 1),
                ]
        with m.If(self.halted):
            m.d.sync += [row_valid.eq(0), self.to.eq(0)]
        m.d.sync += [
            control.done.eq(bus.valid & bus.ready & row_last),
            control.done_signal.eq(row_signal),
            control.done_tag.eq(row_tag),
        ]
        return first_line, row_valid

    def _faults(self, m: Module, start, first, advance, errors) -> None:
        """The address of the failed port's burst, followed from the transfer's first address, in `fault`."""
        accelerator = self._accelerator
        next_address, burst_address, address, burst = (Signal(ADDRESS_BITS) for _ in range(4))
        boundary, port = Signal(), Signal(range(max(2, accelerator.ports)))
        m.d.comb += [
            address.eq(Mux(first, start, next_address)),
            boundary.eq(first | ((address & (accelerator.block_bytes - 1)) == 0)),
            burst.eq(Mux(boundary, address, burst_address)),
        ]
        m.d.sync += self.fault.info.eq(port_address(accelerator, burst_address, port))
        for number in reversed(range(accelerator.ports)):
            with m.If(self.failed[number]):
                m.d.comb += port.eq(number)
        with m.If(advance):
            m.d.sync += [
                next_address.eq(address + accelerator.line_bytes),
                burst_address.eq(burst),
                self.failed.eq(errors),
            ]

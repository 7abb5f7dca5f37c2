"""Store engine: rows of the scratchpad to DRAM."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator
from ..arch.registers import Cause
from .axi import ADDRESS_BITS, LENGTH_BITS, WriteChannel, port_address
from .bursts import FAULT, REGIONS, Bursts
from .delay import delayed
from .ports import EngineSignature, ReadPort
from .queue import Queue

__all__ = ["PENDING", "TRANSFERS", "Engine", "rows_ahead"]

PENDING = 255
"""Most bursts that wait for their response."""
TRANSFERS = 4
"""Instructions that are written or wait for responses, besides the one that is being checked."""


def rows_ahead(accelerator: Accelerator) -> int:
    """Rows that are read ahead of the one that is being sent: enough for a line per cycle, as a row is there four cycles
    after the one in its place has left."""
    return -(-4 // accelerator.beats(accelerator.scratchpad_row_bytes))


class Engine(wiring.Component):
    """Reads rows ahead of the row that is being sent, and writes them in bursts: a line per cycle.

    The next instruction starts when all rows of the one before have been read and all its bursts begun; an instruction
    is done when all its responses have arrived. Only the bytes of rows are strobed. All ports send together: a line is
    put on the bus when none holds one that waits. `stalled` is high in the cycles in which an instruction is worked on
    but no line is put on the bus. With `halt` no row is read and no burst is begun; the burst that was begun is finished
    with all strobes low; `quiet` rises when it is and all responses have arrived.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "control": Out(EngineSignature(isa.Opcode.STORE)),
                "regions": In(REGIONS),
                "read": Out(ReadPort(accelerator)),
                "axi": Out(WriteChannel(accelerator)).array(accelerator.ports),
                "fault": Out(FAULT),
                "quiet": Out(1),
            }
        )

    def elaborate(self, platform):
        accelerator, control = self._accelerator, self.control
        m = Module()
        self.halted = delayed(m, control.halt, 1, reset_less=False)
        m.submodules.bursts = bursts = Bursts(accelerator)
        layout = data.StructLayout(
            {"address": ADDRESS_BITS, "others": ADDRESS_BITS, "single": 1, "signal": 16, "tag": 10}
        )
        m.submodules.transfers = transfers = Queue(layout, TRANSFERS)
        instruction, transfer = control.i.payload, transfers.i.payload
        row_beats = accelerator.beats(accelerator.scratchpad_row_bytes)

        row, rows, rows_left, signal, tag = Signal(16), Signal(16), Signal(16), Signal(16), Signal(10)
        reads = Signal()
        """Whether rows are left."""
        beyond = delayed(m, rows * (row_beats * accelerator.line_bytes) - 1, 1)
        end = delayed(m, (bursts.o.payload.address + beyond)[:ADDRESS_BITS], 1)
        bits = (accelerator.block_bytes - 1).bit_length()
        m.d.comb += [
            control.i.ready.eq(bursts.idle & ~reads),
            bursts.regions.eq(self.regions),
            bursts.start.eq(control.i.valid & control.i.ready),
            bursts.region.eq(instruction.region),
            bursts.offset.eq(instruction.offset),
            bursts.rows.eq(instruction.rows),
            bursts.row_beats.eq(row_beats),
            bursts.enable.eq(transfers.i.ready),
            transfers.i.valid.eq(bursts.begin),
            transfer.address.eq(bursts.o.payload.address),
            transfer.signal.eq(signal),
            transfer.tag.eq(tag),
            transfer.others.eq((end >> bits) - (bursts.o.payload.address >> bits)),
            transfer.single.eq((end >> bits) == (bursts.o.payload.address >> bits)),
        ]
        with m.If(bursts.start):
            m.d.sync += [
                row.eq(instruction.row),
                rows.eq(instruction.rows),
                signal.eq(instruction.signal),
                tag.eq(instruction.tag),
            ]
        with m.If(bursts.begin):
            m.d.sync += [rows_left.eq(rows), reads.eq(1)]

        send = Signal()
        current, current_beats = self._rows(m, row, rows_left, reads, send)
        answered = self._responses(m, transfers.o, bursts.fault)
        self._bursts(m, bursts, current, current_beats, send, answered)
        m.d.comb += [
            control.busy.eq(~bursts.idle | transfers.o.valid | control.done),
        ]
        m.d.sync += control.stalled.eq(control.busy & ~send)
        return m

    def _rows(self, m: Module, row, rows_left, reads, send):
        """`ahead` takes what the scratchpad returns, the first row in place 0; `current` is shifted out line by line, and
        the second result is how many lines it still has."""
        accelerator, read = self._accelerator, self.read
        line_bits = accelerator.line_bytes * 8
        row_beats = accelerator.beats(accelerator.scratchpad_row_bytes)
        places = rows_ahead(accelerator)
        ahead = [Signal(len(read.data), name=f"ahead_{place}", reset_less=True) for place in range(places)]
        claimed, level, arriving = Signal(range(places + 1)), Signal(range(places + 1)), Signal(2)
        following, room = Signal.like(claimed), Signal(init=1)
        """What `claimed` is in the next cycle; whether it is below `places`: a request comes from registers."""
        current = Signal(row_beats * line_bits, reset_less=True)
        current_beats = Signal(range(row_beats + 1))
        grant, move = Signal(), Signal()
        m.d.comb += [
            read.valid.eq(reads & room),
            read.row.eq(row),
            grant.eq(read.valid & read.ready),
            following.eq(claimed + grant - move),
            move.eq((level != 0) & ((current_beats == 0) | ((current_beats == 1) & send))),
        ]
        m.d.sync += [
            arriving.eq(grant | (arriving << 1)),
            claimed.eq(following),
            room.eq((following != places) & ~self.halted),
            level.eq(level + arriving[1] - move),
        ]
        with m.If(grant):
            m.d.sync += [row.eq(row + 1), rows_left.eq(rows_left - 1), reads.eq(rows_left != 1)]
        for place, entry in enumerate(ahead):
            with m.If(arriving[1] & (level - move == place)):
                m.d.sync += entry.eq(read.data)
            with m.Elif(move):
                m.d.sync += entry.eq(ahead[min(place + 1, places - 1)])
        with m.If(move):
            m.d.sync += [current.eq(ahead[0]), current_beats.eq(row_beats)]
        with m.Elif(send & (current_beats != 0)):
            m.d.sync += [current.eq(current >> line_bits), current_beats.eq(current_beats - 1)]
        return current, current_beats

    def _bursts(self, m: Module, source: Bursts, current, current_beats, send, answered):
        """Lines in bursts to all ports: the next burst is opened in the cycle in which the last line of the one before is
        put on the bus."""
        accelerator, halt, bursts = self._accelerator, self.halted, source.o
        bus_bytes = accelerator.bus_bytes
        beats_left, pending, opened = Signal(LENGTH_BITS), Signal(range(PENDING + 1)), Signal()
        some, last, full = Signal(), Signal(), Signal()
        """Whether `beats_left` is above 0, and 1; whether `pending` is PENDING."""
        waits = Cat(axi.wvalid & ~axi.wready for axi in self.axi).any()
        address_waits = Cat(axi.awvalid & ~axi.awready for axi in self.axi).any()
        m.d.comb += [
            send.eq(some & ((current_beats != 0) | halt) & ~waits),
            opened.eq(bursts.valid & ~halt & ~address_waits & (~some | (last & send)) & ~full),
            bursts.ready.eq(opened),
            self.quiet.eq(~some & (pending == 0) & ~Cat(axi.awvalid | axi.wvalid for axi in self.axi).any()),
        ]
        m.d.sync += [
            beats_left.eq(Mux(opened, bursts.payload.length, beats_left - send)),
            some.eq(opened | (some & ~(last & send))),
            last.eq(Mux(opened, source.single, Mux(send, beats_left == 2, last))),
            pending.eq(pending + opened - answered),
            full.eq(~answered & (full | (opened & (pending == PENDING - 1)))),
        ]
        strobes = (1 << min(accelerator.scratchpad_row_bytes, accelerator.line_bytes)) - 1
        for number, axi in enumerate(self.axi):
            low = number * bus_bytes
            with m.If(~axi.awvalid | axi.awready):
                m.d.sync += [
                    axi.awvalid.eq(opened),
                    axi.awaddr.eq(port_address(accelerator, bursts.payload.address, number)),
                    axi.awlen.eq(bursts.payload.length - 1),
                ]
            with m.If(~axi.wvalid | axi.wready):
                m.d.sync += [
                    axi.wvalid.eq(send),
                    axi.wdata.eq(current[low * 8 : (low + bus_bytes) * 8]),
                    axi.wstrb.eq(Mux(halt, 0, strobes >> low & ((1 << bus_bytes) - 1))),
                    axi.wlast.eq(last),
                ]

    def _responses(self, m: Module, transfers, check_fault):
        """Each port keeps one response until all have theirs: then their burst is answered (the result). Bursts are
        counted; the answer of a transfer's last one completes the instruction."""
        accelerator, transfer, control = self._accelerator, transfers.payload, self.control
        burst, following, first, port = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS), Signal(init=1), Signal(2)
        kept, failed = (Signal(accelerator.ports, name=name) for name in ("kept", "failed"))
        answered, last, others, final = Signal(), Signal(), Signal(ADDRESS_BITS), Signal()
        """Of a burst: how many of its transfer follow, and whether none does."""
        bits = (accelerator.block_bytes - 1).bit_length()
        m.d.comb += [
            answered.eq(kept.all()),
            burst.eq(Mux(first, transfer.address, following)),
            last.eq(Mux(first, transfer.single, final)),
            transfers.ready.eq(answered & last),
        ]
        m.d.sync += [
            control.done.eq(transfers.ready & ~self.halted),
            control.done_signal.eq(transfer.signal),
            control.done_tag.eq(transfer.tag),
            self.fault.cause.eq(Cause.NONE),
            self.fault.info.eq(port_address(accelerator, burst, port)),
        ]
        for number, axi in enumerate(self.axi):
            m.d.comb += axi.bready.eq(~kept[number] | answered)
            m.d.sync += kept[number].eq(axi.bvalid | (kept[number] & ~answered))
            with m.If(axi.bvalid & axi.bready):
                m.d.sync += failed[number].eq(axi.bresp[1])
        for number in reversed(range(accelerator.ports)):
            with m.If(failed[number]):
                m.d.comb += port.eq(number)
        left = Mux(first, transfer.others, others)
        with m.If(answered):
            m.d.sync += [first.eq(last), following.eq((burst | ((1 << bits) - 1)) + 1)]
            m.d.sync += [others.eq(left - 1), final.eq(left == 1)]
        with m.If(answered & failed.any()):
            m.d.sync += self.fault.cause.eq(Cause.WRITE_ERROR)
        with m.Elif(check_fault.cause != Cause.NONE):
            m.d.sync += self.fault.eq(check_fault)
        return answered

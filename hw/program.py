"""Instruction memory and its loader."""

from __future__ import annotations

from functools import reduce
from operator import xor

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import VERSION, Accelerator
from ..arch.program import MAGIC
from ..arch.registers import Cause
from .axi import ADDRESS_BITS, ReadChannel
from .bursts import FAULT
from .decode import STORED_BITS

__all__ = ["Memory"]

_BYTES = isa.INSTRUCTION_BITS // 8
_WORD = 32


class Memory(wiring.Component):
    """Holds the instructions; `load` (while not `busy`) reads header and instructions from `address`.

    Instruction `read_index` is on `instruction` in the next cycle. `count` is the number of instructions, 0 while no
    program is `loaded`. The loader requests all bursts at once: it takes a beat in every cycle. A fault shows for one
    cycle and ends the loading; `busy` falls when all requested beats have arrived.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "load": In(1),
                "address": In(ADDRESS_BITS),
                "busy": Out(1),
                "fault": Out(FAULT),
                "loaded": Out(1),
                "count": Out(17),
                "axi": Out(ReadChannel(accelerator)),
                "read_index": In(17),
                "instruction": Out(STORED_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        accelerator, axi = self._accelerator, self.axi
        bus_bytes = accelerator.bus_bytes
        beats = _BYTES // bus_bytes
        burst_beats = min(beats, accelerator.burst_beats)
        burst_bytes = burst_beats * bus_bytes

        m.submodules.memory = storage = memory.Memory(
            shape=STORED_BITS, depth=accelerator.instructions, init=[]
        )
        write, read = storage.write_port(), storage.read_port()
        m.d.comb += [read.addr.eq(self.read_index), self.instruction.eq(read.data)]

        # Requests: `bursts_left` bursts from `request` on.
        request, bursts_left = Signal(ADDRESS_BITS), Signal(17 + (_BYTES // burst_bytes - 1).bit_length())
        issue, owed = Signal(), Signal(22)
        m.d.comb += [issue.eq((bursts_left != 0) & (~axi.arvalid | axi.arready)), axi.rready.eq(1)]
        m.d.sync += owed.eq(owed + Mux(issue, burst_beats, 0) - axi.rvalid)
        with m.If(~axi.arvalid | axi.arready):
            m.d.sync += [
                axi.arvalid.eq(issue),
                axi.araddr.eq(request),
                axi.arlen.eq(burst_beats - 1),
            ]
        with m.If(issue):
            m.d.sync += [request.eq(request + burst_bytes), bursts_left.eq(bursts_left - 1)]

        # Beats to instructions; bits that are not stored only enter the checksum.
        segments = [
            Signal(bus_bytes * 8, name=f"segment_{i}") for i in range(-(-STORED_BITS // (bus_bytes * 8)))
        ]
        word, word_valid = Cat(segments)[:STORED_BITS], Signal()
        response, position = Signal(ADDRESS_BITS), Signal(range(beats))
        checksum, expected = Signal(_WORD), Signal(_WORD)
        m.d.sync += word_valid.eq(0)
        with m.If(axi.rvalid):
            m.d.sync += [
                word_valid.eq(position == beats - 1),
                position.eq(Mux(position == beats - 1, 0, position + 1)),
                checksum.eq(reduce(xor, _words(axi.rdata), checksum)),
            ]
            for i, segment in enumerate(segments):
                with m.If(position == i):
                    m.d.sync += segment.eq(axi.rdata)
            with m.If(axi.rlast):
                m.d.sync += response.eq(response + burst_bytes)

        index, size = Signal(17), Signal(17)
        m.d.comb += [write.addr.eq(index), write.data.eq(word), self.busy.eq(1)]

        def fail(cause: Cause, info):
            m.d.comb += [self.fault.cause.eq(cause), self.fault.info.eq(info)]
            m.d.sync += bursts_left.eq(0)
            m.next = "DRAIN"

        read_error = axi.rvalid & axi.rresp[1]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(0)
                with m.If(self.load):
                    start = self.address & ~(_BYTES - 1)
                    m.d.sync += [
                        request.eq(start),
                        response.eq(start),
                        position.eq(0),
                        bursts_left.eq(_BYTES // burst_bytes),
                        index.eq(0),
                        self.loaded.eq(0),
                        self.count.eq(0),
                    ]
                    m.next = "HEADER"
            with m.State("HEADER"):
                magic, version, hash_low, hash_high, count, check = _words(word)[:6]
                wrong_hash = Cat(hash_low, hash_high) != accelerator.hash
                with m.If(read_error):
                    fail(Cause.READ_ERROR, response)
                with m.Elif(word_valid & (magic != MAGIC)):
                    fail(Cause.BAD_PROGRAM, magic)
                with m.Elif(word_valid & (version != VERSION)):
                    fail(Cause.BAD_PROGRAM, version)
                with m.Elif(word_valid & wrong_hash):
                    fail(Cause.WRONG_HASH, hash_low)
                with m.Elif(word_valid & ((count == 0) | (count > accelerator.instructions))):
                    fail(Cause.BAD_PROGRAM, count)
                with m.Elif(word_valid):
                    m.d.sync += [
                        size.eq(count),
                        bursts_left.eq(count[:17] * (_BYTES // burst_bytes)),
                        expected.eq(check),
                        checksum.eq(0),
                    ]
                    m.next = "BODY"
            with m.State("BODY"):
                with m.If(read_error):
                    fail(Cause.READ_ERROR, response)
                with m.Elif(word_valid):
                    m.d.comb += write.en.eq(1)
                    m.d.sync += index.eq(index + 1)
                    with m.If(index == size - 1):
                        m.next = "CHECK"
            with m.State("CHECK"):
                with m.If(checksum != expected):
                    fail(Cause.BAD_CHECKSUM, checksum)
                with m.Else():
                    m.d.sync += [self.loaded.eq(1), self.count.eq(size)]
                    m.next = "IDLE"
            with m.State("DRAIN"), m.If(~axi.arvalid & (owed == 0)):
                m.next = "IDLE"
        return m


def _words(value) -> list:
    """The 32-bit words of `value`."""
    return [value[i : i + _WORD] for i in range(0, len(value), _WORD)]

"""Instruction memory and its loader."""

from __future__ import annotations

from functools import reduce
from operator import xor

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import VERSION, Accelerator
from ..arch.program import MAGIC
from ..arch.registers import Cause
from .axi import ADDRESS_BITS, ReadChannel
from .bursts import FAULT
from .decode import USED_BITS, stored, stored_bits
from .delay import delayed
from .loop import loop

__all__ = ["Memory"]

_BYTES = isa.INSTRUCTION_BITS // 8
_WORD = 32


class Words(wiring.Component):
    """Reads words of an instruction's length from DRAM.

    A cycle later `start` sets the address, `more` requests the next `words` words, all bursts at once, so that a beat is taken in every
    cycle, and `stop` requests nothing further. `valid` is high for one cycle with each `word` (its used bits); `checksum` is
    the XOR of all 32-bit words since `more`. With `error`, the burst at `response` failed. `drained`: nothing is
    outstanding.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "axi": Out(ReadChannel(accelerator)),
                "start": In(1),
                "address": In(ADDRESS_BITS),
                "more": In(1),
                "words": In(17),
                "stop": In(1),
                "word": Out(USED_BITS),
                "valid": Out(1),
                "checksum": Out(_WORD),
                "error": Out(1),
                "response": Out(ADDRESS_BITS),
                "drained": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        accelerator, axi = self._accelerator, self.axi
        bus_bytes = accelerator.bus_bytes
        beats = _BYTES // bus_bytes
        burst_beats = min(beats, accelerator.burst_beats)
        burst_bytes = burst_beats * bus_bytes
        word_bursts = _BYTES // burst_bytes

        request, bursts_left = Signal(ADDRESS_BITS), Signal(17 + (word_bursts - 1).bit_length())
        arrived, error, last = (
            delayed(m, value, 1, reset_less=False)
            for value in (axi.rvalid, axi.rvalid & axi.rresp[1], axi.rvalid & axi.rlast)
        )
        beat = delayed(m, axi.rdata, 1)
        issue, owed, change = Signal(), Signal(22), Signal(signed(burst_beats.bit_length() + 1))
        """`owed` beats are to come, `change` more of them; both a cycle after the bus."""
        m.d.comb += [
            issue.eq((bursts_left != 0) & (~axi.arvalid | axi.arready)),
            axi.rready.eq(1),
            self.error.eq(error),
        ]
        m.d.sync += [
            self.drained.eq(~axi.arvalid & (bursts_left == 0) & (owed == 0) & (change == 0)),
            change.eq(Mux(issue, burst_beats, 0) - axi.rvalid),
            owed.eq(owed + change),
        ]
        with m.If(~axi.arvalid | axi.arready):
            m.d.sync += [axi.arvalid.eq(issue), axi.araddr.eq(request), axi.arlen.eq(burst_beats - 1)]
        with m.If(issue):
            m.d.sync += [request.eq(request + burst_bytes), bursts_left.eq(bursts_left - 1)]

        # Bits that are not used only enter the checksum.
        segments = [
            Signal(bus_bytes * 8, name=f"segment_{i}", reset_less=True)
            for i in range(-(-USED_BITS // (bus_bytes * 8)))
        ]
        place = Signal(beats, init=1)
        """A bit for each beat of a word: which one comes next."""
        m.d.comb += self.word.eq(Cat(segments))
        m.d.sync += self.valid.eq(0)
        with m.If(arrived):
            m.d.sync += [
                self.valid.eq(place[-1]),
                place.eq(place.rotate_left(1)),
                self.checksum.eq(reduce(xor, _parts(beat), self.checksum)),
            ]
            for i, segment in enumerate(segments):
                with m.If(place[i]):
                    m.d.sync += segment.eq(beat)
        with m.If(last):
            m.d.sync += self.response.eq(self.response + burst_bytes)

        start, more, stop = (
            delayed(m, value, 1, reset_less=False) for value in (self.start, self.more, self.stop)
        )
        words = delayed(m, self.words, 1)
        with m.If(start):
            m.d.sync += [request.eq(self.address), self.response.eq(self.address), place.eq(1)]
        with m.If(more):
            m.d.sync += [bursts_left.eq(words * word_bursts), self.checksum.eq(0)]
        with m.If(stop):
            m.d.sync += bursts_left.eq(0)
        return m


class Memory(wiring.Component):
    """Holds the instructions; `load` (while not `busy`) reads header and instructions from `address`.

    Instruction `read_index` is on `instruction` in the next cycle. `count` is the number of instructions, 0 while no
    program is `loaded`. A fault shows for one cycle and ends the loading; `busy` falls when
    all requested beats have arrived.
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
                "instruction": Out(stored_bits(accelerator)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        accelerator = self._accelerator
        m.submodules.words = words = Words(accelerator)
        m.submodules.memory = storage = memory.Memory(
            shape=stored_bits(accelerator), depth=accelerator.instructions, init=[]
        )
        write, read = storage.write_port(), storage.read_port()
        index, size, expected = Signal(17), Signal(17), Signal(_WORD)
        magic, version, hash_low, hash_high, count, check = _parts(words.word)[:6]
        wrong = Signal(4)
        m.d.sync += [
            wrong[0].eq(magic != MAGIC),
            wrong[1].eq(version != VERSION),
            wrong[2].eq(Cat(hash_low, hash_high) != accelerator.hash),
            wrong[3].eq((count == 0) | (count > accelerator.instructions)),
        ]
        wiring.connect(m, words.axi, wiring.flipped(self.axi))
        m.d.comb += [
            read.addr.eq(self.read_index),
            self.instruction.eq(read.data),
            write.addr.eq(index),
            write.data.eq(stored(accelerator, words.word)),
            words.address.eq(self.address & ~(_BYTES - 1)),
        ]

        def fail(cause: Cause, info):
            m.d.comb += words.stop.eq(1)
            m.d.sync += [self.fault.cause.eq(cause), self.fault.info.eq(info)]
            m.next = "DRAIN"

        begin = Signal()
        _, last, _ = loop(m, write.en, begin, size, count[:17])
        m.d.sync += self.fault.cause.eq(Cause.NONE)
        with m.FSM():
            with m.State("IDLE"), m.If(self.load):
                m.d.sync += self.busy.eq(1)
                m.d.comb += [words.start.eq(1), words.more.eq(1), words.words.eq(1)]
                m.d.sync += [index.eq(0), self.loaded.eq(0), self.count.eq(0)]
                m.next = "HEADER"
            with m.State("HEADER"):
                with m.If(words.error):
                    fail(Cause.READ_ERROR, words.response)
                with m.Elif(words.valid):
                    m.next = "VERIFY"
            with m.State("VERIFY"):
                m.d.comb += words.words.eq(count)
                with m.If(wrong[0]):
                    fail(Cause.BAD_PROGRAM, magic)
                with m.Elif(wrong[1]):
                    fail(Cause.BAD_PROGRAM, version)
                with m.Elif(wrong[2]):
                    fail(Cause.WRONG_HASH, hash_low)
                with m.Elif(wrong[3]):
                    fail(Cause.BAD_PROGRAM, count)
                with m.Else():
                    m.d.comb += [words.more.eq(1), begin.eq(1)]
                    m.d.sync += [size.eq(count), expected.eq(check)]
                    m.next = "BODY"
            with m.State("BODY"):
                with m.If(words.error):
                    fail(Cause.READ_ERROR, words.response)
                with m.Elif(words.valid):
                    m.d.comb += write.en.eq(1)
                    m.d.sync += index.eq(index + 1)
                    with m.If(last):
                        m.next = "CHECK"
            with m.State("CHECK"):
                with m.If(words.checksum != expected):
                    fail(Cause.BAD_CHECKSUM, words.checksum)
                with m.Else():
                    m.d.sync += [self.loaded.eq(1), self.count.eq(size), self.busy.eq(0)]
                    m.next = "IDLE"
            with m.State("DRAIN"), m.If(words.drained):
                m.d.sync += self.busy.eq(0)
                m.next = "IDLE"
        return m


def _parts(value) -> list:
    """The 32-bit words of `value`."""
    return [value[i : i + _WORD] for i in range(0, len(value), _WORD)]

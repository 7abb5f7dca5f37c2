"""Bursts from DRAM, the same on every port, to lines in order: a beat of every port each."""

from __future__ import annotations

from functools import reduce
from operator import and_

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from ..arch.accelerator import Accelerator
from .axi import ReadChannel, port_address
from .bursts import BURST

__all__ = ["BUFFER_LINES", "Lines"]

BUFFER_LINES = 512
"""Lines requested but not yet taken from the buffers; a burst is requested when it surely fits. At full rate that hides
a latency of BUFFER_LINES - burst_beats cycles."""


class Lines(wiring.Component):
    """Requests the bursts of `i` and puts the beats of each port into a buffer of its own; a line is on `o` when all
    ports have its beat, at one per cycle. `errors` has a bit per port.

    The ports' address channels accept together: a burst is taken when none holds an address that waits. `rready` is
    always 1. With `halt` no burst is taken; `quiet` rises when all requested beats have arrived. `room` lines may still be
    requested, and one more if one was `taken` in the cycle before; `owed` beats of each port are to come, and `levels`
    are in its buffer.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        line = data.StructLayout({"data": accelerator.line_bytes * 8, "errors": accelerator.ports})
        super().__init__(
            {
                "i": In(stream.Signature(BURST)),
                "o": Out(stream.Signature(line)),
                "axi": Out(ReadChannel(accelerator)).array(accelerator.ports),
                "halt": In(1),
                "quiet": Out(1),
                "room": Out(range(BUFFER_LINES + 1), init=BUFFER_LINES),
                "taken": Out(1),
                "levels": Out(range(BUFFER_LINES + 1)).array(accelerator.ports),
                "owed": Out(range(BUFFER_LINES + 1)).array(accelerator.ports),
            }
        )

    def elaborate(self, platform):
        m = Module()
        burst = self.i.payload
        issue, read, held, read_index = Signal(), Signal(), Signal(), Signal(range(BUFFER_LINES))
        length = Signal.like(burst.length)
        free = _all(~axi.arvalid | axi.arready for axi in self.axi)
        m.d.comb += [
            issue.eq(self.i.valid & ~self.halt & (self.room >= self._accelerator.burst_beats) & free),
            self.i.ready.eq(issue),
            length.eq(Mux(issue, burst.length, 0)),
            self.o.valid.eq(held),
        ]
        m.d.sync += [
            self.taken.eq(read),
            self.room.eq((self.room + self.taken) - length),
            held.eq(read | (held & ~self.o.ready)),
        ]
        with m.If(read):
            m.d.sync += read_index.eq(read_index + 1)
        filled, idle, beats = [], [], []
        for number, axi in enumerate(self.axi):
            with m.If(~axi.arvalid | axi.arready):
                m.d.sync += [
                    axi.arvalid.eq(issue),
                    axi.araddr.eq(port_address(self._accelerator, burst.address, number)),
                    axi.arlen.eq(burst.length - 1),
                ]
            beats.append(self._buffer(m, number, read, read_index, length))
            filled.append(self.levels[number] != 0)
            idle.append(~axi.arvalid & (self.owed[number] == 0))
        m.d.comb += [
            read.eq(_all(filled) & (~held | self.o.ready)),
            self.quiet.eq(_all(idle)),
            self.o.payload.data.eq(Cat(beat.data for beat in beats)),
            self.o.payload.errors.eq(Cat(beat.error for beat in beats)),
        ]
        return m

    def _buffer(self, m: Module, number: int, read, read_index, length):
        """One port's beats in order of arrival; the result is the one at the output, a cycle after `read`."""
        axi, level, owed = self.axi[number], self.levels[number], self.owed[number]
        beat = data.StructLayout({"data": self._accelerator.bus_bytes * 8, "error": 1})
        buffer = memory.Memory(shape=beat, depth=BUFFER_LINES, init=[])
        m.submodules[f"buffer_{number}"] = buffer
        write, output = buffer.write_port(), buffer.read_port()
        m.d.comb += [
            axi.rready.eq(1),
            write.en.eq(axi.rvalid),
            write.data.data.eq(axi.rdata),
            write.data.error.eq(axi.rresp[1]),
            output.addr.eq(read_index),
            output.en.eq(read),
        ]
        m.d.sync += [
            write.addr.eq(write.addr + axi.rvalid),
            level.eq(Mux(axi.rvalid, Mux(read, level, level + 1), Mux(read, level - 1, level))),
            owed.eq((owed - axi.rvalid) + length),
        ]
        return output.data


def _all(bits):
    return reduce(and_, bits)

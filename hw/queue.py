"""A short queue in distributed memory."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Queue"]


class Queue(wiring.Component):
    """A queue of `depth` (a power of two) payloads: what is put in during cycle c can be taken from c + 1 on.

    `i.ready` is a register: a full queue accepts nothing, even in a cycle in which its head leaves. So is `o.valid`.
    """

    def __init__(self, shape, depth: int):
        self._depth = depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = storage = memory.Memory(
            shape=self.i.payload.shape(), depth=self._depth, init=[]
        )
        write, read = storage.write_port(), storage.read_port(domain="comb")
        level, room, some = Signal(range(self._depth + 1)), Signal(init=1), Signal()
        put, take = self.i.valid & self.i.ready, self.o.valid & self.o.ready
        m.d.comb += [
            self.i.ready.eq(room),
            self.o.valid.eq(some),
            self.o.payload.eq(read.data),
            write.en.eq(room),  # The slot is free; what is put there in vain is overwritten.
            write.data.eq(self.i.payload),
        ]
        m.d.sync += [
            level.eq(level + put - take),
            room.eq((level != self._depth) & ((level != self._depth - 1) | ~put) | take),
            some.eq((level > 1) | ((level == 1) & ~take) | put),
            write.addr.eq(write.addr + put),
            read.addr.eq(read.addr + take),
        ]
        return m

"""Operand buffer: a ring of chunks, `depth` bytes for every column each."""

from __future__ import annotations

from amaranth.hdl import Module, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..arch.accelerator import Accelerator

__all__ = ["Buffer", "WriteSignature", "aligned", "count_bits"]


def count_bits(accelerator: Accelerator) -> int:
    """Width of a running count of chunks: enough to tell a full ring from an empty one."""
    return exact_log2(accelerator.operand_chunks) + 1


def aligned(count: Value, unit: int) -> Value:
    """The first multiple of a power of two from `count` on, modulo the same as `count`."""
    if unit == 1:
        return count
    return ((count + (unit - 1))[: len(count)] >> exact_log2(unit)) << exact_log2(unit)


class WriteSignature(wiring.Signature):
    """One chunk, or a column of one; facing the writer. With `wide` `private` chunks from `address` on, a multiple of it:
    column c of number i is `data[i * columns + c]`. Otherwise all numbers of `data` are the chunk."""

    def __init__(self, accelerator: Accelerator):
        super().__init__(
            {
                "enable": Out(accelerator.columns),
                "address": Out(exact_log2(accelerator.operand_chunks)),
                "wide": Out(1),
                "data": Out(accelerator.depth * 8).array(accelerator.private * accelerator.columns),
            }
        )


class Buffer(wiring.Component):
    """Chunks by address; `data` belongs to the address of the cycle before: the chunk there in number address %
    private, and those beside it. The second half of them is read at `address_high`. Not to be read where it is written."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "write": In(WriteSignature(accelerator)),
                "address": In(exact_log2(accelerator.operand_chunks)),
                "address_high": In(exact_log2(accelerator.operand_chunks)),
                "data": Out(accelerator.depth * 8).array(accelerator.private * accelerator.columns),
            }
        )

    def elaborate(self, platform):
        m = Module()
        a, bits = self.accelerator, exact_log2(self.accelerator.private)
        for number, data in enumerate(self.data):
            bank, column = divmod(number, a.columns)
            ram = memory.Memory(shape=a.depth * 8, depth=a.operand_chunks // a.private, init=[])
            m.submodules[f"column_{column}_{bank}"] = ram
            write, read = ram.write_port(), ram.read_port()
            mine = self.write.wide | (self.write.address[:bits] == bank) if bits else 1
            m.d.comb += [
                write.en.eq(self.write.enable[column] & mine),
                write.addr.eq(self.write.address[bits:]),
                write.data.eq(self.write.data[number]),
                read.addr.eq((self.address_high if bank >= (a.private + 1) // 2 else self.address)[bits:]),
                data.eq(read.data),
            ]
        return m

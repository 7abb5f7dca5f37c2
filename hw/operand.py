"""Operand buffer: a ring of chunks, `depth` bytes for every column each."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from ..arch.accelerator import Accelerator

__all__ = ["Buffer", "WriteSignature", "count_bits"]


def count_bits(accelerator: Accelerator) -> int:
    """Width of a running count of chunks: enough to tell a full ring from an empty one."""
    return exact_log2(accelerator.operand_chunks) + 1


class WriteSignature(wiring.Signature):
    """One chunk, or a column of one; facing the writer."""

    def __init__(self, accelerator: Accelerator):
        super().__init__(
            {
                "enable": Out(accelerator.columns),
                "address": Out(exact_log2(accelerator.operand_chunks)),
                "data": Out(accelerator.depth * 8).array(accelerator.columns),
            }
        )


class Buffer(wiring.Component):
    """Chunks by address; `data` belongs to the address of the cycle before. Not to be read where it is written."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        super().__init__(
            {
                "write": In(WriteSignature(accelerator)),
                "address": In(exact_log2(accelerator.operand_chunks)),
                "data": Out(accelerator.depth * 8).array(accelerator.columns),
            }
        )

    def elaborate(self, platform):
        m = Module()
        for column in range(self.accelerator.columns):
            ram = memory.Memory(
                shape=self.accelerator.depth * 8, depth=self.accelerator.operand_chunks, init=[]
            )
            m.submodules[f"column_{column}"] = ram
            write, read = ram.write_port(), ram.read_port()
            m.d.comb += [
                write.en.eq(self.write.enable[column]),
                write.addr.eq(self.write.address),
                write.data.eq(self.write.data[column]),
                read.addr.eq(self.address),
                self.data[column].eq(read.data),
            ]
        return m

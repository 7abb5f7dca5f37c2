"""Scratchpad: regions of wide rows with a read and a write port each, shared by fixed priority."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In

from ..arch.accelerator import Accelerator
from .ports import ReadPort, WritePort

__all__ = ["READERS", "WRITERS", "Scratchpad", "mask_bytes"]

READERS = ("residual", "fetch", "vector", "store")
"""Read ports, highest priority first."""
WRITERS = ("drain", "vector_write", "load")
"""Write ports, highest priority first."""


def mask_bytes(accelerator: Accelerator) -> int:
    """Bytes that are always written together: engines write whole steps of `drain` or `vector` channels."""
    return min(accelerator.drain, accelerator.vector)


class Scratchpad(wiring.Component):
    """Ports `READERS` and `WRITERS`. Per region and cycle the first valid reader and the first valid writer are granted.

    Read data is valid two cycles after the grant (memory, then its output register). A row that is written must not
    be read in the same cycle. Of a write's mask, the first bit of every `mask_bytes` counts.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                **{name: In(ReadPort(accelerator)) for name in READERS},
                **{name: In(WritePort(accelerator)) for name in WRITERS},
            }
        )

    def elaborate(self, platform):
        m = Module()
        accelerator = self._accelerator
        regions, rows = accelerator.scratchpad_regions, accelerator.scratchpad_rows
        row_bits, region_bits = (rows - 1).bit_length(), (regions - 1).bit_length()
        group, width = mask_bytes(accelerator), accelerator.scratchpad_row_bytes * 8
        readers = [getattr(self, name) for name in READERS]
        writers = [getattr(self, name) for name in WRITERS]

        def region(port):
            return port.row[row_bits : row_bits + region_bits] if region_bits else 0

        for ports in (readers, writers):
            for i, port in enumerate(ports):
                conflicts = [above.valid & (region(above) == region(port)) for above in ports[:i]]
                m.d.comb += port.ready.eq(~Cat(conflicts).any() if conflicts else 1)

        outputs = []
        for r in range(regions):
            m.submodules[f"region_{r}"] = storage = memory.Memory(shape=width, depth=rows, init=[])
            read, write = storage.read_port(), storage.write_port(granularity=group * 8)
            output, loaded = Signal(width, reset_less=True, name=f"output_{r}"), Signal(name=f"loaded_{r}")
            outputs.append(output)
            m.d.sync += loaded.eq(read.en)
            with m.If(loaded):
                m.d.sync += output.eq(read.data)
            for port in reversed(readers):
                with m.If(port.valid & (region(port) == r)):
                    m.d.comb += [read.en.eq(1), read.addr.eq(port.row)]
            for port in reversed(writers):
                with m.If(port.valid & (region(port) == r)):
                    m.d.comb += [
                        write.en.eq(port.mask[::group]),
                        write.addr.eq(port.row),
                        write.data.eq(port.data),
                    ]

        for name, port in zip(READERS, readers, strict=True):
            chosen = region(port)
            for stage in range(2 if region_bits else 0):
                delayed = Signal(region_bits, name=f"{name}_region_{stage}")
                m.d.sync += delayed.eq(chosen)
                chosen = delayed
            m.d.comb += port.data.eq(Array(outputs)[chosen] if region_bits else outputs[0])
        return m

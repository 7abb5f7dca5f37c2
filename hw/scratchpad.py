"""Scratchpad: regions of wide rows with a read and a write port each, shared by fixed priority."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In
from amaranth.utils import exact_log2

from ..arch.accelerator import Accelerator
from .delay import delayed
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
    Rows are interleaved over `private` memories by their low bits, so that `fetch` gets one of each.

    Read data is valid two cycles after the grant (memory, then its output register). A row that is written must not
    be read in the same cycle. Of a write's mask, the first bit of every `mask_bytes` counts.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                **{
                    name: In(ReadPort(accelerator, accelerator.private if name == "fetch" else 1))
                    for name in READERS
                },
                **{name: In(WritePort(accelerator)) for name in WRITERS},
            }
        )

    def elaborate(self, platform):
        m = Module()
        accelerator = self._accelerator
        regions, rows = accelerator.scratchpad_regions, accelerator.scratchpad_rows
        row_bits, region_bits = (rows - 1).bit_length(), (regions - 1).bit_length()
        banks, bank_bits = accelerator.private, exact_log2(accelerator.private)
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
        """Of each region, the rows that a reader may get."""
        for r in range(regions):
            row, valid = Signal(row_bits, name=f"row_{r}"), Signal(name=f"valid_{r}")
            written, mask = (
                Signal(row_bits, name=f"written_{r}"),
                Signal(width // 8 // group, name=f"mask_{r}"),
            )
            content, found = Signal(width, name=f"content_{r}"), []
            for port in reversed(readers):
                with m.If(port.valid & (region(port) == r)):
                    m.d.comb += [valid.eq(1), row.eq(port.row)]
            for port in reversed(writers):
                with m.If(port.valid & (region(port) == r)):
                    m.d.comb += [written.eq(port.row), mask.eq(port.mask[::group]), content.eq(port.data)]
            loaded = delayed(m, valid, 1, reset_less=False)
            for b in range(banks):
                name = f"{r}_{b}" if bank_bits else str(r)
                storage = memory.Memory(shape=width, depth=rows // banks, init=[])
                m.submodules[f"region_{name}"] = storage
                read, write = storage.read_port(), storage.write_port(granularity=group * 8)
                mine = written[:bank_bits] == b if bank_bits else 1
                m.d.comb += [
                    read.en.eq(valid),
                    read.addr.eq(row[bank_bits:]),
                    write.en.eq(Mux(mine, mask, 0)),
                    write.addr.eq(written[bank_bits:]),
                    write.data.eq(content),
                ]
                found.append(Signal(width, reset_less=True, name=f"output_{name}"))
                with m.If(loaded):
                    m.d.sync += found[b].eq(read.data)
            if bank_bits:
                low, banked = delayed(m, row[:bank_bits], 2), Array(found)
                found = [Signal(width, name=f"found_{r}_{i}") for i in range(banks)]
                m.d.comb += [signal.eq(banked[low | i]) for i, signal in enumerate(found)]
            outputs.append(found)

        for port in readers:
            parts = range(len(port.data) // width)
            if region_bits:
                chosen = delayed(m, region(port), 2)
                m.d.comb += port.data.eq(Cat(Array(found[i] for found in outputs)[chosen] for i in parts))
            else:
                m.d.comb += port.data.eq(Cat(outputs[0][i] for i in parts))
        return m

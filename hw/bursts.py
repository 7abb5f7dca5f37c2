"""From a transfer in a region of DRAM to its bursts: bounds, addresses and lengths, the same for all ports."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator
from ..arch.registers import Cause
from .axi import ADDRESS_BITS, LENGTH_BITS
from .ports import load_bytes

__all__ = ["BURST", "FAULT", "REGIONS", "Bursts", "row_beats_limit"]

REGIONS = data.ArrayLayout(data.StructLayout({"base": ADDRESS_BITS, "limit": ADDRESS_BITS}), len(isa.Region))
"""Base and limit of every region, in bytes."""
FAULT = data.StructLayout({"cause": range(max(Cause) + 1), "info": 32})
"""Why a run stops; a cause of NONE is no fault."""
BURST = data.StructLayout({"address": ADDRESS_BITS, "length": LENGTH_BITS, "last": 1})
"""One burst of every port: byte address, number of lines, and whether it is the transfer's last."""


def row_beats_limit(accelerator: Accelerator) -> int:
    """Lines of the widest row of any memory."""
    return max(accelerator.beats(load_bytes(accelerator, target)) for target in isa.LoadTarget)


class Bursts(wiring.Component):
    """Checks one transfer and cuts it into bursts.

    `start` (while `idle`) takes region, offset, rows and lines of a row. Three cycles later (or once `enable` is high)
    either `fault` holds OUT_OF_BOUNDS until reset, or `begin` is high for one cycle; the bursts follow on `o` from the
    cycle after, at one per cycle; `left` is the number of lines that they still have, `single` whether this one has one. `idle` rises when the last one has
    been taken.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "regions": In(REGIONS),
                "start": In(1),
                "region": In(isa.Region),
                "offset": In(ADDRESS_BITS),
                "rows": In(16),
                "row_beats": In(range(row_beats_limit(accelerator) + 1)),
                "enable": In(1),
                "idle": Out(1),
                "begin": Out(1),
                "fault": Out(FAULT),
                "left": Out(16 + row_beats_limit(accelerator).bit_length()),
                "o": Out(stream.Signature(BURST)),
                "single": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        burst_beats = self._accelerator.burst_beats
        shift = self._accelerator.line_bytes.bit_length() - 1
        block = shift + (burst_beats - 1).bit_length()
        base, limit, offset, address = (
            Signal(ADDRESS_BITS, name=name, reset_less=True)
            for name in ("base", "limit", "offset", "address")
        )
        rows, row_beats = (
            Signal.like(self.rows, reset_less=True),
            Signal.like(self.row_beats, reset_less=True),
        )
        remaining = self.left
        room = Signal(signed(ADDRESS_BITS + 1), reset_less=True)
        """Bytes from the offset to the region's limit."""
        outside = Signal()

        index = (address >> shift)[: (burst_beats - 1).bit_length()] if burst_beats > 1 else 0
        space, reach, last = Signal(LENGTH_BITS), Signal(LENGTH_BITS + 1), Signal()
        """Lines up to the end of the burst's block, and of the one behind it; whether all that remain are among the first."""
        m.d.comb += [
            self.o.payload.address.eq(address),
            self.o.payload.last.eq(last),
            self.o.payload.length.eq(Mux(last, remaining, space)),
            self.single.eq((remaining == 1) | (space == 1)),
            self.fault.info.eq(offset),
        ]
        chosen = self.regions[self.region]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.idle.eq(1)
                with m.If(self.start):
                    m.d.sync += [
                        base.eq(chosen.base),
                        limit.eq(chosen.limit),
                        offset.eq(self.offset),
                        rows.eq(self.rows),
                        row_beats.eq(self.row_beats),
                    ]
                    m.next = "SUM"
            with m.State("SUM"):
                start = Signal(ADDRESS_BITS)
                m.d.comb += start.eq(base + offset)
                m.d.sync += [
                    address.eq(start),
                    outside.eq((start | offset)[:shift].any()),
                    remaining.eq(rows * row_beats),
                    room.eq(limit - offset),
                ]
                m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.sync += [
                    outside.eq(outside | ((remaining << shift) > room)),
                    space.eq(burst_beats - index),
                ]
                m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += [last.eq(remaining <= space), reach.eq(space + burst_beats)]
                with m.If(outside):
                    m.d.comb += self.fault.cause.eq(Cause.OUT_OF_BOUNDS)
                with m.Elif(self.enable):
                    m.d.comb += self.begin.eq(1)
                    m.next = "ISSUE"
            with m.State("ISSUE"):
                m.d.comb += self.o.valid.eq(1)
                with m.If(self.o.ready):
                    # What a burst that is not the last one leaves.
                    m.d.sync += [
                        remaining.eq(remaining - space),
                        space.eq(burst_beats),
                        reach.eq(2 * burst_beats),
                        last.eq(remaining <= reach),
                        address.eq(((address >> block) + 1) << block),
                    ]
                    with m.If(last):
                        m.next = "IDLE"
        return m

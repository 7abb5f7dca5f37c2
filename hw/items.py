"""From a LOAD to its transfers: one, or with `gather` one for each item that the index memory names."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator
from .axi import ADDRESS_BITS
from .bursts import row_beats_limit
from .decode import instruction_layout
from .ports import IndexRead, load_bytes

__all__ = ["TRANSFER", "Items"]

TRANSFER = data.StructLayout(
    {
        "target": isa.LoadTarget,
        "region": isa.Region,
        "offset": ADDRESS_BITS,
        "row": 16,
        "rows": 16,
        "signal": 16,
        "tag": 10,
        "last": 1,
    }
)
"""Consecutive rows in DRAM and in the target; whether they are the last of their instruction."""

_PART = 16
"""Bits that one multiplier takes."""


class Items(wiring.Component):
    """A LOAD without gather passes in the same cycle. A gather is taken when `o` is ready; its first transfer is offered
    five cycles later, the following ones five cycles after the one before was taken. An item whose offset
    exceeds 32 bits is offered with an offset that no region reaches."""

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "i": In(stream.Signature(instruction_layout(isa.Opcode.LOAD))),
                "o": Out(stream.Signature(TRANSFER)),
                "index": Out(IndexRead()),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        accelerator, instruction = self._accelerator, self.i.payload
        if not accelerator.index_rows:
            self._pass(m, self.i.valid)
            return m
        shift = accelerator.line_bytes.bit_length() - 1
        beats = Array(accelerator.beats(load_bytes(accelerator, target)) for target in isa.LoadTarget)
        ins = Signal(instruction_layout(isa.Opcode.LOAD), reset_less=True)
        item_beats = Signal(16 + row_beats_limit(accelerator).bit_length(), reset_less=True)
        entry = Signal.like(self.index.value, reset_less=True)
        distance = Signal(16 + len(item_beats), reset_less=True)
        low, high = Signal(2 * _PART, reset_less=True), Signal(len(distance) - _PART, reset_less=True)
        offset = Signal(len(distance) + shift + 1)
        m.d.comb += [
            self.index.entry.eq(ins.index),
            offset.eq(ins.offset + (distance << shift)),
            self.busy.eq(1),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(0)
                self._pass(m, self.i.valid & ~instruction.gather)
                m.d.sync += ins.eq(instruction)
                with m.If(self.i.valid & self.o.ready & instruction.gather):
                    m.next = "LOOK"
            with m.State("LOOK"):
                m.d.sync += item_beats.eq(ins.item_rows * beats[ins.target])
                m.next = "FOUND"
            with m.State("FOUND"):
                m.d.sync += entry.eq(self.index.value)
                m.next = "SCALE"
            with m.State("SCALE"):
                m.d.sync += [low.eq(entry * item_beats[:_PART]), high.eq(entry * item_beats[_PART:])]
                m.next = "ADD"
            with m.State("ADD"):
                m.d.sync += distance.eq(low + (high << _PART))
                m.next = "OFFER"
            with m.State("OFFER"):
                last = ins.rows <= ins.item_rows
                beyond = (1 << ADDRESS_BITS) - accelerator.line_bytes
                m.d.comb += [
                    *self._described(ins),
                    self.o.payload.offset.eq(Mux(offset >> ADDRESS_BITS, beyond, offset)),
                    self.o.payload.rows.eq(Mux(last, ins.rows, ins.item_rows)),
                    self.o.payload.last.eq(last),
                    self.o.valid.eq(1),
                ]
                with m.If(self.o.ready):
                    m.d.sync += [
                        ins.index.eq(ins.index + 1),
                        ins.row.eq(ins.row + ins.item_rows),
                        ins.rows.eq(ins.rows - ins.item_rows),
                    ]
                    m.next = "LOOK"
                    with m.If(last):
                        m.next = "IDLE"
        return m

    def _pass(self, m: Module, valid) -> None:
        """The instruction as it is."""
        m.d.comb += [
            *self._described(self.i.payload),
            self.o.payload.offset.eq(self.i.payload.offset),
            self.o.payload.last.eq(1),
            self.o.valid.eq(valid),
            self.i.ready.eq(self.o.ready),
        ]

    def _described(self, source) -> list:
        """What a transfer takes over from its instruction."""
        names = ("target", "region", "row", "rows", "signal", "tag")
        return [getattr(self.o.payload, name).eq(getattr(source, name)) for name in names]

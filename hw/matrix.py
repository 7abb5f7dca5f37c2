"""The matrix engine: fetch, operand buffer, weight memory, compute issue, array and drain."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from ..arch import isa
from ..arch.accelerator import Accelerator
from .array import Array, move_cycles
from .compute import Compute
from .delay import delayed
from .drain import SUMS_CYCLE, Drain
from .fetch import Fetch
from .operand import Buffer
from .ports import (
    EngineSignature,
    IndexRead,
    LoadPort,
    ReadPort,
    RowMaximaPort,
    RowMomentsPort,
    RowScalePort,
    WritePort,
)
from .weights import Memory

__all__ = ["Engine"]

MEMORY_CYCLES = 1
"""From an issue's addresses to weights and operand at the array."""


class Engine(wiring.Component):
    """Executes MATRIX instructions; docs/machine.md. `load` is ready for the engine's own targets only:
    weights, parameters and tables."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.weights = Memory(accelerator)
        super().__init__(
            {
                "control": Out(EngineSignature(isa.Opcode.MATRIX)),
                "residual": Out(ReadPort(accelerator)),
                "fetch": Out(ReadPort(accelerator, accelerator.private)),
                "write": Out(WritePort(accelerator)),
                "load": In(LoadPort(accelerator)),
                "row_scales": In(RowScalePort(accelerator)),
                "index_read": Out(IndexRead()),
                **({"row_maxima": Out(RowMaximaPort(accelerator))} if accelerator.row_maxima else {}),
                **({"row_moments": Out(RowMomentsPort(accelerator))} if accelerator.row_moments else {}),
            }
        )

    def elaborate(self, platform):
        m = Module()
        accelerator, control = self.accelerator, self.control
        halt = delayed(m, control.halt, 1, reset_less=False)
        # So that a block's first step reads the sums in their first cycle.
        block_cycles = MEMORY_CYCLES + move_cycles(accelerator) + 1 - SUMS_CYCLE - 1
        m.submodules.fetch = fetch = Fetch(accelerator)
        m.submodules.operand = operand = Buffer(accelerator)
        m.submodules.weights = weights = self.weights
        m.submodules.compute = compute = Compute(accelerator)
        m.submodules.array = array = Array(accelerator)
        m.submodules.drain = drain = Drain(accelerator)

        connect(m, fetch.read, flipped(self.fetch))
        connect(m, fetch.write, operand.write)
        connect(m, compute.o, drain.i)
        connect(m, compute.index, flipped(self.index_read))
        connect(m, drain.residual, flipped(self.residual))
        connect(m, drain.write, flipped(self.write))
        connect(m, drain.weights, weights.drain)
        connect(m, flipped(self.row_scales), drain.row_scales)
        if accelerator.row_maxima:
            connect(m, drain.row_maxima, flipped(self.row_maxima))
        if accelerator.row_moments:
            connect(m, drain.row_moments, flipped(self.row_moments))
        accept = control.i.valid & fetch.i.ready & compute.i.ready
        m.d.comb += [
            control.i.ready.eq(fetch.i.ready & compute.i.ready),
            fetch.i.valid.eq(accept),
            compute.i.valid.eq(accept),
            fetch.i.payload.eq(control.i.payload),
            compute.i.payload.eq(control.i.payload),
            *(block.halt.eq(halt) for block in (fetch, compute, drain)),
            control.done.eq(drain.done),
            control.done_signal.eq(drain.done_signal),
            control.done_tag.eq(drain.done_tag),
            control.busy.eq(fetch.busy | compute.busy | drain.busy),
            fetch.freed.eq(compute.freed),
            compute.written.eq(fetch.written),
            compute.counts.eq(fetch.counts),
            operand.address.eq(compute.address),
            operand.address_high.eq(compute.address_high),
            weights.row.eq(delayed(m, compute.row, accelerator.broadcast_stages - 1)),
            array.chunk.eq(delayed(m, compute.chunk, MEMORY_CYCLES, reset_less=False)),
            drain.block.eq(delayed(m, compute.block, block_cycles, reset_less=False)),
            *(port.eq(word) for port, word in zip(array.operand, operand.data, strict=True)),
            *(port.eq(row) for port, row in zip(array.weights, weights.weights, strict=True)),
            *(port.eq(sums) for port, sums in zip(drain.sums, array.sums, strict=True)),
            weights.load.eq(self.load.valid & (self.load.target == isa.LoadTarget.WEIGHT)),
            weights.load_row.eq(self.load.row),
            weights.load_data.eq(self.load.data),
            self.load.ready.eq((self.load.target != isa.LoadTarget.WEIGHT) | ~drain.weights.valid),
            drain.load.valid.eq(self.load.valid),
            drain.load.target.eq(self.load.target),
            drain.load.row.eq(self.load.row),
            drain.load.data.eq(self.load.data),
        ]
        m.d.sync += control.stalled.eq(control.busy & ~compute.issue)
        return m

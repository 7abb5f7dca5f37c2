"""The vector engine's timing model by itself; tests/hw/test_vector.py compares it with the RTL in every cycle."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.isa import Instruction, Opcode, VectorOp
from terrazzo.sim.timing import vector as timing
from terrazzo.sim.timing.table import program_table

DEIT = Accelerator(
    lanes=Lanes(fixed8=32), columns=16, depth=32, drain=8, vector=8, scratchpad_regions=4, scratchpad_rows=512,
    weight_rows=64, param_rows=16, norm_rows=64, operand_chunks=8, row_scales=32, index_rows=64, table_pages=2, instructions=16,
    bus_bytes=32, burst_beats=16,
)  # fmt: skip


def cycles(accelerator: Accelerator = DEIT, **values) -> int:
    """Cycles from the start to `done` of one instruction with all requests granted."""
    table = program_table(np.stack([isa.encode(Instruction(Opcode.VECTOR, values))]))
    cfg, state = timing.config(accelerator), np.zeros(timing.STATE, dtype=np.int64)
    start, count = 0, 0
    while True:
        read, write = timing.request(state, table, cfg)
        if timing.step(state, table, cfg, start, read >= 0, write >= 0) == 0:
            return count
        start, count = -1, count + 1
        assert count < 100_000


TILES = 13
"""197 tokens in 16 columns."""


@pytest.mark.parametrize(
    "values, steps",
    [
        ({"op": VectorOp.ELEMENTWISE, "channels": 192}, TILES * 24),
        ({"op": VectorOp.ELEMENTWISE, "channels": 192, "residual": 1}, TILES * 24 * 2),
        ({"op": VectorOp.LAYERNORM, "channels": 192}, TILES * 24 * 2),
        ({"op": VectorOp.LAYERNORM, "channels": 192, "summed": 1}, TILES * 24),
        ({"op": VectorOp.SOFTMAX, "channels": 197}, TILES * (25 + 28)),
        ({"op": VectorOp.SOFTMAX, "channels": 197, "measured": 1}, TILES * 28),
        ({"op": VectorOp.SOFTMAX, "channels": 197, "bias": 1}, TILES * (25 + 28) * 2),
        ({"op": VectorOp.MULTIPLY, "channels": 192}, TILES * 24 * 2),
        ({"op": VectorOp.COMPACT, "channels": 192}, TILES * 17),
        ({"op": VectorOp.GATHER, "channels": 192}, 197 * 12),
        ({"op": VectorOp.GATHER, "channels": 192, "src_wide": 1}, 197 * 24),
    ],
)
def test_one_step_per_cycle(values, steps):
    """Every pass of every tile (position in GATHER) runs at full rate; an instruction costs at most 60 cycles besides."""
    taken = cycles(positions=197, src_stride=13, dst_stride=7, dst=512, **values)
    assert steps < taken <= steps + 60


@pytest.mark.parametrize(
    "values, rows",
    [
        ({"op": VectorOp.ELEMENTWISE, "channels": 192, "src_wide": 1}, 12),
        ({"op": VectorOp.ELEMENTWISE, "channels": 192, "src_wide": 1, "residual": 1}, 12 * 2),
        ({"op": VectorOp.LAYERNORM, "channels": 192}, 16 + 12),  # its moments: columns + 12 cycles
        ({"op": VectorOp.SOFTMAX, "channels": 197}, 13 + 14),
        ({"op": VectorOp.MULTIPLY, "channels": 192, "src_wide": 1, "residual_wide": 1}, 12 * 2),
    ],
)
def test_reads_of_rows_are_the_bound(values, rows):
    """With as many lanes as a row has 16-bit codes, each cycle reads a row: no tile waits for the one before, but
    LAYERNORM's shortest tiles for their moments."""
    widest = dataclasses.replace(DEIT, vector=DEIT.depth // 2)
    taken = cycles(widest, positions=197, src_stride=13, dst_stride=14, dst=512, **values)
    assert TILES * rows < taken <= TILES * rows + 60

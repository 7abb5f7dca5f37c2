"""The operand fetch alone, at sizes of real layers, against the loops of docs/machine.md."""

import dataclasses

import numpy as np
import pytest
from amaranth.sim import Simulator

from terrazzo.arch import isa
from terrazzo.arch.isa import FetchMode
from terrazzo.hw.fetch import Fetch

from .matrix_bench import SMALL
from .matrix_model import Memories, operand

ACCELERATOR = dataclasses.replace(
    SMALL, columns=4, depth=16, operand_chunks=64, scratchpad_regions=4, scratchpad_rows=128
)
START_AND_LATENCY = 2 + 9
"""Cycles from a transfer to the first element of the walk, and from an element to its count in `written`."""


def fetch(instructions, memory, *, grant=1.0, use=1.0, seed=0):
    """Runs the fetch; returns chunks [number][column] in the order of their ring, and the cycles taken.

    The reader takes a written chunk with probability `use` in each cycle, so that the ring fills up."""
    a, random = memory.accelerator, np.random.default_rng(seed)
    dut = Fetch(a)
    simulator = Simulator(dut)
    simulator.add_clock(1e-9)
    total = sum(-(-i.positions // a.columns) * i.groups * i.chunks for i in instructions)
    chunks, cycles = [], 0

    async def testbench(ctx):
        nonlocal cycles
        ring = [[None] * a.columns for _ in range(a.operand_chunks)]
        arriving, sent, mask = [0, 0], 0, 2 * a.operand_chunks - 1
        while len(chunks) < total:
            assert cycles < 20000, "watchdog"
            if sent < len(instructions):
                word = int.from_bytes(isa.encode(instructions[sent]).tobytes(), "little")
                ctx.set(dut.i.payload, dut.i.payload.shape().from_bits(word))
            ctx.set(dut.i.valid, sent < len(instructions))
            ctx.set(dut.read.ready, random.random() < grant)
            ctx.set(dut.read.data, arriving.pop(0))
            ctx.set(dut.freed, len(chunks) & mask)
            sent += ctx.get(dut.i.ready) and sent < len(instructions)
            read = ctx.get(dut.read.valid) and ctx.get(dut.read.ready)
            row = ctx.get(dut.read.row)
            arriving.append(int.from_bytes(memory.scratchpad[row].tobytes(), "little") if read else 0x55)
            for c in range(a.columns):
                if ctx.get(dut.write.enable) >> c & 1:
                    place = ctx.get(dut.write.address)
                    assert ring[place][c] is None, "a chunk that was not read yet is overwritten"
                    ring[place][c] = ctx.get(dut.write.data[c]).to_bytes(a.depth, "little")
            if ctx.get(dut.written) != len(chunks) & mask and random.random() < use:
                place = len(chunks) % a.operand_chunks
                chunks.append(ring[place])
                ring[place] = [None] * a.columns
            cycles += 1
            await ctx.tick()

    simulator.add_testbench(testbench)
    simulator.run()
    return chunks, cycles


def check(values, *, count=1, **options):
    memory = Memories(ACCELERATOR, np.random.default_rng(3))
    ins = isa.Instruction(isa.Opcode.MATRIX, {"unsigned": 1, "groups": 1, "src": 5, **values})
    chunks, cycles = fetch([ins] * count, memory, **options)
    expected = [
        [bytes(operand(memory, ins, t, g, k, c)) for c in range(ACCELERATOR.columns)]
        for _ in range(count)
        for t in range(-(-ins.positions // ACCELERATOR.columns))
        for g in range(ins.groups)
        for k in range(ins.chunks)
    ]
    assert chunks == expected
    return cycles


CASES = {
    "linear": {"mode": FetchMode.LINEAR, "positions": 50, "groups": 2, "chunks": 3, "src_stride": 7},
    "patches of 16 x 16 x 3": {
        "mode": FetchMode.JOIN, "positions": 5, "prefix": 1, "taps_y": 16, "tap_chunks": 3, "chunks": 48,
        "stride_y": 4, "stride_x": 48, "height": 32, "width": 96, "out_width": 2, "src_stride": 6, "pad_value": 9,
    },
    "stem 3 x 3 x 3, padded": {
        "mode": FetchMode.JOIN, "positions": 30, "taps_y": 3, "tap_chunks": 1, "chunks": 3, "stride_y": 2,
        "stride_x": 6, "start_y": -1, "start_x": -3, "height": 11, "width": 33, "out_width": 6, "src_stride": 3,
        "pad_value": 77,
    },
    "3 x 3, stride 2, two groups": {
        "mode": FetchMode.CONV, "positions": 20, "groups": 2, "taps_y": 3, "taps_x": 3, "tap_chunks": 2, "chunks": 18,
        "stride_y": 2, "stride_x": 2, "start_y": -1, "start_x": -1, "height": 7, "width": 9, "out_width": 5,
        "src_stride": 4, "pad_value": 3,
    },
    "3 x 3, more chunks than the ring": {
        "mode": FetchMode.CONV, "positions": 6, "taps_y": 3, "taps_x": 3, "tap_chunks": 8, "chunks": 72, "stride_y": 1,
        "stride_x": 1, "start_y": -1, "start_x": -1, "height": 3, "width": 2, "out_width": 2, "src_stride": 8,
        "pad_value": 0,
    },
    "5 x 5 on one pixel": {
        "mode": FetchMode.CONV, "positions": 1, "taps_y": 5, "taps_x": 5, "tap_chunks": 1, "chunks": 25, "stride_y": 1,
        "stride_x": 1, "start_y": -2, "start_x": -2, "height": 1, "width": 1, "out_width": 1, "src_stride": 1,
        "pad_value": 255 - 128,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_chunks_equal_loops(name):
    check(CASES[name], count=2)


@pytest.mark.parametrize("name", ["linear", "3 x 3, stride 2, two groups"])
def test_slow_grants_and_a_full_ring(name):
    check(CASES[name], grant=0.5, use=0.05, seed=1)


def test_linear_takes_a_cycle_per_chunk():
    assert check(CASES["linear"]) == 13 * 2 * 3 + START_AND_LATENCY


def test_window_takes_a_cycle_per_chunk_and_column():
    assert check(CASES["3 x 3, stride 2, two groups"]) == 5 * 2 * 18 * 4 + START_AND_LATENCY

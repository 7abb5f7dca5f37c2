"""The operand fetch alone, at sizes of real layers, against the loops of docs/machine.md."""

import dataclasses
import itertools

import numpy as np
import pytest
from amaranth.sim import Simulator

from terrazzo.arch import isa
from terrazzo.arch.accelerator import Lanes
from terrazzo.arch.isa import FetchMode
from terrazzo.hw.fetch import Fetch

from .matrix_bench import SMALL
from .matrix_model import Memories, operand

ACCELERATOR = dataclasses.replace(
    SMALL, columns=4, depth=16, operand_chunks=64, scratchpad_regions=4, scratchpad_rows=128
)
PRIVATE = dataclasses.replace(ACCELERATOR, lanes=Lanes(fixed8=64), private=4)
WIDE = dataclasses.replace(
    ACCELERATOR, lanes=Lanes(fixed8=16), columns=16, scratchpad_regions=8, scratchpad_rows=64
)
FIVE = dataclasses.replace(ACCELERATOR, lanes=Lanes(fixed8=16), columns=5)
START_AND_LATENCY = 2 + 15
"""Cycles from a transfer to the first element of the walk, and from an element to its count in `written`."""


def fetch(instructions, memory, *, grant=1.0, use=1.0, seed=0):
    """Runs the fetch; returns chunks [number][column] in the order of their ring, and the cycles taken. With private
    instructions, a list of chunks instead of one.

    The reader takes a written chunk with probability `use` in each cycle, so that the ring fills up."""
    a, random = memory.accelerator, np.random.default_rng(seed)
    dut = Fetch(a)
    simulator = Simulator(dut)
    simulator.add_clock(1e-9)
    sizes = [(-(-i.positions // a.columns) * i.groups * i.chunks, i.private) for i in instructions]
    wide = [bool(private) for count, private in sizes for _ in range(count)]
    total, chunks, cycles, freed = len(wide), [], 0, 0

    async def testbench(ctx):
        nonlocal cycles, freed
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
            ctx.set(dut.freed, freed & mask)
            sent += ctx.get(dut.i.ready) and sent < len(instructions)
            read = ctx.get(dut.read.valid) and ctx.get(dut.read.ready)
            row = ctx.get(dut.read.row)
            word = b"".join(memory.scratchpad[row | i].tobytes() for i in range(a.private)) if read else b"U"
            arriving.append(int.from_bytes(word, "little"))
            for c in range(a.columns):
                if ctx.get(dut.write.enable) >> c & 1:
                    place = ctx.get(dut.write.address)
                    for bank in range(a.private) if ctx.get(dut.write.wide) else [place % a.private]:
                        at = place // a.private * a.private + bank
                        assert ring[at][c] is None, "a chunk that was not read yet is overwritten"
                        word = ctx.get(dut.write.data[bank * a.columns + c])
                        ring[at][c] = word.to_bytes(a.depth, "little")
            step = a.private if len(chunks) < total and wide[len(chunks)] else 1
            here = -(-freed // step) * step
            room = (ctx.get(dut.written) - here) % (2 * a.operand_chunks)
            if 0 < room <= a.operand_chunks and random.random() < use:
                places = [(here + i) % a.operand_chunks for i in range(step)]
                found = [ring[place] for place in places]
                chunks.append(found[0] if step == 1 else found)
                for place in places:
                    ring[place] = [None] * a.columns
                freed = here + step
            cycles += 1
            await ctx.tick()

    simulator.add_testbench(testbench)
    simulator.run()
    return chunks, cycles


def check(values, *, count=1, accelerator=ACCELERATOR, **options):
    memory = Memories(accelerator, np.random.default_rng(3))
    if "out_width" in values:
        advance_y, advance_x = divmod(accelerator.columns, values["out_width"])
        values = {"advance_y": advance_y, "advance_x": advance_x, **values}
    ins = isa.Instruction(isa.Opcode.MATRIX, {"unsigned": 1, "groups": 1, "src": 5, **values})
    chunks, cycles = fetch([ins] * count, memory, **options)
    expected = [
        [bytes(operand(memory, ins, t, g, k, c)) for c in range(accelerator.columns)]
        for _ in range(count)
        for t in range(-(-ins.positions // accelerator.columns))
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


def window(height, width, kernel, stride, pad, *, groups=1, tap_chunks=1, prefix=0):
    """Fields of a CONV over all of an image."""
    out_height, out_width = ((size + 2 * pad - kernel) // stride + 1 for size in (height, width))
    return {
        "mode": FetchMode.CONV, "positions": out_height * out_width + prefix, "prefix": prefix, "groups": groups,
        "taps_y": kernel, "taps_x": kernel, "tap_chunks": tap_chunks, "chunks": kernel * kernel * tap_chunks,
        "stride_y": stride, "stride_x": stride, "start_y": -pad, "start_x": -pad, "height": height, "width": width,
        "out_width": out_width, "src_stride": groups * tap_chunks, "pad_value": 7,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_any_window(seed):
    random = np.random.default_rng(seed)
    kernel, stride, pad = int(random.integers(1, 6)), int(random.integers(1, 4)), int(random.integers(0, 3))
    pad = min(pad, kernel // 2)
    height, width = (int(random.integers(kernel, 16)) for _ in range(2))
    groups, tap_chunks, prefix = (int(random.integers(low, 3)) for low in (1, 1, 0))
    values = window(height, width, kernel, stride, pad, groups=groups, tap_chunks=tap_chunks, prefix=prefix)
    values["src_stride"] = min(values["src_stride"], 2)
    grant, use = ((1.0, 1.0), (0.6, 1.0), (0.9, 0.4))[seed % 3]
    check(
        values, accelerator=(ACCELERATOR, WIDE, FIVE)[seed // 3 % 3], count=2, grant=grant, use=use, seed=seed
    )


@pytest.mark.parametrize("prefix", [1, 5, 15])
def test_prefix_of_any_length(prefix):
    check(window(6, 5, 3, 1, 1, prefix=prefix))
    check(window(6, 5, 3, 2, 1, prefix=prefix), accelerator=WIDE)


@pytest.mark.parametrize(
    "image, stride, rate",
    [((16, 16), 1, 1), ((14, 14), 1, 1), ((7, 7), 1, 1), ((8, 32), 1, 1), ((14, 14), 2, 4), ((16, 32), 2, 3)],
)
def test_a_window_serves_all_columns_at_once(image, stride, rate):
    """A chunk (depth channels of all columns) in `rate` cycles: with stride 1 depth * columns bytes in every cycle."""
    values = window(*image, 3, stride, 1, groups=2)
    cycles = check(values, accelerator=WIDE)
    chunks = -(-values["positions"] // 16) * 2 * 9
    assert cycles <= rate * chunks * 1.03 + START_AND_LATENCY + WIDE.columns


@pytest.mark.parametrize("width", [1, 2, 4])
def test_private_chunks_between_others(width):
    """Chunks of a tap for lanes of their own, before and after an instruction whose chunks fill half a row of the ring."""
    private = {**window(9, 6, 3, 1, 1, groups=2, tap_chunks=width), "private": 1, "chunks": 9}
    private |= {"src": 8, "src_stride": 2 * width, "unsigned": 1, "advance_y": 0, "advance_x": 4}
    other = {**CASES["linear"], "positions": 6, "src": 5, "unsigned": 1}
    memory = Memories(PRIVATE, np.random.default_rng(3))
    order = [
        isa.Instruction(isa.Opcode.MATRIX, values) for values in (other, private, private, other, private)
    ]
    chunks, _ = fetch(order, memory, grant=0.8, use=0.5)
    expected = []
    for ins in order:
        for t in range(-(-ins.positions // PRIVATE.columns)):
            for g, k in itertools.product(range(ins.groups), range(ins.chunks)):
                taken = [
                    [bytes(operand(memory, ins, t, g, k, c, own)) for c in range(PRIVATE.columns)]
                    for own in range(ins.tap_chunks if ins.private else 1)
                ]
                expected.append(taken if ins.private else taken[0])
    assert len(chunks) == len(expected)
    for got, wanted in zip(chunks, expected, strict=True):
        assert got[: len(wanted)] == wanted

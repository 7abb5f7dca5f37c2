"""The vector engine with a scratchpad whose ports stall, beside its timing model; compared with vector_model."""

from __future__ import annotations

import functools

import numpy as np
from amaranth.sim import Simulator
from amaranth.utils import ceil_log2

from terrazzo.arch import isa
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.isa import LoadTarget
from terrazzo.hw import vector
from terrazzo.sim.timing import vector as timing
from terrazzo.sim.timing.table import program_table

from .vector_model import (
    INDEX_ENTRIES,
    SOURCE_TILES,
    expected,
    keep_moments,
    random_memory,
    random_tables,
    readable_rows,
)

__all__ = ["Bench", "accelerator", "bench", "check"]

WATCHDOG_CYCLES = 20_000


def accelerator(columns: int, depth: int, vector: int) -> Accelerator:
    return Accelerator(
        lanes=Lanes(fixed8=max(columns, depth)),
        columns=columns,
        depth=depth,
        drain=2,
        vector=vector,
        scratchpad_regions=4,
        scratchpad_rows=1024,
        weight_rows=16,
        param_rows=16,
        norm_rows=520,
        operand_chunks=8,
        row_scales=32,
        index_rows=64,
        table_pages=2,
        instructions=16,
        bus_bytes=8,
        burst_beats=4,
        row_maxima=8 if depth == 8 else 0,
        row_moments=16 if depth > 4 else 0,
    )


class Bench:
    """An engine with a scratchpad whose ports stall, run beside its timing model."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.engine = vector.Engine(accelerator)
        self.simulator = Simulator(self.engine)
        self.simulator.add_clock(1e-6)
        self.simulator.add_testbench(self.drive)
        self.used = False

    def run(
        self,
        memory,
        tables,
        norm,
        instructions,
        *,
        seed,
        read_ready,
        write_ready,
        index=None,
        maxima=(),
        moments=(),
        halt_at=None,
    ):
        """Loads the tables, executes `instructions` back to back; returns the row scales written.

        `memory` (rows, bytes) and `index` (entries) are changed in place; `self.registers` are those written. `self.cycles` counts from the first instruction's start to the
        last `done`. Checks each cycle's ready, requests and done against the timing model.
        """
        self.memory, self.tables, self.norm, self.instructions = memory, tables, norm, instructions
        self.rng = np.random.default_rng(seed)
        self.read_ready, self.write_ready, self.halt_at = read_ready, write_ready, halt_at
        self.index = np.zeros(INDEX_ENTRIES, np.int64) if index is None else index
        self.maxima, self.moments = maxima, moments
        self.registers: dict[int, int] = {}
        self.row_scales: dict[int, list[tuple[int, int]]] = {}
        if self.used:
            self.simulator.reset()
        self.used = True
        self.simulator.run()
        return self.row_scales

    async def drive(self, ctx):
        await self.load(ctx)
        await self.execute(ctx)

    async def load(self, ctx):
        port = self.engine.load
        ctx.set(port.valid, 1)
        contents = [
            (LoadTarget.TABLE, self.tables["unary"].astype("i1")),
            (LoadTarget.EXP, self.tables["exp"].astype("u1")),
            (LoadTarget.RECIP, self.tables["recip"].astype("<u2")),
            (LoadTarget.RSQRT, self.tables["rsqrt"].astype("<u2")),
        ]
        rows = [
            (target, row, int.from_bytes(data.tobytes()[row * 8 :][:8], "little"))
            for target, data in contents
            for row in range(data.nbytes // 8)
        ]
        rows += [(LoadTarget.NORM, row, value) for row, value in self.norm.items()]
        for target, row, value in rows:
            ctx.set(port.target, target)
            ctx.set(port.row, row)
            ctx.set(port.data, value)
            assert ctx.get(port.ready)
            await ctx.tick()
        ctx.set(port.valid, 0)
        for row, values in enumerate(self.maxima):
            ctx.set(self.engine.row_maxima.valid, 1)
            ctx.set(self.engine.row_maxima.row, row)
            ctx.set(self.engine.row_maxima.maxima, [int(value) for value in values])
            await ctx.tick()
            ctx.set(self.engine.row_maxima.valid, 0)
        for row, columns in enumerate(self.moments):
            port = self.engine.row_moments
            for column, (total, squares) in enumerate(columns):
                ctx.set(port.valid, 1)
                ctx.set(port.entry, row << ceil_log2(len(columns)) | column)
                ctx.set(port.moments, {"sum": int(total), "squares": int(squares)})
                await ctx.tick()
                ctx.set(port.valid, 0)

    async def execute(self, ctx):
        engine, rng = self.engine, self.rng
        words = np.stack([isa.encode(instruction) for instruction in self.instructions])
        table, cfg = program_table(words), timing.config(self.accelerator)
        state = np.zeros(timing.STATE, dtype=np.int64)
        rows = self.accelerator.scratchpad_rows
        data, following, completed, entry = [0, 0], 0, 0, 0
        readable = [readable_rows(self.accelerator, instruction) for instruction in self.instructions]
        self.cycles, stalled = 0, False
        while completed < len(self.instructions):
            ctx.set(engine.control.i.valid, following < len(self.instructions))
            if following < len(self.instructions):
                payload = int.from_bytes(words[following].tobytes(), "little")
                ctx.set(engine.control.i.payload.as_value(), payload)
            if self.halt_at is not None and self.cycles >= self.halt_at:
                await self.halted(ctx)
                return
            ctx.set(engine.read.ready, int(rng.random() < self.read_ready))
            ctx.set(engine.write.ready, int(rng.random() < self.write_ready))
            ctx.set(engine.read.data, data[0])
            ctx.set(engine.index_read.value, int(self.index[entry % len(self.index)]))

            read_row, write_row = ctx.get(engine.read.row), ctx.get(engine.write.row)
            read, write = ctx.get(engine.read.valid), ctx.get(engine.write.valid)
            read_granted, write_granted = (
                read and ctx.get(engine.read.ready),
                write and ctx.get(engine.write.ready),
            )
            accepted, done = ctx.get(engine.control.i.ready), ctx.get(engine.control.done)
            expected = timing.request(state, table, cfg)
            assert (read_row // rows if read else -1, write_row // rows if write else -1) == expected
            assert accepted == timing.ready(state, cfg)
            assert ctx.get(engine.control.busy) == timing.busy(state)
            assert ctx.get(engine.control.stalled) == stalled
            stalled = timing.stalled(state, table, read_granted, write_granted)
            start = following if accepted and following < len(self.instructions) else -1
            finished = timing.step(state, table, cfg, start, read_granted, write_granted)
            assert (finished >= 0) == done
            following += start >= 0
            assert not read or read_row in readable[completed]
            if done:
                assert finished == completed
                assert ctx.get(engine.control.done_tag) == self.instructions[completed].tag
                assert ctx.get(engine.control.done_signal) == self.instructions[completed].signal
                completed += 1
            noise = int.from_bytes(rng.bytes(self.memory.shape[1]), "little")
            value = int.from_bytes(self.memory[read_row].tobytes(), "little") if read_granted else noise
            data = [data[1], value]
            if write_granted:
                self.write(ctx)
            entry = ctx.get(engine.index_read.entry)
            if ctx.get(engine.index_write.valid):
                self.index[ctx.get(engine.index_write.entry)] = ctx.get(engine.index_write.value)
            if ctx.get(engine.register_write.valid):
                register = ctx.get(engine.register_write.register)
                assert register not in self.registers
                self.registers[register] = ctx.get(engine.register_write.value)
            if ctx.get(engine.row_scales.valid):
                scales = ctx.get(engine.row_scales.scales)
                self.row_scales[ctx.get(engine.row_scales.row)] = [
                    (scale.m, scale.n) for scale in (scales[c] for c in range(self.accelerator.columns))
                ]
            self.cycles += following > 0
            assert self.cycles < WATCHDOG_CYCLES
            await ctx.tick()

    def write(self, ctx):
        port, size = self.engine.write, self.memory.shape[1]
        mask = np.array([ctx.get(port.mask) >> i & 1 for i in range(size)], dtype=bool)
        data = np.frombuffer(ctx.get(port.data).to_bytes(size, "little"), dtype=np.uint8)
        self.memory[ctx.get(port.row)][mask] = data[mask]

    async def halted(self, ctx):
        engine = self.engine
        ctx.set(engine.control.halt, 1)
        await ctx.tick()  # after which the engine knows,
        await ctx.tick()  # and then its registers
        ctx.set(engine.read.ready, 1)
        ctx.set(engine.write.ready, 1)
        for _ in range(100):
            assert not ctx.get(engine.read.valid) and not ctx.get(engine.write.valid)
            assert not ctx.get(engine.control.i.ready) and not ctx.get(engine.control.done)
            await ctx.tick()


@functools.cache
def bench(columns: int, depth: int, vector: int) -> Bench:
    return Bench(accelerator(columns, depth, vector))


def check(parameters, make, *, seed, read_ready=1.0, write_ready=1.0, kind=0) -> int:
    """Runs the instructions `make(rng, a)` and compares the memories; returns cycles."""
    run = bench(*parameters)
    a, rng = run.accelerator, np.random.default_rng(seed)
    instructions = make(rng, a)
    memory, tables = random_memory(rng, a, kind), random_tables(rng, a.table_pages, real=kind != 1)
    records = [
        (int(g), int(b))
        for g, b in zip(
            rng.integers(-32768, 32768, a.norm_rows * a.vector),
            rng.integers(-(1 << 22), 1 << 22, a.norm_rows * a.vector),
            strict=True,
        )
    ]
    norm = {
        row: sum(
            ((g & 0xFFFF) | (b & (1 << 48) - 1) << 16) << 64 * i
            for i, (g, b) in enumerate(records[row * a.vector : (row + 1) * a.vector])
        )
        for row in range(2 + -(-max(instruction.channels for instruction in instructions) // a.vector))
    }
    index = rng.integers(0, SOURCE_TILES * a.columns, INDEX_ENTRIES)
    maxima = rng.integers(-300, 300, (a.row_maxima, a.columns)) * (7 if kind == 4 else 1)
    wanted, wanted_index, wanted_scales, wanted_registers = memory.copy(), index.copy(), {}, {}
    half = a.row_moments // 2
    moments = rng.integers(0, 1 << 27, (a.row_moments, a.columns, 2))
    for number, instruction in enumerate(instructions):
        if instruction.summed:  # rows of its own
            instruction.values["index"] = number * half
            keep_moments(a, wanted, moments, instruction)
        scales, registers = expected(a, wanted, wanted_index, tables, records, instruction, maxima)
        wanted_scales |= scales
        wanted_registers |= registers
    stalls = {"read_ready": read_ready, "write_ready": write_ready}
    contents = {"index": index, "maxima": maxima, "moments": moments}
    scales = run.run(memory, tables, norm, instructions, seed=seed, **contents, **stalls)
    wrong = np.argwhere(memory != wanted)
    assert not len(wrong), (wrong[:4].tolist(), [isa.disassemble(i) for i in instructions])
    assert (index == wanted_index).all() and run.registers == wanted_registers
    assert scales.keys() == wanted_scales.keys()
    for row, columns in wanted_scales.items():
        assert scales[row][: len(columns)] == columns
    return run.cycles

"""The top with load and store engines: programs, starts, reset and every cause."""

from __future__ import annotations

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.isa import Engine, Instruction, LoadTarget, Opcode, Region
from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.registers import IDENTITY, Cause, Control, Status

WEIGHTS, INPUT, OUTPUT, SCRATCH = 0x1000, 0x3000, 0x5000, 0x7000
END = Instruction(Opcode.END)


def load(offset, row, rows, *, region=Region.INPUT, target=LoadTarget.SCRATCHPAD, **values):
    return Instruction(
        Opcode.LOAD, dict(region=region, offset=offset, row=row, rows=rows, target=target, **values)
    )


def store(offset, row, rows, *, region=Region.OUTPUT, **values):
    return Instruction(Opcode.STORE, dict(region=region, offset=offset, row=row, rows=rows, **values))


def pair(producer, consumer):
    return 1 << isa.semaphore(producer, consumer)


LOADED = pair(Engine.LOAD, Engine.STORE)
COPY = [load(0, 3, 9, signal=LOADED), store(0x40, 3, 9, wait=LOADED), END]


def fill(bench, seed=0):
    bench.memory[:] = np.random.default_rng(seed).integers(0, 256, len(bench.memory))


def test_copy(bench):
    b = bench()
    fill(b)

    async def host(ctx):
        assert await b.read(ctx, "IDENTITY") == IDENTITY
        await b.setup(ctx, COPY)
        assert await b.read(ctx, "STATUS") == Status.LOADED
        await b.command(ctx, Control.START)
        assert await b.settle(ctx) == Status.LOADED | Status.INTERRUPT
        assert await b.read(ctx, "RUNS") == 1
        assert await b.read(ctx, "CYCLES") == b.runs[0].cycles

    expected = b.memory.copy()
    expected[OUTPUT + 0x40 : OUTPUT + 0x40 + 288] = expected[INPUT : INPUT + 288]
    b.simulate(host)
    assert (b.memory[:0x9000] == expected[:0x9000]).all()
    assert len(b.written) == 288

"""The cycle model against the top with load and store engines: every start, every completion, every counter."""

from __future__ import annotations

import random

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.isa import Engine, Instruction, LoadTarget, Opcode, Region
from terrazzo.arch.layout import Layout
from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.program import Program
from terrazzo.arch.registers import Control, Status
from terrazzo.sim.cycle import predict


def transfers(seed: int, machine) -> list[Instruction]:
    """A random legal program: loads to any memory and stores of any length, some of them ordered by semaphores."""
    rng = random.Random(seed)
    instructions, tokens = [], {"LOAD": 0, "STORE": 0}
    for _ in range(rng.randrange(3, 14)):
        opcode = rng.choice((Opcode.LOAD, Opcode.LOAD, Opcode.STORE))
        target = rng.choice(list(LoadTarget)) if opcode == Opcode.LOAD else LoadTarget.SCRATCHPAD
        rows = rng.choice((1, 1, 2, 3, 5, 9, 16))
        offset = rng.randrange(0, 4096 // machine.line_bytes) * machine.line_bytes
        values = dict(region=rng.choice(list(Region)), offset=offset, row=rng.randrange(40), rows=rows)
        values["tag"] = rng.randrange(5)
        if opcode == Opcode.LOAD:
            values["target"] = target
        other = "STORE" if opcode == Opcode.LOAD else "LOAD"
        mine, theirs = Engine[opcode.name], Engine[other]
        if tokens[other] and rng.random() < 0.6:
            values["wait"] = 1 << isa.semaphore(theirs, mine)
            tokens[other] -= 1
        if rng.random() < 0.5:
            values["signal"] = 1 << isa.semaphore(mine, theirs)
            tokens[opcode.name] += 1
        instructions.append(Instruction(opcode, values))
    return [*instructions, Instruction(Opcode.END)]


def as_program(machine, instructions) -> Program:
    layout = Layout(positions=1, channels=1, wide=False, stride=1)
    return Program(
        name="transfers",
        accelerator=machine,
        setup_entry=0,
        frame_entry=0,
        scratch_bytes=0,
        input=layout,
        output=layout,
        layers=(),
        instructions=np.array([isa.encode(i) for i in instructions]),
        weights=np.zeros(0, np.uint8),
    )


@pytest.mark.parametrize("seed", range(12))
def test_cycles(bench, seed):
    rng = random.Random(1000 + seed)
    model = MemoryModel(
        latency=rng.choice((1, 2, 7, 30, 100)),
        interval=rng.choice((1, 1, 2, 4)),
        refresh_cycles=rng.choice((0, 1, 9)),
        refresh_period=rng.choice((20, 97)),
    )
    widths = dict(bus_bytes=rng.choice((4, 8, 16)), burst_beats=rng.choice((1, 2, 8, 32)))
    b = bench(model, ports=(1, 2, 4)[seed % 3], **widths)
    instructions = transfers(seed, b.accelerator)
    measured = {}

    async def host(ctx):
        await b.setup(ctx, instructions)
        await b.command(ctx, Control.START)
        assert not await b.settle(ctx) & Status.ERROR
        for name in ("CYCLES", "LOAD_BUSY", "LOAD_STALLED", "STORE_BUSY", "STORE_STALLED"):
            measured[name] = await b.read(ctx, name)

    b.simulate(host, deadline=20000)
    timing = predict(as_program(b.accelerator, instructions), model)
    (run,) = b.runs
    for engine in (Engine.LOAD, Engine.STORE):
        mine = [i for i, instruction in enumerate(instructions) if instruction.engine == engine]
        assert run.starts[engine.name.lower()] == list(timing.start[mine])
        assert run.dones[engine.name.lower()] == list(timing.done[mine])
        assert measured[f"{engine.name}_BUSY"] == timing.busy[engine]
        assert measured[f"{engine.name}_STALLED"] == timing.stalled[engine]
    assert run.cycles == timing.cycles == measured["CYCLES"]

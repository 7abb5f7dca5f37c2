"""The cycle model against the compiled Verilog: random programs of all engines, and programs that cannot end."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.isa import Engine, Instruction, LoadTarget, Opcode, Region, VectorOp
from terrazzo.arch.layout import Layout
from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.program import Program
from terrazzo.sim.cycle import CycleError, predict
from terrazzo.sim.rtl import RtlSimulator, engine_of

from ..hw.matrix_bench import CONFIGURATIONS, random_instruction

END = Instruction(Opcode.END)
MACHINES = {
    "small": dataclasses.replace(
        CONFIGURATIONS["small"], scratchpad_regions=4, scratchpad_rows=256, instructions=64
    ),
    "deep": dataclasses.replace(
        CONFIGURATIONS["deep"],
        scratchpad_regions=2,
        scratchpad_rows=512,
        instructions=64,
        bus_bytes=16,
        burst_beats=8,
    ),
}
BUFFER = 1 << 14


def program_of(machine, instructions) -> Program:
    """A program whose frame is `instructions` and whose setup does nothing."""
    layout = Layout(positions=1, channels=1, wide=False, stride=1)
    return Program(
        name="random",
        accelerator=machine,
        setup_entry=len(instructions) - 1,
        frame_entry=0,
        scratch_bytes=BUFFER,
        input=layout,
        output=layout,
        layers=(),
        instructions=np.array([isa.encode(i) for i in instructions]),
        weights=np.zeros(BUFFER, np.uint8),
    )


def random_program(machine, seed: int) -> Program:
    """Instructions of all engines, tagged by their index; many wait for one before them."""
    random = np.random.default_rng(seed)
    rows = machine.scratchpad_regions * machine.scratchpad_rows

    def pick(lo, hi):
        return int(random.integers(lo, hi + 1))

    def transfer(opcode):
        region = Region.WEIGHTS if opcode == Opcode.LOAD else Region.SCRATCH
        values = dict(
            region=region, offset=pick(0, 99) * machine.bus_bytes, row=pick(0, rows - 21), rows=pick(1, 20)
        )
        if opcode == Opcode.LOAD:
            values["target"] = int(random.choice([0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7]))
            if values["target"] != LoadTarget.SCRATCHPAD:
                values["row"] = pick(0, 3)
        return Instruction(opcode, values)

    def vector():
        op = VectorOp(pick(0, 2))
        positions, channels = pick(1, 9), pick(1, 30)
        stride = -(-channels * 2 // machine.depth) + pick(0, 2)
        values = dict(
            op=op, positions=positions, channels=channels, src_wide=pick(0, 1), dst_wide=pick(0, 1), n=20
        )
        if op != VectorOp.ELEMENTWISE:
            values |= dict(src_wide=1, dst_wide=0)
        else:
            values |= dict(
                residual=pick(0, 1), residual_row=pick(0, rows - 1), residual_stride=stride, residual_n=1
            )
        values |= dict(
            src=pick(0, rows - 1), dst=pick(0, rows - 1), src_stride=stride, dst_stride=stride, lo=-5, hi=5
        )
        return Instruction(Opcode.VECTOR, values)

    instructions, tokens = [], []
    for tag in range(pick(8, 40)):
        kind = pick(0, 5)
        if kind < 2:
            instruction = transfer(Opcode.LOAD if kind else Opcode.STORE)
        elif kind == 2:
            instruction = vector()
        else:
            instruction = random_instruction(machine, random, 0)
        engine, signal, wait = instruction.engine, 0, 0
        for token in [t for t in tokens if t % 4 == engine]:
            if pick(0, 2) and not wait >> token & 1:
                tokens.remove(token)
                wait |= 1 << token
        for consumer in Engine:
            if pick(0, 3) == 0:
                tokens.append(isa.semaphore(engine, consumer))
                signal |= 1 << tokens[-1]
        ordered = dict(tag=tag, wait=wait, signal=signal)
        instructions.append(Instruction(instruction.opcode, instruction.values | ordered))
    return program_of(machine, [*instructions, END])


@pytest.fixture(scope="module", params=MACHINES)
def simulator(request):
    return RtlSimulator(MACHINES[request.param])


@pytest.mark.parametrize("seed", range(16))
def test_equals_rtl(simulator, seed):
    """Every start and every completion, the counters and the total, predicted before the RTL runs."""
    random = np.random.default_rng(seed)
    memory = MemoryModel(
        latency=int(random.choice([1, 2, 5, 20, 60, 200])),
        interval=int(random.choice([1, 1, 2, 3, 4])),
        refresh_cycles=int(random.choice([0, 3, 10])),
        refresh_period=int(random.choice([40, 200])),
    )
    program = random_program(simulator.accelerator, seed)
    timing = predict(program, memory)
    result = simulator.run(program, np.zeros((2, 1, 1), np.int8), memory)
    assert list(result.cycles) == [timing.cycles] * 2
    for frame in range(2):
        begin = result.starts[1 + frame]
        seen = {True: np.full(len(timing.start), -1), False: np.full(len(timing.start), -1)}
        for cycle, code, tag in result.events.tolist():
            if engine_of(code) is not None and begin <= cycle <= begin + timing.cycles:
                seen[code % 2 == 1][tag] = cycle - begin
        assert list(seen[False]) == list(timing.start)
        assert list(seen[True]) == list(timing.done)
        for engine in Engine:
            assert result.counters[frame][f"{engine.name}_BUSY"] == timing.busy[engine]
            assert result.counters[frame][f"{engine.name}_STALLED"] == timing.stalled[engine]
        assert result.spans[frame] == {tag: (span.start, span.done) for tag, span in timing.layers.items()}


def load(**values):
    return Instruction(Opcode.LOAD, dict(rows=1, **values))


def test_deadlock_is_an_error():
    wait = 1 << isa.semaphore(Engine.STORE, Engine.LOAD)
    program = program_of(MACHINES["small"], [load(), load(wait=wait), END])
    with pytest.raises(CycleError, match=r"instruction 1 \(LOAD\) waits for ever"):
        predict(program, MemoryModel())


def test_program_without_end_is_an_error():
    program = program_of(MACHINES["small"], [load(), load()])
    with pytest.raises(CycleError, match="must have an END after entry 0"):
        predict(program, MemoryModel())


def test_random_stalls_cannot_be_predicted():
    with pytest.raises(ValueError, match=r"^memory stall must be 0 to be predicted, not 0\.5"):
        predict(program_of(MACHINES["small"], [END]), MemoryModel(stall=0.5))


def test_empty_program():
    timing = predict(program_of(MACHINES["small"], [END]), MemoryModel())
    assert timing.cycles == 7  # the first dispatch, docs/machine.md
    assert timing.layers == {}

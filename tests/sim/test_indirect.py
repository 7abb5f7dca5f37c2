"""Operand slots, gathered weights and channel offsets of MATRIX through the whole machine: Verilog, functional simulator
and cycle model. tests/hw/test_matrix.py compares the engine with an independent model."""

from __future__ import annotations

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.accelerator import PARAM_BYTES
from terrazzo.arch.isa import Engine, Instruction, LoadTarget, Opcode, ParamMode, Region, VectorOp
from terrazzo.arch.layout import Layout
from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.program import Program
from terrazzo.sim import cycle, functional
from terrazzo.sim.cycle import Timing, predict
from terrazzo.sim.rtl import RtlSimulator

from ..hw.matrix_bench import random_instruction
from .test_cycle import MACHINES

MACHINE = MACHINES["small"]
REGISTERS = (0, 1, 2, 3, 4, 6, 7, 9, 11, 13, 17, 19, 24, 33, 100, 160)
NEXT = 1 << isa.semaphore(Engine.MATRIX, Engine.MATRIX)
LOADED = 1 << isa.semaphore(Engine.LOAD, Engine.MATRIX)
DONE = 1 << isa.semaphore(Engine.MATRIX, Engine.STORE)


def with_operands(instruction: Instruction, random) -> Instruction:
    """The same instruction, whose fields are partly in registers."""
    values = dict(instruction.values)
    fields = [field for field in isa.operands(Opcode.MATRIX) if values.get(field.name)]
    for slot in isa.SLOTS[: random.integers(0, 4)]:
        name = fields[random.integers(len(fields))].name
        register, shift = int(random.integers(16)), int(random.integers(5))
        amount = -(-REGISTERS[register] // (1 << shift))
        if amount <= values[name]:
            values[name] -= amount
            values |= {
                f"{slot}_field": isa.slot(Opcode.MATRIX, name),
                f"{slot}_register": register,
                f"{slot}_shift": shift,
            }
    return Instruction(Opcode.MATRIX, values)


def program(seed: int) -> Program:
    """Fills every memory of the matrix engine, runs random instructions one after the other, stores the scratchpad."""
    a, random = MACHINE, np.random.default_rng(seed)
    rows = a.scratchpad_regions * a.scratchpad_rows
    parts, instructions = [], []

    def fill(target: LoadTarget, data: np.ndarray) -> None:
        pitch = a.pitch(data.shape[1])
        offset = sum(map(len, parts))
        parts.append(np.pad(data, ((0, 0), (0, pitch - data.shape[1]))).ravel())
        values = dict(target=target, region=Region.WEIGHTS, offset=offset, rows=len(data))
        instructions.append(Instruction(Opcode.LOAD, values))

    fill(LoadTarget.REGISTER, np.array(REGISTERS, "<u8").view(np.uint8).reshape(-1, 8))
    index = random.integers(0, a.weight_rows // 2 - 9, a.index_rows).astype("<u2")
    fill(LoadTarget.INDEX, index.view(np.uint8).reshape(-1, 8))
    fill(LoadTarget.WEIGHT, random.integers(0, 256, (a.weight_rows, a.weight_row_bytes), dtype=np.uint8))
    params = random.integers(0, 256, (a.param_rows, a.drain, PARAM_BYTES), dtype=np.uint8)
    params[..., 2] = random.integers(17, 27, params.shape[:2])
    params[..., 8:] = np.where(params[..., 7:8] > 127, 255, 0)
    fill(LoadTarget.PARAM, params.reshape(a.param_rows, -1))
    fill(LoadTarget.TABLE, random.integers(0, 256, (a.table_pages * 128, 8), dtype=np.uint8))
    instructions.append(Instruction(Opcode.LOAD, dict(region=Region.INPUT, rows=rows // 2, signal=LOADED)))
    for number in range(8):
        mode = int(random.choice([ParamMode.CHANNEL, ParamMode.TENSOR]))
        made = with_operands(random_instruction(a, random, number, param_mode=mode, permute=0), random)
        order = dict(wait=LOADED if number == 0 else NEXT, signal=DONE if number == 7 else NEXT)
        instructions.append(Instruction(Opcode.MATRIX, made.values | order))
    instructions += [
        Instruction(Opcode.STORE, dict(region=Region.OUTPUT, rows=rows, wait=DONE)),
        Instruction(Opcode.END),
    ]
    return as_program(instructions, np.concatenate(parts), rows // 2, rows)


def as_program(instructions, weights: np.ndarray, rows_in: int, rows_out: int) -> Program:
    """A program whose frame is `instructions`, tagged by their number; input and output are rows of the scratchpad."""
    a = MACHINE
    instructions = [Instruction(i.opcode, i.values | {"tag": tag}) for tag, i in enumerate(instructions)]
    return Program(
        name="indirect",
        accelerator=a,
        setup_entry=len(instructions) - 1,
        frame_entry=0,
        scratch_bytes=0,
        input=Layout(positions=rows_in * a.columns, channels=a.depth, wide=False, stride=1),
        output=Layout(positions=rows_out * a.columns, channels=a.depth, wide=False, stride=1),
        layers=(),
        instructions=np.array([isa.encode(i) for i in instructions]),
        weights=weights,
    )


def check(result, timing: Timing) -> None:
    """Start and completion of every instruction, and the end."""
    assert result.cycles[0] == timing.cycles
    assert result.spans[0] == {tag: (span.start, span.done) for tag, span in timing.layers.items()}


@pytest.fixture(scope="module")
def simulator():
    return RtlSimulator(MACHINE)


@pytest.mark.parametrize("seed", range(10))
def test_matrix(simulator, seed):
    made, random = program(seed), np.random.default_rng(seed)
    codes = random.integers(-128, 128, (1, made.input.positions, made.input.channels))
    memory = MemoryModel(latency=int(random.choice([1, 20, 60])))
    expected = functional.run(made, codes)
    timing = predict(made, memory)
    result = simulator.run(made, codes, memory)
    np.testing.assert_array_equal(result.outputs, expected)
    check(result, timing)


TOKENS, KEPT, OUTPUTS, ROWS = 0, 100, 300, 16


def pruning(tokens: int) -> Program:
    """Tokens of eight channels whose score is at least 0 are gathered, multiplied by a matrix and stored: every count from
    the second instruction on is in a register."""
    a, rows = MACHINE, MACHINE.scratchpad_regions * MACHINE.scratchpad_rows

    def order(producer: Engine, consumer: Engine) -> int:
        return 1 << isa.semaphore(producer, consumer)

    def counted(opcode: Opcode, field: str, shift: int, **values: int) -> Instruction:
        slot = dict(b_field=isa.slot(opcode, field), b_register=5, b_shift=shift)
        return Instruction(opcode, slot | values)

    pitch = a.pitch(a.scratchpad_row_bytes)
    weights = np.random.default_rng(3).integers(0, 256, 4096, dtype=np.uint8)
    filled, compacted = order(Engine.LOAD, Engine.VECTOR), order(Engine.VECTOR, Engine.VECTOR)
    gathered, multiplied = order(Engine.VECTOR, Engine.MATRIX), order(Engine.MATRIX, Engine.STORE)
    scores = dict(src=2 * tokens, src_stride=1, lo=0, index=3, count_register=5)
    tensors = dict(src=TOKENS, src_stride=2, dst=KEPT, dst_stride=2)
    linear = dict(
        src=KEPT, src_stride=2, dst=OUTPUTS, dst_stride=1, chunks=2, weight_stride=2, lo=-128, hi=127
    )
    counts = dict(groups=1, blocks=1, steps=1, param_mode=ParamMode.TENSOR)
    instructions = [
        Instruction(Opcode.LOAD, dict(target=LoadTarget.WEIGHT, region=Region.WEIGHTS, rows=2)),
        Instruction(Opcode.LOAD, dict(target=LoadTarget.PARAM, region=Region.WEIGHTS, rows=1, offset=2048)),
        Instruction(Opcode.LOAD, dict(region=Region.INPUT, rows=3 * tokens, signal=filled)),
        Instruction(
            Opcode.VECTOR,
            dict(op=VectorOp.COMPACT, positions=tokens, channels=1, wait=filled, signal=compacted, **scores),
        ),
        # A row of LOAD INDEX that meets COMPACT: the load waits.
        Instruction(Opcode.LOAD, dict(target=LoadTarget.INDEX, row=20, rows=4)),
        counted(
            Opcode.VECTOR, "positions", 0, op=VectorOp.GATHER, channels=8, index=3,
            wait=compacted, signal=gathered, **tensors,
        ),
        counted(Opcode.MATRIX, "positions", 0, wait=gathered, signal=multiplied, **counts, **linear),
        Instruction(Opcode.STORE, dict(region=Region.OUTPUT, row=OUTPUTS + ROWS, rows=ROWS, wait=multiplied)),
        counted(Opcode.STORE, "rows", 1, region=Region.OUTPUT, row=OUTPUTS),
        Instruction(Opcode.STORE, dict(region=Region.OUTPUT, offset=ROWS * pitch, rows=rows)),
        Instruction(Opcode.END),
    ]  # fmt: skip
    return as_program(instructions, weights, 3 * tokens, rows + ROWS)


@pytest.mark.parametrize("seed", range(4))
def test_pruning(simulator, seed):
    """Counts that data decide: the same outputs, and the cycles that follow from the count."""
    random = np.random.default_rng(seed)
    made = pruning(18)
    codes = random.integers(-128, 128, (1, made.input.positions, made.input.channels))
    machine = functional.Machine(MACHINE)
    machine.load(made)
    machine.run(made.setup_entry)
    machine.run(made.frame_entry, functional.pack_rows(MACHINE, made.input.pack(MACHINE, codes[0])))
    scores = codes[0, 2 * 18 * MACHINE.columns :][:18, 0]
    assert machine.written[3].tolist() == np.flatnonzero(scores >= 0).tolist()
    codes = np.concatenate([codes, random.integers(-128, 128, codes.shape)])
    result, found = simulator.run(made, codes, MemoryModel()), list(functional.frames(made, codes))
    np.testing.assert_array_equal(result.outputs, np.stack([frame.outputs for frame in found]))
    assert found[0].written[3].tolist() == machine.written[3].tolist()
    check(result, predict(made, MemoryModel(), written=[found[0].written]))
    timings = cycle.frames(made, MemoryModel(), [frame.written for frame in found])
    assert [timing.cycles for timing in timings] == result.cycles.tolist()
    with pytest.raises(ValueError, match=r"^instruction 5 needs count register 5, which"):
        predict(made, MemoryModel())

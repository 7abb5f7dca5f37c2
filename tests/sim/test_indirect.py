"""Operand slots, gathered weights and channel offsets of MATRIX through the whole machine: Verilog, functional simulator
and cycle model. tests/hw/test_matrix.py compares the engine with an independent model."""

from __future__ import annotations

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.accelerator import PARAM_BYTES
from terrazzo.arch.isa import Engine, Instruction, LoadTarget, Opcode, ParamMode, Region
from terrazzo.arch.layout import Layout
from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.program import Program
from terrazzo.sim import functional
from terrazzo.sim.cycle import predict
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
        pitch = a.beats(data.shape[1]) * a.bus_bytes
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
    return Program(
        name="indirect",
        accelerator=a,
        setup_entry=len(instructions) - 1,
        frame_entry=0,
        scratch_bytes=0,
        input=Layout(positions=rows // 2 * a.columns, channels=a.depth, wide=False, stride=1),
        output=Layout(positions=rows * a.columns, channels=a.depth, wide=False, stride=1),
        layers=(),
        instructions=np.array([isa.encode(i) for i in instructions]),
        weights=np.concatenate(parts),
    )


@pytest.fixture(scope="module")
def simulator():
    return RtlSimulator(MACHINE)


@pytest.mark.parametrize("seed", range(10))
def test_matrix(simulator, seed):
    made, random = program(seed), np.random.default_rng(seed)
    codes = random.integers(-128, 128, (1, made.input.positions, made.input.channels))
    memory = MemoryModel(latency=int(random.choice([1, 20, 60])))
    expected = functional.run(made, codes)
    cycles = predict(made, memory).cycles
    result = simulator.run(made, codes, memory)
    np.testing.assert_array_equal(result.outputs, expected)
    assert list(result.cycles) == [cycles]

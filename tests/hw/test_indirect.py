"""Count registers, operand slots and gathering LOADs: the top against the functional simulator and the cycle model."""

from __future__ import annotations

import random

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.isa import Engine, Instruction, LoadTarget, Opcode, Region, VectorOp
from terrazzo.arch.layout import Layout
from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.program import Program
from terrazzo.arch.registers import Cause, Control, Status
from terrazzo.sim.cycle import frames, predict
from terrazzo.sim.functional import Machine, MachineError

from .test_top import END, load, pair, store
from .top_bench import BASES, LIMIT, accelerator

ORDER = pair(Engine.LOAD, Engine.LOAD)
READY = pair(Engine.LOAD, Engine.STORE)
FREE = pair(Engine.STORE, Engine.LOAD)
VALUES = (0, 1, 2, 3, 5, 7, 8, 13, 64, 100, 1000, 65535, 65536, 131071, 200000, 262143)
"""What the registers hold: register r has the r-th."""


def add(opcode: Opcode, *slots: tuple[str, int, int]) -> dict[str, int]:
    """Operand slots: (field, register, shift) each."""
    values = {}
    for slot, (name, register, shift) in zip(isa.SLOTS, slots, strict=False):
        values |= {
            f"{slot}_field": isa.slot(opcode, name),
            f"{slot}_register": register,
            f"{slot}_shift": shift,
        }
    return values


def as_program(machine, instructions, weights: np.ndarray) -> Program:
    """A program whose OUTPUT buffer has LIMIT bytes."""
    positions = LIMIT // machine.pitch(machine.scratchpad_row_bytes) * machine.columns
    layout = Layout(positions=positions, channels=1, wide=False, stride=1)
    return Program(
        name="indirect",
        accelerator=machine,
        setup_entry=0,
        frame_entry=0,
        scratch_bytes=LIMIT,
        input=layout,
        output=layout,
        layers=(),
        instructions=np.array([isa.encode(i) for i in instructions]),
        weights=weights,
    )


def weights(machine, entries) -> np.ndarray:
    """The WEIGHTS region: rows of registers from 0 on, rows of index entries from row 16 on, the rest at random."""
    image = np.random.default_rng(7).integers(0, 256, LIMIT, dtype=np.uint8)
    pitch = machine.pitch(8)
    for r, value in enumerate(VALUES):
        image[r * pitch : r * pitch + 3] = np.frombuffer(value.to_bytes(3, "little"), np.uint8)
        image[r * pitch + 2] |= 0xF8  # bits beyond a register's do not count
    for r, row in enumerate(np.array(entries, "<u2").reshape(-1, 4)):
        image[(16 + r) * pitch : (16 + r) * pitch + 8] = row.view(np.uint8)
    return image


def preamble(machine, entries) -> list[Instruction]:
    """Fills all registers, where there are any, and the index memory."""
    pitch = machine.pitch(8)
    kind = dict(region=Region.WEIGHTS)
    return [
        *[load(0, 0, 16, target=LoadTarget.REGISTER, **kind)] * bool(machine.operand_slots),
        load(16 * pitch, 0, len(entries) // 4, target=LoadTarget.INDEX, signal=ORDER, **kind),
        load(0, 0, 1, wait=ORDER),
    ]


def transfers(seed: int, machine) -> tuple[list[Instruction], list[int]]:
    """LOADs of items and STOREs whose counts, bases and strides come from registers too; the index memory's entries."""
    rng = random.Random(seed)
    pitch = machine.pitch(machine.scratchpad_row_bytes)
    entries = [rng.randrange(10) for _ in range(machine.index_rows)]
    instructions = preamble(machine, entries)
    for tag in range(6):
        gather = rng.random() < 0.7
        values = dict(
            rows=rng.randrange(1, 7), row=rng.randrange(10), offset=rng.randrange(6) * pitch, tag=tag
        )
        if gather:
            values |= dict(gather=1, index=rng.randrange(20), item_rows=rng.choice((1, 1, 2, 3)))
        slots = [("row", rng.randrange(8), rng.randrange(3)), ("rows", rng.randrange(8), rng.randrange(4))]
        if gather:
            slots.append(rng.choice((("index", 9, rng.randrange(2, 6)), ("item_rows", 2, 1), ("rows", 1, 0))))
        rng.shuffle(slots)
        some = slots[: rng.randrange(len(slots) + 1)] * bool(machine.operand_slots)
        values |= dict(wait=FREE if tag else 0, signal=READY)
        instructions.append(load(**values | add(Opcode.LOAD, *some)))
        some = [("offset", 8, 0)] * (machine.line_bytes <= 64) + [("rows", 5, rng.randrange(2))]
        some *= bool(machine.operand_slots)
        place = dict(wait=READY, signal=FREE, tag=tag, **add(Opcode.STORE, *some[: rng.randrange(3)]))
        instructions.append(store(tag * 9 * pitch, rng.randrange(8), rng.randrange(1, 4), **place))
    return [*instructions, load(0, 0, 1, wait=FREE), END], entries


@pytest.mark.parametrize("seed", range(8))
def test_registers_and_gather(bench, seed):
    """Memory and every start and completion of random programs; with random stalls memory alone. The last machine has no
    operand slots."""
    rng = random.Random(1000 + seed)
    stall = 0.3 if seed == 6 else 0.0
    model = MemoryModel(latency=rng.choice((1, 7, 30)), interval=rng.choice((1, 1, 3)), stall=stall)
    widths = dict(bus_bytes=(4, 8, 16, 32, 64, 8, 4, 8)[seed], ports=(4, 2, 4, 1, 1, 1, 2, 2)[seed])
    b = bench(model, burst_beats=rng.choice((1, 2, 8, 32)), operand_slots=3 * (seed < 7), **widths)
    instructions, entries = transfers(seed, b.accelerator)
    program = as_program(b.accelerator, instructions, weights(b.accelerator, entries))
    b.memory[: len(b.memory) // 2] = np.random.default_rng(seed).integers(0, 256, len(b.memory) // 2)
    b.memory[BASES["WEIGHTS"] : BASES["WEIGHTS"] + LIMIT] = program.weights
    image = b.memory[BASES["INPUT"] : BASES["INPUT"] + LIMIT].copy()
    before = b.memory[BASES["OUTPUT"] : BASES["OUTPUT"] + LIMIT]
    before[:] = 0
    measured = {}

    async def host(ctx):
        await b.setup(ctx, instructions)
        await b.command(ctx, Control.START)
        assert not await b.settle(ctx) & Status.ERROR
        for name in ("LOAD_BUSY", "LOAD_STALLED", "STORE_BUSY", "STORE_STALLED"):
            measured[name] = await b.read(ctx, name)

    b.simulate(host, deadline=20000)
    machine = Machine(b.accelerator)
    machine.load(program)
    expected = machine.run(0, image)
    np.testing.assert_array_equal(before, expected)
    assert expected.any()
    if stall:
        return
    timing = predict(program, model)
    (run,) = b.runs
    for engine in (Engine.LOAD, Engine.STORE):
        mine = [i for i, instruction in enumerate(instructions) if instruction.engine == engine]
        assert run.starts[engine.name.lower()] == list(timing.start[mine])
        assert run.dones[engine.name.lower()] == list(timing.done[mine])
        assert measured[f"{engine.name}_BUSY"] == timing.busy[engine]
        assert measured[f"{engine.name}_STALLED"] == timing.stalled[engine]
    assert run.cycles == timing.cycles


ILLEGAL = {
    "beyond its field": (load(0, 0, 1, **add(Opcode.LOAD, ("rows", 11, 0))), "rows must be at most 65535"),
    "in two steps": (
        load(0, 40000, 1, **add(Opcode.LOAD, ("row", 12, 2), ("row", 1, 0), ("row", 15, 4))),
        "row must be at most 65535",
    ),
    "count of 0": (store(0, 0, 0, **add(Opcode.STORE, ("rows", 0, 0))), "rows must be at least 1"),
    "no such field": (
        Instruction(Opcode.STORE, dict(rows=1, c_field=4, c_register=2)),
        "c_field must be at most 3, not 4",
    ),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_operands(bench, name):
    """The instruction does not start, its index is reported, and after CLEAR the registers hold what they held."""
    b, (instruction, reason) = bench(), ILLEGAL[name]
    entries = [0] * b.accelerator.index_rows
    done = instruction.values | dict(wait=READY if instruction.opcode == Opcode.STORE else ORDER)
    signals = [load(0, 0, 1, signal=READY | ORDER), Instruction(instruction.opcode, done)]
    instructions = [*preamble(b.accelerator, entries), *signals, END]
    b.memory[BASES["WEIGHTS"] : BASES["WEIGHTS"] + LIMIT] = weights(b.accelerator, entries)

    async def host(ctx):
        await b.setup(ctx, instructions)
        await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.ILLEGAL_INSTRUCTION, 4)
        await b.command(ctx, Control.CLEAR)
        await b.setup(ctx, [store(0, 0, 0, **add(Opcode.STORE, ("rows", 3, 0))), END])
        await b.command(ctx, Control.START)
        assert not await b.settle(ctx) & Status.ERROR

    b.simulate(host)
    assert len(b.written) == VALUES[3] * b.accelerator.scratchpad_row_bytes
    program = as_program(b.accelerator, instructions, weights(b.accelerator, entries))
    machine = Machine(b.accelerator)
    machine.load(program)
    with pytest.raises(MachineError, match=rf"^instruction 4: .*{reason}"):
        machine.run(0, bytes(LIMIT))


OPTIONAL = dict(operand_slots=0, norm_rows=0, row_scales=0, index_rows=0, table_pages=0)
"""A machine without all that it may be without, and what it refuses."""
REFUSED = (
    (load(0, 0, 1, a_field=2), "LOAD.a_field must not be 2 on a machine with operand_slots=0"),
    (
        Instruction(Opcode.MATRIX, dict(b_field=63, b_register=3)),
        "MATRIX.b_field must not be 63 on a machine with operand_slots=0",
    ),
    (
        Instruction(Opcode.VECTOR, dict(c_field=1)),
        "VECTOR.c_field must not be 1 on a machine with operand_slots=0",
    ),
    (store(0, 0, 1, c_field=32), "STORE.c_field must not be 32 on a machine with operand_slots=0"),
    *(
        (load(0, 0, 1, target=target), f"LOAD.target must not be {int(target)} on a machine with {name}=0")
        for target, name in (
            (LoadTarget.REGISTER, "operand_slots"),
            (LoadTarget.NORM, "norm_rows"),
            (LoadTarget.RSQRT, "norm_rows"),
            (LoadTarget.EXP, "row_scales"),
            (LoadTarget.RECIP, "row_scales"),
            (LoadTarget.INDEX, "index_rows"),
            (LoadTarget.TABLE, "table_pages"),
        )
    ),
    *(
        (Instruction(Opcode.VECTOR, dict(op=op)), f"VECTOR.op must not be {int(op)} on a machine with {name}=0")
        for op, name in (
            (VectorOp.LAYERNORM, "norm_rows"),
            (VectorOp.SOFTMAX, "row_scales"),
            (VectorOp.COMPACT, "index_rows"),
            (VectorOp.GATHER, "index_rows"),
        )
    ),
    *(
        (Instruction(opcode, {field: value}), f"{opcode.name}.{field} must not be {value} on a machine with {name}=0")
        for opcode, field, value, name in (
            (Opcode.MATRIX, "param_mode", 2, "row_scales"),
            (Opcode.MATRIX, "gather", 1, "index_rows"),
            (Opcode.MATRIX, "table", 1, "table_pages"),
            (Opcode.VECTOR, "table", 1, "table_pages"),
            (Opcode.MATRIX, "maxima", 1, "row_maxima"),
            (Opcode.VECTOR, "measured", 1, "row_maxima"),
            (Opcode.MATRIX, "digits", 1, "lanes.fixed4_digits"),
        )
    ),
    *(
        (Instruction(Opcode.MATRIX, {field: 1}), f"MATRIX.{field} must not be 1 on a machine with {name}=1")
        for field, name in (("plain", "plain_steps"), ("private", "private"))
    ),
    (load(0, 0, 1, gather=1, item_rows=1), "LOAD.gather must not be 1 on a machine with index_rows=0"),
)  # fmt: skip


def test_machine_without_optional_parts(bench):
    """Hardware and functional simulator refuse what needs them; a slot that names no field, whatever else it says, not."""
    b = bench(**OPTIONAL)
    allowed = load(0, 0, 1, b_register=15, c_shift=15, signal=ORDER)

    async def host(ctx):
        await b.set_regions(ctx)
        for instruction, _ in REFUSED:
            b.put_program([allowed, instruction, END])
            await b.load(ctx)
            await b.command(ctx, Control.START)
            assert await b.error(ctx) == (Cause.ILLEGAL_INSTRUCTION, 1)
            await b.command(ctx, Control.CLEAR)

    b.simulate(host, deadline=20000)
    machine = Machine(b.accelerator)
    for instruction, reason in REFUSED:
        machine.load(as_program(b.accelerator, [allowed, instruction, END], np.zeros(LIMIT, np.uint8)))
        with pytest.raises(MachineError, match=f"^instruction 1: {reason}$"):
            machine.run(0, bytes(LIMIT))


@pytest.mark.parametrize(
    "entries, values, offset",
    [
        ([0, 0x100, 0, 0], dict(rows=2, item_rows=1), 0x2000),
        ([0xFFFF, 0, 0, 0], dict(rows=40000, item_rows=0xFFFF), 0xFFFF_FFF8),
    ],
)
def test_item_beyond_the_region(bench, entries, values, offset):
    """An item beyond the limit, also by more than 32 bits, is out of bounds."""
    b = bench()
    b.memory[BASES["WEIGHTS"] : BASES["WEIGHTS"] + LIMIT] = weights(b.accelerator, entries)
    gather = Instruction(Opcode.LOAD, dict(region=Region.INPUT, gather=1, wait=ORDER, **values))

    async def host(ctx):
        await b.setup(ctx, [*preamble(b.accelerator, entries)[:2], gather, END])
        await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.OUT_OF_BOUNDS, offset)

    b.simulate(host)


def test_gather_without_item_rows_is_illegal(bench):
    b = bench()

    async def host(ctx):
        await b.setup(ctx, [load(0, 0, 1, gather=1), END])
        await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.ILLEGAL_INSTRUCTION, 0)

    b.simulate(host)


def test_values_that_the_program_does_not_tell():
    """Registers from the image of a frame: the cycle model asks for them."""
    machine = accelerator()
    first = load(0, 2, 1, target=LoadTarget.REGISTER, region=Region.INPUT, signal=ORDER)
    instructions = [first, load(0, 0, 0, wait=ORDER, **add(Opcode.LOAD, ("rows", 2, 1))), END]
    program = as_program(machine, instructions, np.zeros(LIMIT, np.uint8))
    with pytest.raises(ValueError, match=r"^instruction 1 needs count register 2, which"):
        predict(program, MemoryModel())
    cycles = [
        predict(program, MemoryModel(), written=[{0: np.array([count])}]).cycles for count in (1, 2, 3, 11)
    ]
    assert cycles[0] == cycles[1] < cycles[2] < cycles[3]
    simulator = Machine(machine)
    simulator.load(program)
    simulator.run(0, bytes([3]) + bytes(LIMIT - 1))
    assert simulator.written[0].tolist() == [3]


def test_registers_of_an_earlier_frame_are_followed():
    """A count that is read before the frame writes it is that of the frame before."""
    machine = accelerator()
    late = load(0, 2, 1, target=LoadTarget.REGISTER, region=Region.INPUT)
    instructions = [load(0, 0, 1, **add(Opcode.LOAD, ("rows", 2, 1))), late, END]
    program = as_program(machine, instructions, np.zeros(LIMIT, np.uint8))
    few, many = ({1: np.array([count])} for count in (1, 40))
    first, second, third = (timing.cycles for timing in frames(program, MemoryModel(), [many, few, few]))
    assert first < third < second - 20

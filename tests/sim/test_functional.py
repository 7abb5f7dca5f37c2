"""The functional simulator: matrix instructions against the naive model, vector instructions against arch.numerics,
and every error."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from terrazzo.arch import isa, numerics, schemes
from terrazzo.arch.files import FileError
from terrazzo.arch.isa import Instruction, LoadTarget, Opcode, Region, VectorOp
from terrazzo.arch.layout import Layout
from terrazzo.arch.program import Layer, Program
from terrazzo.compiler import compile
from terrazzo.sim import functional
from terrazzo.sim.functional import Machine, MachineError

from ..graphs import DEMO, OTHER, random_codes, random_graph
from ..hw.matrix_bench import CONFIGURATIONS, random_instruction
from ..hw.matrix_model import Memories, execute


def drawn(accelerator, random) -> Instruction:
    """A random MATRIX instruction; draws that do not fit the memories are thrown away."""
    while True:
        try:
            return random_instruction(accelerator, random, 0, signal=0)
        except ValueError:
            continue


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_matrix_equals_the_loops_of_the_manual(name, seed):
    a, random = CONFIGURATIONS[name], np.random.default_rng(seed)
    memory, machine = Memories(a, random), Machine(a, log=True)
    machine.scratchpad[:] = memory.scratchpad
    for lane, kind in enumerate(a.lanes.kinds):
        machine.weights[:, lane] = schemes.decode(memory.patterns[:, lane], kind)
    machine.param_m[:], machine.param_n[:] = memory.m, memory.n
    machine.param_c[:], machine.param_entry[:] = memory.constant, memory.entry
    machine.row_m[:], machine.row_n[:] = memory.scale_m, memory.scale_n
    machine.index[:] = memory.index
    machine.tables[LoadTarget.TABLE][:] = memory.tables.astype(np.int8).view(np.uint8).reshape(-1, 8)
    before = machine.scratchpad.copy()
    instruction = drawn(a, random)
    execute(memory, instruction)
    machine.execute(instruction)
    np.testing.assert_array_equal(machine.scratchpad, memory.scratchpad)
    for lane, kind in enumerate(a.lanes.kinds):
        codes = schemes.decode(memory.patterns[:, lane], kind)
        np.testing.assert_array_equal(machine.weights[:, lane], codes)
    for (row, column), value in memory.maxima.items():
        assert machine.row_maxima[row, column] == value
    for place, sums in memory.moments.items():
        assert sums is None or tuple(machine.row_moments[place]) == sums
    for write in machine.log:
        if write.memory == "SCRATCHPAD":
            before.reshape(len(before), -1)[write.rows] = np.where(
                write.mask, write.data, before.reshape(len(before), -1)[write.rows]
            )
    np.testing.assert_array_equal(before, memory.scratchpad, "the log must tell every write")


def tensor(machine: Machine, row: int, codes: np.ndarray, wide: bool) -> int:
    """Put codes (positions, channels) into the scratchpad; their stride."""
    a = machine.accelerator
    stride = -(-codes.shape[1] * (2 if wide else 1) // a.depth)
    layout = Layout(positions=len(codes), channels=codes.shape[1], wide=wide, stride=stride)
    rows = layout.pack(a, codes)
    machine.scratchpad[row : row + len(rows)] = rows.reshape(-1, a.columns, a.depth)
    return stride


def read(machine: Machine, row: int, shape: tuple[int, int], stride: int, wide: bool) -> np.ndarray:
    a = machine.accelerator
    layout = Layout(positions=shape[0], channels=shape[1], wide=wide, stride=stride)
    rows = machine.scratchpad[row : row + layout.rows(a)].reshape(-1, a.scratchpad_row_bytes)
    return layout.unpack(a, rows)


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 17), (9, 96)])
def test_vector_instructions(accelerator, shape):
    a, random, machine = accelerator, np.random.default_rng(sum(shape)), Machine(accelerator)
    positions, channels = shape
    g, b = random.integers(-3000, 3000, channels), random.integers(-(1 << 20), 1 << 20, channels)
    machine.norm_g.ravel()[:channels], machine.norm_b.ravel()[:channels] = g, b
    tables = {LoadTarget.EXP: (numerics.exp_table(), "u1"), LoadTarget.RECIP: (numerics.recip_table(), "<u2")}
    tables[LoadTarget.RSQRT] = (numerics.rsqrt_table(), "<u2")
    for target, (entries, dtype) in tables.items():
        machine.tables[target][:] = entries.astype(dtype).view(np.uint8).reshape(-1, 8)
    x = random.integers(-32768, 32768, shape)
    common = {"positions": positions, "channels": channels, "src_wide": 1, "dst": 400}
    common["src_stride"] = tensor(machine, 10, x, True)
    common |= {"src": 10, "dst_stride": common["src_stride"]}

    values = {**common, "op": VectorOp.LAYERNORM, "n": 13, "constant": 77, "lo": -100, "hi": 120}
    machine.execute(Instruction(Opcode.VECTOR, values))
    expected = numerics.layernorm(x, g, b, 13, 77, numerics.rsqrt_table(), -100, 120)
    np.testing.assert_array_equal(read(machine, 400, shape, common["dst_stride"], False), expected)

    values = {
        **common,
        "op": VectorOp.ELEMENTWISE,
        "m": 40000,
        "n": 17,
        "constant": -12345,
        "lo": -9000,
        "hi": 9000,
    }
    values |= {"dst_wide": 1, "residual": 1, "residual_row": 10, "residual_stride": common["src_stride"]}
    machine.execute(Instruction(Opcode.VECTOR, {**values, "residual_m": 50000, "residual_n": 16}))
    v = (x * 40000 - 12345) >> 17
    expected = numerics.residual_add(v, x, 50000, 16, -9000, 9000)
    np.testing.assert_array_equal(read(machine, 400, shape, common["dst_stride"], True), expected)

    logits = random.integers(-2048, 2048, shape)
    tensor(machine, 10, logits, True)
    machine.execute(
        Instruction(Opcode.VECTOR, {**common, "op": VectorOp.SOFTMAX, "m": 40000, "n": 15, "param": 2})
    )
    e = numerics.softmax_exp(logits, numerics.exp_table())
    scale = numerics.softmax_row_scale(e.sum(axis=1), 40000, 15, numerics.recip_table())
    written = read(machine, 400, (positions, -(-channels // a.depth) * a.depth), common["dst_stride"], False)
    np.testing.assert_array_equal(written[:, :channels] & 255, e)
    assert not written[:, channels:].any(), "keys up to a multiple of depth must be 0"
    np.testing.assert_array_equal(machine.row_m[2:].ravel()[:positions], scale.m)
    np.testing.assert_array_equal(machine.row_n[2:].ravel()[:positions], scale.n)


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 17), (9, 40)])
@pytest.mark.parametrize("broadcast", [0, 1])
@pytest.mark.parametrize("wide", [0, 1])
def test_multiply(accelerator, shape, broadcast, wide):
    random, machine = np.random.default_rng(sum(shape)), Machine(accelerator)
    x = random.integers(-8192, 8192, shape)
    bound = 8191 if wide else 128
    b = random.integers(-bound, bound, (1 if broadcast else shape[0], shape[1]))
    values = {
        "positions": shape[0],
        "channels": shape[1],
        "op": VectorOp.MULTIPLY,
        "src_wide": 1,
        "src": 3,
        "dst": 400,
    }
    values |= {
        "src_stride": tensor(machine, 3, x, True),
        "dst_stride": 6,
        "lo": -128,
        "hi": 127,
        "m": 40000,
        "n": 33,
    }
    values |= {"residual_stride": tensor(machine, 200, b, bool(wide)), "residual_row": 200, "residual": 1}
    values |= {"broadcast": broadcast, "residual_wide": wide, "constant": (3 << 33) + (1 << 32)}
    machine.execute(Instruction(Opcode.VECTOR, values))
    expected = np.clip(np.floor(x * b * 40000 / 2**33 + 0.5) + 3, -128, 127)
    np.testing.assert_array_equal(read(machine, 400, shape, 6, False), expected)


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
def test_softmax_bias(accelerator):
    """Unmasked keys get what they would get alone; masked ones 0."""
    random, machine = np.random.default_rng(0), Machine(accelerator)
    machine.tables[LoadTarget.EXP][:] = numerics.exp_table().astype("u1").reshape(-1, 8)
    machine.tables[LoadTarget.RECIP][:] = numerics.recip_table().astype("<u2").view(np.uint8).reshape(-1, 8)
    logits, bias = random.integers(-2048, 2048, (7, 13)), random.integers(-900, 900, (7, 13))
    hidden = random.random((7, 13)) < 0.4
    hidden[3] = True
    stride = tensor(machine, 10, logits, True)
    tensor(machine, 200, np.where(hidden, -32768, bias), True)
    values = {
        "positions": 7,
        "channels": 13,
        "op": VectorOp.SOFTMAX,
        "src": 10,
        "src_stride": stride,
        "dst": 400,
    }
    values |= {
        "residual_row": 200,
        "residual_stride": stride,
        "dst_stride": 4,
        "m": 40000,
        "n": 15,
        "bias": 1,
    }
    machine.execute(Instruction(Opcode.VECTOR, values))
    written = read(machine, 400, (7, 13), 4, False) & 255
    for row, hide, e, m, n in zip(
        logits + bias, hidden, written, machine.row_m.ravel(), machine.row_n.ravel(), strict=False
    ):
        alone = numerics.softmax_exp(row[~hide], numerics.exp_table()) if not hide.all() else []
        np.testing.assert_array_equal(e[~hide], alone)
        assert not e[hide].any() and (not hide.all() or (m, n) == (0, 1))


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize("wide", [0, 1])
def test_compact_and_gather(accelerator, wide):
    """Pruning: positions with a score of at least 20 remain, in order."""
    random, machine = np.random.default_rng(wide), Machine(accelerator)
    scores, x = random.integers(-100, 100, (19, 1)), random.integers(-128, 128, (19, 11))
    stride = tensor(machine, 10, scores, bool(wide))
    values = {
        "op": VectorOp.COMPACT,
        "positions": 19,
        "channels": 1,
        "src": 10,
        "src_stride": stride,
        "lo": 20,
    }
    values |= {"src_wide": wide, "index": 5, "count_register": 9}
    machine.execute(Instruction(Opcode.VECTOR, values))
    kept = [p for p in range(19) if scores[p] >= 20]
    assert machine.registers[9] == len(kept) and machine.index[5 : 5 + len(kept)].tolist() == kept
    values = {
        "op": VectorOp.GATHER,
        "positions": len(kept),
        "channels": 11,
        "src_wide": wide,
        "src": 300,
        "dst": 400,
    }
    values |= {"src_stride": tensor(machine, 300, x, bool(wide)), "dst_stride": 4, "index": 5}
    machine.execute(Instruction(Opcode.VECTOR, values))
    np.testing.assert_array_equal(read(machine, 400, (len(kept), 11), 4, bool(wide)), x[kept])


def program(*instructions: Instruction, scratch_bytes: int = 0) -> Program:
    layout = Layout(positions=1, channels=1, wide=False, stride=1)
    return Program(
        name="test",
        accelerator=DEMO,
        setup_entry=0,
        frame_entry=0,
        scratch_bytes=scratch_bytes,
        input=layout,
        output=layout,
        layers=(Layer(tag=0, name="x", op="linear", macs=0),),
        instructions=np.stack([isa.encode(i) for i in (*instructions, Instruction(Opcode.END))]),
        weights=np.arange(256, dtype=np.uint8),
    )


def test_load_and_store_move_rows():
    load = Instruction(
        Opcode.LOAD, {"region": Region.WEIGHTS, "offset": 64, "row": 5, "rows": 2, "signal": 8}
    )
    store = Instruction(Opcode.STORE, {"region": Region.OUTPUT, "row": 6, "rows": 1, "wait": 8})
    machine = Machine(DEMO)
    machine.load(program(load, store))
    np.testing.assert_array_equal(machine.run(0), np.arange(96, 128))


LOAD = {"region": Region.WEIGHTS, "rows": 1}
MATRIX = {"positions": 1, "groups": 1, "blocks": 1, "chunks": 1, "steps": 1, "weight_stride": 1}


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (Instruction(Opcode.LOAD, {**LOAD, "offset": 8}), "transfer .* must be aligned to 16 bytes"),
        (Instruction(Opcode.LOAD, {**LOAD, "offset": 240}), "lie inside the 256 bytes of region WEIGHTS"),
        (Instruction(Opcode.LOAD, {**LOAD, "rows": 0}), "transfer of 0 bytes"),
        (Instruction(Opcode.LOAD, {**LOAD, "row": 2048}), "SCRATCHPAD rows must be in 0..2047"),
        (
            Instruction(Opcode.STORE, {"region": Region.OUTPUT, "rows": 2}),
            "inside the 32 bytes of region OUTPUT",
        ),
        (Instruction(Opcode.LOAD, {**LOAD, "wait": 1}), "semaphore 0 must be positive"),
        (Instruction(Opcode.MATRIX, {**MATRIX, "chunks": 0}), "must be at least 1"),
        (Instruction(Opcode.MATRIX, {**MATRIX, "src": 3000}), "SCRATCHPAD rows must be in"),
        (Instruction(Opcode.MATRIX, {**MATRIX, "weight": 9000}), "WEIGHT rows must be in 0..8191"),
        (Instruction(Opcode.MATRIX, {**MATRIX, "param": 9000}), "PARAM rows must be in"),
        (Instruction(Opcode.MATRIX, {**MATRIX, "param_mode": 2, "param": 64}), "ROW_SCALE rows must be in"),
        (Instruction(Opcode.MATRIX, {**MATRIX, "steps": 9}), "must not exceed the lanes"),
        (Instruction(Opcode.MATRIX, {**MATRIX, "steps": 5, "maximum": 1}), "must not exceed the lanes"),
        (
            Instruction(Opcode.MATRIX, {**MATRIX, "digits": 1}),
            r"MATRIX\.digits must not be 1 on a machine with lanes\.fixed4_digits=0",
        ),
        (Instruction(Opcode.MATRIX, {**MATRIX, "steps": 2, "skip": 2}), r"skip must be below steps \(2\)"),
        (
            Instruction(Opcode.MATRIX, {**MATRIX, "plain": 1}),
            "plain must not be 1 on a machine with plain_steps=1",
        ),
        (
            Instruction(Opcode.MATRIX, {**MATRIX, "positions": 9, "steps": 8}),
            "output stride must be at least",
        ),
        (Instruction(Opcode.MATRIX, {**MATRIX, "mode": 1}), "chunks must be taps_y"),
        (Instruction(Opcode.VECTOR, {"positions": 1}), "positions and channels must be at least 1"),
    ],
)
def test_illegal_instructions(instruction, message):
    machine = Machine(DEMO)
    machine.load(program(instruction))
    with pytest.raises(MachineError, match=f"^instruction 0: .*{message}"):
        machine.run(0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"permute": 1}, "plain outputs have no permute"),
        ({"residual": 1}, "plain outputs have no permute, table, residual"),
        ({"destination": 1}, "plain outputs go to the scratchpad"),
        ({"param_mode": 0}, "with TENSOR or TOKEN parameters"),
        ({"steps": 5}, "must not exceed the lanes"),
    ],
)
def test_illegal_plain_outputs(fields, message):
    machine = Machine(dataclasses.replace(DEMO, plain_steps=2))
    instruction = Instruction(Opcode.MATRIX, {**MATRIX, "plain": 1, "param_mode": 1, **fields})
    with pytest.raises(MachineError, match=message):
        machine.execute(instruction)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"second": 1}, "without second"),
        ({"destination": 1, "dst_block": 1}, "outputs to the scratchpad"),
        ({"hi": 2048}, r"lo and hi must be -2048\.\.2047 with maxima, not 0\.\.2048"),
        ({"second_stride": 3}, r"second_stride must be 1\.\.2 with maxima, not 3"),
        ({"second_stride": 0}, r"second_stride must be 1\.\.2 with maxima, not 0"),
        ({"second_dst": 8}, r"ROW_MAXIMA rows must be in 0\.\.7"),
    ],
)
def test_illegal_row_maxima(fields, message):
    machine = Machine(dataclasses.replace(DEMO, row_maxima=8))
    instruction = Instruction(Opcode.MATRIX, {**MATRIX, "maxima": 1, "second_stride": 2, **fields})
    with pytest.raises(MachineError, match=message):
        machine.execute(instruction)


def test_row_maxima_of_biased_logits_are_refused():
    machine = Machine(dataclasses.replace(DEMO, row_maxima=8))
    fields = {"op": VectorOp.SOFTMAX, "positions": 1, "channels": 1, "measured": 1, "bias": 1}
    with pytest.raises(MachineError, match="measured is for logits without bias"):
        machine.execute(Instruction(Opcode.VECTOR, fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"second": 1}, "without second, maxima and plain"),
        ({"destination": 1, "dst_block": 1}, "outputs to the scratchpad"),
        ({"steps": 3}, "a tile must have at least 4 drain steps with moments, not 3"),
        ({"second_dst": 8}, r"ROW_MOMENTS rows must be in 0\.\.7"),
    ],
)
def test_illegal_row_moments(fields, message):
    machine = Machine(dataclasses.replace(DEMO, row_moments=8))
    instruction = Instruction(Opcode.MATRIX, {**MATRIX, "moments": 1, "steps": 4, **fields})
    with pytest.raises(MachineError, match=message):
        machine.execute(instruction)


def test_row_moments_of_other_codes_are_refused():
    machine = Machine(dataclasses.replace(DEMO, row_moments=8))
    machine.scratchpad[0, 1] = 1
    fields = {"op": VectorOp.LAYERNORM, "positions": 2, "channels": 1, "summed": 1, "n": 1, "constant": 1}
    with pytest.raises(MachineError, match="they are not at position 1"):
        machine.execute(Instruction(Opcode.VECTOR, fields))


def test_semaphores_must_balance():
    machine = Machine(DEMO)
    machine.load(program(Instruction(Opcode.LOAD, {**LOAD, "signal": 1})))
    with pytest.raises(MachineError, match="semaphores must be 0 at END"):
        machine.run(0)
    with pytest.raises(MachineError, match=r"instruction 2: must be in 0\.\.1"):
        machine.run(2)


def test_illegal_opcode():
    made = program(Instruction(Opcode.LOAD, LOAD))
    made.instructions[0] = 0
    machine = Machine(DEMO)
    machine.load(made)
    with pytest.raises(MachineError, match="instruction 0: opcode must be one of"):
        machine.run(0)


def test_foreign_program():
    with pytest.raises(FileError, match="must be for this accelerator"):
        Machine(OTHER).load(program())


def test_log_rebuilds_the_output():
    graph = random_graph(1, DEMO)
    made, codes = compile(graph, DEMO), random_codes(graph, 1)
    machine = Machine(DEMO, log=True)
    machine.load(made)
    machine.run(made.setup_entry)
    output = machine.run(made.frame_entry, functional.pack_rows(DEMO, made.input.pack(DEMO, codes[0])))
    stored = [write for write in machine.log if write.memory == "OUTPUT"]
    np.testing.assert_array_equal(np.concatenate([w.data.ravel() for w in stored]), output)
    assert {write.memory for write in machine.log} >= {"SCRATCHPAD", "WEIGHT", "PARAM", "OUTPUT"}


def test_second_run_needs_no_setup():
    graph = random_graph(0, OTHER)
    made, codes = compile(graph, OTHER), random_codes(graph, 1)
    once = functional.run(made, codes)
    np.testing.assert_array_equal(
        functional.run(made, np.concatenate([codes, codes, codes])), np.repeat(once, 3, axis=0)
    )

"""Programs compute what their graphs define, on two accelerators and with memories of every size."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.arch import isa
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.graph import Graph
from terrazzo.arch.isa import Opcode
from terrazzo.arch.program import Program
from terrazzo.compiler import CompileError, compile
from terrazzo.compiler.needed import needed
from terrazzo.sim import functional, reference

from ..graphs import DEMO, OTHER, Builder, random_codes, random_graph

ACCELERATORS = {
    "demo": DEMO,
    "other": OTHER,
    "fixed8_only": dataclasses.replace(DEMO, lanes=Lanes(fixed8=16), drain=4, vector=1),
    "odd_mixture": dataclasses.replace(
        DEMO, lanes=Lanes(fixed8=8, fixed4=6, sp2_4=2), bus_bytes=64, plain_steps=2
    ),
    "drain_1": dataclasses.replace(OTHER, lanes=Lanes(fixed8=2, pot4=3), drain=1, vector=1),
    "shallow": dataclasses.replace(DEMO, depth=4, columns=2, vector=2, scratchpad_rows=4096),
}


def assert_exact(graph: Graph, accelerator: Accelerator, images: int = 2) -> Program:
    """Compile, run both simulators, compare every code; the program."""
    program, codes = compile(graph, accelerator), random_codes(graph, images)
    outputs = functional.run(program, codes)
    expected = np.asarray(reference.run(graph, codes)).reshape(outputs.shape)
    np.testing.assert_array_equal(outputs, expected)
    return program


def opcodes(program: Program) -> list[Opcode]:
    """Opcodes of the frame section."""
    return [isa.decode(words).opcode for words in program.instructions[program.frame_entry :]]


def transformer(accelerator: Accelerator, tokens: int = 9, dim: int = 32, heads: int = 2) -> Graph:
    b = Builder(1, (tokens, 1, 9), accelerator.lanes, accelerator.drain)
    x = b.flatten(b.conv(b.input, dim, (1, 1), dtype="s16"))
    for _ in range(2):
        y = b.layernorm(x)
        x = b.linear(b.attention(*(b.linear(y, dim) for _ in range(3)), heads), dim, "s16", residual=x)
        x = b.linear(b.linear(b.layernorm(x), 4 * dim, table=1024), dim, "s16", residual=x)
    return b.graph(b.linear(b.layernorm(x), 10, "s16"), "transformer")


@pytest.mark.parametrize("name", list(ACCELERATORS))
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_random_graphs(name, seed):
    graph = random_graph(seed, ACCELERATORS[name] if seed % 3 else None)
    assert_exact(graph, ACCELERATORS[name])


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize(
    "small",
    [
        {"weight_rows": 144},
        {"weight_rows": 112},
        {"param_rows": 100},
        {"norm_rows": 32},
        {"table_pages": 1},
        {"row_scales": 5},
        {"weight_rows": 256, "param_rows": 64, "norm_rows": 32, "table_pages": 1, "scratchpad_rows": 256},
    ],
    ids=lambda small: ",".join(f"{k}={v}" for k, v in small.items()),
)
def test_small_memories_are_streamed(accelerator, small):
    graph = transformer(accelerator)
    resident = opcodes(compile(graph, accelerator)).count(Opcode.LOAD)
    program = assert_exact(graph, dataclasses.replace(accelerator, **small))
    if not {"row_scales", "norm_rows", "table_pages"} & set(small):
        assert opcodes(program).count(Opcode.LOAD) > resident


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
def test_what_fits_stays_and_the_rest_is_prefetched(accelerator):
    graph = transformer(accelerator)

    def rows(program: Program, first: int, end: int | None) -> int:
        found = [i for i in map(isa.decode, program.instructions[first:end]) if i.opcode == Opcode.LOAD]
        return sum(i.rows for i in found if i.target == isa.LoadTarget.WEIGHT)

    whole = compile(graph, accelerator)
    total = rows(whole, 0, whole.frame_entry)
    program = assert_exact(graph, dataclasses.replace(accelerator, weight_rows=total * 3 // 4))
    kept, loaded = rows(program, 0, program.frame_entry), rows(program, program.frame_entry, None)
    assert kept + loaded == total and kept > total // 4
    frame = [isa.decode(words) for words in program.instructions[program.frame_entry :]]
    loads = [n for n, i in enumerate(frame) if i.opcode == Opcode.LOAD and i.target == isa.LoadTarget.WEIGHT]
    users = [
        next(
            n
            for n, i in enumerate(frame)
            if i.opcode == Opcode.MATRIX
            and i.weight <= frame[at].row < i.weight + i.blocks * i.chunks  # a piece may be loaded in two
            and n > at
        )
        for at in loads
    ]
    between = [
        sum(i.opcode == Opcode.MATRIX for i in frame[at:user]) for at, user in zip(loads, users, strict=True)
    ]
    assert np.mean(between) >= 1, "loading overlaps the layer before"


def test_everything_resident():
    program = assert_exact(transformer(DEMO), DEMO)
    loads = opcodes(program)
    assert loads.count(Opcode.LOAD) == 1, "the frame loads nothing but its input"
    setup = [isa.decode(words) for words in program.instructions[: program.frame_entry]]
    assert {i.opcode for i in setup} == {Opcode.LOAD, Opcode.END}


def test_mixed_rows_fill_all_lanes():
    b = Builder(0, (4, 1, 8), DEMO.lanes, DEMO.drain, mixed=1.0)
    program = assert_exact(b.graph(b.linear(b.flatten(b.input), 48)), DEMO)
    matrix = [i for i in map(isa.decode, program.instructions) if i.opcode == Opcode.MATRIX]
    assert [(i.permute, i.blocks, i.steps) for i in matrix] == [(1, 3, 8)]


@pytest.mark.parametrize("plain", [1, 2])
def test_products_with_keys_drain_no_more_than_the_keys(plain):
    """9 keys on blocks of 4 lanes, 2 or 4 of which are drained at once."""
    a = dataclasses.replace(DEMO, lanes=Lanes(fixed8=4), plain_steps=plain)
    frame = [isa.decode(words) for words in assert_exact(transformer(a), a).instructions]
    logits = [i for i in frame if i.opcode == Opcode.MATRIX and i.param_mode == isa.ParamMode.TENSOR]
    assert {(i.plain, i.blocks * i.steps - i.skip) for i in logits} == {(plain - 1, -(-9 // (2 * plain)))}


@pytest.mark.parametrize(
    ("rows", "bias", "measured"), [(0, None, 0), (4, None, 0), (5, None, 1), (32, (1, 2), 0)]
)
def test_softmax_takes_one_pass_where_the_drain_keeps_maxima(rows, bias, measured):
    """9 tokens, 5 tiles; logits with a bias are other ones than the drain sees, and 4 rows do not hold a head."""
    a = dataclasses.replace(DEMO, columns=2, row_maxima=rows)
    b = Builder(2, (9, 1, 8), a.lanes, a.drain)
    x = b.flatten(b.input)
    y = b.attention(b.linear(x, 16), b.linear(x, 16), b.linear(x, 16), 2, bias=bias)
    frame = [isa.decode(words) for words in assert_exact(b.graph(y), a).instructions]
    assert {i.measured for i in frame if i.opcode == Opcode.VECTOR and i.op == isa.VectorOp.SOFTMAX} == {
        measured
    }
    assert any(i.maxima for i in frame if i.opcode == Opcode.MATRIX) == bool(measured)


@pytest.mark.parametrize(
    ("rows", "changes", "summed", "moments"),
    [
        (0, {}, {0}, {0}),
        (2, {}, {0}, {0}),
        (3, {}, {1}, {1}),
        (8, {"weight_rows": 112}, {1}, {1, 2}),
        (16, {"columns": 2, "vector": 2, "param_rows": 100}, {1}, {1, 2}),
        (16, {"columns": 5, "lanes": Lanes(fixed8=8)}, {1}, {1}),
    ],
)
def test_layernorm_takes_one_pass_where_the_drain_sums(rows, changes, summed, moments):
    """9 tokens in 3 tiles of 4 columns; layers of which the memories hold a part are added up."""
    a = dataclasses.replace(DEMO, row_moments=rows, **changes)
    frame = [isa.decode(words) for words in assert_exact(transformer(a), a).instructions]
    assert {i.summed for i in frame if i.opcode == Opcode.VECTOR and i.op == isa.VectorOp.LAYERNORM} == summed
    assert {i.moments for i in frame if i.opcode == Opcode.MATRIX and i.wide and i.residual} == moments


def test_layernorm_of_few_drain_steps_reads_its_input_twice():
    """6 channels are 3 steps, of which no row moments can be taken."""
    a = dataclasses.replace(DEMO, row_moments=8)
    frame = [isa.decode(words) for words in assert_exact(transformer(a, dim=6), a).instructions]
    assert not any(i.summed for i in frame)


def test_rows_without_lanes_run_on_fixed8():
    b = Builder(0, (4, 1, 8))
    x = b.linear(b.flatten(b.input), 48)
    b.constants["linear1/scheme"][:] = 0
    program = assert_exact(b.graph(x), DEMO)
    matrix = [i for i in map(isa.decode, program.instructions) if i.opcode == Opcode.MATRIX]
    assert [(i.permute, i.blocks, i.steps) for i in matrix] == [(0, 6, 4)]


def test_few_channels_are_joined():
    b = Builder(0, (9, 7, 3))
    program = assert_exact(b.graph(b.conv(b.input, 5, (3, 3), (2, 1), (1, 1, 1, 2))), DEMO)
    assert program.input.positions == 9 and program.input.channels == 21
    matrix = next(i for i in map(isa.decode, program.instructions) if i.opcode == Opcode.MATRIX)
    assert matrix.mode == isa.FetchMode.JOIN and matrix.chunks == 6


def test_second_reader_prevents_joining():
    b = Builder(0, (6, 6, 3))
    x = b.conv(b.input, 3, (3, 3), (1, 1), (1, 1, 1, 1), dtype="s16")
    program = assert_exact(b.graph(b.elementwise(b.input, residual=x)), DEMO)
    assert program.input.positions == 36


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize(
    ("channels", "out", "groups"), [(17, 17, 17), (24, 48, 3), (12, 12, 4), (30, 20, 10), (9, 9, 1)]
)
def test_grouped_convolutions(accelerator, channels, out, groups):
    b = Builder(channels, (5, 4, channels), accelerator.lanes, accelerator.drain)
    x = b.conv(b.input, out, (3, 2), (1, 2), (1, 0, 1, 1), groups=groups, dtype="s16", second=True)
    y = b.conv(f"{x}.second", out, (1, 1), residual=x)
    program = assert_exact(b.graph(y), accelerator)
    assert program.layers[0].depthwise == (groups > 1)


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize("shape", [(1, 1, 17), (11, 11, 5), (7, 3, 32)])
def test_global_pooling(accelerator, shape):
    b = Builder(3, shape)
    x = b.avgpool(b.maxpool(b.input, (1, 1), (1, 1)), shape[:2], shape[:2], dtype="s16")
    assert_exact(b.graph(x), accelerator)


def test_keys_read_twice():
    b = Builder(5, (6, 1, 16))
    q, k = b.linear(b.flatten(b.input), 20), b.linear(b.flatten(b.input), 20)
    x, y = b.attention(q, k, k, 4), b.attention(k, q, k, 4)
    assert_exact(b.graph(b.linear(x, 20, residual=b.linear(y, 20, "s16"))), DEMO)


def test_layers_and_macs():
    graph = needed(random_graph(2, DEMO))
    program = compile(graph, DEMO, "named")
    assert program.name == "named"
    assert [layer.name for layer in program.layers] == [operator.name for operator in graph.operators]
    assert [layer.macs for layer in program.layers] == [graph.macs(operator) for operator in graph.operators]


def problems(graph: Graph, accelerator: Accelerator) -> list[str]:
    with pytest.raises(CompileError, match=f"^graph '{graph.name}' does not compile:") as caught:
        compile(graph, accelerator)
    assert all(line in str(caught.value) for line in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    ("small", "message"),
    [
        (
            {"scratchpad_rows": 8},
            "layer .*: the scratchpad must have at least .* rows, even for bands .* not 16. Raise scratchpad_rows",
        ),
        (
            {"weight_rows": 16},
            "weight memory: must have|layer .*: a block of outputs must fit: .* Raise weight_rows",
        ),
        ({"param_rows": 4}, "layer .*: a block of outputs must fit: .* parameter rows in 4"),
        ({"norm_rows": 4}, "norm memory: must have at least 8 rows .* not 4. Raise norm_rows"),
        ({"table_pages": 0}, "table memory: must have at least 128 rows .* not 0. Raise table_pages"),
        ({"norm_rows": 0}, "norm memory: must have at least .* rows .* not 0. Raise norm_rows"),
        (
            {"row_scales": 0},
            "layer attention.*: row_scales must be at least 3 for 9 tokens, not 0. Raise row_scales",
        ),
        (
            {"row_scales": 2},
            "layer attention.*: row_scales must be at least 3 for 9 tokens, not 2. Raise row_scales",
        ),
        (
            {"operand_chunks": 1},
            "layer attention.*: operand_chunks must be at least 2, not 1. Raise operand_chunks",
        ),
        ({"instructions": 16}, "program: must have at most 16 instructions, not .* Raise instructions"),
    ],
)
def test_too_small(small, message):
    found = problems(transformer(DEMO), dataclasses.replace(DEMO, **small))
    assert all(re.search(message, line) for line in found), found


def test_every_reason_is_listed():
    b = Builder(0, (40, 40, 8))
    x = b.maxpool(b.input, (20, 20), (1, 1))
    y = b.conv(b.elementwise(b.input, "s16"), 4, (3, 3))
    tokens = b.flatten(b.elementwise(b.input))
    z = b.attention(tokens, tokens, tokens, 2)
    found = problems(b.graph(b.linear(z, 3)), DEMO)
    assert [line.split(":")[0] for line in found] == [f"layer {name}" for name in (x, y, z)]
    assert "at most 15 columns wide" in found[0] and "must read an s8 tensor, not s16" in found[1]
    assert "row_scales must be at least 400 for 1600 tokens, not 64" in found[2]


def test_fields_out_of_range_name_the_layer():
    b = Builder(0, (80, 1, 9))
    x = b.conv(b.input, 4, (2, 1), stride=(70, 1))
    found = problems(b.graph(x), DEMO)
    assert found == [
        f"layer {x}: MATRIX.stride_y must be 0..63, not 70 (window step in rows (CONV, JOIN)). Make the layer smaller."
    ]


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding", "prefix"),
    [
        ((12, 8, 3), (7, 7), (2, 2), (3, 3, 3, 3), 0),
        ((8, 12, 3), (3, 3), (2, 2), (0, 1, 0, 1), 0),
        ((8, 8, 3), (4, 4), (4, 4), (0, 0, 0, 0), 1),
        ((6, 9, 1), (2, 5), (2, 3), (1, 0, 2, 1), 0),
        ((8, 4, 2), (3, 1), (4, 2), (1, 2, 0, 0), 0),
    ],
)
def test_strided_first_layers_read_blocks_of_pixels(accelerator, shape, kernel, stride, padding, prefix):
    b = Builder(0, shape, accelerator.lanes, accelerator.drain)
    program = assert_exact(b.graph(b.conv(b.input, 6, kernel, stride, padding, prefix=prefix)), accelerator)
    assert program.input.block == stride and program.input.width == shape[1] // stride[1]
    matrix = next(i for i in map(isa.decode, program.instructions) if i.opcode == Opcode.MATRIX)
    assert (matrix.mode, matrix.stride_y, matrix.stride_x) == (isa.FetchMode.CONV, 1, 1)


def test_blocks_of_pixels_give_way_to_bands():
    """Where activations do not fit, so that bands of rows are cut."""
    b = Builder(0, (32, 16, 3))
    x = b.conv(b.conv(b.input, 24, (3, 3), (2, 2), (0, 1, 0, 1)), 24, (3, 3), padding=(1, 1, 1, 1))
    graph, small = b.graph(b.conv(x, 4, (1, 1))), dataclasses.replace(DEMO, scratchpad_rows=64)
    assert assert_exact(graph, DEMO).input.block == (2, 2)
    assert assert_exact(graph, small).input.block == (1, 1)

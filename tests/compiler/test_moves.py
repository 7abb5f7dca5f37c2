"""What moves and multiplies: programs compute what the reference does, on two machines; and what does not fit."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.isa import Opcode, Region, VectorOp
from terrazzo.compiler import CompileError, check, compile
from terrazzo.sim import functional, reference

from ..graphs import DEMO, OTHER, Builder, random_codes
from ..moves import KINDS, moving_graph


def equal(graph, accelerator, seed) -> bool:
    codes = random_codes(graph, 2, seed)
    expected = reference.run(graph, codes)
    assert len(np.unique(expected)) > 2
    got = functional.run(compile(graph, accelerator), codes)
    return np.array_equal(got.reshape(expected.shape), expected)


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.strip("_"))
@pytest.mark.parametrize("seed", range(4))
def test_every_kind(kind, accelerator, seed):
    assert equal(moving_graph(seed, accelerator, [kind]), accelerator, seed)


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize("seed", range(100, 116))
def test_several_kinds(accelerator, seed):
    assert equal(moving_graph(seed, accelerator), accelerator, seed)


def gathers(program) -> list[isa.Instruction]:
    instructions = [isa.decode(words) for words in program.instructions]
    return [i for i in instructions if i.opcode == Opcode.VECTOR and i.op == VectorOp.GATHER]


def permuted(shape=(6, 5, 8)):
    b = Builder(0, shape)
    return b, b.gather(b.input, b.random.permutation(shape[0] * shape[1]))


def test_long_tables_come_in_pieces():
    """A table of 30 entries in an index memory of 16: pieces of 8, loaded in every frame."""
    b, y = permuted()
    graph, machine = b.graph(y), dataclasses.replace(DEMO, index_rows=16)
    assert [i.positions for i in gathers(compile(graph, machine))] == [8, 8, 8, 6]
    assert equal(graph, machine, 0)


def test_windows_that_begin_tiles_need_no_gather():
    b = Builder(1, (4, 6, 8))
    x = b.flatten(b.conv(b.input, 16, (1, 1)))
    y = b.attention(b.linear(x, 16), b.linear(x, 16), b.linear(x, 16), 2, windows=3)
    assert not gathers(compile(b.graph(y), DEMO))
    assert equal(b.graph(y), DEMO, 1)


def test_windows_are_gathered_once_into_their_layout():
    """6 windows of 5 tokens on 4 columns: the gather in front writes the layout (in pieces of 32 positions, up to the
    last one's 5 * 8 + 5), the one behind reads it."""
    b = Builder(2, (5, 6, 8))
    x = b.conv(b.input, 16, (1, 1))
    y = b.gather(x, b.random.permutation(30))
    z = b.attention(*(b.linear(y, 16) for _ in range(3)), 2, windows=6, bias=(1, 2))
    graph = b.graph(b.gather(b.linear(z, 16), b.random.permutation(30)))
    assert [i.positions for i in gathers(compile(graph, DEMO))] == [32, 13, 30]
    assert equal(graph, DEMO, 2)


@pytest.mark.parametrize(("channels", "copies"), [(16, 0), (12, 4)])
def test_channels_that_fill_rows_are_written_where_they_are_concatenated(channels, copies):
    """A dense block; where they do not, what follows them begins a row and is copied there."""
    b = Builder(4, (4, 5, 8))
    x = b.conv(b.input, channels, (1, 1))
    for _ in range(2):
        x = b.concat(x, b.conv(x, 8, (3, 3), padding=(1, 1, 1, 1)))
    graph = b.graph(b.conv(x, 5, (1, 1)))
    instructions = [isa.decode(words) for words in compile(graph, DEMO).instructions]
    assert sum(i.opcode == Opcode.VECTOR for i in instructions) == copies
    assert equal(graph, DEMO, 4)


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize(("windows", "keys", "values"), [(1, 30, 9), (3, 6, 15), (1, 9, 24)])
def test_heads_of_values_have_their_own_width_and_outputs_may_have_16_bits(
    accelerator, windows, keys, values
):
    """Three heads, wider or narrower than those of the queries, that fill rows or do not."""
    b = Builder(5, (4, 6, 8))
    x = b.flatten(b.conv(b.input, 16, (1, 1)))
    parts = (b.linear(x, channels) for channels in (keys, keys, values))
    y = b.attention(*parts, 3, windows=windows, output_dtype="s16")
    assert equal(b.graph(b.linear(b.elementwise(y), 16)), accelerator, 5)


@pytest.mark.parametrize("windows", [1, 4])
def test_many_biases_come_when_they_are_needed(windows):
    """Biases of more than an eighth of the scratchpad are loaded in every frame, those of fewer rows once."""
    b = Builder(3, (4, 4, 16))
    x = b.flatten(b.conv(b.input, 16, (1, 1)))
    y = b.attention(*(b.linear(x, 16) for _ in range(3)), 2, windows=4, bias=(windows, 2))
    graph, machine = b.graph(y), dataclasses.replace(DEMO, scratchpad_rows=32)
    program = compile(graph, machine)
    frame = [isa.decode(words) for words in program.instructions[program.frame_entry :]]
    loads = [i for i in frame if i.opcode == Opcode.LOAD and i.region == Region.WEIGHTS]
    assert len(loads) == (8 if windows == 4 else 0)
    assert equal(graph, machine, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"scratchpad_rows": 4},
            "scratchpad_rows must be at least 8, so that one region holds what it gathers from, not 4",
        ),
        ({"index_rows": 4}, "a gather needs index_rows of at least 8 and positions below 65536, not 4 and"),
        ({"index_rows": 0}, "a gather needs index_rows of at least 8 and positions below 65536, not 0 and"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    b, y = permuted()
    with pytest.raises(CompileError, match=message):
        compile(b.graph(y), dataclasses.replace(DEMO, scratchpad_regions=16, **changes))


def test_wide_dilation_is_refused():
    b = Builder(0, (4, 20, 8))
    x = b.conv(b.input, 4, (1, 3), padding=(0, 0, 8, 8), dilation=(1, 8))
    with pytest.raises(CompileError, match=r"must span at most 255 rows and 15 columns, not \(1, 17\)"):
        compile(b.graph(x), DEMO)


def test_a_gather_is_checked_with_the_table_that_it_reads():
    b, y = permuted()
    program = compile(b.graph(y), DEMO)
    frame = program.instructions[program.frame_entry :]
    index = np.zeros(DEMO.index_rows, np.int64)
    check.section(DEMO, program.instructions[: program.frame_entry], None, program.weights, index)
    assert sorted(index[:30]) == list(range(30))
    check.section(DEMO, frame, None, program.weights, index)
    index[7] = 4 * (DEMO.scratchpad_rows * DEMO.scratchpad_regions)
    with pytest.raises(AssertionError, match="a GATHER must read one region"):
        check.section(DEMO, frame, None, program.weights, index)

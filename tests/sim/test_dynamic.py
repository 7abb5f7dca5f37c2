"""Products of two activations on Fixed-4 lanes: attention with keys and values of 4 bits."""

import dataclasses

import numpy as np
import pytest

from terrazzo import compiler
from terrazzo.arch import isa
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.graph import Graph
from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.program import Program
from terrazzo.compiler.widths import dynamic_lanes
from terrazzo.hw import top
from terrazzo.sim import functional, reference
from terrazzo.sim.compare import compare

from .. import tiny
from ..graphs import DEMO, OTHER, Builder, random_codes

MOSTLY = dataclasses.replace(
    tiny.MACHINE, lanes=Lanes(fixed8=2, fixed4=14, fixed4_quads=4, fixed4_dynamic=14), weight_rows=4096
)
MACHINES = {
    "tiny": tiny.MACHINE,
    "most": dataclasses.replace(MOSTLY, lanes=Lanes(fixed8=2, fixed4=14, fixed4_dynamic=12)),
    "narrow": dataclasses.replace(
        tiny.MACHINE, lanes=Lanes(fixed8=2, fixed4=14, fixed4_dynamic=12, fixed4_operand_bits=8)
    ),
    "six columns": dataclasses.replace(
        tiny.MACHINE, columns=6, lanes=Lanes(fixed8=8, fixed4=24, fixed4_dynamic=22)
    ),
    "demo": dataclasses.replace(DEMO, lanes=Lanes(fixed8=4, fixed4=20, pot4=4, fixed4_dynamic=20)),
    "other": dataclasses.replace(OTHER, lanes=Lanes(fixed8=4, fixed4=28, pot4=4, fixed4_dynamic=28)),
}
FIXED8_ROWS = Lanes(fixed8=1)
"""For graphs without rows of other schemes."""


def transformer(
    seed: int,
    lanes: Lanes,
    drain: int,
    *,
    bits: tuple[int, int, int] = (4, 4, 4),
    largest: int = 15,
    heads: int | None = None,
) -> Graph:
    """Attention of 9 to 64 tokens with queries, keys and values of `bits` bits; some values are a slice, so a copy."""
    random = np.random.default_rng(seed)
    heads = heads or int(random.integers(1, 4))
    dim, tokens = heads * int(random.choice([3, 5, 8, 17, 24])), [int(t) for t in random.integers(3, 9, 2)]
    b = Builder(seed, (*tokens, 3), lanes, drain, mixed=1 if lanes is FIXED8_ROWS else 0.75)
    x = b.flatten(b.conv(b.input, dim, (1, 1), dtype="s16"))
    y = b.layernorm(x)
    q, k, v = (b.linear(y, dim, bits=width) for width in bits)
    if seed % 3 == 1:
        v = b.slice(v, 0, tokens[0] * tokens[1])
    windows = tokens[0] if seed % 3 == 2 else 1
    x = b.linear(b.attention(q, k, v, heads, windows=windows, largest=largest), dim, "s16", residual=x)
    return b.graph(b.linear(b.layernorm(x), 5), "narrow")


def dynamic(program: Program) -> list[isa.Instruction]:
    """The instructions that write keys and values."""
    found = (isa.decode(words) for words in program.instructions)
    return [i for i in found if i.opcode == isa.Opcode.MATRIX and i.destination != isa.Destination.SCRATCHPAD]


def block_lanes(a: Accelerator, i: isa.Instruction) -> int:
    """Lanes of a block of keys or values; those of whole words of keys."""
    return i.dst_block * (a.columns if i.destination == isa.Destination.KEYS else a.drain)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MACHINES)
def test_random_machines_agree_with_the_reference(name, seed):
    a = MACHINES[name]
    graph = transformer(seed, a.lanes, a.drain, largest=(15, 255)[seed % 2])
    codes = random_codes(graph, 2, seed)
    wanted = reference.run(graph, codes)
    assert np.array_equal(functional.run(compiler.compile(graph, a), codes).reshape(wanted.shape), wanted)


def test_keys_and_values_use_every_lane_that_can():
    a = MACHINES["most"]
    graph = transformer(0, a.lanes, a.drain, heads=1)
    assert {block_lanes(a, i) for i in dynamic(compiler.compile(graph, a))} <= {10, 12, 14}
    wide = transformer(0, a.lanes, a.drain, heads=1, bits=(4, 5, 5))
    assert {block_lanes(a, i) for i in dynamic(compiler.compile(wide, a))} == {2}


def test_lanes_that_can():
    """By what keys or values and operands are; of Fixed-4 lanes with four products in a multiplier, with a narrow operand."""
    a = MOSTLY
    assert dynamic_lanes(a, (-8, 7), (-31, 31)) == dynamic_lanes(a, (-1, 1), (0, 15)) == 16
    assert dynamic_lanes(a, (-8, 7), (-32, 31)) == dynamic_lanes(a, (-8, 7), (0, 255)) == 12
    assert dynamic_lanes(a, (-8, 8), (0, 15)) == dynamic_lanes(a, (-9, 7), (0, 15)) == 2


def test_lanes_with_three_products_in_a_multiplier_can():
    """With operands of 8 bits, but for the least one."""
    a = dataclasses.replace(MOSTLY, lanes=dataclasses.replace(MOSTLY.lanes, fixed4_triples=6))
    assert a.lanes.triples == range(6, 12)
    assert dynamic_lanes(a, (-8, 7), (-31, 31)) == 16
    assert dynamic_lanes(a, (-8, 7), (-127, 127)) == 12
    assert dynamic_lanes(a, (-8, 7), (-128, 127)) == dynamic_lanes(a, (-8, 7), (0, 128)) == 6


def test_lanes_without_multipliers_can_if_the_operand_has_their_bits():
    a = dataclasses.replace(MOSTLY, lanes=dataclasses.replace(MOSTLY.lanes, fixed4_operand_bits=5))
    assert dynamic_lanes(a, (-8, 7), (-16, 15)) == 16
    assert dynamic_lanes(a, (-8, 7), (0, 16)) == dynamic_lanes(a, (-8, 7), (-17, 15)) == 2


def test_the_verilog_computes_the_same():
    """Both kinds of lanes in a block, in the predicted cycles."""
    graph = transformer(3, tiny.MACHINE.lanes, tiny.MACHINE.drain, heads=2)
    program = compiler.compile(graph, tiny.MACHINE)
    assert {block_lanes(tiny.MACHINE, i) for i in dynamic(program)} & {6}
    agree(graph, program, tiny.verilog())


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_the_verilog_of_a_machine_of_mostly_fixed4_lanes(seed):
    """Lanes in LUTs and on multipliers; the layers' rows are Fixed-8, since their operands have 8 bits."""
    graph = transformer(seed, FIXED8_ROWS, 1, largest=(15, 31, 255)[seed % 3])
    agree(graph, compiler.compile(graph, MOSTLY), top.verilog(MOSTLY))


def agree(graph: Graph, program: Program, verilog: str) -> None:
    result = compare(graph, program, random_codes(graph, 2), MemoryModel(latency=30), verilog=verilog)
    assert result.messages() == []
    assert result.predicted_cycles == result.rtl_cycles
    assert result.predicted_layers == result.rtl_layers

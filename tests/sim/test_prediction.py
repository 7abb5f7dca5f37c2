"""The cycle model predicts random graphs on random machines and memories before the RTL runs: equal per layer."""

import dataclasses
import functools

import numpy as np
import pytest

from terrazzo import compiler
from terrazzo.arch import isa
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.isa import VectorOp
from terrazzo.arch.memory import MemoryModel
from terrazzo.hw import top
from terrazzo.sim.compare import compare

from ..graphs import Builder, random_codes, random_graph

MACHINES = 6
"""The last two have columns that are no power of two."""
GRAPHS = 6
PRIVATE = (1, 2, 1, 4, 1, 1)
"""Of the machines; the lanes of the fourth multiply two taps at once."""
PLAIN = (1, 1, 1, 2, 2, 2)
"""`plain_steps` of the machines."""
DIGITS = Lanes(
    fixed8=8, fixed4=16, ternary=2, binary=2, fixed4_quads=4, fixed4_operand_bits=5, fixed4_digits=True
)
"""Of the last machine."""
MAXIMA = (0, 64, 0, 32, 0, 16)
"""`row_maxima` of the machines."""
MOMENTS = (0, 0, 32, 32, 16, 16)
"""`row_moments` likewise."""
ALWAYS = (1, 3, 5)
OTHERS = [pytest.param(seed, marks=pytest.mark.full) for seed in range(MACHINES) if seed not in ALWAYS]


@functools.cache
def machine(seed: int) -> Accelerator:
    """Random parameters, small so that the Verilog compiles in seconds."""
    if seed >= MACHINES - 2:
        columns = (3, 5)[seed - (MACHINES - 2)]
        drain, depth = (4, 16) if columns == 3 else (2, 8)
        return dataclasses.replace(
            machine(0),
            columns=columns,
            depth=depth,
            drain=drain,
            vector=4,
            lanes=Lanes(fixed8=16, fixed4=4, ternary=4, binary=4, fixed4_triples=3)
            if columns == 3
            else DIGITS,
            plain_steps=PLAIN[seed],
            operand_slots=3 if columns == 3 else 0,
            row_maxima=MAXIMA[seed],
            row_moments=MOMENTS[seed],
            broadcast_stages=seed - (MACHINES - 3),
            tree_stages=seed - (MACHINES - 3),
            drain_stages=seed - (MACHINES - 3),
        )
    random = np.random.default_rng(1000 + seed)
    private = PRIVATE[seed]
    depth = int(random.choice([4, 8, 16] if private == 1 else [4]))
    columns = int(random.choice([c for c in (2, 4) if c <= depth]))
    drain = int(random.choice([d for d in (1, 2, 4) if d <= depth // 2]))
    lanes = Lanes(
        fixed8=8 if private > 1 else 4 if drain < 4 else int(random.choice([4, 8])),
        fixed4=drain * int(random.integers(0, 2)),
        pot4=drain * int(random.integers(0, 2)),
        sp2_4=drain * int(random.integers(0, 2)),
        ternary=drain * (seed % 3),
        binary=drain * (seed % 2) if depth > 4 else 0,
    )
    return Accelerator(
        lanes=lanes,
        columns=columns,
        depth=depth,
        drain=drain,
        vector=int(random.choice([v for v in (1, 2, 4) if v <= depth // 2])),
        scratchpad_regions=int(random.choice([1, 2, 4])),
        scratchpad_rows=1024,
        weight_rows=1024,
        param_rows=512,
        norm_rows=256,
        operand_chunks=128,
        row_scales=64,
        index_rows=64,
        table_pages=2,
        instructions=256,
        bus_bytes=int(random.choice([4, 8, 16, 32])),
        burst_beats=int(random.choice([4, 16, 64])),
        ports=(4, 2, 1, 4)[seed],
        private=private,
        plain_steps=PLAIN[seed],
        row_maxima=MAXIMA[seed],
        row_moments=MOMENTS[seed],
    )


@functools.cache
def verilog(seed: int) -> str:
    """Verilog of a random machine."""
    return top.verilog(machine(seed))


@pytest.mark.parametrize("graph_seed", range(GRAPHS))
@pytest.mark.parametrize("machine_seed", [*ALWAYS, *OTHERS])
def test_prediction_equals_rtl(machine_seed, graph_seed):
    seed = 100 * machine_seed + graph_seed
    random = np.random.default_rng(seed)
    memory = MemoryModel(
        latency=int(random.integers(1, 201)),
        interval=int(random.integers(1, 5)),
        refresh_cycles=int(random.integers(0, 20)),
        refresh_period=int(random.integers(20, 400)),
    )
    check(random_graph(seed, machine(machine_seed)), machine_seed, seed, memory)


def check(graph, machine_seed, seed, memory):
    """Values of all simulators and cycles of every layer."""
    program = compiler.compile(graph, machine(machine_seed))
    result = compare(graph, program, random_codes(graph, 2, seed), memory, verilog=verilog(machine_seed))
    assert result.messages() == []
    assert result.predicted_cycles == result.rtl_cycles == result.frame_cycles[1]
    assert result.predicted_layers == result.rtl_layers
    return program


def test_the_last_machine_takes_digits():
    programs = [
        compiler.compile(
            random_graph(100 * (MACHINES - 1) + seed, machine(MACHINES - 1)), machine(MACHINES - 1)
        )
        for seed in range(GRAPHS)
    ]
    found = [isa.decode(words) for program in programs for words in program.instructions]
    assert {i.digits for i in found if i.opcode == isa.Opcode.MATRIX} == {0, 1}


@pytest.mark.parametrize("machine_seed", [seed for seed in range(MACHINES) if PRIVATE[seed] > 1])
def test_private_windows(machine_seed):
    """Windows of single channels, of any number of channels at once, between other layers."""
    accelerator, memory = machine(machine_seed), MemoryModel(latency=30)
    b = Builder(machine_seed, (9, 7, 13), accelerator.lanes, accelerator.drain)
    x = b.conv(b.input, 13, (3, 3), padding=(1, 1, 1, 1), groups=13)
    x = b.conv(b.conv(x, 24, (1, 1)), 24, (3, 2), (2, 2), (1, 1, 0, 1), groups=24, dilation=(2, 1))
    x = b.avgpool(b.conv(x, 8, (3, 1), (1, 1), (1, 1, 0, 0)), (2, 2), (2, 1), (1, 0, 0, 1))
    x = b.conv(x, 8, (5, 5), (1, 1), (2, 2, 2, 2), groups=8)
    x = b.avgpool(b.conv(x, 3, (1, 1)), (2, 2))
    program = check(b.graph(b.conv(x, 5, (1, 1))), machine_seed, 3, memory)
    found = [isa.decode(words) for words in program.instructions]
    widths = {i.tap_chunks for i in found if i.opcode == isa.Opcode.MATRIX and i.private}
    assert len(widths) > 1


@pytest.mark.full
def test_machine_without_optional_parts():
    """A network of convolutions needs neither LAYERNORM, SOFTMAX, tables, gathers nor operand slots."""
    without = dict(norm_rows=0, row_scales=0, index_rows=0, table_pages=0, operand_slots=0)
    small = dataclasses.replace(
        machine(0), lanes=Lanes(fixed8=4, fixed4=2), columns=2, depth=4, drain=1, vector=2, ports=1, **without
    )
    b = Builder(5, (6, 5, 7), small.lanes, small.drain)
    x = b.conv(b.input, 6, (3, 3), padding=(1, 1, 1, 1), dtype="s16")
    y = b.conv(b.maxpool(b.input, (3, 3), (1, 1), (1, 1, 1, 1)), 6, (1, 1), dtype="s16", residual=x)
    z = b.elementwise(b.elementwise(y, "s16", residual=x))
    graph = b.graph(b.avgpool(b.multiply(z, b.conv(z, 6, (6, 5))), (2, 2), (2, 1)))
    program, memory = compiler.compile(graph, small), MemoryModel(latency=30)
    found = [isa.decode(words) for words in program.instructions]
    assert {i.op for i in found if i.opcode == isa.Opcode.VECTOR} == {VectorOp.ELEMENTWISE, VectorOp.MULTIPLY}
    result = compare(graph, program, random_codes(graph, 2, 5), memory, verilog=top.verilog(small))
    assert result.messages() == []
    assert result.predicted_layers == result.rtl_layers

"""Activations that do not fit on chip: bands, spills, and what they move."""

import dataclasses

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.isa import LoadTarget, Opcode, Region
from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.program import Program
from terrazzo.compiler import CompileError, compile, compiled, spill
from terrazzo.sim import cycle, functional, reference
from terrazzo.sim.compare import compare

from .. import models, tiny
from ..graphs import DEMO, OTHER, Builder, random_codes

ROOMY = {"weight_rows": 16384, "param_rows": 16384, "instructions": 8192}


def frame(program: Program) -> list[isa.Instruction]:
    return [isa.decode(words) for words in program.instructions[program.frame_entry :]]


def moved(program: Program) -> dict[tuple[str, str], int]:
    """Rows of the scratchpad that a frame moves, by opcode and region."""
    rows: dict[tuple[str, str], int] = {}
    for i in frame(program):
        if i.opcode == Opcode.STORE or (i.opcode == Opcode.LOAD and i.target == LoadTarget.SCRATCHPAD):
            key = i.opcode.name, Region(i.region).name
            rows[key] = rows.get(key, 0) + i.rows
    return rows


def assert_exact(graph, accelerator, images: int = 1) -> Program:
    program, codes = compile(graph, accelerator), random_codes(graph, images)
    outputs = functional.run(program, codes)
    expected = np.asarray(reference.run(graph, codes)).reshape(outputs.shape)
    np.testing.assert_array_equal(outputs, expected)
    return program


def skipping(accelerator, side: int = 12):
    """A tensor that waits long for its second reader, behind windows of several strides."""
    b = Builder(7, (side, side, 8), accelerator.lanes, accelerator.drain)
    early = b.conv(b.input, 16, (1, 1), dtype="s16", second=True)
    x = f"{early}.second"
    for _ in range(2):
        x = b.conv(x, 16, (3, 3), (1, 1), (1, 1, 1, 1), relu=True)
        x = b.maxpool(x, (3, 3), (1, 1), (1, 1, 1, 1))
    x = b.conv(x, 16, (1, 1), residual=early)
    x = b.conv(x, 24, (3, 3), (2, 2), (1, 1, 1, 1), groups=4)
    return b.graph(b.avgpool(x, (2, 2), (2, 2)), "skipping")


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
def test_smaller_and_smaller(accelerator):
    """Every size that compiles is exact; what fits moves only the input and the output, what does not moves more."""
    graph, before, spilled = skipping(accelerator), None, 0
    for rows in (512, 256, 128, 64, 32):
        small = dataclasses.replace(accelerator, **ROOMY, scratchpad_regions=1, scratchpad_rows=rows)
        try:
            program = assert_exact(graph, small)
        except CompileError:
            break
        found = sum(moved(program).values())
        assert before is None or found >= before
        before, spilled = found, spilled + (program.scratch_bytes > 0)
    assert spilled >= 2, "some sizes spill"


def test_bands_avoid_spills():
    """A block whose widest tensor does not fit moves nothing but input and output."""
    b = Builder(3, (32, 8, 8), DEMO.lanes, DEMO.drain)
    x = b.conv(b.conv(b.input, 96, (1, 1), relu=True), 96, (3, 3), (2, 2), (1, 1, 1, 1), groups=96, relu=True)
    graph = b.graph(b.conv(x, 16, (1, 1)))
    small = dataclasses.replace(DEMO, **ROOMY, scratchpad_rows=256)
    program = assert_exact(graph, small, 2)
    assert program.scratch_bytes == 0
    rows = {("LOAD", "INPUT"): program.input.rows(small), ("STORE", "OUTPUT"): program.output.rows(small)}
    assert moved(program) == rows
    assert max(i.positions for i in frame(program) if i.opcode == Opcode.MATRIX) < 32 * 8


@pytest.mark.parametrize("model", ["resnet", "mobilenet"])
def test_networks_on_a_modest_machine(model):
    if model == "resnet":
        graph, machine = (
            models.resnet(8, DEMO.lanes, DEMO.drain),
            dataclasses.replace(DEMO, scratchpad_rows=128),
        )
    else:
        graph = models.mobilenet_v1(0.25, 64, OTHER.lanes, OTHER.drain)
        machine = dataclasses.replace(OTHER, scratchpad_regions=2, scratchpad_rows=128)
    program = assert_exact(graph, dataclasses.replace(machine, **ROOMY))
    assert program.scratch_bytes > 0


def test_constants_are_loaded_where_they_are_needed():
    """A position embedding leaves the scratchpad when other tensors need its rows."""
    b = Builder(2, (24, 1, 16), DEMO.lanes, DEMO.drain)
    x = b.linear(b.input, 32, "s16", residual=b.constant((24, 1, 32)))
    x = b.linear(b.linear(b.layernorm(x), 128, table=256), 32, "s16", residual=x)
    graph = b.graph(b.layernorm(x))
    program = assert_exact(
        graph, dataclasses.replace(DEMO, **ROOMY, scratchpad_regions=1, scratchpad_rows=64)
    )
    assert ("LOAD", "WEIGHTS") in moved(program) and program.scratch_bytes == 0


def test_the_verilog_spills():
    """All simulators agree on a program with loads and stores of activations, and on its cycles."""
    graph = skipping(tiny.MACHINE, 9)
    small = dataclasses.replace(tiny.MACHINE, scratchpad_rows=128, instructions=1024)
    program = compile(graph, small)
    assert program.scratch_bytes > 0
    result = compare(graph, program, random_codes(graph, 2))
    assert result.messages() == []


def test_what_cannot_fit_is_explained():
    graph = skipping(DEMO)
    with pytest.raises(
        CompileError, match=r"layer \w+: the scratchpad must have at least \d+ rows.* Raise scratchpad_rows"
    ):
        compile(graph, dataclasses.replace(DEMO, scratchpad_regions=1, scratchpad_rows=8))


def test_traffic_is_reported_against_its_bounds(monkeypatch):
    """However much the bands compute twice."""
    monkeypatch.setattr(spill, "_MUCH", 1e9)
    graph = skipping(DEMO)
    for rows, least in ((512, True), (128, False)):
        machine = dataclasses.replace(DEMO, **ROOMY, scratchpad_regions=1, scratchpad_rows=rows)
        found = compiled(graph, machine)
        pitch = machine.pitch(machine.scratchpad_row_bytes)
        assert found.traffic.activations == pitch * sum(moved(found.program).values())
        assert found.traffic.resident + found.traffic.weights >= len(found.program.weights)
        assert (found.traffic.activations == found.traffic.input + found.traffic.output) == least
        assert found.activations_bound <= found.traffic.activations
        assert found.gap == 0, "small graphs are solved to the end"


def test_much_computing_is_worth_some_traffic(monkeypatch):
    """Bands that compute much twice, for the least traffic, give way to transfers."""
    graph, machine = (
        skipping(DEMO),
        dataclasses.replace(DEMO, **ROOMY, scratchpad_regions=1, scratchpad_rows=128),
    )
    found = compiled(graph, machine)
    monkeypatch.setattr(spill, "_MUCH", 1e9)
    least = compiled(graph, machine)
    assert found.gap > least.gap == 0 and found.activations_bound == least.activations_bound
    fewer, more = (cycle.predict(one.program, MemoryModel()).cycles for one in (found, least))
    assert fewer < more

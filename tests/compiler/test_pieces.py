"""Gathers from tensors that no region holds, and attention in windows in bands: exact where the chip is small."""

import dataclasses

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.isa import Opcode, VectorOp
from terrazzo.arch.program import Program
from terrazzo.compiler import CompileError, compile
from terrazzo.sim import functional, reference
from terrazzo.sim.compare import compare

from .. import models, tiny
from ..graphs import DEMO, OTHER, Builder, random_codes

ROOMY = {"weight_rows": 16384, "param_rows": 16384, "instructions": 8192}


def assert_exact(graph, accelerator) -> Program:
    program, codes = compile(graph, accelerator), random_codes(graph, 1)
    outputs = functional.run(program, codes)
    expected = np.asarray(reference.run(graph, codes)).reshape(outputs.shape)
    np.testing.assert_array_equal(outputs, expected)
    assert len(np.unique(expected)) > 9
    return program


def vectors(program: Program, op: VectorOp) -> list[isa.Instruction]:
    found = [isa.decode(words) for words in program.instructions]
    return [i for i in found if i.opcode == Opcode.VECTOR and i.op == op]


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
def test_a_permutation_of_more_than_a_region(accelerator):
    """A tensor that fits on chip, but in no region, is gathered in pieces from DRAM."""
    b = Builder(2, (16, 8, 16), accelerator.lanes, accelerator.drain)
    near = (np.arange(16)[:, None] ^ 1) * 8 + np.arange(8)[::-1]
    x = b.gather(b.conv(b.input, 16, (1, 1)), near, (16, 8))
    graph = b.graph(b.conv(x, 8, (1, 1)))
    rows = accelerator.scratchpad_rows
    while rows * accelerator.scratchpad_row_bytes >= 128 * 16:
        rows //= 2
    small = dataclasses.replace(accelerator, **ROOMY, scratchpad_rows=rows, scratchpad_regions=4)
    program = assert_exact(graph, small)
    moved = vectors(program, VectorOp.GATHER)
    assert len(moved) > 1 and sum(i.positions for i in moved) == 16 * 8
    assert program.scratch_bytes > 0


def test_what_has_no_pieces_is_explained():
    """Every band of a gather that reverses rows and columns needs all rows."""
    b = Builder(2, (16, 8, 16))
    x = b.gather(b.conv(b.input, 16, (1, 1)), np.arange(16 * 8).reshape(16, 8).T, (8, 16))
    graph = b.graph(b.conv(x, 8, (1, 1)))
    with pytest.raises(
        CompileError,
        match=r"layer gather1: scratchpad_rows must be at least 64, so that one region .* not 32\. Raise",
    ):
        compile(graph, dataclasses.replace(DEMO, scratchpad_rows=32, scratchpad_regions=4))


@pytest.mark.parametrize(
    ("accelerator", "rows", "window"),
    [(DEMO, 512, 3), (DEMO, 128, 4), (OTHER, 128, 3)],
    ids=["demo whole", "demo", "other"],
)
def test_swin_on_smaller_and_smaller_machines(accelerator, rows, window):
    """Windows that do and do not begin tiles by themselves; biases of their own; patches merged."""
    small = dataclasses.replace(accelerator, **ROOMY, scratchpad_rows=rows, scratchpad_regions=2)
    graph = models.swin(16, 2, (2, 1), 4 * window, 1, window, 10, small.lanes, small.drain)
    program = assert_exact(graph, small)
    heads_and_windows = (2 * 16) * 2 + 4 * 4
    assert len(vectors(program, VectorOp.SOFTMAX)) >= heads_and_windows
    assert (program.scratch_bytes > 0) == (rows < 512)


def test_the_verilog_gathers_in_pieces():
    """All simulators agree on a program with bands of windows, and on its cycles."""
    small = dataclasses.replace(tiny.MACHINE, scratchpad_rows=128, instructions=1024)
    graph = models.swin(8, 1, (2,), 12, 1, 3, 10, small.lanes, small.drain)
    program = compile(graph, small)
    assert program.scratch_bytes > 0 and vectors(program, VectorOp.GATHER)
    result = compare(graph, program, random_codes(graph, 2))
    assert result.messages() == []


@pytest.mark.full
def test_swin_tiny():
    """The network at its size on the board's default machine with a longer instruction memory."""
    machine = dataclasses.replace(models.MACHINES["zcu102"], instructions=8192)
    assert_exact(models.swin(lanes=machine.lanes, drain=machine.drain), machine)

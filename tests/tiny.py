"""A machine whose Verilog compiles in seconds, and a program for it that uses every engine."""

from __future__ import annotations

import functools

import numpy as np

from terrazzo import compiler
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.graph import Graph
from terrazzo.arch.program import Program
from terrazzo.hw import top

from .graphs import Builder, random_codes

__all__ = ["MACHINE", "codes", "graph", "program", "verilog"]

MACHINE = Accelerator(
    lanes=Lanes(fixed8=4, fixed4=2, fixed4_dynamic=2),
    columns=2,
    depth=8,
    drain=2,
    vector=2,
    scratchpad_regions=2,
    scratchpad_rows=2048,
    weight_rows=2048,
    param_rows=512,
    norm_rows=256,
    operand_chunks=256,
    row_scales=64,
    index_rows=64,
    table_pages=2,
    instructions=256,
    bus_bytes=8,
    burst_beats=16,
)


@functools.cache
def graph() -> Graph:
    """Convolution, attention with two heads, and a linear layer with a table, on 3 x 3 pixels."""
    b = Builder(5, (3, 3, 3), MACHINE.lanes, MACHINE.drain)
    x = b.flatten(b.conv(b.input, 6, (2, 2), (1, 1), (0, 1, 0, 1), dtype="s16"))
    y = b.layernorm(x)
    q, k, v = (b.linear(y, 6) for _ in range(3))
    x = b.linear(b.attention(q, k, v, 2), 6, "s16", residual=x)
    return b.graph(b.linear(b.layernorm(x), 5, table=256), "tiny")


@functools.cache
def program() -> Program:
    """The graph for MACHINE."""
    return compiler.compile(graph(), MACHINE)


@functools.cache
def verilog() -> str:
    """MACHINE's Verilog."""
    return top.verilog(MACHINE)


def codes(count: int) -> np.ndarray:
    """Input codes of `count` images."""
    return random_codes(graph(), count)

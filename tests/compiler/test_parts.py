"""Layers in parts and items in another order: the same outputs, in fewer cycles."""

import dataclasses

import numpy as np
import pytest

from terrazzo import compiler
from terrazzo.arch.accelerator import Lanes
from terrazzo.arch.memory import MemoryModel
from terrazzo.compiler import build, parts
from terrazzo.sim import cycle, functional, reference

from ..graphs import DEMO, OTHER, Builder, random_codes, random_graph
from ..moves import moving_graph

FIVE = dataclasses.replace(DEMO, columns=5, lanes=Lanes(fixed8=16, fixed4=4), scratchpad_rows=2048)
THREE = dataclasses.replace(DEMO, columns=3, drain=4, lanes=Lanes(fixed8=8, pot4=4), scratchpad_rows=2048)


@pytest.fixture
def cut_everything(monkeypatch):
    """Parts of any length, more of them than fit a layer."""
    monkeypatch.setattr(parts, "_LEAST_CYCLES", 1)
    monkeypatch.setattr(build, "_WAYS", ((5, 0.9), (2, 0.5)))


def assert_exact(graph, accelerator):
    program = compiler.compile(graph, accelerator)
    codes = random_codes(graph, 1)
    expected = np.asarray(reference.run(graph, codes))
    np.testing.assert_array_equal(functional.run(program, codes).reshape(expected.shape), expected)
    return program


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("make", [random_graph, moving_graph])
@pytest.mark.parametrize("accelerator", [DEMO, OTHER, THREE, FIVE], ids=["demo", "other", "three", "five"])
def test_parts_compute_the_same(make, accelerator, seed, cut_everything):
    assert_exact(make(seed, accelerator), accelerator)


def transformer():
    """Two layers on 8 x 8 patches and a class token."""
    b = Builder(3, (16, 16, 3), DEMO.lanes, DEMO.drain)
    x = b.conv(b.input, 32, (2, 2), (2, 2), prefix=1, dtype="s16")
    for _ in range(2):
        y = b.layernorm(x)
        x = b.linear(b.attention(b.linear(y, 32), b.linear(y, 32), b.linear(y, 32), 2), 32, "s16", residual=x)
        x = b.linear(b.linear(b.layernorm(x), 64, table=256), 32, "s16", residual=x)
    return b.graph(b.linear(b.layernorm(x), 16))


def test_a_judge_chooses_among_orders():
    graph, memory, seen = transformer(), MemoryModel(latency=20), []
    codes = random_codes(graph, 1)
    expected = np.asarray(reference.run(graph, codes))

    def judge(program):
        outputs = functional.run(program, codes)
        np.testing.assert_array_equal(outputs.reshape(expected.shape), expected)
        seen.append(cycle.predict(program, memory).cycles)
        return seen[-1]

    alone = cycle.predict(compiler.compile(graph, DEMO), memory).cycles
    chosen = cycle.predict(compiler.compile(graph, DEMO, judge=judge), memory).cycles
    assert seen[0] == alone and len(set(seen)) > 5
    assert chosen == min(seen) < alone


def test_parts_hide_layers_behind_each_other(monkeypatch):
    """LayerNorm and softmax of one part run while the matrix engine works on another."""
    fast = cycle.predict(assert_exact(transformer(), DEMO), MemoryModel(latency=20)).cycles
    monkeypatch.setattr(build, "_WAYS", ())
    slow = cycle.predict(assert_exact(transformer(), DEMO), MemoryModel(latency=20)).cycles
    assert fast < 0.95 * slow

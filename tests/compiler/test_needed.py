"""Positions that nobody reads: the same outputs from fewer of them."""

import numpy as np
import pytest

from terrazzo import compiler
from terrazzo.arch import graph as g
from terrazzo.arch.memory import MemoryModel
from terrazzo.compiler.needed import needed
from terrazzo.sim import cycle, functional, reference

from ..graphs import DEMO, Builder, random_codes, random_graph


def classifier(tokens=1, bias=None):
    """Two layers on 16 patches and a class token, of which the head reads `tokens`."""
    b = Builder(5, (8, 8, 3), DEMO.lanes, DEMO.drain)
    x = b.conv(b.input, 32, (2, 2), (2, 2), prefix=1, dtype="s16")
    for _ in range(2):
        y = b.layernorm(x)
        q, k, v = (b.linear(y, 32) for _ in range(3))
        x = b.linear(b.attention(q, k, v, 2, bias=bias), 32, "s16", residual=x)
        x = b.linear(b.linear(b.layernorm(x), 64, table=256), 32, "s16", residual=x)
    return b.graph(b.linear(b.slice(b.layernorm(x), 0, tokens), 16))


def positions(graph):
    return [graph.tensor(op.output).positions for op in graph.operators if isinstance(op, g.Linear)]


@pytest.mark.parametrize(("tokens", "bias"), [(1, None), (5, None), (1, (1, 2))])
def test_the_last_layer_computes_what_is_read(tokens, bias):
    graph = classifier(tokens, bias)
    codes = random_codes(graph, 2)
    trimmed = needed(graph)
    # Queries, keys, values, projection and both layers of the MLP, twice, and the head.
    assert positions(trimmed) == [17] * 6 + [tokens, 17, 17, tokens, tokens, tokens, tokens]
    np.testing.assert_array_equal(reference.run(trimmed, codes), reference.run(graph, codes))
    assert sum(map(trimmed.macs, trimmed.operators)) < 0.75 * sum(map(graph.macs, graph.operators))
    program = compiler.compile(graph, DEMO)
    expected = np.asarray(reference.run(graph, codes))
    np.testing.assert_array_equal(functional.run(program, codes).reshape(expected.shape), expected)
    assert [layer.name for layer in program.layers] == [op.name for op in trimmed.operators]


def test_it_takes_fewer_cycles(monkeypatch):
    memory = MemoryModel(latency=20)
    fast = cycle.predict(compiler.compile(classifier(), DEMO), memory).cycles
    monkeypatch.setattr("terrazzo.compiler.build.needed", lambda graph: graph)
    assert fast < 0.85 * cycle.predict(compiler.compile(classifier(), DEMO), memory).cycles


def test_what_is_read_by_more_stays():
    """More than half of the positions, or others than the leading ones."""
    graph = classifier(9)
    assert needed(graph) is graph
    b = Builder(5, (8, 8, 3), DEMO.lanes, DEMO.drain)
    x = b.linear(b.conv(b.input, 32, (2, 2), (2, 2), prefix=1), 32)
    graph = b.graph(b.linear(b.slice(x, 9, 8), 16))
    assert needed(graph) is graph


@pytest.mark.parametrize("seed", range(8))
def test_random_graphs_keep_their_outputs(seed):
    graph = random_graph(seed, DEMO)
    codes = random_codes(graph, 1)
    np.testing.assert_array_equal(reference.run(needed(graph), codes), reference.run(graph, codes))

"""Compiled operators: every tensor equals that of the definition, `reference.evaluate`."""

import dataclasses

import numpy as np
import pytest

from terrazzo.arch.graph import Graph
from terrazzo.sim import accelerated, reference
from tests.graphs import DEMO, Builder, random_codes, random_graph


def check(graph: Graph, codes: np.ndarray, threads: int) -> None:
    """All tensors of `run` against the operators one by one."""
    values = {graph.input: codes.astype(np.int8)}
    for operator in graph.operators:
        values |= reference.evaluate(graph, operator, values)
    found = reference.run(graph, codes, keep=True, threads=threads)
    assert set(found) == set(values)
    for name, value in values.items():
        assert np.array_equal(found[name], value), name
    assert np.array_equal(reference.run(graph, codes, threads=threads), values[graph.output])


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed):
    graph = random_graph(seed, DEMO if seed % 3 else None)
    check(graph, random_codes(graph, 5, seed), threads=1 + seed % 3)
    assert all(accelerated.prepare(graph, o) or o.op == "constant" for o in graph.operators)


@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "padding", "groups", "prefix"),
    [
        (3, 20, (5, 5), (2, 3), (2, 1, 0, 2), 1, 0),
        (4, 70, (1, 1), (1, 1), (0, 0, 0, 0), 1, 0),
        (4, 70, (1, 1), (1, 1), (0, 0, 0, 0), 1, 2),
        (6, 9, (1, 1), (1, 1), (1, 0, 0, 1), 1, 0),
        (6, 9, (1, 1), (2, 2), (0, 0, 0, 0), 3, 0),
        (12, 24, (3, 2), (1, 2), (1, 1, 1, 1), 4, 1),
        (33, 33, (3, 3), (2, 2), (1, 1, 1, 1), 33, 0),
        (5, 5, (7, 1), (1, 1), (3, 3, 0, 0), 5, 3),
        (5, 10, (3, 3), (1, 1), (0, 0, 0, 0), 5, 0),
    ],
)
@pytest.mark.parametrize("second", [False, True])
def test_convolutions(channels, outputs, kernel, stride, padding, groups, prefix, second):
    builder = Builder(1, (11, 9, channels))
    y = builder.conv(
        builder.input, outputs, kernel, stride, padding, groups, prefix, second=second, table=256
    )
    graph = builder.graph(y)
    check(graph, random_codes(graph, 3), threads=2)


@pytest.mark.parametrize("tokens", [1, 15, 65, 131])
def test_attention(tokens):
    builder = Builder(3, (tokens, 1, 8))
    x = builder.flatten(builder.input)
    q, k, v = (builder.linear(x, 21) for _ in range(3))
    graph = builder.graph(builder.attention(q, k, v, 3))
    check(graph, random_codes(graph, 3), threads=1)


def test_attention_with_values_of_other_width_and_a_16_bit_output():
    builder = Builder(3, (33, 1, 8))
    x = builder.flatten(builder.input)
    q, k, v = (builder.linear(x, channels) for channels in (24, 24, 15))
    graph = builder.graph(builder.attention(q, k, v, 3, output_dtype="s16"))
    assert graph.tensor(graph.output).dtype == "s16" and graph.tensor(graph.output).channels == 15
    check(graph, random_codes(graph, 3), threads=1)


def test_an_operator_with_a_field_that_is_not_known_has_no_fast_form():
    builder = Builder(0, (4, 4, 3))
    graph = builder.graph(builder.conv(builder.input, 4, (3, 3)))
    (operator,) = graph.operators
    assert accelerated.prepare(graph, operator) is not None
    fields = [("unheard_of", int, dataclasses.field(default=1))]
    newer = dataclasses.make_dataclass("Newer", fields, bases=(type(operator),), frozen=True, kw_only=True)
    values = {field.name: getattr(operator, field.name) for field in dataclasses.fields(operator)}
    known = accelerated._KNOWN
    known[newer] = known[type(operator)]
    try:
        assert accelerated.prepare(graph, newer(**values)) is not None
        assert accelerated.prepare(graph, newer(**values, unheard_of=2)) is None
    finally:
        del known[newer]

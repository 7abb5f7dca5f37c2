"""Layers whose operands are too wide for their rows' lanes are refused, by name."""

import dataclasses

import pytest

from terrazzo.arch.graph import Conv, Graph, Linear
from terrazzo.arch.schemes import Scheme
from terrazzo.compiler import CompileError, compile
from terrazzo.compiler.widths import NARROW, too_wide

from .. import tiny

QUADS = dataclasses.replace(
    tiny.MACHINE, lanes=dataclasses.replace(tiny.MACHINE.lanes, fixed4_quads=tiny.MACHINE.lanes.fixed4)
)


def layers(graph: Graph) -> list[str]:
    """Those with Fixed-4 rows."""
    return [
        operator.name
        for operator in graph.operators
        if isinstance(operator, Linear | Conv) and (graph.constant(operator, "scheme") == Scheme.FIXED4).any()
    ]


def narrowed(graph: Graph) -> Graph:
    """The graph with everything behind the input clamped to what the lanes take."""
    operators = []
    for operator in graph.operators:
        limits = {"lo": NARROW[0], "hi": NARROW[1]}
        if getattr(operator, "drain", None) is not None:
            drain = operator.drain
            second = drain.second and dataclasses.replace(drain.second, **limits)
            operator = dataclasses.replace(
                operator, drain=dataclasses.replace(drain, second=second, **limits)
            )
        elif hasattr(operator, "lo"):
            operator = dataclasses.replace(operator, **limits)
        operators.append(operator)
    tensors = [dataclasses.replace(tensor, zero_point=0) for tensor in graph.tensors]
    return dataclasses.replace(graph, operators=tuple(operators), tensors=tuple(tensors))


def test_every_layer_with_such_rows_is_named():
    graph = tiny.graph()
    assert layers(graph) and not too_wide(graph, tiny.MACHINE)
    found = too_wide(graph, QUADS)
    assert [problem.split(":")[0] for problem in found] == layers(graph)
    with pytest.raises(CompileError, match=r"operands of FIXED4 rows must be -32\.\.31 .* not -128\.\.127\."):
        compile(graph, QUADS)


def test_narrow_activations_pass():
    """The layers that read the image alone are refused."""
    graph = narrowed(tiny.graph())
    named = [problem.split(":")[0] for problem in too_wide(graph, QUADS)]
    readers = [op.name for op in graph.operators if op.input == graph.input and op.name in layers(graph)]
    assert named == readers and set(named) < set(layers(graph))

"""Positions that nobody reads are not computed: after the last attention of a classifier that is all but its class token."""

from __future__ import annotations

import dataclasses

from ..arch import graph as g
from ..arch.graph import Graph

__all__ = ["needed"]

_POINTWISE = (g.Linear, g.LayerNorm, g.Elementwise, g.Multiply)
"""Operators whose output positions depend on the input's position alone."""


def needed(graph: Graph) -> Graph:
    """The graph with the same output in which tensors of tokens have the leading positions alone that are read, where these
    are at most half. Operators keep their names; a Slice `TENSOR.firstN` stands where one reads N positions of more."""
    counts = _counts(graph)
    if all(counts[t.name] == t.positions for t in graph.tensors):
        return graph
    tensors = {t.name: dataclasses.replace(t, shape=_shape(t, counts[t.name])) for t in graph.tensors}
    constants, operators = dict(graph.constants), []

    def leading(name: str, count: int) -> str:
        """The first `count` positions of a tensor."""
        if counts[name] <= count:
            return name
        part = f"{name}.first{count}"
        if part not in tensors:
            tensors[part] = dataclasses.replace(
                tensors[name], name=part, shape=(count, tensors[name].channels)
            )
            operators.append(g.Slice(name=part, input=name, output=part, start=0, count=count))
        return part

    for operator in graph.operators:
        count, whole = counts[operator.output], graph.tensor(operator.output).positions
        if count < whole:
            changes = {"input": leading(operator.input, count)}
            if isinstance(operator, g.Multiply) and graph.tensor(operator.other).positions == whole:
                changes["other"] = leading(operator.other, count)
            drain = g.drained(operator)
            if drain is not None and drain.residual is not None:
                residual = dataclasses.replace(drain.residual, tensor=leading(drain.residual.tensor, count))
                changes["drain"] = dataclasses.replace(drain, residual=residual)
            if isinstance(operator, g.Attention) and operator.bias:
                constants[f"{operator.name}/bias"] = graph.constant(operator, "bias")[:, :, :count]
            operator = dataclasses.replace(operator, **changes)
        operators.append(operator)
    return dataclasses.replace(
        graph, tensors=tuple(tensors.values()), operators=tuple(operators), constants=constants
    )


def _shape(tensor: g.Tensor, count: int) -> tuple[int, ...]:
    return tensor.shape if count == tensor.positions else (count, tensor.channels)


def _counts(graph: Graph) -> dict[str, int]:
    """Leading positions of each tensor that are to be computed."""
    counts = dict.fromkeys((tensor.name for tensor in graph.tensors), 0)
    counts[graph.input] = graph.tensor(graph.input).positions
    counts[graph.output] = graph.tensor(graph.output).positions
    for operator in reversed(graph.operators):
        out = graph.tensor(operator.output)
        count = max(counts[name] for name in g.writes(operator))
        each = isinstance(operator, _POINTWISE) or (
            isinstance(operator, g.Attention) and operator.windows == 1
        )
        if not each or len(out.shape) != 2 or not 0 < 2 * count <= out.positions:
            count = out.positions
        counts |= dict.fromkeys(g.writes(operator), count)
        for name in g.reads(operator):
            read = graph.tensor(name).positions
            if isinstance(operator, g.Slice):
                read = operator.start + operator.count
            elif each and read == out.positions and name not in _attended(operator):
                read = count
            counts[name] = max(counts[name], read)
    return counts


def _attended(operator: g.Operator) -> tuple[str, ...]:
    return (operator.keys, operator.values) if isinstance(operator, g.Attention) else ()

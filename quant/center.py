"""Channels moved to mean zero in the float graph: what layers compute stays the same, and ranges become narrower.

A layer or LayerNorm that writes a value takes the shift into its bias, layers that read it take the opposite into
theirs; sums, movements and the values of an attention pass it on (the zero points of RepQ-ViT: Li et al., 2023).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from .floatgraph import FloatGraph, Node, evaluate

__all__ = ["center"]

_WRITERS = ("conv", "linear", "layernorm")


def center(graph: FloatGraph, batches: Iterable[torch.Tensor]) -> FloatGraph:
    """An equal graph in which values that layers read have channels of mean zero, where something can take the shift."""
    movable = _movable(graph)
    if not movable:
        return graph
    shift = _shifts(graph, movable, _means(graph, batches, movable))
    nodes = []
    for node in graph.nodes:
        params = dict(node.params)
        if node.kind in _WRITERS and node.name in shift:
            key = "beta" if node.kind == "layernorm" else "bias"
            params[key] = params[key] + shift[node.name]
        if node.kind in ("conv", "linear") and node.inputs[0] in shift:
            weight = params["weight"]
            summed = weight.reshape(len(weight), -1, weight.shape[-1]).sum(1)
            params["bias"] = params["bias"] - summed @ shift[node.inputs[0]]
        nodes.append(dataclasses.replace(node, params=params))
    return dataclasses.replace(graph, nodes=nodes)


def _moves(node: Node, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Whether a shift of the first input's channels is one of the output's."""
    match node.kind:
        case "slice":
            return True
        case "reshape":
            return shapes[node.inputs[0]][-1] == node.shape[-1]
        case "gather":
            return not bool((node.params["index"] < 0).any())
    return False


def _reads(node: Node) -> bool:
    """Whether the bias of a layer can take a shift of its input."""
    if node.kind == "conv":
        return node.attrs["groups"] == 1 and not any(node.attrs["padding"])
    return node.kind == "linear"


def _movable(graph: FloatGraph) -> set[str]:
    """Values whose channels may be shifted, or from which a shift passes on."""
    parent = {name: name for name in ("input", *(node.name for node in graph.nodes))}
    shapes = {"input": graph.input_shape} | {node.name: node.shape for node in graph.nodes}
    blocked = {"input", graph.nodes[-1].name}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for node in graph.nodes:
        if node.kind == "attention":
            blocked |= set(node.inputs[:2])
            parent[root(node.inputs[2])] = root(node.name)
        elif (node.kind == "add" and len(node.inputs) == 2) or _moves(node, shapes):
            for name in node.inputs:
                parent[root(name)] = root(node.name)
        else:
            blocked |= set() if _reads(node) else set(node.inputs)
            blocked |= set() if node.kind in _WRITERS else {node.name}
    forbidden = {root(name) for name in blocked}
    return {name for name in parent if root(name) not in forbidden}


def _shifts(graph: FloatGraph, movable: set[str], means: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    shift: dict[str, torch.Tensor] = {}
    for node in graph.nodes:
        if node.name not in movable:
            continue
        if node.kind not in _WRITERS:
            names = node.inputs[2:] if node.kind == "attention" else node.inputs
            shift[node.name] = sum(shift[name] for name in names)
            continue
        shift[node.name] = -means[node.name]
        if len(readers[node.name]) == 1 and (sum_ := readers[node.name][0]).kind == "add":
            others = [name for name in sum_.inputs if name != node.name]
            if len(others) == 1 and others[0] in shift:
                shift[node.name] = -means[sum_.name] - shift[others[0]]
    return shift


@torch.no_grad()
def _means(graph: FloatGraph, batches: Iterable[torch.Tensor], names: set[str]) -> dict[str, torch.Tensor]:
    sums, count = {name: 0.0 for name in names}, 0
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    for batch in batches:
        values, count = {"input": batch}, count + len(batch)
        for i, node in enumerate(graph.nodes):
            value = values[node.name] = evaluate(node, [values[name] for name in node.inputs])
            if node.name in names:
                flat = value.flatten(1, -2).double()
                sums[node.name] = sums[node.name] + flat.mean(1).sum(0)
            for name in set(node.inputs):
                if last_use[name] == i:
                    del values[name]
    return {name: (total / count).float() for name, total in sums.items()}

"""Rescaling of channels in the float graph: what layers compute stays the same, and becomes easier to quantize.

A set of values whose channels can be multiplied by factors t is a `Family`: linear layers, convolutions and LayerNorms
that write it take t into their rows, layers that read it take 1/t into their columns, and sums, rectifiers, poolings
and movements pass it on. This is cross-layer equalization (Nagel et al., 2019) where convolutions write, the folding of
SmoothQuant (Xiao et al., 2023) and RepQ-ViT (Li et al., 2023) where LayerNorms do, and it balances V of an attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch

from .floatgraph import FloatGraph, Node, evaluate
from .influence import channel_ranges

__all__ = ["Family", "equalize", "families", "rescale"]

_STRENGTHS = np.linspace(0, 1, 11)
_RATIO = {4: 8.0, 8: 64.0}
"""Largest ratio between the factors of one family, by the bits of the weights that absorb them."""
_FREE_RATIO = 16.0
"""Largest ratio where every channel has a row of its own to absorb its factor."""
_PASSES = ("maxpool", "avgpool", "slice", "gather")


@dataclasses.dataclass
class Family:
    """Values whose channels share factors."""

    writers: list[Node]
    """conv, linear, layernorm."""
    passers: list[Node]
    readers: list[Node]
    """conv, linear: each reads one value of the family."""
    limited: bool
    """Whether a relu6 without caps is among the passers: a factor must not push a channel beyond 6."""
    channels: int


def families(graph: FloatGraph) -> list[Family]:
    """Every family of the graph that can be rescaled."""
    parent = {name: name for name in ("input", *(node.name for node in graph.nodes))}
    blocked = {"input", graph.nodes[-1].name}
    shapes = {"input": graph.input_shape} | {node.name: node.shape for node in graph.nodes}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for node in graph.nodes:
        passes = (
            node.kind in (*_PASSES, "add", "tokens")
            or (node.kind == "act" and node.attrs["kind"] in ("relu", "relu6"))
            or (node.kind == "reshape" and shapes[node.inputs[0]][-1] == node.shape[-1])
        )
        if passes:
            for name in node.inputs:
                parent[root(name)] = root(node.name)
        elif node.kind == "attention" and len(node.inputs) == 3:
            blocked |= set(node.inputs[:2])
            parent[root(node.inputs[2])] = root(node.name)
        elif node.kind in ("conv", "linear"):
            pass
        elif node.kind == "layernorm":
            blocked.add(node.inputs[0])
        else:
            blocked |= {node.name, *node.inputs}
    forbidden = {root(name) for name in blocked}
    found: dict[str, Family] = {}
    for name in parent:
        if root(name) not in forbidden:
            found.setdefault(root(name), Family([], [], [], False, shapes[name][-1]))
    for node in graph.nodes:
        if (own := found.get(root(node.name))) is not None:
            (own.writers if node.kind in ("conv", "linear", "layernorm") else own.passers).append(node)
            own.limited |= _is_relu6(node) and "cap" not in node.params
        if node.kind in ("conv", "linear") and (read := found.get(root(node.inputs[0]))) is not None:
            read.readers.append(node)
    return [family for family in found.values() if family.readers and family.writers]


def rescale(graph: FloatGraph, factors: list[tuple[Family, np.ndarray]]) -> FloatGraph:
    """An equal graph in which the channels of each family are multiplied by its factors (C,)."""
    params = {node.name: dict(node.params) for node in graph.nodes}
    for family, values in factors:
        t = torch.from_numpy(values).float()
        for node in family.writers:
            own = params[node.name]
            for key in own:
                own[key] = own[key] * t.reshape(-1, *[1] * (own[key].dim() - 1))
        for node in family.passers:
            own = params[node.name]
            for key in own.keys() & {"constant", "prefix", "cap"}:  # these end in channels
                own[key] = own[key] * t
        for node in family.readers:
            own = params[node.name]
            own["weight"] = _columns(node, own["weight"], 1 / t)
    nodes = [dataclasses.replace(node, params=params[node.name]) for node in graph.nodes]
    return dataclasses.replace(graph, nodes=nodes)


def equalize(
    graph: FloatGraph, batches: Iterable[torch.Tensor], *, activation_bits: int = 8, weight_bits: int = 8
) -> FloatGraph:
    """An equal graph whose channels are balanced between the layers that write and those that read them.

    Per family, factors (1/range)^a of each channel with the strength a of least estimated noise: that of activations
    rounded per tensor and that of weights rounded per row. With 8 bits a channel's range is all its values, and families
    that a relu6 limits stay: images outside calibration are cut where a channel is larger, which costs more than finer
    steps gain. With fewer it is the one that `channel_ranges` finds, which cuts values anyway.
    """
    coarse = activation_bits < 8
    if coarse:
        graph = _capped(graph)
    found = [family for family in families(graph) if not family.limited]
    if not found:
        return graph
    largest, power = _channel_statistics(graph, batches, {n.inputs[0] for f in found for n in f.readers})
    if coarse:
        largest = channel_ranges(graph, batches, largest, activation_bits)
    factors = []
    for family in found:
        names = {node.inputs[0] for node in family.readers}
        ranges = np.max([largest[name] for name in names], axis=0)
        free = coarse and all(node.attrs.get("groups", 1) == family.channels for node in family.readers)
        if ranges.max() > 0:
            best = min(
                (_noise(family, t, ranges, power, activation_bits, weight_bits), i, t)
                for i, t in enumerate(_candidates(ranges, _FREE_RATIO if free else _RATIO[weight_bits]))
            )
            factors.append((family, best[2]))
    return rescale(graph, factors)


def _is_relu6(node: Node) -> bool:
    return node.kind == "act" and node.attrs["kind"] == "relu6"


def _capped(graph: FloatGraph) -> FloatGraph:
    """An equal graph in which every relu6 has a cap for each channel, which factors can change."""
    nodes = [
        dataclasses.replace(node, params={"cap": torch.full((node.shape[-1],), 6.0)})
        if _is_relu6(node)
        else node
        for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=nodes)


def _candidates(ranges: np.ndarray, ratio: float) -> list[np.ndarray]:
    floor = np.maximum(ranges, 1e-3 * ranges.max())
    inverse = np.minimum(floor.max() / floor, ratio)
    found = [inverse**strength for strength in _STRENGTHS]
    return [t / np.exp(np.log(t).mean()) for t in found]


def _noise(family: Family, t, ranges, power, activation_bits: int, weight_bits: int) -> float:
    """Noise of the readers' outputs relative to their power, for factors `t`."""
    step = (t * ranges).max() / (2**activation_bits - 1)
    total = 0.0
    for node in family.readers:
        weight = node.params["weight"].double()
        squares = _by_channel(node, weight)
        signal = max(float(squares.sum(0) @ power[node.inputs[0]]), 1e-30)
        activation = float(squares.sum(0) @ (step**2 / 12 / t**2))
        scaled = _columns(node, weight, torch.from_numpy(1 / t)).flatten(1)
        rows = scaled.abs().amax(1).numpy() / (2 ** (weight_bits - 1) - 1)
        kernel = scaled.shape[1] / weight.shape[-1]
        inputs = t**2 * power[node.inputs[0]]
        if node.attrs.get("groups", 1) > 1:
            seen = (
                inputs.reshape(int(node.attrs["groups"]), -1).sum(1).repeat(len(rows) // node.attrs["groups"])
            )
        else:
            seen = inputs.sum()
        total += (activation + float((rows**2 / 12 * kernel * seen).sum())) / signal
    return total


def _by_channel(node: Node, weight: torch.Tensor) -> np.ndarray:
    """Squared weights (O, C) by output row and input channel, kernels summed."""
    groups, outputs = int(node.attrs.get("groups", 1)), len(weight)
    squares = weight.pow(2).reshape(outputs, -1, weight.shape[-1]).sum(1).numpy()
    if groups == 1:
        return squares
    spread = np.zeros((outputs, groups * weight.shape[-1]))
    for row in range(outputs):
        first = row // (outputs // groups) * weight.shape[-1]
        spread[row, first : first + weight.shape[-1]] = squares[row]
    return spread


def _columns(node: Node, weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """`weight` with the columns of each input channel multiplied by its factor."""
    groups = int(node.attrs.get("groups", 1))
    parts = factors.reshape(groups, weight.shape[-1]).repeat_interleave(len(weight) // groups, dim=0)
    return weight * parts.reshape(len(weight), *[1] * (weight.dim() - 2), weight.shape[-1])


@torch.no_grad()
def _channel_statistics(graph: FloatGraph, batches: Iterable[torch.Tensor], names: set[str]):
    """Largest magnitude and mean square of every channel of the named values."""
    largest = {name: np.zeros(1) for name in names}
    power = {name: np.zeros(1) for name in names}
    count = 0
    last_use = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    for batch in batches:
        values, count = {"input": batch}, count + 1
        for i, node in enumerate(graph.nodes):
            value = values[node.name] = evaluate(node, [values[name] for name in node.inputs])
            if node.name in names:
                flat = value.flatten(0, -2)
                largest[node.name] = np.maximum(largest[node.name], flat.abs().amax(0).double().numpy())
                power[node.name] = power[node.name] + flat.pow(2).mean(0).double().numpy()
            for name in set(node.inputs):
                if last_use[name] == i:
                    del values[name]
    return largest, {name: total / count for name, total in power.items()}

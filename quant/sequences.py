"""Positions in the order that attention in windows wants, kept through the layers that do not mind.

Windows are made by gathers, in front of the attention and behind it, in every block. Layers that work on one position
after the other can just as well work in the order of the windows, residual stream included: then positions move once
where the windows change. What comes out of `in_sequence` computes the same values.
"""

from __future__ import annotations

import dataclasses

import torch

from .floatgraph import FloatGraph, Node

__all__ = ["in_sequence"]

_POSITIONWISE = ("linear", "layernorm", "act", "quant", "add", "multiply", "reshape")


def in_sequence(graph: FloatGraph) -> FloatGraph:
    """The same graph with as few gathers of all positions as that takes; itself where there are none."""
    return _Sequencer(graph).graph() if any(map(_is_permutation, graph.nodes)) else graph


def _positions(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape[:-1]:
        total *= length
    return total


def _is_permutation(node: Node) -> bool:
    if node.kind != "gather":
        return False
    index = node.params["index"]
    return torch.equal(index.sort().values, torch.arange(len(index)))


Order = tuple[int, ...]
"""Position p of a value in an order is position order[p] of the value in the graph; () is the graph's own order."""


class _Sequencer:
    """Computes each value in an order in which its inputs are there, and moves it where somebody wants another.

    A value without a preference is computed in the order that is asked for first.
    """

    def __init__(self, graph: FloatGraph):
        self.source = graph
        self.nodes: list[Node] = []
        self.by_name = {node.name: node for node in graph.nodes}
        self.shapes = {"input": graph.input_shape} | {node.name: node.shape for node in graph.nodes}
        self.readers: dict[str, int] = {}
        for node in graph.nodes:
            for name in set(node.inputs):
                self.readers[name] = self.readers.get(name, 0) + 1
        self.made: dict[str, dict[Order, str]] = {"input": {(): "input"}}
        """Names of a value's nodes by order."""

    def graph(self) -> FloatGraph:
        """All that the output needs."""
        for node in self.source.nodes:
            if not self.moves(node) or node is self.source.nodes[-1]:
                self.get(node.name, ())
        return dataclasses.replace(self.source, nodes=self.nodes)

    def moves(self, node: Node) -> bool:
        """Whether the node can be computed in any order."""
        if node.kind == "linear" or node.kind == "reshape":
            same = _positions(self.shapes[node.inputs[0]]) == _positions(node.shape)
            return same and _positions(node.shape) > 1
        return (node.kind in _POSITIONWISE and _positions(node.shape) > 1) or _is_permutation(node)

    def get(self, name: str, order: Order) -> str:
        """The node with a value in an order."""
        made = self.made.setdefault(name, {})
        if order not in made:
            made[order] = self.make(name, order)
        return made[order]

    def make(self, name: str, order: Order) -> str:
        node, made = self.by_name.get(name), self.made[name]
        if node is not None and _is_permutation(node):
            return self.shaped(self.get(node.inputs[0], self.behind(node, order)), node, order)
        if not made and node is not None and not self.moves(node):
            inputs = tuple(self.anchored(node, each) for each in node.inputs)
            self.nodes.append(dataclasses.replace(node, inputs=tuple(each for each, _ in inputs)))
            if node.kind == "gather" and inputs[0][1]:
                place = torch.tensor(inputs[0][1]).argsort()
                index = node.params["index"]
                index = torch.where(index < 0, -1, place[index.clamp(min=0)])
                self.nodes[-1].params = {"index": index}
            made[()] = node.name
            return self.get(name, order)
        if not made:
            natural = self.natural(name)
            shared = self.readers.get(name, 0) > 1 or len(self.moving(node)) > 1
            if shared and order not in natural:
                self.get(name, next(iter(natural)))
                return self.get(name, order)
            return self.computed(node, order)
        return self.gathered(name, order)

    def anchored(self, node: Node, name: str) -> tuple[str, Order]:
        """An input of a node that has an order of its own; of a gather or a mean of all in any order that is there."""
        if node.kind == "gather" or node.attrs.get("kernel") == (_positions(self.shapes[name]), 1):
            order = next(iter(self.natural(name)))
            return self.get(name, order), order
        return self.get(name, ()), ()

    def natural(self, name: str) -> dict[Order, None]:
        """Orders in which a value is there, or could be computed without a gather."""
        node = self.by_name.get(name)
        if self.made.get(name):
            return dict.fromkeys(self.made[name])
        if node is None or not (self.moves(node) or _is_permutation(node)):
            return {(): None}
        if _is_permutation(node):
            return {self.before(node, order): None for order in self.natural(node.inputs[0])}
        found = [self.natural(each) for each in self.moving(node)]
        both = {order: None for order in found[0] if all(order in other for other in found)}
        return both or found[0]

    def moving(self, node: Node) -> list[str]:
        """Inputs that have the positions of the output."""
        return [name for name in node.inputs if _positions(self.shapes[name]) == _positions(node.shape)]

    def computed(self, node: Node, order: Order) -> str:
        """A layer of single positions in an order, from its inputs in the same."""
        inputs = tuple(self.get(name, order if name in self.moving(node) else ()) for name in node.inputs)
        if not order:
            self.nodes.append(dataclasses.replace(node, inputs=inputs))
            return node.name
        if node.kind == "reshape":
            return inputs[0]
        shape = (_positions(node.shape), node.shape[-1])
        params, constant = node.params, node.params.get("constant")
        if constant is not None and constant.dim() > 1 and _positions(tuple(constant.shape)) > 1:
            moved = constant.reshape(-1, constant.shape[-1])[torch.tensor(order)]
            params = params | {"constant": moved}
        name = self.unused(node.name)
        self.nodes.append(dataclasses.replace(node, name=name, inputs=inputs, shape=shape, params=params))
        return name

    def gathered(self, name: str, order: Order) -> str:
        """A value that is there in another order."""
        have = next(iter(self.made[name]))
        total, source = _positions(self.shapes[name]), self.made[name][have]
        place = (torch.tensor(have) if have else torch.arange(total)).argsort()
        index = place[torch.tensor(order)] if order else place
        shape = self.shapes[name] if not order else (total, self.shapes[name][-1])
        new = self.unused(f"{source}.gather")
        self.nodes.append(
            Node(kind="gather", name=new, inputs=(source,), shape=shape, params={"index": index})
        )
        return new

    def shaped(self, name: str, node: Node, order: Order) -> str:
        """The node `name` in the shape that readers of `node` expect."""
        shape = node.shape if not order else (_positions(node.shape), node.shape[-1])
        have = self.input_shape(name)
        if have == shape:
            return name
        new = self.unused(f"{node.name}.shape")
        self.nodes.append(Node(kind="reshape", name=new, inputs=(name,), shape=shape, attrs={"shape": shape}))
        return new

    def input_shape(self, name: str) -> tuple[int, ...]:
        """Shape of a node that has been made."""
        if name == "input":
            return self.source.input_shape
        return next(node.shape for node in reversed(self.nodes) if node.name == name)

    def behind(self, node: Node, order: Order) -> Order:
        """The order of the gather's input in which it is the gather's output in `order`."""
        index = node.params["index"]
        return _canonical(index[torch.tensor(order)] if order else index)

    def before(self, node: Node, order: Order) -> Order:
        """The order of the gather's output in which it is the gather's input in `order`."""
        place = node.params["index"].argsort()
        return _canonical(place[torch.tensor(order)] if order else place)

    def unused(self, name: str) -> str:
        """The name, or one like it that no node has."""
        taken = {node.name for node in self.nodes}
        others = taken | self.by_name.keys()
        return (
            name
            if name not in taken
            else next(f"{name}.{n}" for n in range(1, len(others) + 2) if f"{name}.{n}" not in others)
        )


def _canonical(index: torch.Tensor) -> Order:
    plain = torch.equal(index, torch.arange(len(index)))
    return () if plain else tuple(index.tolist())

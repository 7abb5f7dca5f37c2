"""Which float nodes become one integer operator, and in which types its output is wanted."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ..arch.errors import UserError
from .floatgraph import FloatGraph, Node

__all__ = [
    "CLAMPS",
    "MOVES",
    "QuantizeError",
    "Unit",
    "factors",
    "fold",
    "partners",
    "rewrite",
    "roots",
    "wanted",
]

CLAMPS = ("relu", "relu6")
"""Activations that are a clamp of the drain."""
MOVES = ("maxpool", "slice", "reshape", "gather")
"""Nodes that move codes: input and output share one scale."""
_POOLED = 255
"""Pixels that one average can count."""
_DRAINED = ("linear", "conv", "avgpool", "add", "multiply")


class QuantizeError(UserError):
    """A float graph that cannot become an integer graph; the message lists every offending node."""


@dataclasses.dataclass
class Unit:
    """One integer operator: the node that computes, and what its drain absorbs."""

    anchor: Node
    out: str
    """The float node whose value the operator writes."""
    act: Node | None = None
    residual: str | None = None
    """Float node of the second addend."""
    constant: np.ndarray | None = None
    """Second addend (prefix + positions, C) that is the same for every image; prefix rows are whole values, to
    which the operator must not add its bias."""
    prefix: int = 0
    flattened: bool = False
    """The float value is (H * W, C) where the operator writes (H, W, C)."""

    @property
    def table(self) -> bool:
        """Whether the activation is looked up."""
        return self.act is not None and self.act.attrs["kind"] not in CLAMPS


def rewrite(graph: FloatGraph) -> FloatGraph:
    """An equal graph in which a linear layer of a flattened image is a convolution with a kernel of the image's
    size, the selection of tokens stands in front of the LayerNorm that it followed, and a mean over more than 255
    pixels is a mean of means."""
    nodes = [step for node in graph.nodes for step in _pooled_in_steps(graph, node)]
    shapes = {"input": graph.input_shape} | {node.name: node.shape for node in nodes}
    by_name = {node.name: node for node in nodes}
    result: list[Node] = []
    for node in nodes:
        before = by_name.get(node.inputs[0])
        if before is None:
            result.append(node)
        elif (
            node.kind == "linear"
            and before.kind == "reshape"
            and shapes[before.inputs[0]][-1] != before.shape[-1]
        ):
            height, width, channels = shapes[before.inputs[0]]
            outputs = node.shape[-1]
            weight = node.params["weight"].reshape(outputs, height, width, channels)
            attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": 1}
            conv = Node(
                kind="conv",
                name=node.name,
                inputs=before.inputs,
                shape=(1, 1, outputs),
                params=node.params | {"weight": weight},
                attrs=attrs,
            )
            flat = f"{node.name}.flat"
            result += [
                conv,
                Node(
                    kind="reshape",
                    name=flat,
                    inputs=(node.name,),
                    shape=node.shape,
                    attrs={"shape": node.shape},
                ),
            ]
            nodes[nodes.index(node) + 1 :] = [
                _renamed(n, node.name, flat) for n in nodes[nodes.index(node) + 1 :]
            ]
        elif node.kind == "slice" and before.kind == "layernorm" and len(_readers(nodes, before.name)) == 1:
            early = f"{before.name}.in"
            result[result.index(before)] = dataclasses.replace(node, name=early, inputs=before.inputs)
            result.append(dataclasses.replace(before, name=node.name, inputs=(early,), shape=node.shape))
        else:
            result.append(node)
    used = {name for node in result for name in node.inputs} | {result[-1].name}
    return FloatGraph(
        name=graph.name, input_shape=graph.input_shape, nodes=[n for n in result if n.name in used]
    )


def _pooled_in_steps(graph: FloatGraph, node: Node) -> list[Node]:
    """A mean over large windows that do not overlap as successive means over at most 15 x 15, where the sizes
    divide; else the node."""
    if node.kind != "avgpool" or len(node.shape) != 3 or any(node.attrs["padding"]):
        return [node]
    shapes = {"input": graph.input_shape} | {other.name: other.shape for other in graph.nodes}
    height, width, channels = shapes[node.inputs[0]]
    window = tuple(node.attrs["kernel"])
    if window != (height, width) and window != tuple(node.attrs["stride"]):
        return [node]
    steps: list[Node] = []
    inputs = node.inputs
    while window[0] * window[1] > _POOLED or (window[1] > 15 and window != (height, width)):
        kernel = tuple(max(d for d in range(1, 16) if size % d == 0) for size in window)
        if kernel == (1, 1):
            return [node]
        window = (window[0] // kernel[0], window[1] // kernel[1])
        height, width = height // kernel[0], width // kernel[1]
        attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0)}
        name, shape = f"{node.name}.step{len(steps)}", (height, width, channels)
        steps.append(Node(kind="avgpool", name=name, inputs=inputs, shape=shape, attrs=attrs))
        inputs = (name,)
    attrs = node.attrs | ({"kernel": window, "stride": window} if steps else {})
    return [*steps, dataclasses.replace(node, inputs=inputs, attrs=attrs)]


def _renamed(node: Node, old: str, new: str) -> Node:
    return dataclasses.replace(node, inputs=tuple(new if name == old else name for name in node.inputs))


def _readers(nodes: list[Node], name: str) -> list[Node]:
    return [node for node in nodes for read in node.inputs if read == name]


def fold(graph: FloatGraph) -> list[Unit]:
    """The units of a graph in execution order."""
    units: list[Unit] = []
    done: set[str] = {"input"}
    for node in graph.nodes:
        if node.name in done:
            continue
        unit = Unit(node, node.name)
        covered = {node.name}
        if node.kind in ("conv", "linear"):
            covered |= _absorb_constants(graph, unit)
            if unit.constant is None:
                covered |= _absorb_sum(graph, unit, done)
        elif node.kind == "add":
            if len(node.inputs) == 2:
                unit.residual = node.inputs[1]
            else:
                unit.constant = _rows(node.params["constant"])
        elif node.kind == "act":
            unit.act = node
        if node.kind in ("conv", "linear", "add", "multiply"):
            covered |= _absorb_act(graph, unit)
        units.append(unit)
        done |= covered
    return units


def _next(graph: FloatGraph, name: str) -> Node | None:
    """The only reader of a value, if there is exactly one."""
    readers = _readers(graph.nodes, name)
    return readers[0] if len(readers) == 1 else None


def _rows(value: torch.Tensor) -> np.ndarray:
    return value.detach().double().numpy().reshape(-1, value.shape[-1])


def _absorb_constants(graph: FloatGraph, unit: Unit) -> set[str]:
    """Follow reshape, tokens and constant additions behind a layer; keep the longest part that adds something."""
    shape = unit.anchor.shape
    positions = int(np.prod(shape[:-1]))
    constant, prefix, flattened = np.zeros((positions, shape[-1])), 0, False
    covered: set[str] = set()
    follower = _next(graph, unit.anchor.name)
    while follower is not None:
        if follower.kind == "tokens" and not prefix and unit.anchor.kind == "conv":
            head = _rows(follower.params["prefix"])
            prefix, constant = len(head), np.concatenate([head, constant])
        elif follower.kind == "add" and len(follower.inputs) == 1:
            constant = constant + _rows(follower.params["constant"])
        elif follower.kind == "reshape" and follower.shape[-1] == shape[-1]:
            flattened = True
        else:
            break
        covered.add(follower.name)
        if follower.kind != "reshape":
            unit.out, unit.constant, unit.prefix = follower.name, constant, prefix
            unit.flattened, kept = flattened and not prefix, set(covered)
        follower = _next(graph, follower.name)
    return kept if unit.constant is not None else set()


def _absorb_sum(graph: FloatGraph, unit: Unit, done: set[str]) -> set[str]:
    follower = _next(graph, unit.out)
    if follower is None or follower.kind != "add" or len(follower.inputs) != 2:
        return set()
    other = follower.inputs[1] if follower.inputs[0] == unit.out else follower.inputs[0]
    if other not in done:
        return set()
    unit.residual, unit.out = other, follower.name
    return {follower.name}


def _absorb_act(graph: FloatGraph, unit: Unit) -> set[str]:
    follower = _next(graph, unit.out)
    if follower is None or follower.kind != "act" or unit.flattened:
        return set()
    if (unit.residual or unit.constant is not None) and follower.attrs["kind"] not in CLAMPS:
        return set()
    unit.act, unit.out = follower, follower.name
    return {follower.name}


def roots(units: list[Unit]) -> dict[str, str]:
    """For every value, the value whose scale it shares: the source of the codes that a move passes on."""
    root = {"input": "input"}
    for unit in units:
        moved = unit.anchor.kind in MOVES
        root[unit.out] = root[unit.anchor.inputs[0]] if moved else unit.out
    return root


def partners(units: list[Unit]) -> dict[str, tuple[str, ...]]:
    """For the roots that meet in concatenations: all roots that must have the same scale."""
    root = roots(units)
    together: dict[str, tuple[str, ...]] = {}
    for unit in units:
        if unit.anchor.kind in ("concat", "tokens"):
            names = [unit.out, *(root[name] for name in unit.anchor.inputs)]
            group = tuple(dict.fromkeys(other for name in names for other in together.get(name, (name,))))
            together |= dict.fromkeys(group, group)
    return together


def _is_wide(units: list[Unit], value: str) -> bool:
    """Whether the operator that computes a value can write 16 bits."""
    root = roots(units)[value]
    source = next((unit for unit in units if unit.out == root), None)
    return source is not None and source.anchor.kind in _DRAINED and not source.table


def factors(units: list[Unit], unit: Unit) -> tuple[str, str]:
    """The types in which a product reads its factors: at most one of 16 bits, so that it fits an accumulator."""
    first, *rest = unit.anchor.inputs
    if rest:
        return ("s16" if _is_wide(units, first) else "s8"), "s8"
    return "s8", "s16"


def wanted(units: list[Unit], output: str) -> tuple[dict[str, set[str]], set[str]]:
    """The types ("s8", "s16") in which each value is read, and the values that must have no zero point."""
    root = roots(units)
    last = next(unit for unit in units if unit.out == output)
    wide = _is_wide(units, output)
    wants: dict[str, set[str]] = {"input": set()} | {unit.out: set() for unit in units}
    symmetric: set[str] = set()
    wants[output].add("s16" if wide and last.anchor.kind != "maxpool" else "s8")
    for unit in reversed(units):
        first, *rest = unit.anchor.inputs
        match unit.anchor.kind:
            case "attention":
                for name in (first, *rest):
                    wants[name].add("s8")
                    symmetric.add(root[name])
                symmetric.add(root[unit.out])
            case "layernorm" | "add":
                wants[first].add("s16")
            case "multiply":
                for name, dtype in zip(unit.anchor.inputs, factors(units, unit), strict=False):
                    wants[name].add(dtype)
                    if dtype == "s8":
                        symmetric.add(root[name])
            case "slice" | "reshape" | "gather" | "concat" | "tokens":
                for name in (first, *rest):
                    wants[name] |= wants[unit.out]
            case _:
                wants[first].add("s8")
        if unit.residual is not None:
            wants[unit.residual].add("s16")
    return wants, symmetric

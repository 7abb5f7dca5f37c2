"""Parts of building an integer graph whose scales are prescribed: ranges, codes of weight rows, where `quant` nodes stand."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from ..arch.schemes import Scheme, codebook
from .calibrate import Range
from .fake_quantize import BIPOLAR
from .floatgraph import FloatGraph, Node
from .onnx_dialects import Refused
from .rows import assign
from .units import MOVES, rewrite

__all__ = ["bits_of", "normalized", "quantized", "real_codes", "row_codes", "schemes_for", "stored"]

_WIDEST = 127
_NEAR = 1e-3
"""Distance of quotients from whole numbers: rounding errors reach 1e-4, other quotients of codes start at 1/127."""
_JOINS = ("concat", "tokens")


def stored(attrs: dict[str, object]) -> Range:
    """The range of a `quant` node as a tensor stores it: unsigned codes of 4..8 bits are shifted by half their range."""
    lo, hi, zero = int(attrs["lo"]), int(attrs["hi"]), int(attrs["zero_point"])
    shift = 1 << (hi.bit_length() - 1) if lo >= 0 and hi > 7 else 0
    found = Range(float(attrs["scale"]), zero - shift, lo - shift, hi - shift)
    if found.hi - found.lo > 255 and (found.zero_point or found.lo < -32768 or found.hi > 32767):
        raise Refused(
            f"has codes {lo}..{hi} with zero point {zero}",
            "use 8 bits (onnxruntime: activation_type QuantType.QInt8 or QUInt8), or signed 16 bits without zero point",
        )
    return found


def bits_of(found: Range) -> int:
    """Bits that a tensor declares: 4..8 as the codes need, or 16."""
    return next(b for b in (4, 5, 6, 7, 8, 16) if found.lo >= -(1 << b - 1) and found.hi < 1 << b - 1)


def quantized(values: np.ndarray, found: Range, rounding: str) -> np.ndarray:
    """Codes of real values, as `fake_quantize` chooses them."""
    if rounding == BIPOLAR:
        return np.where(values >= 0, 1, -1)
    rounded = {"ROUND": np.rint, "FLOOR": np.floor, "CEIL": np.ceil}[rounding](
        values / values.dtype.type(found.scale)
    )
    return np.clip(rounded + found.zero_point, found.lo, found.hi).astype(np.int64)


def row_codes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes int64 (O, K) and scales (O,) whose product is `weight`, the smallest codes that are.

    A row of codes times a scale is a row of fractions of its largest entry, with that entry's code as denominator; the
    least denominator up to 127 that fits is unique. Raises Refused where a row has none.
    """
    top = np.abs(weight).max(axis=1)
    codes, scale = np.zeros(weight.shape, np.int64), np.ones(len(weight))
    pending = np.flatnonzero(top > 0)
    fractions = weight[pending] / top[pending, None]
    for denominator in range(1, _WIDEST + 1):
        if not len(pending):
            break
        scaled = fractions * denominator
        rounded = np.rint(scaled)
        fits = (np.abs(scaled - rounded) < _NEAR).all(axis=1)
        codes[pending[fits]] = rounded[fits]
        pending, fractions = pending[~fits], fractions[~fits]
    if len(pending):
        raise Refused(
            f"row {int(pending[0])} of its weights is no multiple of codes -127..127 by one scale",
            "quantize weights symmetrically, at most 8 bits with -128 left out, per tensor or per output channel",
        )
    used = top > 0
    scale[used] = np.einsum("ok,ok->o", codes, weight)[used] / np.einsum("ok,ok->o", codes, codes)[used]
    return codes, scale


def schemes_for(codes: np.ndarray, mixture: dict[Scheme, int], drain: int) -> np.ndarray:
    """Schemes uint8 (O,) under the lane counts that hold the codes as they are; Fixed-8 throughout where none do."""
    rows = len(codes)
    cost = {s: (~np.isin(codes, codebook(s)).all(axis=1)).astype(float) for s in mixture}
    cost.setdefault(Scheme.FIXED8, np.zeros(rows))
    schemes = assign(cost, mixture, drain)
    if all(cost[Scheme(s)][row] == 0 for row, s in enumerate(schemes)):
        return schemes
    return np.full(rows, Scheme.FIXED8, np.uint8)


def normalized(graph: FloatGraph) -> FloatGraph:
    """An equal graph in which every `quant` follows the node that computes, with moves and joins behind it, linear
    layers of flattened images are convolutions, and sums with a constant of each channel are depthwise convolutions."""
    return _settled(rewrite(_settled(_by_channel(graph))))


def _by_channel(graph: FloatGraph) -> FloatGraph:
    """An equal graph in which a quantized value plus one number for each channel is a convolution by 1, which
    rounds once and needs no tensor of constants."""
    kinds = {node.name: node.kind for node in graph.nodes}
    nodes: list[Node] = []
    for node in graph.nodes:
        constant = node.params.get("constant")
        rows = None if constant is None else constant.reshape(-1, constant.shape[-1])
        if (
            node.kind != "add"
            or rows is None
            or kinds.get(node.inputs[0]) != "quant"
            or not bool((rows == rows[:1]).all())
        ):
            nodes.append(node)
            continue
        tokens, channels, source = len(node.shape) == 2, node.shape[-1], node.inputs[0]
        image = (node.shape[0], 1, channels) if tokens else node.shape
        if tokens:
            source = f"{node.name}.image"
            attrs = {"shape": image}
            nodes.append(Node(kind="reshape", name=source, inputs=node.inputs, shape=image, attrs=attrs))
        conv = Node(
            kind="conv",
            name=f"{node.name}.channels" if tokens else node.name,
            inputs=(source,),
            shape=image,
            params={"weight": torch.ones(channels, 1, 1, 1), "bias": rows[0].clone()},
            attrs={"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": channels},
        )
        nodes.append(conv)
        if tokens:
            attrs = {"shape": node.shape}
            nodes.append(
                Node(kind="reshape", name=node.name, inputs=(conv.name,), shape=node.shape, attrs=attrs)
            )
    return FloatGraph(name=graph.name, input_shape=graph.input_shape, nodes=nodes)


def _settled(graph: FloatGraph) -> FloatGraph:
    placer = _Placer(graph)
    for node in graph.nodes:
        inputs = tuple(placer.alias.get(name, name) for name in node.inputs)
        if node.kind == "quant":
            placer.alias[node.name] = placer.place(node, inputs[0], node.name)
        else:
            placer.add(dataclasses.replace(node, inputs=inputs))
    last = placer.alias.get(graph.nodes[-1].name, graph.nodes[-1].name)
    needed, kept = {last}, []
    for node in reversed(placer.nodes):
        if node.name in needed:
            needed |= set(node.inputs)
            kept.insert(0, node)
    return FloatGraph(name=graph.name, input_shape=graph.input_shape, nodes=kept)


class _Placer:
    def __init__(self, graph: FloatGraph):
        self.nodes: list[Node] = []
        self.by_name: dict[str, Node] = {}
        self.alias: dict[str, str] = {}
        self.placed: dict[tuple, str] = {}
        self.shapes = {"input": graph.input_shape} | {node.name: node.shape for node in graph.nodes}
        self.taken = set(self.shapes)

    def add(self, node: Node) -> str:
        self.nodes.append(node)
        self.by_name[node.name] = node
        self.shapes[node.name] = node.shape
        return node.name

    def unique(self, name: str) -> str:
        found, count = name, 1
        while found in self.taken or found in self.by_name:
            found, count = f"{name}_{count}", count + 1
        return found

    def place(self, quant: Node, value: str, name: str) -> str:
        """The name of quant(value)."""
        key = (value, *(quant.attrs[field] for field in ("scale", "zero_point", "lo", "hi", "rounding")))
        if key not in self.placed:
            self.placed[key] = self._place(quant, value, name)
        return self.placed[key]

    def _place(self, quant: Node, value: str, name: str) -> str:
        node = self.by_name.get(value)
        if node is not None and node.kind == "quant" and _same(node, quant):
            return value
        if node is not None and node.kind in (*MOVES, *_JOINS) and _commutes(node, quant):
            inputs = tuple(self.place(quant, source, name) for source in node.inputs)
            if inputs == node.inputs and node.kind != "tokens":
                return value
            changes = {"inputs": inputs, "name": self.unique(f"{name}.{node.kind}")}
            if node.kind == "tokens":
                prefix = torch.from_numpy(real_codes(node.params["prefix"].double().numpy(), quant.attrs))
                changes["params"] = {"prefix": prefix}
            return self.add(dataclasses.replace(node, **changes))
        shape = self.shapes[value]
        fresh = name if name not in self.by_name else self.unique(name)
        return self.add(Node(kind="quant", name=fresh, inputs=(value,), shape=shape, attrs=dict(quant.attrs)))


def real_codes(values: np.ndarray, attrs: dict[str, object]) -> np.ndarray:
    """Real values as a `quant` node with these attributes leaves them, float32."""
    found = Range(attrs["scale"], attrs["zero_point"], attrs["lo"], attrs["hi"])
    codes = quantized(values, found, attrs["rounding"])
    return ((codes - found.zero_point) * found.scale).astype(np.float32)


def _same(first: Node, second: Node) -> bool:
    """Whether the second changes nothing behind the first."""
    a, b = first.attrs, second.attrs
    if (a["rounding"] == BIPOLAR) != (b["rounding"] == BIPOLAR):
        return False
    grid = a["scale"] == b["scale"] and a["zero_point"] == b["zero_point"]
    return grid and a["lo"] >= b["lo"] and a["hi"] <= b["hi"]


def _commutes(node: Node, quant: Node) -> bool:
    """Whether padded zeros stay zeros."""
    padded = "index" in node.params and bool((node.params["index"] < 0).any())
    attrs = quant.attrs
    return not padded or (attrs["rounding"] != BIPOLAR and attrs["lo"] <= attrs["zero_point"] <= attrs["hi"])

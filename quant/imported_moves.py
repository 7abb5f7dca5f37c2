"""Nodes that move codes: pooling by maximum, selections, flattening, concatenation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..arch.graph import Concat, Constant, Gather, MaxPool, Reshape, Slice
from .floatgraph import Node
from .forms import Codes, Form, Unary, unary
from .imported_layers import is_affine
from .onnx_dialects import Refused
from .prescribed import quantized

if TYPE_CHECKING:
    from .imported import Importer

__all__ = ["concat", "move", "tokens"]


def move(importer: Importer, node: Node, form: Form) -> Codes | Unary:
    known = unary(form)
    if node.kind == "reshape" and known is not None and known.shape[-1] == node.shape[-1]:
        readers = [other for other in importer.graph.nodes if node.name in other.inputs]
        if isinstance(form, Unary) or (readers and all(_is_uniform(reader) for reader in readers)):
            return dataclasses.replace(known, shape=node.shape)
    x = importer.tensor(form, node) if node.kind != "maxpool" else importer.read(form, node)
    kinds = {"slice": Slice, "gather": Gather, "maxpool": MaxPool}
    kind, fields, constants = kinds.get(node.kind, Reshape), {}, {}
    if node.kind == "maxpool":
        fields = {key: tuple(node.attrs[key]) for key in ("kernel", "stride", "padding")}
    elif node.kind == "reshape" and x.shape[-1] != node.shape[-1]:
        raise Refused("flattens for something else than a linear layer", "put a linear layer behind it")
    elif node.kind == "reshape":
        return importer.reshaped(x, node.shape, node.name)
    elif node.kind == "gather":
        constants = {"index": node.params["index"].numpy().astype(np.int32)}
    elif (
        node.kind == "slice" and node.attrs["start"]
    ):  # a slice stands at tile boundaries, which depend on the machine
        start, count = int(node.attrs["start"]), int(node.attrs["count"])
        kind, constants = Gather, {"index": np.arange(start, start + count, dtype=np.int32)}
    elif node.kind == "slice":
        fields = {"start": 0, "count": int(node.attrs["count"])}
    result = importer.declare(node.name, x.range, node.shape)
    importer.emit(
        kind(name=importer.name(node.name), input=x.name, output=result.name, **fields), constants, node.name
    )
    return result


def concat(importer: Importer, node: Node, *forms: Form) -> Codes:
    parts = [importer.read(form, node) for form in forms]
    if len({part.range for part in parts}) > 1:
        raise Refused("joins values of different scales", "quantize its output, or its inputs to one scale")
    return _joined(importer, node, parts, node.attrs["axis"])


def tokens(importer: Importer, node: Node, form: Form) -> Codes:
    x = importer.read(form, node)
    prefix = node.params["prefix"].double().numpy()
    constant = importer.declare(f"{node.name}.prefix", x.range, prefix.shape)
    value = quantized(prefix, x.range, "ROUND").astype(np.int8)
    importer.emit(
        Constant(name=importer.name(constant.name), output=constant.name), {"value": value}, node.name
    )
    return _joined(importer, node, [constant, x], "positions")


def _joined(importer: Importer, node: Node, parts: list[Codes], axis: str) -> Codes:
    result = importer.declare(node.name, parts[0].range, node.shape)
    inputs = tuple(part.name for part in parts)
    importer.emit(
        Concat(name=importer.name(node.name), inputs=inputs, output=result.name, axis=axis), {}, node.name
    )
    return result


def _is_uniform(node: Node) -> bool:
    """Whether a node applies one function to every element."""
    if node.kind == "conv":
        return is_affine(node) and all(not np.ptp(node.params[key].numpy()) for key in ("weight", "bias"))
    return node.kind == "act"

"""Elementwise nodes between `quant` nodes: functions of one tensor as tables, sums and products of two."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..arch.graph import Multiply
from .floatgraph import ACTIVATIONS, Node
from .forms import NOT_QUANTIZED, Codes, Form, Raw, Sums, ends, unary
from .onnx_dialects import Refused
from .prescribed import row_codes

if TYPE_CHECKING:
    from .imported import Importer

__all__ = ["act", "add", "multiply"]


def act(importer: Importer, node: Node, form: Form) -> Form:
    kind = node.attrs["kind"]
    if isinstance(form, Sums):
        return dataclasses.replace(form, acts=(*form.acts, kind))
    known = unary(form)
    if known is None:
        raise Refused("reads a value that is not quantized to 8 bits", NOT_QUANTIZED)
    values = ACTIVATIONS[kind](torch.from_numpy(known.values)).numpy()
    return dataclasses.replace(known, values=values)


def add(importer: Importer, node: Node, form: Form, other: Form | None = None) -> Form:
    if other is None:
        constant = node.params["constant"].double().numpy()
        if isinstance(form, Raw):
            rows = constant.reshape(-1, constant.shape[-1])
            if np.ptp(rows, axis=0).any():
                raise Refused("adds an image to the image", "add one number per channel")
            return Raw(form.scale, form.shift + rows[0])
        known = unary(form)
        if known is not None and not np.ptp(constant):
            return dataclasses.replace(known, values=known.values + np.float32(constant.flat[0]))
        other = importer.constant(f"{node.name}.constant", constant, node.shape)
    first, second = importer.rooted(form), importer.rooted(other)
    if first is not None and second is not None and first.source == second.source:
        return dataclasses.replace(first, values=first.values + second.values)
    for a, b in ((form, other), (other, form)):
        if isinstance(a, Sums) and not a.acts and a.residual is None and isinstance(b, Codes):
            if _readers(importer, a.node.name) > 1 or a.node.kind == "multiply":
                continue
            return dataclasses.replace(a, residual=b)
    if not (isinstance(form, Codes) and isinstance(other, Codes)):
        raise Refused("adds a value that is not quantized", NOT_QUANTIZED)
    if form.wide and not other.wide:
        form, other = other, form
    return dataclasses.replace(importer.elementwise(node, form), residual=other)


def _readers(importer: Importer, name: str) -> int:
    return sum(node.inputs.count(name) for node in importer.graph.nodes)


def multiply(importer: Importer, node: Node, form: Form, other: Form | None = None) -> Form:
    if other is None:
        constant = node.params["constant"].double().numpy()
        known = unary(form)
        if known is not None and not np.ptp(constant):
            return dataclasses.replace(known, values=known.values * np.float32(constant.flat[0]))
        other = _factors(importer, node, importer.read(form, node), constant)
    first, second = importer.rooted(form), importer.rooted(other)
    if first is not None and second is not None and first.source == second.source:
        return dataclasses.replace(first, values=first.values * second.values)
    a = importer.read(form, node)
    b = other if "constant" in node.params else importer.read(other, node)
    if a.range.zero_point and not b.range.zero_point:
        a = importer.wide(a)
    elif b.range.zero_point and not a.range.zero_point:
        b = importer.wide(b)
    elif a.range.zero_point:
        a, b = importer.wide(a), importer.symmetric(b)
    products = [x * y for x in ends(a) for y in ends(b)]
    return Sums(
        node=node,
        operator=lambda name, output, drain: Multiply(
            name=name, input=a.name, other=b.name, output=output, drain=drain
        ),
        constants={},
        scale=np.array([a.range.scale * b.range.scale]),
        bias=np.zeros(1),
        offset=np.zeros(1, np.int64),
        least=np.array([min(products)]),
        greatest=np.array([max(products)]),
    )


def _factors(importer: Importer, node: Node, codes: Codes, constant: np.ndarray) -> Codes:
    """Constants that differ by place as a tensor: their own codes of 8 bits, or 16 bits where `codes` allow it."""
    values = np.broadcast_to(constant, node.shape)
    name = f"{node.name}.constant"
    try:
        found, scale = row_codes(values.reshape(1, -1))
    except Refused:
        if codes.range.zero_point:
            raise Refused(
                f"multiplies codes with zero point {codes.range.zero_point} by real constants that differ by place",
                "quantize the constants symmetrically to 8 bits, or the activation without zero point",
            ) from None
        return importer.constant(name, values, node.shape)
    return importer.constant_codes(name, found.reshape(node.shape).astype(np.int8), float(scale[0]))

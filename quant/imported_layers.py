"""Layers between `quant` nodes: linear, convolution, averages, LayerNorm."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..arch.graph import AvgPool, Conv, Drain, LayerNorm, Linear, Operator
from ..arch.schemes import Scheme
from .builder import CONSTANT_LIMIT
from .calibrate import Range
from .floatgraph import Node
from .forms import Codes, Form, Raw, Sums, Unary, Whole, unary
from .prescribed import row_codes, schemes_for
from .rows import accumulator_range

if TYPE_CHECKING:
    from .imported import Importer

__all__ = ["avgpool", "is_affine", "layernorm", "weighted"]


def weighted(importer: Importer, node: Node, form: Form) -> Form:
    weight, bias = (node.params[key].double().numpy() for key in ("weight", "bias"))
    if is_affine(node):
        factor = weight.reshape(-1)
        if isinstance(form, Raw):
            return Raw(form.scale * factor, form.shift * factor + bias)
        if isinstance(form, Codes | Unary) and not np.ptp(factor) and not np.ptp(bias):
            known = unary(form)
            if known is not None:
                return dataclasses.replace(
                    known, values=known.values * np.float32(factor[0]) + np.float32(bias[0])
                )
        folds = isinstance(form, Sums) and not form.acts and form.residual is None and (factor > 0).all()
        if folds and (len(form.scale) > 1 or not (np.ptp(factor) or np.ptp(bias))):
            take = slice(None) if len(form.scale) > 1 else slice(1)
            scale, shift = form.scale * factor[take], form.bias * factor[take] + bias[take]
            return dataclasses.replace(form, scale=scale, bias=shift)
    x = importer.read(form, node)
    codes, scale = row_codes(weight.reshape(len(weight), -1))
    groups = int(node.attrs.get("groups", 1))
    if groups > 1:
        schemes = np.full(len(codes), Scheme.FIXED8, np.uint8)
    else:
        schemes = schemes_for(codes, importer.mixture, importer.drained)
    least, greatest = accumulator_range(codes, x.range.lo, x.range.hi)
    offset = np.floor(x.range.zero_point * codes.sum(axis=1)).astype(np.int64)
    rest = x.range.zero_point * codes.sum(axis=1) - offset  # of a zero point between two codes
    scale = scale * x.range.scale

    def operator(name: str, output: str, drain: Drain) -> Operator:
        if node.kind == "linear":
            return Linear(name=name, input=x.name, output=output, drain=drain)
        fields = {key: tuple(node.attrs[key]) for key in ("stride", "padding")}
        dilation = tuple(node.attrs.get("dilation", (1, 1)))
        return Conv(
            name=name,
            input=x.name,
            output=output,
            groups=groups,
            dilation=dilation,
            drain=drain,
            **fields,
        )

    return Sums(
        node=node,
        operator=operator,
        constants={"weight": codes.reshape(weight.shape).astype(np.int8), "scheme": schemes},
        scale=scale,
        bias=bias - scale * rest,
        offset=offset,
        least=least,
        greatest=greatest,
    )


def avgpool(importer: Importer, node: Node, form: Form) -> Sums:
    x = importer.read(form, node)
    count = int(np.prod(node.attrs["kernel"]))
    fields = {key: tuple(node.attrs[key]) for key in ("kernel", "stride", "padding")}
    return Sums(
        node=node,
        operator=lambda name, output, drain: AvgPool(
            name=name, input=x.name, output=output, drain=drain, **fields
        ),
        constants={},
        scale=np.array([x.range.scale / count]),
        bias=np.zeros(1),
        offset=np.array([count * x.range.zero_point]),
        least=np.array([count * x.range.lo]),
        greatest=np.array([count * x.range.hi]),
    )


def layernorm(importer: Importer, node: Node, form: Form) -> Whole:
    codes = importer.tensor(form, node)
    x = importer.wide(codes) if codes.wide else importer.wide(codes, 64)
    gamma, beta = (node.params[key].double().numpy() for key in ("gamma", "beta"))

    def emit(found: Range, name: str) -> Codes:
        gain, offset = gamma / (1024 * found.scale), beta / found.scale + found.zero_point
        n = int(np.clip(np.floor(np.log2(32766 / max(float(np.abs(gain).max()), 1e-12))), 1, 38))
        while n > 1 and np.abs(offset).max() * 2.0**n >= CONSTANT_LIMIT:
            n -= 1
        g = np.clip(np.rint(gain * 2.0**n), -32768, 32767).astype(np.int16)
        b = np.rint(offset * 2.0**n).astype(np.int64) + (1 << n - 1)
        eps = max(1, round(node.shape[-1] ** 2 * float(node.attrs["eps"]) / x.range.scale**2))
        result = importer.declare(name, found, node.shape)
        operator = LayerNorm(
            name=importer.name(node.name),
            input=x.name,
            output=result.name,
            n=n,
            eps=eps,
            lo=found.lo,
            hi=found.hi,
        )
        importer.emit(operator, {"g": g, "b": b}, name)
        return result

    return Whole(emit)


def is_affine(node: Node) -> bool:
    """Whether a convolution multiplies each channel by one number."""
    plain = (
        node.kind == "conv"
        and node.attrs["groups"] == len(node.params["weight"])
        and not any(node.attrs["padding"])
    )
    return (
        plain
        and node.params["weight"].numel() == len(node.params["weight"])
        and node.attrs["stride"] == (1, 1)
    )

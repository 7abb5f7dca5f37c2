"""Elementwise operators: activations, sums, and products with constants.

Functions named as ATen operators take their arguments after the `Call`, and return the operator's value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from .operands import Call, Value, as_constant, need_view, taint
from .views import Draft, Scores, Unsupported, View, affine, dense, ordered

__all__ = ["activation", "add", "clamp", "div", "dropout", "gelu", "hardtanh", "mul", "rsub", "scaled", "sub"]


def scaled(call: Call, x: Value, factor: torch.Tensor) -> Value:
    if isinstance(x, Scores) and not x.normalized and factor.numel() == 1:
        return dataclasses.replace(x, scale=x.scale * float(factor))
    return affine(need_view(x), factor, None, call.batch, call.name("mul"))


def mul(call, a, b):
    for x, y in ((a, b), (b, a)):
        if (constant := as_constant(y)) is not None:
            return scaled(call, x, constant)
    a, b = need_view(a), need_view(b)
    for x, gate in ((a, b), (b, a)):
        is_sigmoid = gate.base.kind == "act" and gate.base.attrs["kind"] == "sigmoid"
        if is_sigmoid and gate.base.inputs == (x.base,) and torch.equal(x.index, gate.index):
            return _activate(call, "silu", x)
    raise Unsupported(
        "a product of two activations has no hardware", "use attention, silu or hardswish instead"
    )


def div(call, a, b, rounding_mode=None):
    divisor = as_constant(b)
    if divisor is None or rounding_mode is not None:
        raise Unsupported("division by an activation has no hardware", "divide by a constant")
    return scaled(call, a, 1.0 / divisor)


def add(call, a, b, alpha=1):
    if isinstance(b, Scores) or as_constant(a) is not None:
        if alpha != 1:
            b = scaled(call, b, torch.tensor(float(alpha)))
        a, b, alpha = b, a, 1
    if isinstance(a, Scores):
        constant = as_constant(b)
        if constant is not None and not bool(constant.any()):
            return a
        raise Unsupported("attention takes no mask or bias on its scores", "remove the mask or position bias")
    if (constant := as_constant(b)) is not None:
        view = need_view(a)
        if torch.broadcast_shapes(constant.shape, view.index.shape) != view.index.shape:
            raise Unsupported(
                "adding the constant enlarges the tensor", "use a constant of the tensor's shape"
            )
        return affine(view, None, constant * alpha, call.batch, call.name("add"))
    a, b = need_view(a), need_view(b)
    if a.index.shape != b.index.shape:
        raise Unsupported(
            f"adds activations of shapes {tuple(a.index.shape)} and {tuple(b.index.shape)}",
            "add equal shapes",
        )
    if alpha != 1:
        b = affine(b, torch.tensor(float(alpha)), None, call.batch, call.name("mul"))
    a, b = dense(a, call.batch), dense(b, call.batch)
    right = b.base
    if not torch.equal(a.index, b.index) or a.base.shape != right.shape:
        matched = torch.empty_like(a.index).reshape(-1)
        matched[a.index.reshape(-1)] = b.index.reshape(-1)
        right = ordered(b.at(matched), a.base.shape, call.batch)
    draft = Draft(
        kind="add",
        path=call.name("add"),
        inputs=(a.base, right),
        shape=a.base.shape,
        attrs=taint(a.base, right),
    )
    return View(draft, a.index)


def sub(call, a, b, alpha=1):
    return add(call, a, b, alpha=-alpha)


def rsub(call, a, b, alpha=1):
    return add(call, b, a, alpha=-alpha)


def _activate(call: Call, kind: str, x: Value) -> View:
    view = dense(need_view(x), call.batch)
    attrs = {"kind": kind} | taint(view.base)
    draft = Draft(kind="act", path=call.name(kind), inputs=(view.base,), shape=view.base.shape, attrs=attrs)
    return View(draft, view.index)


def activation(kind: str) -> Callable:
    return lambda call, x: _activate(call, kind, x)


def gelu(call, x, approximate="none"):
    return _activate(call, "gelu" if approximate == "none" else "gelu_tanh", x)


def clamp(call, x, min=None, max=None):
    if min == 0 and max in (None, 6):
        return _activate(call, "relu" if max is None else "relu6", x)
    raise Unsupported(f"clamps to {min}..{max}", "use relu (0 and above) or relu6 (0..6)")


def hardtanh(call, x, min_val=-1.0, max_val=1.0):
    return clamp(call, x, min_val, max_val)


def dropout(call, x, p=0.5, train=False):
    if train and p > 0:
        raise Unsupported("drops at random also at inference", "pass training=self.training to dropout")
    return x

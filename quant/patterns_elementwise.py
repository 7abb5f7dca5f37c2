"""Elementwise operators: activations, sums, and products with constants.

Functions named as ATen operators take their arguments after the `Call`, and return the operator's value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import patterns_attention as attention
from .affine import affine
from .operands import Call, Value, as_constant, need_view, taint
from .orders import dense, is_whole, ordered
from .views import Draft, Scores, Unsupported, View

__all__ = [
    "activation",
    "add",
    "clamp",
    "div",
    "dropout",
    "fake_quantize",
    "gelu",
    "hardtanh",
    "mul",
    "rsub",
    "scaled",
    "square",
    "sub",
]


def scaled(call: Call, x: Value, factor: torch.Tensor) -> Value:
    if isinstance(x, Scores):
        return attention.scaled_scores(call, x, factor)
    return affine(need_view(x), factor, None, call.batch, call.name("mul"))


def _gated(x: View, gate: View) -> str | None:
    """The activation that x * gate is, if the gate is a sigmoid of x itself."""
    if (
        gate.base.kind != "act"
        or gate.base.attrs["kind"] != "sigmoid"
        or not torch.equal(x.index, gate.index)
    ):
        return None
    (source,) = gate.base.inputs
    if source is x.base:
        return "silu"
    if (
        source.kind == x.base.kind
        and source.inputs == x.base.inputs
        and source.params.keys() == {"weight", "bias"}
    ) and all(torch.allclose(source.params[key], 1.702 * x.base.params[key]) for key in source.params):
        return "quick_gelu"
    return None


def _matched(a: View, b: View) -> torch.Tensor:
    """The elements of b in the order of the elements of a's base, which has each once."""
    matched = torch.empty(a.index.numel(), dtype=torch.long)
    matched[a.index.reshape(-1)] = b.index.reshape(-1)
    return matched


def _broadcast(call: Call, a: View, b: View) -> tuple[View, View]:
    """Both in the shape of the result; the first is dense, and natural in its order if one of the two is."""
    a, b = (x.at(x.index.expand(call.shape)) for x in (a, b))

    def rank(view: View) -> tuple[bool, bool]:
        axes = view.index.dim()
        last = (
            view.index.permute(0, *range(2, axes), 1) if len(view.base.shape) == 3 == axes - 1 else view.index
        )
        return is_whole(view, call.batch), torch.equal(last.reshape(-1), torch.arange(last.numel()))

    first, second = (b, a) if rank(b) > rank(a) else (a, b)
    return dense(first, call.batch), second


def mul(call, a, b):
    for x, y in ((a, b), (b, a)):
        if (constant := as_constant(y)) is not None:
            return scaled(call, x, constant)
    a, b = need_view(a), need_view(b)
    for x, gate in ((a, b), (b, a)):
        if (kind := _gated(x, gate)) is not None:
            return _activate(call, kind, x)
    a, b = _broadcast(call, a, b)
    matched = _matched(a, b).reshape(call.batch, -1, a.base.channels)
    if a.base.size > a.base.channels and torch.equal(matched, matched[:, :1].expand_as(matched)):
        one = (1,) * (len(a.base.shape) - 1)
        right = ordered(b.at(matched[:, 0]), (*one, a.base.channels), call.batch)
    else:
        right = ordered(b.at(matched), a.base.shape, call.batch)
    inputs = (a.base, right)
    return View(
        Draft(
            kind="multiply", path=call.name("mul"), inputs=inputs, shape=a.base.shape, attrs=taint(*inputs)
        ),
        a.index,
    )


def square(call, x, exponent=2):
    if exponent != 2:
        raise Unsupported(f"raises to the power {exponent}", "multiply, or use a supported activation")
    return mul(call, x, x)


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
    constant = as_constant(b)
    if isinstance(a, Scores):
        if constant is None:
            raise Unsupported(
                "attention takes no mask that depends on the image", "use a constant mask or bias"
            )
        return attention.biased(a, constant * alpha)
    if constant is not None:
        return affine(need_view(a), None, constant * alpha, call.batch, call.name("add"))
    a, b = need_view(a), need_view(b)
    if alpha != 1:
        b = affine(b, torch.tensor(float(alpha)), None, call.batch, call.name("mul"))
    a, b = _broadcast(call, a, b)
    right = ordered(b.at(_matched(a, b)), a.base.shape, call.batch)
    inputs = (a.base, right)
    draft = Draft(kind="add", path=call.name("add"), inputs=inputs, shape=a.base.shape, attrs=taint(*inputs))
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


def fake_quantize(call, x, scale, zero_point, lo, hi, rounding):
    attrs = {"scale": scale, "zero_point": zero_point, "lo": lo, "hi": hi, "rounding": rounding}
    if isinstance(x, Scores):
        return attention.quantized(x, attrs)
    view = dense(need_view(x), call.batch)
    draft = Draft(
        kind="quant",
        path=call.path or "quant",
        inputs=(view.base,),
        shape=view.base.shape,
        attrs=attrs | taint(view.base),
    )
    return View(draft, view.index)


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

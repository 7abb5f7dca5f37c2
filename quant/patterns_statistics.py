"""Normalization over channels that is spelled out: LayerNorm as (x - mean) / sqrt(variance + eps), and x / |x|.

Statistics of each position are drafts of kinds that the float graph does not have (`STATISTICS`); they become part
of a LayerNorm where they meet the value that they were taken of, and are refused where they do not.
"""

from __future__ import annotations

import dataclasses

import torch

from .moves import choose_channels, concatenated
from .operands import Call, as_constant, taint
from .views import Draft, Unsupported, View

__all__ = ["STATISTICS", "matched"]

STATISTICS = ("mean", "centred", "squares", "variance", "deviation", "inverse", "length")
"""mean: of each position's channels. centred: x - mean. squares: of centred. variance: mean of squares, plus eps.
deviation: its root; inverse: 1 / deviation. length: the Euclidean norm of groups of channels."""


def matched(call: Call, args: tuple, kwargs: dict) -> View | None:
    """The operator's value, if it takes or uses such statistics; None if it is an ordinary operator."""
    views = [value for value in args if isinstance(value, View)]
    if call.op in ("mean", "var"):
        return _mean(call, args, kwargs)
    if call.op == "linalg_vector_norm":
        return _length(call, *args, **kwargs)
    if not any(view.base.kind in STATISTICS for view in views):
        return None
    a = args[0]
    kind = a.base.kind if isinstance(a, View) else None
    other = args[1] if len(args) > 1 else None
    constant = as_constant(other)
    result = None
    if call.op == "sub" and isinstance(other, View) and other.base.kind == "mean":
        result = _of(call, "centred", a) if _is_of(other, a) else None
    elif kind == "centred" and (
        (call.op == "pow" and other == 2)
        or call.op == "square"
        or (call.op == "mul" and isinstance(other, View) and other.base is a.base)
    ):
        result = _derived(call, "squares", a)
    elif kind == "variance" and call.op == "add" and constant is not None and constant.numel() == 1:
        result = _derived(call, "variance", a, eps=a.base.attrs["eps"] + float(constant))
    elif kind == "variance" and (call.op == "sqrt" or (call.op == "pow" and other == 0.5)):
        result = _derived(call, "deviation", a)
    elif kind == "variance" and (call.op == "rsqrt" or (call.op == "pow" and other == -0.5)):
        result = _derived(call, "inverse", a)
    elif kind == "length" and call.op in ("clamp_min", "clamp", "add"):
        result = a
    elif call.op in ("div", "mul") and isinstance(other, View):
        result = _normalized(call, a, other)
    if result is None:
        raise Unsupported(
            "uses statistics of channels outside a LayerNorm",
            "use LayerNorm over the channels, or BatchNorm2d",
        )
    return result


def _of(call: Call, kind: str, x: View, **attrs: object) -> View:
    """A draft of the same positions and channels as x, in the order of torch's elements."""
    draft = Draft(
        kind=kind, path=call.name(kind), inputs=(x.base,), shape=x.base.shape, attrs=attrs | taint(x.base)
    )
    return View(draft, x.index)


def _derived(call: Call, kind: str, x: View, **attrs: object) -> View:
    attrs = {"eps": x.base.attrs.get("eps", 0.0)} | attrs | taint(x.base)
    return View(
        dataclasses.replace(x.base, kind=kind, path=call.name(kind), attrs=attrs, derived={}), x.index
    )


def _mean(call: Call, args: tuple, kwargs: dict) -> View | None:
    """The mean, or variance, over an axis that runs through all channels of each position; None for other axes."""
    x = args[0]
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if not isinstance(x, View) or dims is None:
        return None
    dims = [dims] if isinstance(dims, int) else list(dims)
    if len(dims) != 1 or x.index.shape[dims[0]] != x.base.channels or x.base.channels == 1:
        return None
    rows = x.index.movedim(dims[0], -1).reshape(-1, x.base.channels)
    if int(rows.min()) < 0 or not torch.equal(
        rows - rows % x.base.channels, (rows[:, :1] // x.base.channels * x.base.channels).expand_as(rows)
    ):
        return None
    index = x.index.select(dims[0], 0)
    if call.op == "var":
        if kwargs.get("correction", args[2] if len(args) > 2 else 1) not in (0, False):
            raise Unsupported("takes the variance with Bessel's correction", "set unbiased=False")
        result = _of(call, "variance", x, eps=0.0)
    elif x.base.kind == "squares":
        result = _derived(call, "variance", x)
    elif x.base.kind in STATISTICS:
        return None
    else:
        result = _of(call, "mean", x)
    return result.at(index.reshape(call.shape))


def _is_of(statistic: View, x: View) -> bool:
    """Whether a statistic was taken of x and meets every element at its own position."""
    channels = x.base.channels
    places = statistic.index.expand(x.index.shape) // channels
    return statistic.base.inputs == (x.base,) and torch.equal(places, x.index // channels)


def _normalized(call: Call, a: View, b: View) -> View | None:
    if {a.base.kind, b.base.kind} == {"centred", "inverse"} and call.op == "mul":
        a, b = (a, b) if a.base.kind == "centred" else (b, a)
    elif call.op != "div" or b.base.kind not in ("deviation", "length"):
        return None
    if b.base.kind == "length":
        return _unit(call, a, b)
    source = a.base.inputs[0]
    if a.base.kind != "centred" or not _is_of(b, View(source, a.index)):
        return None
    channels = source.channels
    draft = Draft(
        kind="layernorm",
        path=call.name("layernorm"),
        inputs=(source,),
        shape=source.shape,
        params={"gamma": torch.ones(channels), "beta": torch.zeros(channels)},
        attrs={"eps": max(b.base.attrs["eps"], 1e-12)} | taint(source),
    )
    return View(draft, a.index)


def _length(call: Call, x: View, ord=2, dim=None, keepdim=False, dtype=None) -> View | None:
    dims = [dim] if isinstance(dim, int) else dim
    if ord != 2 or not isinstance(x, View) or dims is None or len(dims) != 1:
        return None
    rows = x.index.movedim(dims[0], -1)
    groups = rows.reshape(-1, rows.shape[-1])
    if int(groups.min()) < 0 or not torch.equal(
        groups // x.base.channels, (groups[:, :1] // x.base.channels).expand_as(groups)
    ):
        return None  # a norm over pixels
    result = _of(call, "length", x, groups=groups)
    return result.at(rows[..., 0].reshape(call.shape))


def _unit(call: Call, x: View, length: View) -> View | None:
    """x / |x| of groups of channels, by a LayerNorm of each group beside its negative: these have mean 0 and the
    mean square |x|^2 / width, so that no mean is subtracted."""
    groups, base = length.base.attrs["groups"], x.base
    width = groups.shape[1]
    starts = torch.full((call.batch * base.size,), -1)
    starts[groups.reshape(-1)] = groups[:, :1].expand_as(groups).reshape(-1)
    if length.base.inputs != (base,) or not torch.equal(starts[x.index], length.index.expand(x.index.shape)):
        return None
    heads = torch.unique(groups % base.channels, dim=0)
    if heads.numel() != base.channels or len(torch.unique(heads)) != base.channels:
        return None
    parts = []
    for head in heads:
        part = choose_channels(base, head)
        double = torch.cat([torch.eye(width), -torch.eye(width)])
        if part.kind == "linear":
            source = part.inputs[0]
            params = {"weight": double @ part.params["weight"], "bias": double @ part.params["bias"]}
        else:
            source, params = part, {"weight": double, "bias": torch.zeros(2 * width)}
        shape = (*base.shape[:-1], 2 * width)
        name = f"{base.path}.pair{int(head[0])}"
        pair = Draft(
            kind="linear", path=name, inputs=(source,), shape=shape, params=params, attrs=taint(source)
        )
        norm = {"gamma": torch.full((2 * width,), width**-0.5), "beta": torch.zeros(2 * width)}
        attrs = {"eps": 1e-12} | taint(pair)
        parts.append(
            Draft(
                kind="layernorm",
                path=f"{base.path}.unit{int(head[0])}",
                inputs=(pair,),
                shape=shape,
                params=norm,
                attrs=attrs,
            )
        )
    joined = concatenated(f"{base.path}.units", parts, "channels") if len(parts) > 1 else parts[0]
    place = torch.empty(base.channels, dtype=torch.long)
    for number, head in enumerate(heads):
        place[head] = number * 2 * width + torch.arange(width)
    index = x.index // base.channels * joined.channels + place[x.index % base.channels]
    return View(joined, index)

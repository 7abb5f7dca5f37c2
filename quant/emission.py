"""The integer operator, or operators, of each unit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..arch import numerics
from ..arch.graph import (
    Attention,
    AvgPool,
    Concat,
    Constant,
    Conv,
    Drain,
    Elementwise,
    Gather,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Reshape,
    Slice,
    Tensor,
)
from ..arch.published import EXP_TABLES
from ..arch.schemes import Scheme
from .bits import exp_levels
from .builder import CONSTANT_LIMIT, Builder, scaled
from .calibrate import Range
from .compensate import Wanted
from .floatgraph import Node
from .functions import problems, table_values
from .rows import accumulator_range, quantize_rows
from .units import QuantizeError, Unit, factors

__all__ = ["build"]

_IDENTITY = (1 << 15, 15)


def _as_in_float(builder: Builder, node: Node) -> Wanted:
    """The layer's own weights and sums, for the inputs that it has in float."""
    weight, bias = (node.params[key].detach().double().numpy() for key in ("weight", "bias"))
    groups = int(node.attrs.get("groups", 1))
    weight = weight.reshape(groups, len(weight) // groups, -1)
    moments = builder.statistics.moments[node.name]
    return Wanted(weight, moments, np.einsum("gok,gk->go", weight, moments.first).reshape(-1) + bias)


def _weighted(builder: Builder, unit: Unit) -> tuple[str, Drain, dict]:
    """Everything that linear and convolution share: rows, corrected bias, drain."""
    node = unit.anchor
    source = builder.read(node.inputs[0], "s8")
    x = builder.range(node.inputs[0], "s8")
    wanted = builder.follower.wanted(unit) if builder.follower else _as_in_float(builder, node)
    rows = quantize_rows(
        wanted.weight,
        wanted.moments.hessian,
        builder.statistics.fisher[node.name],
        builder.mixture,
        builder.drained_at_once,
        x.lo,
        x.hi,
    )
    shape = node.params["weight"].shape
    rounded = (rows.codes * rows.scale[:, None]).reshape(wanted.weight.shape)
    bias = wanted.mean - np.einsum("gok,gk->go", rounded, wanted.moments.first).reshape(-1)
    builder.constants[f"{node.name}/weight"] = rows.codes.reshape(shape).astype(np.int8)
    builder.constants[f"{node.name}/scheme"] = rows.schemes
    if builder.follower:
        builder.follower.round(node, rounded.reshape(shape), bias)
    sums = x.zero_point * rows.codes.sum(axis=1)
    output, drain = builder.drain(unit, rows.scale * x.scale, bias, sums)
    least, greatest = accumulator_range(rows.codes, x.lo, x.hi)
    figures = {
        "schemes": {
            Scheme(s).name: int(c) for s, c in zip(*np.unique(rows.schemes, return_counts=True), strict=True)
        },
        "accumulator_bits": int(max(-least.min(), greatest.max(), 1)).bit_length() + 1,
        "grown_rows": rows.grown,
        "weights_sqnr_db": rows.sqnr_db if np.isfinite(rows.sqnr_db) else None,
        "fell_back": rows.fell_back,
    }
    return source, (output, drain), figures


def _linear(builder: Builder, unit: Unit) -> None:
    source, (output, drain), figures = _weighted(builder, unit)
    builder.emit(Linear(name=unit.anchor.name, input=source, output=output, drain=drain), unit.out, **figures)


def _conv(builder: Builder, unit: Unit) -> None:
    source, (output, drain), figures = _weighted(builder, unit)
    node = unit.anchor
    operator = Conv(
        name=node.name,
        input=source,
        output=output,
        stride=tuple(node.attrs["stride"]),
        padding=tuple(node.attrs["padding"]),
        dilation=tuple(node.attrs.get("dilation", (1, 1))),
        groups=int(node.attrs["groups"]),
        prefix=unit.prefix,
        drain=drain,
    )
    builder.emit(operator, unit.out, **figures)
    if unit.flattened:
        image = f"{unit.out}.image"
        for dtype in ("s16", "s8"):
            if (image, dtype) in builder.written:
                name = builder.declare(
                    unit.out,
                    dtype,
                    unit.out if (unit.out, "s16") not in builder.written else f"{unit.out}.s8",
                )
                builder.emit(
                    Reshape(name=f"{name}.reshape", input=builder.written[image, dtype], output=name),
                    unit.out,
                )


def _elementwise(builder: Builder, unit: Unit, dtype: str) -> None:
    node = unit.anchor
    source = builder.read(node.inputs[0], dtype)
    x = builder.range(node.inputs[0], dtype)
    output, drain = builder.drain(unit, np.array([x.scale]), np.zeros(1), np.array([x.zero_point]))
    builder.emit(Elementwise(name=node.name, input=source, output=output, drain=drain), unit.out)


def _add(builder: Builder, unit: Unit) -> None:
    _elementwise(builder, unit, "s16")


def _act(builder: Builder, unit: Unit) -> None:
    if not unit.table:
        _elementwise(builder, unit, "s8")
        return
    node = unit.anchor
    source, x = builder.read(node.inputs[0], "s8"), builder.range(node.inputs[0], "s8")
    found = builder.range(unit.out, "s8")
    kind, codes = node.attrs["kind"], np.arange(-128, 128) - x.zero_point
    builder.problems += problems(node.name, kind, codes, x.scale)
    y = np.rint(table_values(kind, codes, x.scale) / found.scale).astype(np.int64)
    table = numerics.clamp(y + found.zero_point, found.lo, found.hi).astype(np.int8)
    m, n = _IDENTITY
    builder.store(
        node.name,
        {
            "m": np.array([m], np.uint16),
            "n": np.array([n], np.uint8),
            "C": np.array([1 << (n - 1)], np.int64),
            "table": table,
        },
    )
    output = builder.declare(unit.out, "s8", unit.out)
    drain = Drain(lo=found.lo, hi=found.hi, table=True)
    builder.emit(Elementwise(name=node.name, input=source, output=output, drain=drain), unit.out)


def _avgpool(builder: Builder, unit: Unit) -> None:
    node = unit.anchor
    source, x = builder.read(node.inputs[0], "s8"), builder.range(node.inputs[0], "s8")
    count = int(np.prod(node.attrs["kernel"]))
    output, drain = builder.drain(
        unit, np.array([x.scale / count]), np.zeros(1), np.array([count * x.zero_point])
    )
    operator = AvgPool(name=node.name, input=source, output=output, drain=drain, **_window(node))
    builder.emit(operator, unit.out)


def _maxpool(builder: Builder, unit: Unit) -> None:
    node = unit.anchor
    source = builder.read(node.inputs[0], "s8")
    output = builder.declare(unit.out, "s8", unit.out)
    builder.emit(MaxPool(name=node.name, input=source, output=output, **_window(node)), unit.out)


def _slice(builder: Builder, unit: Unit) -> None:
    start, count = int(unit.anchor.attrs["start"]), int(unit.anchor.attrs["count"])
    if start == 0:
        _move(builder, unit, Slice, {"start": 0, "count": count})
    else:  # a slice stands at tile boundaries, which depend on the machine
        for name in _move(builder, unit, Gather, {}):
            builder.constants[f"{name}/index"] = np.arange(start, start + count, dtype=np.int32)


def _reshape(builder: Builder, unit: Unit) -> None:
    if builder.shapes[unit.anchor.inputs[0]][-1] != unit.anchor.shape[-1]:
        raise QuantizeError(
            f"{unit.anchor.name}: flattening must be followed by a linear layer alone, not by other readers"
        )
    _move(builder, unit, Reshape, {})


def _types(builder: Builder, unit: Unit) -> list[tuple[str, str]]:
    """The types in which a moved value is wanted, and a name for each."""
    wants = sorted(builder.wants[unit.out])
    return [(dtype, unit.out if len(wants) == 1 or dtype == "s16" else f"{unit.out}.s8") for dtype in wants]


def _move(builder: Builder, unit: Unit, kind: type, fields: dict) -> list[str]:
    """The names of the operators."""
    names = []
    for dtype, name in _types(builder, unit):
        source = builder.read(unit.anchor.inputs[0], dtype)
        output = builder.declare(unit.out, dtype, name)
        builder.emit(kind(name=name, input=source, output=output, **fields), unit.out)
        names.append(name)
    return names


def _layernorm(builder: Builder, unit: Unit) -> None:
    node = unit.anchor
    source, x = builder.read(node.inputs[0], "s16"), builder.range(node.inputs[0], "s16")
    y = builder.range(unit.out, "s8")
    gamma, beta = (node.params[key].detach().double().numpy() for key in ("gamma", "beta"))
    gain, offset = gamma / (1024 * y.scale), beta / y.scale + y.zero_point
    n = int(np.clip(np.floor(np.log2(32766 / max(float(np.abs(gain).max()), 1e-12))), 1, 38))
    while n > 1 and np.abs(offset).max() * 2.0**n >= CONSTANT_LIMIT:
        n -= 1
    channels = builder.shapes[node.inputs[0]][-1]
    g = numerics.clamp(np.rint(gain * 2.0**n).astype(np.int64), -32768, 32767).astype(np.int16)
    b = np.rint(offset * 2.0**n).astype(np.int64) + (1 << (n - 1))
    builder.store(node.name, {"g": g, "b": b})
    output = builder.declare(unit.out, "s8", unit.out)
    eps = max(1, round(channels**2 * float(node.attrs["eps"]) / x.scale**2))
    operator = LayerNorm(name=node.name, input=source, output=output, n=n, eps=eps, lo=y.lo, hi=y.hi)
    builder.emit(operator, unit.out)


def _attention(builder: Builder, unit: Unit) -> None:
    node = unit.anchor
    heads = int(node.attrs["heads"])
    q, k, v = (builder.range(name, "s8") for name in node.inputs)
    y = builder.range(unit.out, "s8")
    logits = scaled(
        np.full(heads, q.scale * k.scale * float(node.attrs["scale"]) / numerics.EXP_STEP),
        np.zeros(heads),
        np.zeros(heads),
        0,
    )
    m2, n2 = numerics.scale_to_mn(v.scale * float(node.attrs.get("share", 1.0)) / y.scale, n_max=30)
    fields = {"m2": np.full(heads, m2, np.uint16), "n2": np.full(heads, n2, np.uint8)}
    exp = EXP_TABLES[node.attrs.get("exp", "exact")]()
    builder.store(node.name, logits | fields | {"exp": exp_levels(exp, builder.bits["e"])})
    if "bias" in node.params:
        builder.store(node.name, {"bias": _bias_codes(node.params["bias"].double().numpy())})
    source, keys, values = (builder.read(name, "s8") for name in node.inputs)
    output = builder.declare(unit.out, "s8", unit.out)
    operator = Attention(
        name=node.name,
        input=source,
        keys=keys,
        values=values,
        output=output,
        heads=heads,
        windows=int(node.attrs.get("windows", 1)),
        bias="bias" in node.params,
        lo=y.lo,
        hi=y.hi,
    )
    builder.emit(operator, unit.out)


def _bias_codes(bias: np.ndarray) -> np.ndarray:
    steps = np.rint(np.where(np.isneginf(bias), 0, bias) / numerics.EXP_STEP)
    codes = numerics.clamp(steps.astype(np.int64), *numerics.LOGIT_BIAS_RANGE)
    return np.where(np.isneginf(bias), numerics.MASKED, codes).astype(np.int16)


def _multiply(builder: Builder, unit: Unit) -> None:
    node = unit.anchor
    dtype, other_dtype = factors(builder.units, unit)
    a = builder.range(node.inputs[0], dtype)
    source = builder.read(node.inputs[0], dtype)
    if len(node.inputs) == 2:
        b = builder.range(node.inputs[1], other_dtype)
        other = builder.read(node.inputs[1], other_dtype)
    else:
        value = node.params["constant"].detach().double().numpy()
        top = 32767 if other_dtype == "s16" else 127
        b = Range(max(float(np.abs(value).max()), 1e-9) / top, 0, -top, top)
        other = _constant(builder, f"{node.name}.constant", value, b, other_dtype)
    output, drain = builder.drain(unit, np.array([a.scale * b.scale]), np.zeros(1), np.zeros(1))
    builder.emit(Multiply(name=node.name, input=source, other=other, output=output, drain=drain), unit.out)


def _constant(builder: Builder, name: str, value: np.ndarray, found: Range, dtype: str) -> str:
    """A tensor of these real values."""
    codes = numerics.clamp(
        np.rint(value / found.scale).astype(np.int64) + found.zero_point, found.lo, found.hi
    )
    builder.tensors[name] = Tensor(
        name=name,
        shape=value.shape,
        dtype=dtype,
        scale=found.scale,
        zero_point=found.zero_point,
        bits=16 if dtype == "s16" else (found.hi - found.lo).bit_length(),
    )
    builder.constants[f"{name}/value"] = codes.astype(np.int16 if dtype == "s16" else np.int8)
    builder.operators.append(Constant(name=name, output=name))
    return name


def _gather(builder: Builder, unit: Unit) -> None:
    index = unit.anchor.params["index"].numpy().astype(np.int32)
    for name in _move(builder, unit, Gather, {}):
        builder.constants[f"{name}/index"] = index


def _concat(builder: Builder, unit: Unit) -> None:
    for dtype, name in _types(builder, unit):
        inputs = tuple(builder.read(value, dtype) for value in unit.anchor.inputs)
        output = builder.declare(unit.out, dtype, name)
        operator = Concat(name=name, inputs=inputs, output=output, axis=unit.anchor.attrs["axis"])
        builder.emit(operator, unit.out)


def _tokens(builder: Builder, unit: Unit) -> None:
    prefix = unit.anchor.params["prefix"].detach().double().numpy()
    for dtype, name in _types(builder, unit):
        source = builder.read(unit.anchor.inputs[0], dtype)
        found = builder.range(unit.out, dtype)
        constant = _constant(builder, f"{name}.prefix", prefix, found, dtype)
        output = builder.declare(unit.out, dtype, name)
        builder.emit(Concat(name=name, inputs=(constant, source), output=output, axis="positions"), unit.out)


def _window(node) -> dict[str, tuple[int, ...]]:
    return {key: tuple(node.attrs[key]) for key in ("kernel", "stride", "padding")}


_EMIT: dict[str, Callable[[Builder, Unit], object]] = {
    "conv": _conv,
    "linear": _linear,
    "layernorm": _layernorm,
    "attention": _attention,
    "act": _act,
    "add": _add,
    "multiply": _multiply,
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "gather": _gather,
    "slice": _slice,
    "reshape": _reshape,
    "concat": _concat,
    "tokens": _tokens,
}


def build(builder: Builder) -> str:
    """Emit the operators of all units, in order; returns the output tensor's name."""
    builder.declare("input", "s8", "input")
    for unit in builder.units:
        _EMIT[unit.anchor.kind](builder, unit)
        if builder.follower:
            builder.follower.advance(unit)
    output = builder.graph.nodes[-1].name
    return builder.written.get((output, "s16")) or builder.written[output, "s8"]

"""What makes an integer graph legal: every violation of its contract, one line each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from . import numerics
from .operators import (
    Attention,
    AvgPool,
    Concat,
    Constant,
    Conv,
    Elementwise,
    Gather,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Operator,
    Slice,
    Tensor,
    drained,
    reads,
    writes,
)
from .schemes import Scheme, codebook

if TYPE_CHECKING:
    from .graph import Graph

__all__ = ["problems"]


def problems(graph: Graph) -> Iterator[str]:
    """Every violation of the contract, one line each."""
    tensors = {tensor.name: tensor for tensor in graph.tensors}
    if len(tensors) != len(graph.tensors):
        yield "tensor names must be unique"
    names = [operator.name for operator in graph.operators]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"operator {name}: name must be unique"
    for tensor in graph.tensors:
        yield from _tensor_problems(tensor)
    written = {graph.input}
    for operator in graph.operators:
        for name in reads(operator):
            if name not in written:
                yield f"operator {operator.name}: reads {name}, which must be written before"
        for name in writes(operator):
            if name not in tensors:
                yield f"operator {operator.name}: writes {name}, which must be a declared tensor"
            if name in written:
                yield f"operator {operator.name}: writes {name}, which must be written once"
            written.add(name)
        if all(name in tensors for name in (*reads(operator), *writes(operator))):
            for problem in _operator_problems(graph, operator):
                yield f"operator {operator.name}: {problem}"
    if graph.output not in written or graph.input not in tensors:
        yield f"input {graph.input} and output {graph.output} must be tensors of the graph"


def _tensor_problems(tensor: Tensor) -> Iterator[str]:
    if len(tensor.shape) not in (2, 3) or min(tensor.shape) < 1:
        yield f"tensor {tensor.name}: shape must be (H, W, C) or (T, C), not {tensor.shape}"
    if not 4 <= tensor.bits <= (8 if tensor.dtype == "s8" else 16):
        yield f"tensor {tensor.name}: bits must be 4..8 (s8) or 16 (s16), not {tensor.bits}"
    if tensor.dtype == "s16" and tensor.zero_point:
        yield f"tensor {tensor.name}: an s16 tensor has no zero point, not {tensor.zero_point}"
    if not (np.isfinite(tensor.scale) and tensor.scale > 0):
        yield f"tensor {tensor.name}: scale must be positive and finite, not {tensor.scale}"


def _operator_problems(graph: Graph, operator: Operator) -> Iterator[str]:
    y = graph.tensor(operator.output)
    inputs = [graph.tensor(name) for name in reads(operator)]
    arguments = list(_argument_problems(operator, inputs, y))
    yield from arguments
    if arguments:
        return
    needed = _constant_shapes(graph, operator)
    for field, (shape, dtype) in needed.items():
        array = graph.constants.get(f"{operator.name}/{field}")
        if array is None:
            yield f"constant {field} must be present"
        elif shape is not None and array.shape != shape:
            yield f"constant {field} must have shape {shape}, not {array.shape}"
        elif array.dtype != dtype:
            yield f"constant {field} must be {np.dtype(dtype)}, not {array.dtype}"
    if any(f"{operator.name}/{field}" not in graph.constants for field in needed):
        return
    expected = _output_shape(operator, inputs, graph)
    if expected is not None and y.shape != expected:
        yield f"output {y.name} must have shape {expected}, not {y.shape}"
    yield from _value_problems(graph, operator, inputs)
    drain = drained(operator)
    if drain is not None and drain.table and drain.residual is not None:
        yield "table and residual exclude each other"
    if drain is not None and drain.residual is not None:
        r = graph.tensor(drain.residual.tensor)
        if r.positions * r.channels != y.positions * y.channels or r.zero_point:
            yield f"residual {r.name} must have {y.name}'s shape {y.shape} and no zero point"


def _argument_problems(operator: Operator, inputs: list[Tensor], y: Tensor) -> Iterator[str]:
    """Tensors and attributes that do not fit together."""
    match operator:
        case LayerNorm():
            x = inputs[0]
            if x.dtype != "s16" or x.channels > 2048 or operator.eps < 1:
                yield "LayerNorm needs s16 input of at most 2048 channels and eps >= 1"
        case Conv():
            if min(*operator.stride, *operator.dilation, operator.groups) < 1 or min(operator.padding) < 0:
                yield "stride, dilation and groups must be at least 1 and padding not negative"
        case Attention():
            yield from _attention_problems(operator, *inputs)
        case Multiply():
            a, b = inputs[:2]
            if b.shape != a.shape and b.shape != (*(1,) * (len(a.shape) - 1), a.channels):
                yield f"other {b.name} must have the shape {a.shape} of {a.name} or one position, not {b.shape}"
            for tensor in (a, b):
                if tensor.zero_point:
                    yield f"factor {tensor.name} must have no zero point, not {tensor.zero_point}"
            if a.dtype == b.dtype == "s16":
                yield f"one of the factors {a.name} and {b.name} must be s8, so that products fit the accumulators"
            if operator.drain.residual is not None:
                yield "a product must have no residual"
        case Gather():
            yield from _moved_problems(inputs, y)
            if y.channels != inputs[0].channels:
                yield f"output {y.name} must have {inputs[0].channels} channels, not {y.channels}"
        case Concat():
            yield from _concat_problems(operator, inputs, y)


def _attention_problems(operator: Attention, q: Tensor, k: Tensor, v: Tensor) -> Iterator[str]:
    for tensor in (q, k, v):
        if len(tensor.shape) != 2 or tensor.dtype != "s8" or tensor.zero_point:
            yield f"{tensor.name} must be s8 tokens (T, C) without zero point"
    if (
        operator.heads < 1
        or q.channels != k.channels
        or q.channels % operator.heads
        or v.channels % operator.heads
    ):
        yield (
            f"channels of queries and keys must be equal, and they and those of values a multiple of {operator.heads} heads"
        )
    if k.positions != v.positions:
        yield f"keys and values must have equally many tokens, not {k.positions} and {v.positions}"
    if operator.windows < 1 or q.positions % operator.windows or k.positions % operator.windows:
        yield f"{operator.windows} windows must divide {q.positions} queries and {k.positions} keys"


def _moved_problems(inputs: list[Tensor], y: Tensor) -> Iterator[str]:
    """Codes that are moved keep their meaning."""
    for x in inputs:
        if (x.dtype, x.bits, x.scale, x.zero_point) != (y.dtype, y.bits, y.scale, y.zero_point):
            yield f"input {x.name} must have {y.name}'s type, bits, scale and zero point"


def _concat_problems(operator: Concat, inputs: list[Tensor], y: Tensor) -> Iterator[str]:
    if len(inputs) < 2:
        yield f"inputs must be two or more tensors, not {len(inputs)}"
        return
    yield from _moved_problems(inputs, y)
    first = inputs[0]
    for x in inputs[1:]:
        if operator.axis == "channels" and x.shape[:-1] != first.shape[:-1]:
            yield f"input {x.name} must have {first.name}'s positions {first.shape[:-1]}, not {x.shape[:-1]}"
        if operator.axis == "positions" and x.channels != first.channels:
            yield f"input {x.name} must have {first.name}'s {first.channels} channels, not {x.channels}"
    positions = sum(x.positions for x in inputs)
    if operator.axis == "positions" and (y.positions, y.channels) != (positions, first.channels):
        yield f"output {y.name} must have {positions} positions of {first.channels} channels, not {y.shape}"


def _value_problems(graph: Graph, operator: Operator, inputs: list[Tensor]) -> Iterator[str]:
    """Constants with illegal content."""
    if isinstance(operator, Linear | Conv):
        weight, scheme = graph.constant(operator, "weight"), graph.constant(operator, "scheme")
        legal, others = np.zeros(len(scheme), bool), tuple(range(1, weight.ndim))
        for kind in Scheme:
            rows = np.flatnonzero(scheme == kind)
            legal[rows] = np.isin(weight[rows], codebook(kind)).all(axis=others)
        if not legal.all():
            row = int(legal.argmin())
            yield f"row {row} must hold codes of its scheme {scheme[row]}"
    if isinstance(operator, Gather):
        index, count = graph.constant(operator, "index"), inputs[0].positions
        if index.size and not -1 <= index.min() <= index.max() < count:
            yield f"index must be in -1..{count - 1}, not {index.min()}..{index.max()}"
    if isinstance(operator, Attention) and operator.bias:
        yield from _bias_problems(operator, graph.constant(operator, "bias"), *inputs[:2])


def _bias_problems(operator: Attention, bias: np.ndarray, q: Tensor, k: Tensor) -> Iterator[str]:
    windows, heads = operator.windows, operator.heads
    tokens = (q.positions // windows, k.positions // windows)
    if (
        bias.ndim != 4
        or bias.shape[2:] != tokens
        or bias.shape[0] not in (1, windows)
        or bias.shape[1] not in (1, heads)
    ):
        yield f"constant bias must have shape (1 or {windows}, 1 or {heads}, {tokens[0]}, {tokens[1]}), not {bias.shape}"
    lo, hi = numerics.LOGIT_BIAS_RANGE
    seen = bias[bias != numerics.MASKED]
    if seen.size and not lo <= seen.min() <= seen.max() <= hi:
        yield f"constant bias must be {numerics.MASKED} or in {lo}..{hi}, not {seen.min()}..{seen.max()}"


def _constant_shapes(graph: Graph, operator: Operator) -> dict[str, tuple[tuple[int, ...] | None, type]]:
    """Constants that an operator needs: field -> (shape or None for several legal ones, dtype)."""
    y = graph.tensor(operator.output)
    needed: dict[str, tuple[tuple[int, ...] | None, type]] = {}
    drain = drained(operator)
    if drain is not None:
        entries = (y.channels if isinstance(operator, Linear | Conv) else 1,)
        needed |= {"m": (entries, np.uint16), "n": (entries, np.uint8), "C": (entries, np.int64)}
        if drain.table:
            needed["table"] = (None, np.int8)
    match operator:
        case Constant():
            needed["value"] = (y.shape, np.int8 if y.dtype == "s8" else np.int16)
        case Linear():
            x = graph.tensor(operator.input)
            needed |= {"weight": ((y.channels, x.channels), np.int8), "scheme": ((y.channels,), np.uint8)}
        case Conv():
            needed |= {"weight": (None, np.int8), "scheme": ((y.channels,), np.uint8)}
        case LayerNorm():
            needed |= {"g": ((y.channels,), np.int16), "b": ((y.channels,), np.int64)}
        case Attention():
            per_head = (operator.heads,)
            needed |= {"m": (per_head, np.uint16), "n": (per_head, np.uint8), "C": (per_head, np.int64)}
            needed |= {"m2": (per_head, np.uint16), "n2": (per_head, np.uint8), "exp": ((256,), np.uint8)}
            if operator.bias:
                needed["bias"] = (None, np.int16)
        case Gather():
            needed["index"] = ((math.prod(y.shape[:-1]),), np.int32)
    return needed


def _window(
    shape: tuple[int, ...], kernel: tuple[int, int], operator: Conv | MaxPool | AvgPool
) -> tuple[int, int]:
    top, bottom, left, right = operator.padding
    dilation = operator.dilation if isinstance(operator, Conv) else (1, 1)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    return (
        (shape[0] + top + bottom - spans[0]) // operator.stride[0] + 1,
        (shape[1] + left + right - spans[1]) // operator.stride[1] + 1,
    )


def _output_shape(operator: Operator, inputs: list[Tensor], graph: Graph) -> tuple[int, ...] | None:
    if isinstance(operator, Constant | Gather):
        return None
    x, channels = inputs[0], graph.tensor(operator.output).channels
    match operator:
        case Linear():
            return (*x.shape[:-1], channels)
        case Conv() if len(x.shape) == 3:
            _, kh, kw, _ = graph.constant(operator, "weight").shape
            height, width = _window(x.shape, (kh, kw), operator)
            if operator.prefix:
                return (operator.prefix + height * width, channels)
            return (height, width, channels)
        case AvgPool() if len(x.shape) == 2:
            return (1, x.channels)
        case MaxPool() | AvgPool() if len(x.shape) == 3:
            return (*_window(x.shape, operator.kernel, operator), x.channels)
        case LayerNorm() | Elementwise() | Multiply():
            return x.shape
        case Attention():
            return (x.positions, inputs[2].channels)
        case Slice():
            return (operator.count, x.channels)
        case Concat() if operator.axis == "channels":
            return (*x.shape[:-1], sum(x.channels for x in inputs))
    return None

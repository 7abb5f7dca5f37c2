"""The operators of `sim.reference` by compiled kernels: the same codes, prepared once and run on many images.

An operator that uses something these forms do not know has none (`prepare` returns None), so that a new field of the
graph is evaluated by its definition until somebody makes it fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from ..arch import numerics
from ..arch.graph import (
    Attention,
    AvgPool,
    Concat,
    Conv,
    Drain,
    Elementwise,
    Gather,
    Graph,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Operator,
    Reshape,
    Slice,
)
from .kernels import drain, products, windows
from .kernels.attention import attention
from .kernels.rows import layernorm

__all__ = ["Step", "prepare"]

Step = Callable[[dict[str, np.ndarray], bool], dict[str, np.ndarray]]
"""What an operator writes, given the tensors that it reads, int8 or int16 (N, ...); with True also intermediates."""

_ACCUMULATORS = 1 << 16
"""Of a block: 256 KiB, which stay in the second-level cache between product and drain."""
_LONGEST_SUM = 1 << 16
"""Products per sum that cannot leave 32 bits while codes are taken as code + 128."""
_DTYPES = {"s8": np.int8, "s16": np.int16}
_KNOWN = {
    Linear: {"drain"},
    Conv: {"drain", "stride", "padding", "dilation", "groups", "prefix"},
    Attention: {"keys", "values", "heads", "windows", "bias", "lo", "hi"},
    LayerNorm: {"n", "eps", "lo", "hi"},
    MaxPool: {"kernel", "stride", "padding"},
    AvgPool: {"kernel", "stride", "padding", "drain"},
    Elementwise: {"drain"},
    Multiply: {"drain", "other"},
    Gather: set(),
    Concat: {"inputs", "axis"},
    Slice: {"start", "count"},
    Reshape: set(),
    Drain: {"lo", "hi", "table", "residual", "second"},
}
_BASE = {"op", "name", "input", "output"}


def prepare(graph: Graph, operator: Operator) -> Step | None:
    """The fast form of an operator, or None where there is none."""
    if type(operator) not in _KNOWN or not _understood(operator):
        return None
    if hasattr(operator, "drain") and not _understood(operator.drain):
        return None
    match operator:
        case Linear() | Conv():
            length = graph.constant(operator, "weight")[0].size
            if graph.tensor(operator.input).dtype != "s8" or length >= _LONGEST_SUM:
                return None
            return _linear(graph, operator) if isinstance(operator, Linear) else _conv(graph, operator)
        case Attention():
            return _attention(graph, operator)
        case LayerNorm():
            return _layernorm(graph, operator)
        case MaxPool():
            return _maxpool(graph, operator)
        case AvgPool():
            return _avgpool(graph, operator)
        case Elementwise():
            return _elementwise(graph, operator)
        case Multiply():
            return _multiply(graph, operator)
        case Gather():
            return _gather(graph, operator)
        case Concat():
            return _concat(graph, operator)
        case Slice():
            end = operator.start + operator.count
            return lambda values, keep: {
                operator.output: np.ascontiguousarray(values[operator.input][:, operator.start : end])
            }
    shape = graph.tensor(operator.output).shape
    return lambda values, keep: {operator.output: values[operator.input].reshape(-1, *shape)}


def _understood(part: Operator | Drain) -> bool:
    """Whether all fields beyond the known ones have their default."""
    return all(
        getattr(part, field.name) == field.default
        for field in dataclasses.fields(part)
        if field.name not in _BASE | _KNOWN[type(part)]
    )


class _Finish:
    """The drain of an operator whose accumulators are rows of output channels."""

    def __init__(self, graph: Graph, operator: Operator, excess: np.ndarray | int = 0):
        self.spec, self.shape = operator.drain, graph.tensor(operator.output).shape
        fields = (graph.constant(operator, field).astype(np.int64) for field in ("m", "n", "C"))
        m, n, constant = (np.broadcast_to(value, self.shape[-1:]) for value in fields)
        self.rescale = tuple(np.ascontiguousarray(value) for value in (m, n, constant - excess * m))
        self.table = graph.constant(operator, "table") if self.spec.table else np.empty(0, np.int8)
        r, s = self.spec.residual, self.spec.second
        self.residual = (r.m, r.n) if r else (0, 0)
        self.second = (s.m, s.n, s.constant, s.lo, s.hi) if s else (0, 0, 0, 0, 0)
        names = [operator.output] + ([s.tensor] if s else [])
        self.outputs = {name: _DTYPES[graph.tensor(name).dtype] for name in names}

    def new(self, values: dict[str, np.ndarray], images: int) -> tuple[dict, list[np.ndarray]]:
        """Empty outputs by name, and (N, positions, channels) views: output, second output, addend."""
        results = {name: np.empty((images, *self.shape), dtype) for name, dtype in self.outputs.items()}
        arrays = list(results.values())
        addend = values[self.spec.residual.tensor] if self.spec.residual else np.empty((0,), np.int16)
        views = [arrays[0], arrays[-1] if len(arrays) > 1 else np.empty((0,), np.int8), addend]
        return results, [
            view.reshape(images, -1, self.shape[-1]) if view.size else view.reshape(images, 0, self.shape[-1])
            for view in views
        ]

    def rows(
        self, acc: np.ndarray, count: int, views: list[np.ndarray], first: int, channels=slice(None)
    ) -> None:
        """Drains accumulators (count or more, channels) into rows `first`... of views (positions, channels)."""
        out, second, addend = (view[first : first + count, channels] for view in views)
        m, n, constant = (value[channels] for value in self.rescale)
        drain.finish(
            acc,
            count,
            m,
            n,
            constant,
            self.spec.lo,
            self.spec.hi,
            self.table,
            self.residual,
            addend,
            out,
            self.second,
            second,
        )


def _flat(views: list[np.ndarray]) -> list[np.ndarray]:
    """The positions of all images in one axis."""
    return [view.reshape(-1, view.shape[-1]) for view in views]


def _blocks(count: int, width: int) -> Iterator[tuple[int, int]]:
    """(first, count) of blocks of rows with `width` accumulators each."""
    rows = max(_ACCUMULATORS // width // products.ROWS, 1) * products.ROWS
    return ((first, min(rows, count - first)) for first in range(0, count, rows))


def _accumulators(rows: int, width: int) -> np.ndarray:
    return np.empty((-(-rows // products.ROWS) * products.ROWS, width), np.int32)


def _padded(x: np.ndarray) -> np.ndarray:
    """Rows of codes as bytes, contiguous, lengthened to a multiple of 4."""
    x = x.reshape(-1, x.shape[-1]).view(np.uint8)
    missing = -x.shape[1] % 4
    return np.pad(x, ((0, 0), (0, missing))) if missing else x


def _linear(graph: Graph, operator: Linear) -> Step:
    weight = graph.constant(operator, "weight")
    packed, finish = products.pack(weight), _Finish(graph, operator, products.excess(weight))
    width = packed.shape[0] * products.LANES

    def step(values: dict[str, np.ndarray], keep: bool) -> dict[str, np.ndarray]:
        results, views = finish.new(values, len(values[operator.input]))
        x, views = _padded(values[operator.input]), _flat(views)
        for first, count in _blocks(len(x), width):
            acc = _accumulators(count, width)
            products.multiply(x[first : first + count], count, packed, True, acc)
            finish.rows(acc, count, views, first)
        return results

    return step


def _window(graph: Graph, operator: Conv | MaxPool | AvgPool, kernel: tuple[int, int]) -> tuple[int, ...]:
    """What `kernels.windows` calls a window."""
    shape = graph.tensor(operator.input).shape
    height, width = shape[:2] if len(shape) == 3 else (shape[0], 1)
    top, bottom, left, right = operator.padding
    dilation = operator.dilation if isinstance(operator, Conv) else (1, 1)
    out_height = (height + top + bottom - (kernel[0] - 1) * dilation[0] - 1) // operator.stride[0] + 1
    out_width = (width + left + right - (kernel[1] - 1) * dilation[1] - 1) // operator.stride[1] + 1
    return (*kernel, *operator.stride, *dilation, top, left, out_height, out_width)


def _conv(graph: Graph, operator: Conv) -> Step:
    weight, fill = graph.constant(operator, "weight"), graph.tensor(operator.input).zero_point
    outputs, kh, kw, depth = weight.shape
    groups, prefix = operator.groups, operator.prefix
    window = _window(graph, operator, (kh, kw))
    pixels = window[-2] * window[-1]
    is_depthwise = depth == 1 and groups == outputs
    excess = np.zeros(outputs, np.int64) if is_depthwise else products.excess(weight)
    finish = _Finish(graph, operator, excess)
    unseen = (fill * weight.astype(np.int64).sum(axis=(1, 2, 3)) + excess).astype(np.int32)
    taps = np.ascontiguousarray(weight.reshape(outputs, -1).T, dtype=np.int16)
    each = outputs // groups
    packed = [
        products.pack(np.ascontiguousarray(weight[g * each : (g + 1) * each]).reshape(each, -1))
        for g in range(0 if is_depthwise else groups)
    ]
    width = outputs if is_depthwise else packed[0].shape[0] * products.LANES
    direct = kh == kw == 1 and operator.stride == (1, 1) and not any(operator.padding) and groups == 1
    direct = direct and depth % 4 == 0
    length = products.depth4(kh * kw * depth)

    def block(x: np.ndarray, at: int, count: int, views: list[np.ndarray], first: int) -> None:
        acc = _accumulators(count, width)
        if is_depthwise:
            windows.depthwise(x, fill, window, at, count, taps, acc)
            return finish.rows(acc, count, views, first)
        operands = np.zeros((count, length), np.int8)
        for g in range(groups):
            if direct:
                operands = x.reshape(-1, depth)[at : at + count]
            else:
                windows.gather(x, fill, window, at, count, g * depth, depth, operands)
            products.multiply(operands.view(np.uint8), count, packed[g], True, acc)
            finish.rows(acc, count, views, first, slice(g * each, (g + 1) * each))

    def step(values: dict[str, np.ndarray], keep: bool) -> dict[str, np.ndarray]:
        x = values[operator.input]
        results, views = finish.new(values, len(x))
        if not prefix:
            views = _flat(views)
            for first, count in _blocks(len(x) * pixels, max(width, length // 4)):
                block(x, first, count, views, first)
            return results
        for image in range(len(x)):
            own = [view[image] for view in views]
            finish.rows(np.tile(unseen, (prefix, 1)), prefix, own, 0)
            for first, count in _blocks(pixels, max(width, length // 4)):
                block(x, image * pixels + first, count, own, prefix + first)
        return results

    return step


def _attention(graph: Graph, operator: Attention) -> Step:
    scales = tuple(graph.constant(operator, field).astype(np.int64) for field in ("m", "n", "C", "m2", "n2"))
    exp, recip, heads = graph.constant(operator, "exp"), numerics.recip_table(), operator.heads
    bias = graph.constant(operator, "bias") if operator.bias else np.empty((0, 0, 0, 0), np.int16)
    tokens = graph.tensor(operator.input).positions
    keys = graph.tensor(operator.keys).positions // operator.windows
    dtype = _DTYPES[graph.tensor(operator.output).dtype]

    def step(values: dict[str, np.ndarray], keep: bool) -> dict[str, np.ndarray]:
        q, k, v = (values[name] for name in (operator.input, operator.keys, operator.values))
        out, images = np.empty((len(q), tokens, v.shape[-1]), dtype), len(q) if keep else 1
        logits = np.empty((images, heads, tokens, keys) if keep else (1, 0, 0, 0), np.int32)
        exps = np.empty(logits.shape, np.int16)
        row_m = np.empty((images, heads, tokens) if keep else (1, 0, 0), np.int64)
        row_n = np.empty(row_m.shape, np.int64)
        for i in range(len(q)):
            j = i if keep else 0
            attention(
                q[i],
                k[i],
                v[i],
                heads,
                operator.windows,
                scales,
                bias,
                exp,
                recip,
                operator.lo,
                operator.hi,
                out[i],
                keep,
                logits[j],
                exps[j],
                row_m[j],
                row_n[j],
            )
        results = {operator.output: out}
        if keep:
            steps = {"logits": logits, "exp": exps, "row_m": row_m, "row_n": row_n}
            results |= {f"{operator.name}/{step}": value for step, value in steps.items()}
        return results

    return step


def _layernorm(graph: Graph, operator: LayerNorm) -> Step:
    g, b = (graph.constant(operator, field).astype(np.int64) for field in ("g", "b"))
    rsqrt, dtype = numerics.rsqrt_table(), _DTYPES[graph.tensor(operator.output).dtype]

    def step(values: dict[str, np.ndarray], keep: bool) -> dict[str, np.ndarray]:
        x = values[operator.input]
        out = np.empty(x.shape, dtype)
        rows, results = x.reshape(-1, x.shape[-1]), out.reshape(-1, x.shape[-1])
        layernorm(rows, g, b, operator.n, operator.eps, rsqrt, operator.lo, operator.hi, results)
        return {operator.output: out}

    return step


def _maxpool(graph: Graph, operator: MaxPool) -> Step:
    shape, window = graph.tensor(operator.output).shape, _window(graph, operator, operator.kernel)

    def step(values: dict[str, np.ndarray], keep: bool) -> dict[str, np.ndarray]:
        x = values[operator.input]
        out = np.empty((len(x), *shape), x.dtype)
        windows.maximum(x, window, out)
        return {operator.output: out}

    return step


def _avgpool(graph: Graph, operator: AvgPool) -> Step:
    finish, window = _Finish(graph, operator), _window(graph, operator, operator.kernel)
    fill, channels = graph.tensor(operator.input).zero_point, graph.tensor(operator.input).channels

    def step(values: dict[str, np.ndarray], keep: bool) -> dict[str, np.ndarray]:
        x = values[operator.input]
        results, views = finish.new(values, len(x))
        x = x[:, :, None, :] if x.ndim == 3 else x
        views = _flat(views)
        for first, count in _blocks(len(views[0]), channels):
            acc = _accumulators(count, channels)
            windows.average(x, fill, window, first, count, acc)
            finish.rows(acc, count, views, first)
        return results

    return step


def _elementwise(graph: Graph, operator: Elementwise) -> Step:
    finish = _Finish(graph, operator)

    def step(values: dict[str, np.ndarray], keep: bool) -> dict[str, np.ndarray]:
        x = values[operator.input]
        results, views = finish.new(values, len(x))
        acc = x.reshape(-1, x.shape[-1])
        finish.rows(acc, len(acc), _flat(views), 0)
        return results

    return step


def _multiply(graph: Graph, operator: Multiply) -> Step:
    finish = _Finish(graph, operator)

    def step(values: dict[str, np.ndarray], keep: bool) -> dict[str, np.ndarray]:
        x, other = values[operator.input], values[operator.other]
        results, views = finish.new(values, len(x))
        acc = np.multiply(x, other, dtype=np.int32).reshape(-1, x.shape[-1])
        finish.rows(acc, len(acc), _flat(views), 0)
        return results

    return step


def _gather(graph: Graph, operator: Gather) -> Step:
    index, shape = graph.constant(operator, "index"), graph.tensor(operator.output).shape
    fill, absent = graph.tensor(operator.input).zero_point, graph.constant(operator, "index") < 0

    def step(values: dict[str, np.ndarray], keep: bool) -> dict[str, np.ndarray]:
        x = values[operator.input]
        out = x.reshape(len(x), -1, x.shape[-1])[:, np.maximum(index, 0)]
        out[:, absent] = fill
        return {operator.output: out.reshape(-1, *shape)}

    return step


def _concat(graph: Graph, operator: Concat) -> Step:
    shape, axis = graph.tensor(operator.output).shape, -1 if operator.axis == "channels" else 1

    def step(values: dict[str, np.ndarray], keep: bool) -> dict[str, np.ndarray]:
        parts = [values[name] for name in operator.inputs]
        parts = [part.reshape(len(part), -1, part.shape[-1]) for part in parts]
        return {operator.output: np.concatenate(parts, axis=axis).reshape(-1, *shape)}

    return step

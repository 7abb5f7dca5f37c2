"""Integer graphs as standard ONNX made only of integer operators, so that a third party can execute them.

Products go through MatMulInteger and ConvInteger on unsigned operands with zero point 128: the one combination
whose kernels never saturate between products. Everything else is int64; a floor shift by n is
(x - x mod 2**n) / 2**n, because ONNX shifts unsigned numbers only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..arch import numerics
from ..arch.files import write_bytes
from ..arch.graph import (
    Attention,
    AvgPool,
    Concat,
    Constant,
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

__all__ = ["export", "model"]

_OPSET = 17
_OFFSET = 128
_HIDDEN = 1 << 20
"""Taken from a masked logit."""


def export(graph: Graph, path: str | Path) -> Path:
    """Write `model(graph)` to `path`."""
    return write_bytes(path, model(graph).SerializeToString())


def model(graph: Graph, *, keep: bool = False) -> onnx.ModelProto:
    """The ONNX model: int8 input codes (N, *shape) to int32 output codes; with `keep` every tensor is an output."""
    writer = _Writer(graph)
    for operator in graph.operators:
        writer.write(operator)
    names = [operator.output for operator in graph.operators] if keep else [graph.output]
    outputs = [writer.output(name) for name in dict.fromkeys(names)]
    shape = ("N", *graph.tensor(graph.input).shape)
    inputs = [helper.make_tensor_value_info(graph.input, TensorProto.INT8, shape)]
    body = helper.make_graph(writer.nodes, graph.name, inputs, outputs, writer.initializers)
    built = helper.make_model(
        body, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8, producer_name="terrazzo"
    )
    onnx.checker.check_model(built, full_check=True)
    return built


class _Writer:
    """Appends nodes operator by operator; values are int64 unless a name says otherwise."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.scope = graph.input
        self.values: dict[str, str] = {graph.input: self.cast(graph.input, TensorProto.INT64)}

    def write(self, operator: Operator) -> None:
        """The nodes of one operator."""
        self.scope = operator.name
        writers: dict[type, Callable] = {
            Attention: self._attention,
            AvgPool: self._avgpool,
            Concat: self._concat,
            Constant: self._constant,
            Conv: self._conv,
            Elementwise: lambda o: self._drain(o, self.values[o.input]),
            Gather: self._gather,
            LayerNorm: self._layernorm,
            Linear: self._linear,
            MaxPool: self._maxpool,
            Multiply: lambda o: self._drain(o, self.op("Mul", self.values[o.input], self.values[o.other])),
            Reshape: lambda o: self._publish(o.output, self._reshaped(self.values[o.input], o.output)),
            Slice: self._slice,
        }
        writers[type(operator)](operator)

    def output(self, name: str) -> onnx.ValueInfoProto:
        """Declare tensor `name` as a model output, int32 codes."""
        result = self.op("Cast", self.values[name], to=TensorProto.INT32)
        self.nodes[-1].output[0] = public = f"{name}:codes"
        assert result != public
        return helper.make_tensor_value_info(
            public, TensorProto.INT32, (None, *self.graph.tensor(name).shape)
        )

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        """One node; returns the name of its output."""
        name = f"{self.scope}/{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def array(self, value, dtype: type = np.int64) -> str:
        """An initializer; returns its name."""
        name = f"{self.scope}/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=dtype), name))
        return name

    def cast(self, value: str, dtype: int) -> str:
        return self.op("Cast", value, to=dtype)

    def add(self, a: str, b) -> str:
        return self.op("Add", a, b if isinstance(b, str) else self.array(b))

    def mul(self, a: str, b) -> str:
        return self.op("Mul", a, b if isinstance(b, str) else self.array(b))

    def clamp(self, value: str, lo: int, hi: int) -> str:
        return self.op("Min", self.op("Max", value, self.array(lo)), self.array(hi))

    def shift(self, value: str, power: str) -> str:
        """Floor division by a power of two."""
        return self.op("Div", self.op("Sub", value, self.op("Mod", value, power)), power)

    def powers(self, n) -> str:
        """2**n of constant shifts."""
        return self.array(np.int64(1) << np.asarray(n, dtype=np.int64))

    def gather(self, table: np.ndarray, index: str) -> str:
        return self.op("Gather", self.array(table), index)

    def unsigned(self, value: str) -> str:
        """uint8 with zero point 128."""
        return self.cast(self.add(value, _OFFSET), TensorProto.UINT8)

    def reduce(self, value: str) -> str:
        """Sum over the last axis, kept."""
        return self.op("ReduceSum", value, self.array([-1]), keepdims=1)

    def matmul(self, a: str, b: str, a_zero: int = _OFFSET) -> str:
        """Exact product of uint8 operands."""
        zeros = self.array(a_zero, np.uint8), self.array(_OFFSET, np.uint8)
        return self.cast(self.op("MatMulInteger", a, b, *zeros), TensorProto.INT64)

    def conv(self, value: str, weight: np.ndarray, operator: Conv | AvgPool, groups: int) -> str:
        """Sums (N, Ho, Wo, O) of raw codes (N, H, W, C), padded with the zero point; weight (O, kh, kw, I)."""
        zero_point = self.graph.tensor(operator.input).zero_point
        x = self.op("Transpose", self.unsigned(value), perm=(0, 3, 1, 2))
        top, bottom, left, right = operator.padding
        if any(operator.padding):
            pads = self.array([0, 0, top, left, 0, 0, bottom, right])
            x = self.op("Pad", x, pads, self.array(zero_point + _OFFSET, np.uint8))
        w = self.array(weight.transpose(0, 3, 1, 2).astype(np.int64) + _OFFSET, np.uint8)
        zeros = self.array(_OFFSET, np.uint8), self.array(_OFFSET, np.uint8)
        spread = {"dilations": operator.dilation} if isinstance(operator, Conv) else {}
        acc = self.op("ConvInteger", x, w, *zeros, strides=operator.stride, group=groups, **spread)
        return self.cast(self.op("Transpose", acc, perm=(0, 2, 3, 1)), TensorProto.INT64)

    def _publish(self, name: str, value: str) -> None:
        """Give a finished tensor its own name."""
        self.nodes.append(helper.make_node("Identity", [value], [f"{name}:int64"], name=f"{name}:identity"))
        self.values[name] = f"{name}:int64"

    def _reshaped(self, value: str, name: str) -> str:
        return self.op("Reshape", value, self.array([-1, *self.graph.tensor(name).shape]))

    def _fields(self, operator: Operator, *names: str) -> list[np.ndarray]:
        return [self.graph.constant(operator, name).astype(np.int64) for name in names]

    def _drain(self, operator: Operator, acc: str) -> None:
        drain: Drain = operator.drain
        m, n, constant = self._fields(operator, "m", "n", "C")
        v = self.shift(self.add(self.mul(acc, m), constant), self.powers(n))
        if drain.table:
            (table,) = self._fields(operator, "table")
            half = len(table) // 2
            v = self.gather(table, self.add(self.clamp(v, -half, half - 1), half))
        elif drain.residual is not None:
            r = drain.residual
            scaled = self.add(self.mul(self.values[r.tensor], r.m), 1 << (r.n - 1))
            v = self.add(self.clamp(v, -32768, 32767), self.shift(scaled, self.powers(r.n)))
            v = self.clamp(v, -32768, 32767)
        v = self.clamp(v, drain.lo, drain.hi)
        self._publish(operator.output, v)
        if drain.second is not None:
            s = drain.second
            y = self.shift(self.add(self.mul(v, s.m), s.constant), self.powers(s.n))
            self._publish(s.tensor, self.clamp(y, s.lo, s.hi))

    def _constant(self, operator: Constant) -> None:
        """Repeated for every image of the batch: Concat does not broadcast."""
        value = self.graph.constant(operator, "value")
        batch = self.op("Shape", self.graph.input, start=0, end=1)
        shape = self.op("Concat", batch, self.array(value.shape), axis=0)
        self._publish(operator.output, self.op("Expand", self.array(value[None]), shape))

    def _linear(self, operator: Linear) -> None:
        (weight,) = self._fields(operator, "weight")
        w = self.array(weight.T + _OFFSET, np.uint8)
        self._drain(operator, self.matmul(self.unsigned(self.values[operator.input]), w))

    def _conv(self, operator: Conv) -> None:
        (weight,) = self._fields(operator, "weight")
        acc = self.conv(self.values[operator.input], weight, operator, operator.groups)
        if operator.prefix:
            outputs = len(weight)
            rows = self.op("Reshape", acc, self.array([0, -1, outputs]))
            padding = self.graph.tensor(operator.input).zero_point * weight.sum(axis=(1, 2, 3))
            one = self.op("Slice", rows, self.array([0]), self.array([1]), self.array([1]))
            prefix = np.broadcast_to(padding, (1, operator.prefix, outputs))
            acc = self.op("Concat", self.add(self.mul(one, 0), prefix), rows, axis=1)
        self._drain(operator, acc)

    def _avgpool(self, operator: AvgPool) -> None:
        tensor, value = self.graph.tensor(operator.input), self.values[operator.input]
        if len(tensor.shape) == 2:
            value = self.op("Reshape", value, self.array([-1, tensor.shape[0], 1, tensor.channels]))
        ones = np.ones((tensor.channels, *operator.kernel, 1), dtype=np.int64)
        acc = self.conv(value, ones, operator, tensor.channels)
        self._drain(operator, self._reshaped(acc, operator.output))

    def _maxpool(self, operator: MaxPool) -> None:
        x = self.op("Transpose", self.unsigned(self.values[operator.input]), perm=(0, 3, 1, 2))
        top, bottom, left, right = operator.padding
        if any(operator.padding):
            x = self.op("Pad", x, self.array([0, 0, top, left, 0, 0, bottom, right]), self.array(0, np.uint8))
        y = self.op("MaxPool", x, kernel_shape=operator.kernel, strides=operator.stride)
        y = self.cast(self.op("Transpose", y, perm=(0, 2, 3, 1)), TensorProto.INT64)
        self._publish(operator.output, self.add(y, -_OFFSET))

    def _gather(self, operator: Gather) -> None:
        """From the positions and, after them, one of zero points."""
        tensor, (index,) = self.graph.tensor(operator.input), self._fields(operator, "index")
        rows = self.op("Reshape", self.values[operator.input], self.array([0, -1, tensor.channels]))
        if (index < 0).any():
            pads = self.array([0, 0, 0, 0, 1, 0])
            rows = self.op("Pad", rows, pads, self.array(tensor.zero_point))
            index = np.where(index < 0, tensor.positions, index)
        y = self.op("Gather", rows, self.array(index), axis=1)
        self._publish(operator.output, self._reshaped(y, operator.output))

    def _concat(self, operator: Concat) -> None:
        values = [self.values[name] for name in operator.inputs]
        if operator.axis == "positions":
            shape = self.array([0, -1, self.graph.tensor(operator.output).channels])
            values = [self.op("Reshape", value, shape) for value in values]
        y = self.op("Concat", *values, axis=1 if operator.axis == "positions" else -1)
        self._publish(operator.output, self._reshaped(y, operator.output))

    def _slice(self, operator: Slice) -> None:
        start, end = [operator.start], [operator.start + operator.count]
        y = self.op("Slice", self.values[operator.input], *(self.array(a) for a in (start, end, [1])))
        self._publish(operator.output, y)

    def _layernorm(self, operator: LayerNorm) -> None:
        x = self.values[operator.input]
        d = self.graph.tensor(operator.input).channels
        g, b = self._fields(operator, "g", "b")
        s, q = self.reduce(x), self.reduce(self.op("Mul", x, x))
        v = self.add(self.op("Sub", self.mul(q, d), self.op("Mul", s, s)), operator.eps)
        even = np.arange(-14, 42, 2)  # e by its rank: how many powers of four V reaches
        rank = self._count(v, np.int64(4) ** np.arange(1, len(even)))
        raised = self.op("Mul", v, self.gather(np.int64(1) << np.maximum(-even, 0), rank))
        index = self.op("Div", raised, self.gather(np.int64(64) << np.maximum(even, 0), rank))
        r, k = self.gather(numerics.rsqrt_table(), index), 13 + even // 2
        product = self.op("Mul", self.op("Sub", self.mul(x, d), s), r)
        half = self.gather(np.int64(1) << (k - 1), rank)
        t = self.shift(self.op("Add", product, half), self.gather(np.int64(1) << k, rank))
        t = self.clamp(t, -(1 << 17), (1 << 17) - 1)
        y = self.shift(self.add(self.mul(t, g), b), self.powers(operator.n))
        self._publish(operator.output, self.clamp(y, operator.lo, operator.hi))

    def _count(self, value: str, thresholds: np.ndarray) -> str:
        """How many thresholds each entry of `value` (..., 1) reaches, same shape."""
        reached = self.op("GreaterOrEqual", value, self.array(thresholds))
        return self.reduce(self.cast(reached, TensorProto.INT64))

    def _attention(self, operator: Attention) -> None:
        heads, windows = operator.heads, operator.windows

        def split(name: str, perm: tuple[int, ...]) -> str:
            tokens, channels = self.graph.tensor(name).shape
            shape = self.array([-1, windows, tokens // windows, heads, channels // heads])
            return self.op(
                "Transpose", self.op("Reshape", self.unsigned(self.values[name]), shape), perm=perm
            )

        def per_head(field: str) -> np.ndarray:
            return self._fields(operator, field)[0].reshape(-1, 1, 1)

        q, k = split(operator.input, (0, 1, 3, 2, 4)), split(operator.keys, (0, 1, 3, 4, 2))
        v = split(operator.values, (0, 1, 3, 2, 4))
        scaled = self.add(self.mul(self.matmul(q, k), per_head("m")), per_head("C"))
        half = 1 << (numerics.LOGIT_BITS - 1)
        logits = self.clamp(self.shift(scaled, self.powers(per_head("n"))), -half, half - 1)
        if operator.bias:  # no sum of a legal bias saturates, and a masked key is further away than any other
            (bias,) = self._fields(operator, "bias")
            logits = self.add(logits, np.where(bias == numerics.MASKED, -_HIDDEN, bias))
        top = self.op("ReduceMax", logits, axes=[-1], keepdims=1)
        distance = self.op("Min", self.op("Sub", top, logits), self.array(255))
        if operator.bias:
            hidden = self.array(np.where(bias == numerics.MASKED, 255, 0))
            distance = self.op("Max", distance, hidden)
        exp = self.gather(self._fields(operator, "exp")[0], distance)
        m, power = self._row_scale(self.reduce(exp), per_head("m2"), per_head("n2"))
        pv = self.matmul(self.cast(exp, TensorProto.UINT8), v, a_zero=0)
        rounded = self.add(self.op("Mul", pv, m), self.op("Div", power, self.array(2)))
        y = self.clamp(self.shift(rounded, power), operator.lo, operator.hi)
        y = self.op("Transpose", y, perm=(0, 1, 3, 2, 4))
        self._publish(operator.output, self._reshaped(y, operator.output))

    def _row_scale(self, total: str, m2: np.ndarray, n2: np.ndarray) -> tuple[str, str]:
        """m and 2**n of rows whose sum of E is `total` (..., 1); positive numbers, so Div is a floor shift."""
        e = self._count(total, np.int64(1) << np.arange(1, 40))
        leading = self.gather(np.int64(1) << np.arange(40), e)
        index = self.op("Mod", self.op("Div", self.mul(total, 256), leading), self.array(256))
        p = self.mul(self.gather(numerics.recip_table(), index), m2)
        h = self.cast(self.op("GreaterOrEqual", p, self.array(1 << 31)), TensorProto.INT64)
        rounded = self.op("Add", p, self.gather(np.array([1 << 14, 1 << 15]), h))
        m = self.op(
            "Min", self.op("Div", rounded, self.gather(np.array([1 << 15, 1 << 16]), h)), self.array(65535)
        )
        n = self.op("Sub", self.add(e, n2 + 1), h)
        empty = self.op("Equal", total, self.array(0))
        m, n = self.op("Where", empty, self.array(0), m), self.op("Where", empty, self.array(1), n)
        return m, self.gather(np.int64(1) << np.arange(62), n)

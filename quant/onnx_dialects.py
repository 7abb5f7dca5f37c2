"""Every spelling of quantization in ONNX as one: float nodes with `Quant` nodes between them.

QuantizeLinear, Clip and DequantizeLinear (QDQ, QCDQ), nodes that compute on codes (QOperator), and QONNX's Quant,
BipolarQuant and Trunc. A `Quant` step has one input and the attributes of `fake_quantize`; weights are known real
values. Operators: the ONNX specification, com.microsoft's of onnxruntime, and the QONNX specification.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from .fake_quantize import BIPOLAR
from .onnx_file import OnnxGraph, Step, computed

__all__ = ["MALFORMED", "Refusal", "Refused", "lowered", "malformed"]

QONNX = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")
MOVES = (
    "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Split", "Identity", "MaxPool",
    "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Concat", "Dropout",
)  # fmt: skip
"""Nodes that may stand between QuantizeLinear and DequantizeLinear."""
_SYMMETRIC = "quantize weights symmetrically (onnxruntime: extra_options={'WeightSymmetric': True})"
_PER_TENSOR = "quantize activations with one scale per tensor"


class Refused(Exception):
    """One node that cannot be imported."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A refused node by name, with the reason and what to do."""

    name: str
    op: str
    reason: str
    remedy: str


MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError)
"""What a node raises that lacks inputs or attributes, or has others than its operator."""


def malformed(error: Exception) -> Refused:
    """The refusal of such a node."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Refused(
        f"has inputs or attributes that its operator does not ({text[:120]})", "export the model again"
    )


@dataclasses.dataclass(frozen=True)
class _Codes:
    scale: float
    zero_point: int
    lo: int
    hi: int


def lowered(graph: OnnxGraph) -> tuple[OnnxGraph, list[Refusal]]:
    """The graph with `Quant` as its only quantization and constants computed; and the nodes that were refused."""
    lowering = _Lowering(graph)
    for step in graph.steps:
        try:
            lowering.lower(step)
        except Refused as error:
            lowering.refuse(step, error)
        except MALFORMED as error:
            lowering.refuse(step, malformed(error))
    result = dataclasses.replace(graph, steps=lowering.steps, known=lowering.known)
    return result, lowering.refusals


class _Lowering:
    def __init__(self, graph: OnnxGraph):
        self.graph = graph
        self.known = dict(graph.known)
        self.steps: list[Step] = []
        self.codes: dict[str, _Codes] = {}
        self.asymmetric: dict[str, int] = {}
        self.refusals: list[Refusal] = []

    def refuse(self, step: Step, error: Refused) -> None:
        self.refusals.append(Refusal(step.name, step.op, error.reason, error.remedy))
        self.steps.append(dataclasses.replace(step, domain="refused"))

    def lower(self, step: Step) -> None:
        known = all(name in self.known for name in step.inputs)
        handler = _HANDLERS.get((step.domain if step.domain not in QONNX else "qonnx", step.op))
        if handler is not None:
            handler(self, step)
        elif known and step.domain in ("", "ai.onnx") and self._fold(step):
            pass
        else:
            self._keep(step)

    def _fold(self, step: Step) -> bool:
        try:
            self.known |= computed(step, self.known, self.graph.opset)
        except Exception:  # an operator or version that onnx's own evaluator lacks: it is translated instead
            return False
        for name in step.inputs:
            if name in self.asymmetric:
                self.asymmetric |= dict.fromkeys(step.outputs, self.asymmetric[name])
        return True

    def _keep(self, step: Step) -> None:
        if step.op in ("Conv", "MatMul", "Gemm"):
            for name in step.inputs[:2]:
                self.weight(name)
        coded = [name for name in step.inputs if name in self.codes]
        if coded and step.op not in MOVES:
            raise Refused(
                f"computes on the integer codes of {coded[0]}",
                "use QDQ format: DequantizeLinear in front of it and QuantizeLinear behind it",
            )
        if coded:
            joined = step.inputs if step.op == "Concat" else step.inputs[:1]
            found = {self.codes.get(name) for name in joined if name not in self.known}
            if len(found) > 1:
                raise Refused("joins codes of different scales", "put DequantizeLinear in front of it")
            self.codes |= dict.fromkeys((name for name in step.outputs if name), found.pop())
        self.steps.append(step)

    def weight(self, name: str) -> None:
        if self.asymmetric.get(name):
            raise Refused(f"weights {name} have zero point {self.asymmetric[name]}: asymmetric", _SYMMETRIC)

    def array(self, name: str, what: str) -> np.ndarray:
        if name not in self.known:
            raise Refused(
                f"its {what} {name} depends on the image", "quantize statically, with constant scales"
            )
        return self.known[name]

    def scalar(self, name: str, what: str) -> float:
        value = self.array(name, what)
        if value.size != 1:
            raise Refused(f"its {what} has {value.size} values for an activation", _PER_TENSOR)
        return float(value.reshape(()))

    def quant(self, step: Step, source: str, target: str, codes: _Codes, rounding: str = "ROUND") -> None:
        if not (np.isfinite(codes.scale) and codes.scale > 0):
            raise Refused(f"its scale must be positive and finite, not {codes.scale:g}", "calibrate again")
        attrs = dataclasses.asdict(codes) | {"rounding": rounding}
        self.steps.append(Step(op="Quant", name=target, inputs=[source], outputs=[target], attrs=attrs))

    def parameters(self, step: Step, scale: str, zero: str | None) -> _Codes:
        """Scale, zero point and range of codes of an activation."""
        dtype = self.array(zero, "zero point").dtype if zero else np.dtype(np.uint8)
        lo, hi = _limits(dtype)
        point = int(self.scalar(zero, "zero point")) if zero else 0
        return _Codes(self.scalar(scale, "scale"), point, lo, hi)

    def real(self, step: Step, name: str, scale: str, zero: str | None) -> str:
        """The name of the real value of codes: computed for constants."""
        if name in self.known:
            target = f"{name}:real:{step.name}"
            zeros = self.array(zero, "zero point") if zero else np.zeros((), np.int64)
            axis = 0 if step.op == "QLinearConv" or step.attrs.get("transB") else -1
            self.constant(target, self.known[name], self.array(scale, "scale"), zeros, axis)
            return target
        wanted = self.parameters(step, scale, zero)
        if name == self.graph.input and name not in self.codes:
            target = f"{name}:real"
            self.quant(step, name, target, wanted)
            self.codes[target] = wanted
            return target
        found = self.codes.get(name)
        if found is None:
            raise Refused(f"reads {name}, which holds no codes", "put QuantizeLinear in front of it")
        if (found.scale, found.zero_point) != (wanted.scale, wanted.zero_point):
            raise Refused(
                f"reads {name} with scale {wanted.scale:g} and zero point {wanted.zero_point}, but it was written with "
                f"{found.scale:g} and {found.zero_point}",
                "use the same scale and zero point on both sides",
            )
        return name

    def constant(
        self, target: str, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, axis: int
    ) -> None:
        """Real values of constant codes, with their zero point noted."""
        point = zero.astype(np.int64)
        middle = 128 if codes.dtype == np.uint8 else 8 if codes.dtype.name == "uint4" else 0
        if codes.dtype != np.int32 and (point != middle).any():
            self.asymmetric[target] = int(point[point != middle].flat[0] if point.ndim else point)
        if scale.size > 1:
            if scale.ndim != 1 or scale.shape[0] != codes.shape[axis]:
                raise Refused(
                    f"its scale has shape {scale.shape}", "quantize weights per tensor or per output channel"
                )
            shape = [1] * codes.ndim
            shape[axis] = -1
            scale, point = scale.reshape(shape), point.reshape(shape if point.size > 1 else ())
        else:
            scale, point = scale.reshape(()), point.reshape(())
        self.known[target] = ((codes.astype(np.int64) - point) * scale.astype(np.float64)).astype(np.float32)


def _limits(dtype: np.dtype) -> tuple[int, int]:
    named = {"int4": (-8, 7), "uint4": (0, 15), "int2": (-2, 1), "uint2": (0, 3)}
    if dtype.name in named:
        return named[dtype.name]
    if dtype.name not in ("int8", "uint8", "int16", "uint16"):
        raise Refused(f"quantizes to {dtype.name}", "quantize activations to int8 or uint8")
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _at(step: Step, place: int) -> str | None:
    return step.inputs[place] if len(step.inputs) > place and step.inputs[place] else None


def _quantize(self: _Lowering, step: Step) -> None:
    source, target = step.inputs[0], step.outputs[0]
    if source in self.known:
        if not self._fold(step):
            raise Refused("quantizes a constant in a form that is not known", "store the weights as codes")
        return
    codes = self.parameters(step, step.inputs[1], _at(step, 2))
    self.quant(step, source, target, codes)
    self.codes[target] = codes


def _dequantize(self: _Lowering, step: Step) -> None:
    source, target, zero = step.inputs[0], step.outputs[0], _at(step, 2)
    if step.attrs.get("block_size"):
        raise Refused("has a scale per block", "quantize weights per tensor or per output channel")
    if source in self.known:
        zeros = self.array(zero, "zero point") if zero else np.zeros((), np.int64)
        axis = int(step.attrs.get("axis", 1))
        self.constant(target, self.known[source], self.array(step.inputs[1], "scale"), zeros, axis)
        if not zero:
            self.asymmetric.pop(target, None)
        return
    value = self.real(step, source, step.inputs[1], zero)
    self.steps.append(Step(op="Identity", name=step.name, inputs=[value], outputs=[target]))


def _clip(self: _Lowering, step: Step) -> None:
    source, target = step.inputs[0], step.outputs[0]
    if source not in self.codes:
        self._fold(step) if all(n in self.known for n in step.inputs) else self._keep(step)
        return
    codes = self.codes[source]
    lo, hi = (_at(step, place) for place in (1, 2))
    codes = dataclasses.replace(
        codes,
        lo=max(codes.lo, int(self.scalar(lo, "minimum"))) if lo else codes.lo,
        hi=min(codes.hi, int(self.scalar(hi, "maximum"))) if hi else codes.hi,
    )
    self.quant(step, source, target, codes)
    self.codes[target] = codes


def _pad(self: _Lowering, step: Step) -> None:
    if step.inputs[0] not in self.codes:
        self._fold(step) if all(n in self.known for n in step.inputs) else self._keep(step)
        return
    codes, value = self.codes[step.inputs[0]], _at(step, 2)
    if step.attrs.get("mode", "constant") != "constant":
        raise Refused(f"pads by {step.attrs['mode']}", "pad with zeros")
    if int(self.scalar(value, "padding value") if value else 0) != codes.zero_point:
        raise Refused("pads codes with another value than their zero point", "pad with real zeros")
    rest = [*step.inputs[3:]]
    self.steps.append(
        dataclasses.replace(step, inputs=[*step.inputs[:2], "", *rest] if rest else step.inputs[:2])
    )
    self.codes[step.outputs[0]] = codes


def _operator(op: str, operands: tuple[int, ...], scale: int, bias: int | None = None) -> Callable:
    """A node on codes: float node `op` on the operands that start at these inputs, each with scale and zero point;
    the output's scale and zero point start at input `scale`, an int32 bias stands at input `bias`."""

    def handler(self: _Lowering, step: Step) -> None:
        inputs = [self.real(step, *step.inputs[place : place + 3]) for place in operands]
        if op in ("Conv", "MatMul", "Gemm"):
            for name in inputs:
                self.weight(name)
        if bias is not None and _at(step, bias):
            factor = self.scalar(step.inputs[operands[0] + 1], "scale")
            by_row = self.array(step.inputs[operands[1] + 1], "scale").astype(np.float64).reshape(-1)
            name = f"{step.inputs[bias]}:real:{step.name}"
            self.known[name] = (self.array(step.inputs[bias], "bias") * (factor * by_row)).astype(np.float32)
            inputs.append(name)
        if step.attrs.get("channels_last"):
            raise Refused("has its channels last", "use channels first")
        target = step.outputs[0]
        if _at(step, scale) is None:  # QGemm with a real output
            self.steps.append(Step(op=op, name=step.name, inputs=inputs, outputs=[target], attrs=step.attrs))
            return
        value = f"{target}:real"
        self.steps.append(Step(op=op, name=step.name, inputs=inputs, outputs=[value], attrs=step.attrs))
        codes = self.parameters(step, step.inputs[scale], _at(step, scale + 1))
        self.quant(step, value, target, codes)
        self.codes[target] = codes

    return handler


def _qlinear_concat(self: _Lowering, step: Step) -> None:
    inputs = [self.real(step, *step.inputs[place : place + 3]) for place in range(2, len(step.inputs), 3)]
    value, target = f"{step.outputs[0]}:real", step.outputs[0]
    self.steps.append(Step(op="Concat", name=step.name, inputs=inputs, outputs=[value], attrs=step.attrs))
    codes = self.parameters(step, step.inputs[0], step.inputs[1])
    self.quant(step, value, target, codes)
    self.codes[target] = codes


def _qonnx_quant(self: _Lowering, step: Step) -> None:
    source, target = step.inputs[0], step.outputs[0]
    bits = self.scalar(step.inputs[3], "bit width")
    signed, narrow = bool(step.attrs.get("signed", 1)), bool(step.attrs.get("narrow", 0))
    rounding = _rounding(step)
    if not bits.is_integer() or not 1 <= bits <= 16:
        raise Refused(f"has {bits:g} bits", "use 1 to 16 whole bits")
    lo = -(1 << int(bits) - 1) + narrow if signed else 0
    hi = (1 << int(bits) - 1) - 1 if signed else (1 << int(bits)) - 1 - narrow
    if bits == 1 and signed:
        rounding = BIPOLAR
    if source in self.known:
        scale, zero = (
            self.array(name, what)
            for name, what in zip(step.inputs[1:3], ("scale", "zero point"), strict=True)
        )
        x = self.known[source] / scale + zero
        if rounding == BIPOLAR:
            y = np.where(x >= 0, 1, -1)
        else:
            y = {"ROUND": np.round, "FLOOR": np.floor, "CEIL": np.ceil}[rounding](np.clip(x, lo, hi))
        if (zero != 0).any():
            self.asymmetric[target] = int(np.asarray(zero).flat[0])
        self.known[target] = ((y - zero) * scale).astype(np.float32)
        return
    zero = self.scalar(step.inputs[2], "zero point")
    if not zero.is_integer() or (rounding == BIPOLAR and zero):
        raise Refused(f"has zero point {zero:g}", "use a whole zero point, and none for one bit")
    codes = _Codes(self.scalar(step.inputs[1], "scale"), int(zero), lo, hi)
    self.quant(step, source, target, codes, rounding)


def _rounding(step: Step, default: str = "ROUND") -> str:
    mode = str(step.attrs.get("rounding_mode", default)).upper()
    found = {"ROUND": "ROUND", "HALF_EVEN": "ROUND", "FLOOR": "FLOOR", "CEIL": "CEIL"}.get(mode)
    if found is None:
        raise Refused(f"rounds by {mode}", "round by ROUND, FLOOR or CEIL")
    return found


def _qonnx_bipolar(self: _Lowering, step: Step) -> None:
    source, target = step.inputs[0], step.outputs[0]
    if source in self.known:
        scale = self.array(step.inputs[1], "scale")
        self.known[target] = (np.where(self.known[source] >= 0, 1, -1) * scale).astype(np.float32)
        return
    self.quant(step, source, target, _Codes(self.scalar(step.inputs[1], "scale"), 0, -1, 1), BIPOLAR)


def _qonnx_trunc(self: _Lowering, step: Step) -> None:
    source, target = step.inputs[0], step.outputs[0]
    scale, zero, before = (self.scalar(name, "parameter") for name in step.inputs[1:4])
    if zero:
        raise Refused(
            f"truncates codes with zero point {zero:g}", "use symmetric activations in front of Trunc"
        )
    rounding = _rounding(step, "FLOOR")
    first = len(step.inputs) == 5
    if first:  # version 1 drops bits, keeps the scale and does not say whether codes are signed
        bits, out_scale, signed = self.scalar(step.inputs[4], "bit width"), scale, True
        shift = before - bits
    else:
        out_scale, bits = (self.scalar(name, "parameter") for name in step.inputs[4:6])
        shift = round(np.log2(out_scale / scale))
        signed = bool(step.attrs.get("signed", 1))
    factor = f"{target}:factor"
    self.known[factor] = np.float32(out_scale / scale / 2.0**shift)
    value = source
    if self.known[factor] != 1:
        value = f"{target}:scaled"
        self.steps.append(Step(op="Mul", name=f"{step.name}:scale", inputs=[source, factor], outputs=[value]))
    lo = -(1 << int(bits) - 1) if signed else 0
    hi = (1 << int(bits)) - 1 if first or not signed else (1 << int(bits) - 1) - 1
    self.quant(step, value, target, _Codes(float(out_scale), 0, lo, hi), rounding)


_MS = "com.microsoft"
_HANDLERS: dict[tuple[str, str], Callable[[_Lowering, Step], None]] = {
    **{(domain, "QuantizeLinear"): _quantize for domain in ("", _MS)},
    **{(domain, "DequantizeLinear"): _dequantize for domain in ("", _MS)},
    ("", "Clip"): _clip,
    ("", "Pad"): _pad,
    ("", "QLinearConv"): _operator("Conv", (0, 3), 6, bias=8),
    ("", "QLinearMatMul"): _operator("MatMul", (0, 3), 6),
    (_MS, "QGemm"): _operator("Gemm", (0, 3), 7, bias=6),
    (_MS, "QLinearAdd"): _operator("Add", (0, 3), 6),
    (_MS, "QLinearMul"): _operator("Mul", (0, 3), 6),
    (_MS, "QLinearSigmoid"): _operator("Sigmoid", (0,), 3),
    (_MS, "QLinearSoftmax"): _operator("Softmax", (0,), 3),
    (_MS, "QLinearAveragePool"): _operator("AveragePool", (0,), 3),
    (_MS, "QLinearGlobalAveragePool"): _operator("GlobalAveragePool", (0,), 3),
    (_MS, "QLinearConcat"): _qlinear_concat,
    ("qonnx", "Quant"): _qonnx_quant,
    ("qonnx", "IntQuant"): _qonnx_quant,
    ("qonnx", "BipolarQuant"): _qonnx_bipolar,
    ("qonnx", "Trunc"): _qonnx_trunc,
}

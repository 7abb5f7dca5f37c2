"""A lowered ONNX graph as a torch module, one submodule for each node, so that `torch.export` and every pattern of the
torch frontend work on it."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import nn

from .onnx_dialects import MALFORMED, Refusal, Refused, lowered, malformed
from .onnx_file import OnnxGraph, Step, computed
from .onnx_operators import OPERATORS
from .patterns import remedy_for
from .prescribed import real_codes

__all__ = ["OnnxModule", "is_channels_last", "key"]

_NUMBERS = ("Clip", "Pad", "Pow")
"""Operators whose constants are numbers of the operator, not tensors."""
_REMEDIES = {
    "LeakyRelu": "leaky_relu",
    "PRelu": "prelu",
    "Elu": "elu",
    "ConvTranspose": "conv_transpose",
    "Resize": "upsample",
    "Upsample": "upsample",
    "InstanceNormalization": "instance_norm",
    "GroupNormalization": "group_norm",
    "LogSoftmax": "log_softmax",
    "ArgMax": "argmax",
    "TopK": "topk",
    "LSTM": "lstm",
    "GRU": "gru",
}
_DYNAMIC = (
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
)


def key(name: str) -> str:
    """The name of a node or value where only letters, digits and _ may stand."""
    return re.sub(r"\W", "_", name, flags=re.ASCII) or "_"


@torch.library.custom_op("terrazzo::onnx_refused", mutates_args=())
def _refused(x: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """Stands for a refused node, so that what lies behind it is still checked."""
    return x.new_zeros(shape)


@_refused.register_fake
def _(x, shape):
    return x.new_empty(shape)


class _Node(nn.Module):
    """One node with its constants."""

    def __init__(self, step: Step, opset: int, known: dict[str, np.ndarray]):
        super().__init__()
        self.function = OPERATORS[step.op](step, opset)
        self.places: list[str | None] = []
        self.numbers: dict[int, object] = {}
        for place, name in enumerate(step.inputs):
            value = known.get(name)
            self.places.append(None)
            if name == "":
                self.numbers[place] = None
            elif value is None:
                continue
            elif value.dtype.kind != "f" or step.op in _NUMBERS:
                self.numbers[place] = float(value) if step.op == "Pow" and value.size == 1 else value
            else:
                weight = place == 1 and step.op in ("Conv", "Gemm", "MatMul")
                self.places[place] = "weight" if weight else f"constant{place}"
                self.register_buffer(self.places[place], torch.from_numpy(np.array(value, dtype=np.float32)))

    def forward(self, *given: object) -> object:
        """The node's value; `given` are the inputs that are not constants."""
        rest = iter(given)
        arguments = []
        for place, name in enumerate(self.places):
            if name is not None:
                arguments.append(getattr(self, name))
            else:
                arguments.append(self.numbers[place] if place in self.numbers else next(rest))
        return self.function(*arguments)


class OnnxModule(nn.Module):
    """Runs an ONNX graph on images (N, C, H, W); `refusals` are the nodes that it cannot run."""

    def __init__(self, graph: OnnxGraph, shape: tuple[int, int, int]):
        super().__init__()
        self.graph, self.refusals = lowered(graph)
        self.shape = shape
        _fuse_gelu(self.graph)
        self.nodes: list[tuple[Step, str]] = []
        self.steps: dict[str, Step] = {}
        self.values: dict[str, str] = {}
        for step in self.graph.steps:
            name, count = key(step.name), 1
            while name in self.steps or hasattr(self, name):
                name, count = f"{key(step.name)}_{count}", count + 1
            self.steps[name] = step
            self.nodes.append((step, name))
            if step.domain != "refused" and step.op != "Shape":
                self._add(step, name)
        self.quantized = any(step.op == "Quant" for step in self.graph.steps)

    def _add(self, step: Step, name: str) -> None:
        if all(value in self.graph.known for value in step.inputs):
            return
        try:
            if step.op not in OPERATORS or step.domain not in ("", "ai.onnx", "com.microsoft"):
                if step.op in ("ConstantOfShape", "Range"):
                    return
                remedy = remedy_for(_REMEDIES.get(step.op, ""))
                if step.op in _DYNAMIC:
                    remedy = "quantize statically (QDQ or QOperator), with constant scales"
                where = f" of domain {step.domain}" if step.domain else ""
                raise Refused(f"the operator{where} has no translation", remedy)
            self.add_module(name, _Node(step, self.graph.opset, self.graph.known))
        except Refused as error:
            self._refuse(step, error)
        except MALFORMED as error:
            self._refuse(step, malformed(error))

    def _refuse(self, step: Step, error: Refused) -> None:
        self.refusals.append(Refusal(step.name, step.op, error.reason, error.remedy))
        step.domain = "refused"

    def tensors(self) -> dict[str, str]:
        """ONNX's names of quantized values by the names that they have in the integer graph."""
        return {name: step.outputs[0] for name, step in self.steps.items() if step.op == "Quant"}

    def forward(self, image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """The model's output, or outputs, for a batch (N, C, H, W)."""
        values: dict[str, object] = {self.graph.input: self._placed(image)}
        known = dict(self.graph.known)
        for step, name in self.nodes:
            if step.op == "Shape" and step.inputs[0] in values:
                start, end = int(step.attrs.get("start", 0)), step.attrs.get("end")
                shape = [int(extent) for extent in values[step.inputs[0]].shape]
                known[step.outputs[0]] = np.array(shape[start:end], np.int64)
            elif step.domain == "refused":
                self._stand_in(step, values)
            elif all(value in known for value in step.inputs):
                known |= self._constant(step, known)
            else:
                given = [
                    values[v] if v in values else _argument(known[v])
                    for v in step.inputs
                    if v not in self.graph.known
                ]
                found = getattr(self, name)(*given)
                outputs = found if isinstance(found, list | tuple) else [found]
                values |= dict(zip(step.outputs, outputs, strict=False))
        results = [values[name] for name in self.graph.outputs]
        return results[0] if len(results) == 1 else results

    def _constant(self, step: Step, known: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if step.op == "Quant":
            return {step.outputs[0]: real_codes(known[step.inputs[0]], step.attrs)}
        try:
            return computed(step, known, self.graph.opset)
        except Exception:  # onnx's evaluator lacks some old versions of operators
            arguments = [torch.from_numpy(np.array(known[name])) for name in step.inputs[:1]]
            arguments += [known[name] for name in step.inputs[1:]]
            if step.op == "Concat":
                arguments = [torch.from_numpy(np.array(known[name])) for name in step.inputs]
            found = OPERATORS[step.op](step, self.graph.opset)(*arguments)
            outputs = found if isinstance(found, list) else [found]
            return {name: value.numpy() for name, value in zip(step.outputs, outputs, strict=True)}

    def _placed(self, image: torch.Tensor) -> torch.Tensor:
        """The image in the shape of ONNX's input."""
        declared = self.graph.input_shape
        if isinstance(declared[0], int) and image.shape[0] != declared[0]:
            raise ValueError(f"the model takes batches of {declared[0]} alone")
        if len(declared) == 2:
            return image.reshape(image.shape[0], -1)
        if len(declared) == 4 and is_channels_last(declared):
            return image.permute(0, 2, 3, 1)
        return image

    def _stand_in(self, step: Step, values: dict[str, object]) -> None:
        source = next((values[name] for name in step.inputs if name in values), values[self.graph.input])
        for name in step.outputs:
            shape = self.graph.shapes.get(name)
            if not shape or None in shape[1:]:
                raise ValueError(f"the shape of {name} is not known")
            values[name] = _refused(source, [source.shape[0], *shape[1:]])


def _argument(value: np.ndarray) -> torch.Tensor | np.ndarray:
    """A constant that was computed from shapes: numbers as they are, real values as a tensor."""
    return torch.from_numpy(np.array(value, np.float32)) if value.dtype.kind == "f" else value


def is_channels_last(shape: list[int | str]) -> bool:
    """Whether an input of four axes is (N, H, W, C), as TensorFlow's are."""
    return shape[3] in (1, 3) and shape[1] not in (1, 3)


def _fuse_gelu(graph: OnnxGraph) -> None:
    """Replace x / 2 * (1 + erf(x / sqrt(2))), however its products stand, by Gelu."""
    makers = {name: step for step in graph.steps for name in step.outputs}

    def constant(name: str, value: float) -> bool:
        found = graph.known.get(name)
        return found is not None and found.size == 1 and abs(float(found.reshape(())) - value) < 1e-4

    def scaled(name: str, factor: float) -> str | None:
        """x where the value is x times factor."""
        step = makers.get(name)
        if step is not None and step.op == "Mul":
            for a, b in (step.inputs, step.inputs[::-1]):
                if constant(b, factor):
                    return a
        if step is not None and step.op == "Div" and constant(step.inputs[1], 1 / factor):
            return step.inputs[0]
        return None

    def gate(name: str) -> str | None:
        """x where the value is 1 + erf(x / sqrt(2))."""
        step = makers.get(name)
        if step is None or step.op != "Add":
            return None
        for a, b in (step.inputs, step.inputs[::-1]):
            erf = makers.get(a)
            if constant(b, 1.0) and erf is not None and erf.op == "Erf":
                return scaled(erf.inputs[0], 2**-0.5)
        return None

    for number, step in enumerate(graph.steps):
        if step.op not in ("Mul", "Div"):
            continue
        source = None
        whole = scaled(step.outputs[0], 0.5)
        product = makers.get(whole) if whole else None
        for a, b in (step.inputs, step.inputs[::-1]):
            half = scaled(a, 0.5)
            if half and gate(b) == half:  # (x / 2) * g
                source = half
            elif half and gate(half) == b:  # (g / 2) * x
                source = b
        if product is not None and product.op == "Mul":  # (x * g) / 2
            for a, b in (product.inputs, product.inputs[::-1]):
                if gate(b) == a:
                    source = a
        if source is not None:
            graph.steps[number] = Step(op="Gelu", name=step.name, inputs=[source], outputs=step.outputs)

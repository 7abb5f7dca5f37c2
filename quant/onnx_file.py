"""ONNX files: read, checked, and with external data; what follows from constants alone is computed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ..arch.errors import UserError

__all__ = ["OnnxError", "OnnxGraph", "Step", "attributes", "computed", "read"]

OLDEST_OPSET = 9


class OnnxError(UserError):
    """An ONNX file that cannot be read; the message names it, the demanded property and the remedy."""


@dataclasses.dataclass(kw_only=True)
class Step:
    """One node. Names of values are ONNX's own; "" stands for an input that is left out."""

    op: str
    name: str
    """The node's name, or its first output where it has none."""
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, object] = dataclasses.field(default_factory=dict)
    domain: str = ""


@dataclasses.dataclass(kw_only=True)
class OnnxGraph:
    """Nodes in execution order, with the values that are known beforehand."""

    name: str
    opset: int
    input: str
    input_shape: list[int | str]
    """With the batch axis; a string is a dynamic axis."""
    outputs: list[str]
    steps: list[Step]
    known: dict[str, np.ndarray]
    shapes: dict[str, tuple[int | None, ...]]
    """As far as ONNX's own shape inference finds them."""


def read(path: str | Path) -> OnnxGraph:
    """Read an ONNX file of one input. Raises OnnxError."""
    path = Path(path)
    if not path.is_file():
        raise OnnxError(f"{path}: must be an existing ONNX file; check the path")
    try:
        model = onnx.load(path, load_external_data=False)
        proto = model.graph
    except (DecodeError, ValueError, OSError) as error:
        raise OnnxError(
            f"{path}: must be a readable ONNX file, not {_line(error)}; export it again"
        ) from None
    if not proto.node or not proto.output:
        raise OnnxError(
            f"{path}: must be an ONNX model with nodes and outputs, but has none; export it again"
        )
    _load_external(model, path)
    opset = next((i.version for i in model.opset_import if i.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise OnnxError(f"{path}: opset must be {OLDEST_OPSET} or newer, not {opset}; convert it to opset 17")
    known = {"": np.zeros(0)} | {t.name: _array(t, path) for t in proto.initializer}
    inputs = [value for value in proto.input if value.name not in known]
    if len(inputs) != 1:
        listed = ", ".join(value.name for value in inputs) or "none"
        raise OnnxError(
            f"{path}: must have one input that is no weight, not {listed}; export the image model alone"
        )
    graph = OnnxGraph(
        name=path.stem,
        opset=opset,
        input=inputs[0].name,
        input_shape=[_extent(dim) for dim in inputs[0].type.tensor_type.shape.dim],
        outputs=[value.name for value in proto.output],
        steps=[],
        known=known,
        shapes=_shapes(model),
    )
    _add_steps(graph, proto, path)
    return graph


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _extent(dim: onnx.TensorShapeProto.Dimension) -> int | str:
    return dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else dim.dim_param or "?"


def _load_external(model: onnx.ModelProto, path: Path) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if not (path.parent / location).is_file():
            raise OnnxError(
                f"{path}: external data {location!r} of tensor {tensor.name} must lie beside the model; "
                "copy it there, or save the model with its weights inside"
            )
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # whatever onnx finds wrong with offsets, lengths and locations
        raise OnnxError(
            f"{path}: external data must be readable, not {_line(error)}; export it again"
        ) from None


def _array(tensor: onnx.TensorProto, path: Path) -> np.ndarray:
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # whatever onnx finds wrong with types and lengths
        raise OnnxError(
            f"{path}: tensor {tensor.name} must hold as many values as its shape says, not {_line(error)}; export it again"
        ) from None


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    try:
        proto = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # inference is a help for findings alone
        proto = model.graph
    return {
        value.name: tuple(dim.dim_value or None for dim in value.type.tensor_type.shape.dim)
        for value in (*proto.input, *proto.value_info, *proto.output)
        if value.type.tensor_type.HasField("shape")
    }


def _add_steps(graph: OnnxGraph, proto: onnx.GraphProto, path: Path) -> None:
    defined = {graph.input, *graph.known}
    for number, node in enumerate(proto.node):
        outputs = [name for name in node.output if name]
        if any(
            isinstance(text, bytes) for text in (node.name, node.op_type, node.domain, *node.input, *outputs)
        ):
            raise OnnxError(f"{path}: names of node {number} must be UTF-8; export the model again")
        if not outputs:
            raise OnnxError(
                f"{path}: node {node.name or number} ({node.op_type}) must have an output; export it again"
            )
        for name in node.input:
            if name not in defined:
                raise OnnxError(
                    f"{path}: node {node.name or outputs[0]} ({node.op_type}) reads {name!r}, which must be computed "
                    "before it; export the model again"
                )
        defined |= set(outputs)
        step = Step(
            op=node.op_type,
            name=node.name or outputs[0],
            inputs=list(node.input),
            outputs=list(node.output),
            attrs=attributes(node),
            domain=node.domain,
        )
        if node.op_type == "Constant":
            graph.known[outputs[0]] = _constant(step)
        else:
            graph.steps.append(step)
    for name in graph.outputs:
        if name not in defined:
            raise OnnxError(f"{path}: output {name!r} must be computed by a node; export the model again")


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    """Attributes as plain values, strings decoded."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _constant(step: Step) -> np.ndarray:
    ((kind, value),) = step.attrs.items()
    return numpy_helper.to_array(value) if kind == "value" else np.array(value)


def computed(step: Step, known: dict[str, np.ndarray], opset: int) -> dict[str, np.ndarray]:
    """The outputs of a standard node whose inputs are all known."""
    names = [name for name in dict.fromkeys(step.inputs) if name]
    node = helper.make_node(step.op, step.inputs, step.outputs, **step.attrs)
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(known[n].dtype), known[n].shape)
        for n in names
    ]
    results = [helper.make_value_info(name, onnx.TypeProto()) for name in step.outputs if name]
    model = helper.make_model(
        helper.make_graph([node], "constant", values, results), opset_imports=[helper.make_opsetid("", opset)]
    )
    found = ReferenceEvaluator(model).run(None, {name: known[name] for name in names})
    return dict(zip([name for name in step.outputs if name], map(np.asarray, found), strict=True))

"""Codes of an imported model's layers beside those that onnxruntime computes for the same values.

Every layer reads onnxruntime's codes of the tensors before it where they are known, so that a difference is the
layer's own.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator

import numpy as np
import onnx

from .arch.graph import Graph, Preprocessing, Tensor
from .quant.prescribed import stored
from .quant.source import Source
from .sim import accelerated, reference

__all__ = ["Compared", "compare", "outputs", "reals"]


@dataclasses.dataclass
class Compared:
    """Codes of one tensor that is quantized, over all images."""

    tensor: str
    """In the graph."""
    name: str
    """In the ONNX file; of a part of its channels, with their numbers behind it."""
    kind: str
    """The operator that computes it."""
    codes: int = 0
    same: int = 0
    near: int = 0
    """At most one code away, equal ones included."""
    most: int = 0
    """The largest distance."""

    def add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Count the codes of one batch."""
        distance = np.abs(ours.astype(np.int64) - theirs)
        self.codes += distance.size
        self.same += int((distance == 0).sum())
        self.near += int((distance <= 1).sum())
        self.most = max(self.most, int(distance.max(initial=0)))


def reals(raw: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """What a model takes for raw images (N, H, W, C): float32 (N, C, H, W)."""
    values = (raw * preprocessing.scale - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    return np.ascontiguousarray(values.astype(np.float32).transpose(0, 3, 1, 2))


def compare(
    model: onnx.ModelProto, source: Source, graph: Graph, raw: np.ndarray, batch: int = 1
) -> tuple[list[Compared], np.ndarray]:
    """Every tensor of `graph` that has a name in the ONNX file `model` of the loaded `source`, in order, and onnxruntime's
    outputs (N, values). `raw` are images (N, H, W, C); models of one image take batch 1.

    onnxruntime runs the nodes as they stand in the file, without optimization.
    """
    wanted = dict(_known(source, graph))
    session = _session(model, list(dict.fromkeys(value for value, _, _ in wanted.values())))
    steps = [(operator, accelerated.prepare(graph, operator)) for operator in graph.operators]
    found: dict[str, Compared] = {}
    outputs = []
    for start in range(0, len(raw), batch):
        images = raw[start : start + batch]
        names = [value.name for value in session.get_outputs()]
        given = session.run(names, {session.get_inputs()[0].name: reals(images, source.preprocessing)})
        theirs = dict(zip(names, given, strict=True))
        outputs.append(given[0].reshape(len(images), -1))
        values = {graph.input: reference.quantize_batch(graph, images)}
        for operator, step in steps:
            results = reference.evaluate(graph, operator, values) if step is None else step(values, False)
            for name, codes in results.items():
                if name in wanted:
                    value, shift, first = wanted[name]
                    forced = _placed(theirs[value].astype(np.int64) - shift, graph.tensor(name), first, codes)
                    if forced is not None:
                        label = value if first is None else f"{value}[{first}:{first + codes.shape[-1]}]"
                        found.setdefault(name, Compared(name, label, operator.op)).add(codes, forced)
                        codes = forced.astype(codes.dtype)
                values[name] = np.ascontiguousarray(codes)
    return list(found.values()), np.concatenate(outputs)


def outputs(model: onnx.ModelProto, preprocessing: Preprocessing, raw: np.ndarray) -> np.ndarray:
    """onnxruntime's first output (N, values) of a file for raw images (N, H, W, C), one after the other."""
    session = _session(model, [])
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: reals(image[None], preprocessing)})[0].reshape(-1) for image in raw]
    return np.stack(found)


def _known(source: Source, graph: Graph) -> Iterator[tuple[str, tuple[str, int, int | None]]]:
    """(tensor, (value of the file, what our codes are less than its, first channel of a part))."""
    quants = {name: step for name, step in source.module.steps.items() if step.op == "Quant"}
    for tensor in graph.tensors:
        part = re.fullmatch(r"(.+)\.rows(\d+)", tensor.name)
        name, first = (part[1], int(part[2])) if part else (tensor.name, None)
        if name in quants and tensor.dtype == "s8":
            attrs = quants[name].attrs
            yield (
                tensor.name,
                (quants[name].outputs[0], attrs["zero_point"] - stored(attrs).zero_point, first),
            )


def _session(model: onnx.ModelProto, names: list[str]):
    import onnxruntime

    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _placed(theirs: np.ndarray, tensor: Tensor, first: int | None, ours: np.ndarray) -> np.ndarray | None:
    """Their codes in the order of a tensor of the graph, of the orders that give its shape the one that agrees best:
    axes say neither channels nor tokens. None where there is none."""
    count, channels = len(ours), tensor.channels
    orders = itertools.chain([tuple(range(theirs.ndim))], _ORDERS.get(theirs.ndim, ()))
    best, agreed = None, -1
    for order in orders:
        value = theirs.transpose(order)
        if first is not None:
            whole = value.size // (count * tensor.positions)
            if value.size != count * tensor.positions * whole or whole < first + channels:
                continue
            value = value.reshape(count, -1, whole)[..., first : first + channels]
        if value.size == ours.size:
            value = value.reshape(ours.shape)
            if (agrees := int((value == ours).sum())) > agreed:
                best, agreed = value, agrees
    return best


_ORDERS = {3: ((0, 2, 1),), 4: ((0, 2, 3, 1), (0, 2, 1, 3), (0, 3, 1, 2))}
"""(N, C, T); (N, C, H, W), (N, heads, T, d), (N, heads, d, T)."""

"""ONNX models in: float ones into the float graph, quantized ones with `quant` nodes that keep their scales."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..arch.graph import Graph, Preprocessing
from ..arch.schemes import Scheme
from . import imported
from .floatgraph import FloatGraph
from .frontend import Finding, UnsupportedModel, import_module
from .onnx_file import OnnxError, read
from .onnx_module import OnnxModule, is_channels_last
from .report import Report
from .source import Source

__all__ = ["OnnxModule", "check", "import_onnx", "integer", "is_quantized", "load"]

_QUANTIZED_TOLERANCE = 0.1
"""Of the largest output: sums in another order may move codes by one."""


def load(
    path: str | Path, *, shape: tuple[int, int, int] | None = None, preprocessing: Preprocessing | None = None
) -> Source:
    """The model of an ONNX file; its module is an `OnnxModule`.

    `shape` (H, W, C) is needed where the file leaves it open. Without `preprocessing`, pixels 0..255 become 0..1.
    Raises OnnxError.
    """
    path = Path(path)
    graph = read(path)
    declared = graph.input_shape
    if len(declared) == 4:
        found = declared[1:] if is_channels_last(declared) else [*declared[2:], declared[1]]
        if shape is None:
            shape = tuple(found)
        if any(isinstance(a, int) and a != b for a, b in zip(found, shape, strict=True)):
            raise OnnxError(
                f"{path}: input {graph.input} must be given as it is declared, {declared}, not {shape}"
            )
    elif len(declared) != 2:
        raise OnnxError(f"{path}: input {graph.input} must be (N, C, H, W) or (N, values), not {declared}")
    elif shape is None and isinstance(declared[1], int):
        shape = (1, 1, declared[1])
    if shape is None or not all(isinstance(extent, int) for extent in shape):
        raise OnnxError(
            f"{path}: input {graph.input} has the dynamic shape {declared}; give one image's channels, height and "
            "width (--input C,H,W)"
        )
    channels = shape[2]
    plain = Preprocessing(scale=1 / 255, mean=(0.0,) * channels, std=(1.0,) * channels)
    module = OnnxModule(graph, shape).eval()
    return Source(name=graph.name, module=module, shape=shape, preprocessing=preprocessing or plain)


def import_onnx(source: Source) -> FloatGraph:
    """The graph of a loaded model, checked against it. Raises UnsupportedModel with every refused node."""
    module: OnnxModule = source.module
    sample = source.sample
    if isinstance(module.graph.input_shape[0], int):
        sample = sample[:1].repeat(module.graph.input_shape[0], 1, 1, 1)
    refused = [Finding(r.name, r.op, r.reason, r.remedy) for r in module.refusals]
    tolerance = _QUANTIZED_TOLERANCE if module.quantized else None
    try:
        graph = import_module(module, sample, source.name, tolerance=tolerance)
    except UnsupportedModel as error:
        raise UnsupportedModel(
            source.name, [*refused, *_translated(module, error.findings, bool(refused))]
        ) from None
    except ValueError as error:
        raise OnnxError(str(error)) from None
    if refused:
        raise UnsupportedModel(source.name, refused)
    return graph


def _translated(module: OnnxModule, findings: list[Finding], refused: bool) -> list[Finding]:
    """Findings of the torch frontend in ONNX's names; stand-ins of refused nodes left out."""
    result = []
    for finding in findings:
        step = module.steps.get(finding.path.split(".")[0])
        if finding.op == "terrazzo::onnx_refused" or (refused and finding.op == "torch.export"):
            continue
        result.append(finding if step is None else dataclasses.replace(finding, path=step.name, op=step.op))
    return result


def is_quantized(source: Source) -> bool:
    """Whether the model brings its own scales, so that nothing is calibrated."""
    return isinstance(source.module, OnnxModule) and source.module.quantized


def integer(
    source: Source, *, mixture: dict[Scheme, int] | None = None, drain: int = 1
) -> tuple[Graph, Report]:
    """The integer graph of a model that comes quantized, see `imported.build`."""
    steps = source.module.steps

    def named(name: str) -> str:
        step = steps.get(name.split(".")[0])
        return name if step is None else step.name

    graph = import_onnx(source)
    return imported.build(graph, source.preprocessing, mixture=mixture, drain=drain, named=named)


def check(source: Source) -> list[Finding]:
    """Every node of a loaded model that is refused, by its ONNX name; empty if it can be imported."""
    try:
        if is_quantized(source):
            integer(source)
        else:
            import_onnx(source)
    except UnsupportedModel as error:
        return error.findings
    return []

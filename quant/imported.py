"""The integer graph of a model that comes quantized: its own scales, zero points and bit widths, nothing calibrated.

The float graph holds `quant` nodes. What lies between two of them becomes one integer operator, or a table where it is
a function of one tensor's codes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..arch.graph import Graph, Preprocessing
from ..arch.schemes import Scheme
from . import imported_attention as attention
from . import imported_elementwise as elementwise
from . import imported_image
from . import imported_layers as layers
from . import imported_moves as moves
from .floatgraph import FloatGraph, Node
from .forms import Codes, Form, Raw, Sums, Unary, Whole
from .frontend import Finding, UnsupportedModel
from .onnx_dialects import Refused
from .prescribed import normalized, stored
from .report import Report
from .writer import Writer

__all__ = ["Importer", "build"]


def build(
    graph: FloatGraph,
    preprocessing: Preprocessing,
    *,
    mixture: dict[Scheme, int] | None = None,
    drain: int = 1,
    name: str | None = None,
    named: Callable[[str], str] = str,
) -> tuple[Graph, Report]:
    """The integer graph of a float graph with `quant` nodes, and a report without measurements.

    Rows are Fixed-8, or of the `mixture` of lanes where that holds their codes exactly. `named` gives the model's name
    of a node for findings. Raises UnsupportedModel with every node that has no integer form.
    """
    importer = Importer(normalized(graph), preprocessing, mixture or {Scheme.FIXED8: 1}, drain)
    output = importer.run()
    if importer.refused:
        findings = [
            Finding(named(node.name), node.kind, error.reason, error.remedy)
            for node, error in importer.refused
        ]
        raise UnsupportedModel(graph.name, findings)
    built = Graph(
        name=name or graph.name,
        input="input",
        output=output,
        preprocessing=importer.preprocessing,
        tensors=tuple(importer.tensors.values()),
        operators=tuple(importer.operators),
        constants=importer.constants,
    )
    return built, Report(built.name, 0, importer.layers)


class Importer(Writer):
    def __init__(
        self, graph: FloatGraph, preprocessing: Preprocessing, mixture: dict[Scheme, int], drain: int
    ):
        super().__init__()
        self.graph, self.preprocessing, self.mixture, self.drained = graph, preprocessing, mixture, drain
        channels = graph.input_shape[-1]
        self.forms: dict[str, Form | None] = {"input": Raw(np.ones(channels), np.zeros(channels))}
        self.shapes = {"input": graph.input_shape} | {node.name: node.shape for node in graph.nodes}
        self.refused: list[tuple[Node, Refused]] = []

    def run(self) -> str:
        """Emit everything; the output tensor's name."""
        for node in self.graph.nodes:
            inputs = [self.forms[name] for name in node.inputs]
            self.forms[node.name] = None
            if any(form is None for form in inputs):
                continue  # behind a refused node
            try:
                self.forms[node.name] = _HANDLERS[node.kind](self, node, *inputs)
            except Refused as error:
                self.refused.append((node, error))
        last = self.graph.nodes[-1]
        form = self.forms[last.name]
        try:
            output = "" if form is None else self.tensor(form, last).name
        except Refused as error:
            self.refused.append((last, error))
            output = ""
        self.drop_unread(output)
        return output

    def quant(self, node: Node, form: Form) -> Form:
        found, rounding = stored(node.attrs), node.attrs["rounding"]
        match form:
            case Raw():
                return imported_image.quantized_image(self, node, form, found, rounding)
            case Codes():
                if form.range == found:
                    return form
                if form.wide:
                    sums = self.elementwise(node, form)
                    return self.drain(sums, found, rounding, node.name)
                return self.table(Unary(form, form.real, form.shape), found, rounding, node.name)
            case Unary():
                return self.table(form, found, rounding, node.name)
            case Sums():
                return self.drain(form, found, rounding, node.name)
            case Whole():
                return form.emit(found, node.name)
        raise AssertionError(form)


_HANDLERS: dict[str, Callable[..., Form]] = {
    "quant": Importer.quant,
    "conv": layers.weighted,
    "linear": layers.weighted,
    "act": elementwise.act,
    "add": elementwise.add,
    "multiply": elementwise.multiply,
    "avgpool": layers.avgpool,
    "layernorm": layers.layernorm,
    "attention": attention.attention,
    "maxpool": moves.move,
    "reshape": moves.move,
    "slice": moves.move,
    "gather": moves.move,
    "concat": moves.concat,
    "tokens": moves.tokens,
}

"""The integer graph of a model that comes quantized: its own scales, zero points and bit widths, nothing calibrated.

The float graph holds `quant` nodes. What lies between two of them becomes one integer operator, or a table where it is
a function of one tensor's codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from ..arch.graph import (
    AvgPool,
    Concat,
    Constant,
    Conv,
    Drain,
    Gather,
    Graph,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Operator,
    Preprocessing,
    Reshape,
    Slice,
)
from ..arch.schemes import Scheme
from .builder import CONSTANT_LIMIT
from .calibrate import Range
from .fake_quantize import BIPOLAR
from .floatgraph import ACTIVATIONS, FloatGraph, Node
from .forms import ALL_CODES, NOT_QUANTIZED, Codes, Form, Raw, Sums, Unary, Whole, ends, unary
from .frontend import Finding, UnsupportedModel
from .onnx_dialects import Refused
from .prescribed import bits_of, normalized, quantized, row_codes, schemes_for, stored
from .report import Report
from .rows import accumulator_range
from .writer import Writer

__all__ = ["build"]


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
    importer = _Importer(normalized(graph), preprocessing, mixture or {Scheme.FIXED8: 1}, drain)
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


class _Importer(Writer):
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
                return self._input(node, form, found, rounding)
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

    def _input(self, node: Node, form: Raw, found: Range, rounding: str) -> Codes:
        if "input" in self.tensors:
            raise Refused("quantizes the image in a second way", "quantize the image once")
        if (form.scale == 0).any():
            raise Refused("loses a channel of the image: its factor is 0", "remove the channel")
        old, shape = self.preprocessing, self.graph.input_shape
        mean, std = np.array(old.mean), np.array(old.std)
        if rounding == "ROUND" and found.hi - found.lo <= 255:
            self.preprocessing = dataclasses.replace(
                old,
                mean=tuple(map(float, mean - form.shift * std / form.scale)),
                std=tuple(map(float, std / form.scale)),
            )
            ends = [
                np.rint((pixel - np.array(self.preprocessing.mean)) / self.preprocessing.std / found.scale)
                + found.zero_point
                for pixel in (0.0, old.raw_max * old.scale)
            ]
            bits = bits_of(found)
            full = found.lo == -(1 << bits - 1) and found.hi == (1 << bits - 1) - 1
            if full or found.lo <= np.min(ends) <= np.max(ends) <= found.hi:
                return self.declare("input", found, shape)
            image = self.declare("input", dataclasses.replace(found, lo=-128, hi=127), shape)
            return self.table(Unary(image, image.real, shape), found, rounding, node.name)
        slope, start = old.scale * form.scale / std, form.shift - form.scale * mean / std
        if rounding == BIPOLAR and self._only_weighted(node.name):
            pixels = np.arange(int(old.raw_max) + 1)[:, None] * slope + start
            if np.abs(pixels).min() > 1e-5 * np.abs(pixels).max():  # no rounding of float32 decides
                return self._signs(old, form, found.scale, float(np.abs(pixels).min()))
        if np.ptp(slope) or np.ptp(start) or old.raw_max > 255:
            raise Refused(
                f"quantizes the image by {rounding} with several channels' factors",
                "use pixels 0..255 with the same mean and deviation for all channels",
            )
        self.preprocessing = dataclasses.replace(old, mean=(0.0,) * len(mean), std=(1.0,) * len(std))
        image = self.declare("input", Range(old.scale, -128, -128, 127), shape)
        pixels = ((ALL_CODES + 128) * old.scale - mean[0]) / std[0]
        values = pixels.astype(np.float32) * np.float32(form.scale[0]) + np.float32(form.shift[0])
        return self.table(Unary(image, values, shape), found, rounding, node.name)

    def _only_weighted(self, name: str) -> bool:
        """Whether only linear layers and convolutions without padding read a value."""
        readers = [node for node in self.graph.nodes if name in node.inputs]
        return bool(readers) and all(
            node.kind == "linear" or (node.kind == "conv" and not any(node.attrs["padding"]))
            for node in readers
        )

    def _signs(self, old: Preprocessing, form: Raw, scale: float, least: float) -> Codes:
        """The signs of an image whose pixels are at least `least` away from zero, as the codes -8 and 7 that everything
        beyond them saturates to; their readers' constants take the half step between the two."""
        step = scale * 2 / 15
        gain = form.scale * (9 * step / least)
        mean, std = np.array(old.mean), np.array(old.std)
        self.preprocessing = dataclasses.replace(
            old,
            mean=tuple(map(float, mean - form.shift * std / form.scale)),
            std=tuple(map(float, std / gain)),
        )
        codes = self.declare("input", Range(step, 0, -8, 7), self.graph.input_shape)
        return dataclasses.replace(codes, range=Range(step, -0.5, -8, 7))

    def weighted(self, node: Node, form: Form) -> Form:
        weight, bias = (node.params[key].double().numpy() for key in ("weight", "bias"))
        if _is_affine(node):
            factor = weight.reshape(-1)
            if isinstance(form, Raw):
                return Raw(form.scale * factor, form.shift * factor + bias)
            if isinstance(form, Codes | Unary) and not np.ptp(factor) and not np.ptp(bias):
                known = unary(form)
                if known is not None:
                    return dataclasses.replace(
                        known, values=known.values * np.float32(factor[0]) + np.float32(bias[0])
                    )
            folds = isinstance(form, Sums) and not form.acts and form.residual is None and (factor > 0).all()
            if folds and (len(form.scale) > 1 or not (np.ptp(factor) or np.ptp(bias))):
                take = slice(None) if len(form.scale) > 1 else slice(1)
                scale, shift = form.scale * factor[take], form.bias * factor[take] + bias[take]
                return dataclasses.replace(form, scale=scale, bias=shift)
        x = self.read(form, node)
        codes, scale = row_codes(weight.reshape(len(weight), -1))
        groups = int(node.attrs.get("groups", 1))
        if groups > 1:
            schemes = np.full(len(codes), Scheme.FIXED8, np.uint8)
        else:
            schemes = schemes_for(codes, self.mixture, self.drained)
        least, greatest = accumulator_range(codes, x.range.lo, x.range.hi)
        offset = np.floor(x.range.zero_point * codes.sum(axis=1)).astype(np.int64)
        rest = x.range.zero_point * codes.sum(axis=1) - offset  # of a zero point between two codes
        scale = scale * x.range.scale

        def operator(name: str, output: str, drain: Drain) -> Operator:
            if node.kind == "linear":
                return Linear(name=name, input=x.name, output=output, drain=drain)
            fields = {key: tuple(node.attrs[key]) for key in ("stride", "padding")}
            dilation = tuple(node.attrs.get("dilation", (1, 1)))
            return Conv(
                name=name,
                input=x.name,
                output=output,
                groups=groups,
                dilation=dilation,
                drain=drain,
                **fields,
            )

        return Sums(
            node=node,
            operator=operator,
            constants={"weight": codes.reshape(weight.shape).astype(np.int8), "scheme": schemes},
            scale=scale,
            bias=bias - scale * rest,
            offset=offset,
            least=least,
            greatest=greatest,
        )

    def act(self, node: Node, form: Form) -> Form:
        kind = node.attrs["kind"]
        if isinstance(form, Sums):
            return dataclasses.replace(form, acts=(*form.acts, kind))
        known = unary(form)
        if known is None:
            raise Refused("reads a value that is not quantized to 8 bits", NOT_QUANTIZED)
        values = ACTIVATIONS[kind](torch.from_numpy(known.values)).numpy()
        return dataclasses.replace(known, values=values)

    def add(self, node: Node, form: Form, other: Form | None = None) -> Form:
        if other is None:
            constant = node.params["constant"].double().numpy()
            if isinstance(form, Raw):
                rows = constant.reshape(-1, constant.shape[-1])
                if np.ptp(rows, axis=0).any():
                    raise Refused("adds an image to the image", "add one number per channel")
                return Raw(form.scale, form.shift + rows[0])
            known = unary(form)
            if known is not None and not np.ptp(constant):
                return dataclasses.replace(known, values=known.values + np.float32(constant.flat[0]))
            other = self.constant(f"{node.name}.constant", constant, node.shape)
        first, second = self.rooted(form), self.rooted(other)
        if first is not None and second is not None and first.source == second.source:
            return dataclasses.replace(first, values=first.values + second.values)
        for a, b in ((form, other), (other, form)):
            if isinstance(a, Sums) and not a.acts and a.residual is None and isinstance(b, Codes):
                if self._readers(a.node.name) > 1 or a.node.kind == "multiply":
                    continue
                return dataclasses.replace(a, residual=b)
        if not (isinstance(form, Codes) and isinstance(other, Codes)):
            raise Refused("adds a value that is not quantized", NOT_QUANTIZED)
        if form.wide and not other.wide:
            form, other = other, form
        return dataclasses.replace(self.elementwise(node, form), residual=other)

    def _readers(self, name: str) -> int:
        return sum(node.inputs.count(name) for node in self.graph.nodes)

    def multiply(self, node: Node, form: Form, other: Form | None = None) -> Form:
        if other is None:
            constant = node.params["constant"].double().numpy()
            known = unary(form)
            if known is None or np.ptp(constant):
                raise Refused("multiplies by constants that differ by place", "multiply by one number")
            return dataclasses.replace(known, values=known.values * np.float32(constant.flat[0]))
        first, second = self.rooted(form), self.rooted(other)
        if first is not None and second is not None and first.source == second.source:
            return dataclasses.replace(first, values=first.values * second.values)
        a, b = self.read(form, node), self.read(other, node)
        if a.range.zero_point and not b.range.zero_point:
            a = self.wide(a)
        elif b.range.zero_point and not a.range.zero_point:
            b = self.wide(b)
        elif a.range.zero_point:
            a, b = self.wide(a), self.symmetric(b)
        products = [x * y for x in ends(a) for y in ends(b)]
        return Sums(
            node=node,
            operator=lambda name, output, drain: Multiply(
                name=name, input=a.name, other=b.name, output=output, drain=drain
            ),
            constants={},
            scale=np.array([a.range.scale * b.range.scale]),
            bias=np.zeros(1),
            offset=np.zeros(1, np.int64),
            least=np.array([min(products)]),
            greatest=np.array([max(products)]),
        )

    def avgpool(self, node: Node, form: Form) -> Sums:
        x = self.read(form, node)
        count = int(np.prod(node.attrs["kernel"]))
        fields = {key: tuple(node.attrs[key]) for key in ("kernel", "stride", "padding")}
        return Sums(
            node=node,
            operator=lambda name, output, drain: AvgPool(
                name=name, input=x.name, output=output, drain=drain, **fields
            ),
            constants={},
            scale=np.array([x.range.scale / count]),
            bias=np.zeros(1),
            offset=np.array([count * x.range.zero_point]),
            least=np.array([count * x.range.lo]),
            greatest=np.array([count * x.range.hi]),
        )

    def layernorm(self, node: Node, form: Form) -> Whole:
        codes = self.tensor(form, node)
        x = self.wide(codes) if codes.wide else self.wide(codes, 64)
        gamma, beta = (node.params[key].double().numpy() for key in ("gamma", "beta"))

        def emit(found: Range, name: str) -> Codes:
            gain, offset = gamma / (1024 * found.scale), beta / found.scale + found.zero_point
            n = int(np.clip(np.floor(np.log2(32766 / max(float(np.abs(gain).max()), 1e-12))), 1, 38))
            while n > 1 and np.abs(offset).max() * 2.0**n >= CONSTANT_LIMIT:
                n -= 1
            g = np.clip(np.rint(gain * 2.0**n), -32768, 32767).astype(np.int16)
            b = np.rint(offset * 2.0**n).astype(np.int64) + (1 << n - 1)
            eps = max(1, round(node.shape[-1] ** 2 * float(node.attrs["eps"]) / x.range.scale**2))
            result = self.declare(name, found, node.shape)
            operator = LayerNorm(
                name=self.name(node.name),
                input=x.name,
                output=result.name,
                n=n,
                eps=eps,
                lo=found.lo,
                hi=found.hi,
            )
            self.emit(operator, {"g": g, "b": b}, name)
            return result

        return Whole(emit)

    def attention(self, node: Node, *forms: Form) -> Whole:
        raise Refused(
            "attention between quantized tensors is not imported",
            "import the float model and let Terrazzo quantize it",
        )

    def move(self, node: Node, form: Form) -> Codes | Unary:
        known = unary(form)
        if node.kind == "reshape" and known is not None and known.shape[-1] == node.shape[-1]:
            readers = [other for other in self.graph.nodes if node.name in other.inputs]
            if isinstance(form, Unary) or (readers and all(_is_uniform(reader) for reader in readers)):
                return dataclasses.replace(known, shape=node.shape)
        x = self.tensor(form, node) if node.kind != "maxpool" else self.read(form, node)
        kinds = {"slice": Slice, "gather": Gather, "maxpool": MaxPool}
        kind, fields, constants = kinds.get(node.kind, Reshape), {}, {}
        if node.kind == "maxpool":
            fields = {key: tuple(node.attrs[key]) for key in ("kernel", "stride", "padding")}
        elif node.kind == "reshape" and x.shape[-1] != node.shape[-1]:
            raise Refused("flattens for something else than a linear layer", "put a linear layer behind it")
        elif node.kind == "reshape":
            return self.reshaped(x, node.shape, node.name)
        elif node.kind == "gather":
            constants = {"index": node.params["index"].numpy().astype(np.int32)}
        elif (
            node.kind == "slice" and node.attrs["start"]
        ):  # a slice stands at tile boundaries, which depend on the machine
            start, count = int(node.attrs["start"]), int(node.attrs["count"])
            kind, constants = Gather, {"index": np.arange(start, start + count, dtype=np.int32)}
        elif node.kind == "slice":
            fields = {"start": 0, "count": int(node.attrs["count"])}
        result = self.declare(node.name, x.range, node.shape)
        self.emit(
            kind(name=self.name(node.name), input=x.name, output=result.name, **fields), constants, node.name
        )
        return result

    def concat(self, node: Node, *forms: Form) -> Codes:
        parts = [self.read(form, node) for form in forms]
        if len({part.range for part in parts}) > 1:
            raise Refused(
                "joins values of different scales", "quantize its output, or its inputs to one scale"
            )
        return self._joined(node, parts, node.attrs["axis"])

    def tokens(self, node: Node, form: Form) -> Codes:
        x = self.read(form, node)
        prefix = node.params["prefix"].double().numpy()
        constant = self.declare(f"{node.name}.prefix", x.range, prefix.shape)
        value = quantized(prefix, x.range, "ROUND").astype(np.int8)
        self.emit(Constant(name=self.name(constant.name), output=constant.name), {"value": value}, node.name)
        return self._joined(node, [constant, x], "positions")

    def _joined(self, node: Node, parts: list[Codes], axis: str) -> Codes:
        result = self.declare(node.name, parts[0].range, node.shape)
        inputs = tuple(part.name for part in parts)
        self.emit(
            Concat(name=self.name(node.name), inputs=inputs, output=result.name, axis=axis), {}, node.name
        )
        return result


def _is_affine(node: Node) -> bool:
    """Whether a convolution multiplies each channel by one number."""
    plain = (
        node.kind == "conv"
        and node.attrs["groups"] == len(node.params["weight"])
        and not any(node.attrs["padding"])
    )
    return (
        plain
        and node.params["weight"].numel() == len(node.params["weight"])
        and node.attrs["stride"] == (1, 1)
    )


def _is_uniform(node: Node) -> bool:
    """Whether a node applies one function to every element."""
    if node.kind == "conv":
        return _is_affine(node) and all(not np.ptp(node.params[key].numpy()) for key in ("weight", "bias"))
    return node.kind == "act"


_HANDLERS: dict[str, Callable[..., Form]] = {
    "quant": _Importer.quant,
    "conv": _Importer.weighted,
    "linear": _Importer.weighted,
    "act": _Importer.act,
    "add": _Importer.add,
    "multiply": _Importer.multiply,
    "avgpool": _Importer.avgpool,
    "layernorm": _Importer.layernorm,
    "attention": _Importer.attention,
    "maxpool": _Importer.move,
    "reshape": _Importer.move,
    "slice": _Importer.move,
    "gather": _Importer.move,
    "concat": _Importer.concat,
    "tokens": _Importer.tokens,
}

"""The integer graph of a model that comes quantized: its own scales, zero points and bit widths, nothing calibrated.

The float graph holds `quant` nodes. What lies between two of them becomes one integer operator, or a table where it is
a function of one tensor's codes. A value is known in one of the forms below until a `quant` gives it codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from ..arch import numerics
from ..arch.graph import (
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
    Preprocessing,
    Reshape,
    Residual,
    Second,
    Slice,
    Tensor,
    reads,
    writes,
)
from ..arch.schemes import Scheme
from .builder import CONSTANT_LIMIT, scaled
from .calibrate import Range
from .fake_quantize import BIPOLAR
from .floatgraph import ACTIVATIONS, FloatGraph, Node
from .frontend import Finding, UnsupportedModel
from .onnx_dialects import Refused
from .prescribed import bits_of, normalized, quantized, row_codes, schemes_for, stored
from .report import Layer, Report
from .rows import accumulator_range
from .units import CLAMPS

__all__ = ["build"]

_IDENTITY = (1 << 15, 15)
_ALL = np.arange(-128, 128)
_FINEST = 128
_WIDE = Range(1.0, 0, -32768, 32767)
_NOT_QUANTIZED = "quantize it: put QuantizeLinear and DequantizeLinear (or Quant) behind it"


@dataclasses.dataclass(frozen=True)
class Raw:
    """The image before any quantization: scale * input + shift, per channel."""

    scale: np.ndarray
    shift: np.ndarray


@dataclasses.dataclass(frozen=True)
class Codes:
    """A tensor of the integer graph."""

    name: str
    range: Range
    shape: tuple[int, ...]

    @property
    def wide(self) -> bool:
        return self.range.hi - self.range.lo > 255

    @property
    def real(self) -> np.ndarray:
        """The values of codes -128..127, in float32 as the model computes them."""
        return (_ALL - self.range.zero_point).astype(np.float32) * np.float32(self.range.scale)


@dataclasses.dataclass(frozen=True)
class Unary:
    """A function of the codes of one 8-bit tensor: its values for codes -128..127."""

    source: Codes
    values: np.ndarray
    shape: tuple[int, ...]
    """The source's positions may be numbered otherwise; channels are the same."""


@dataclasses.dataclass(frozen=True)
class Sums:
    """Accumulators on their way to a tensor: scale * (acc - offset) + bias, per row or for all, then a second addend,
    then activations."""

    node: Node
    operator: Callable[[str, str, Drain], Operator]
    """(name, output, drain)."""
    constants: dict[str, np.ndarray]
    scale: np.ndarray
    bias: np.ndarray
    offset: np.ndarray
    least: np.ndarray
    greatest: np.ndarray
    acts: tuple[str, ...] = ()
    residual: Codes | None = None

    def bounds(self) -> tuple[float, float]:
        """Least and greatest real value, proved from the codes, before activations."""
        ends = [self.scale * (end - self.offset) + self.bias for end in (self.least, self.greatest)]
        low, high = float(np.min(ends)), float(np.max(ends))
        if self.residual is not None:
            found = self.residual.range
            low += (found.lo - found.zero_point) * found.scale
            high += (found.hi - found.zero_point) * found.scale
        return low, high


@dataclasses.dataclass(frozen=True)
class Whole:
    """An operator that writes its 8-bit output by itself (LayerNorm, attention): called with the range and name."""

    emit: Callable[[Range, str], Codes]


Form = Raw | Codes | Unary | Sums | Whole


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


class _Importer:
    def __init__(
        self, graph: FloatGraph, preprocessing: Preprocessing, mixture: dict[Scheme, int], drain: int
    ):
        self.graph, self.preprocessing, self.mixture, self.drained = graph, preprocessing, mixture, drain
        channels = graph.input_shape[-1]
        self.forms: dict[str, Form | None] = {"input": Raw(np.ones(channels), np.zeros(channels))}
        self.shapes = {"input": graph.input_shape} | {node.name: node.shape for node in graph.nodes}
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.constants: dict[str, np.ndarray] = {}
        self.layers: list[Layer] = []
        self.refused: list[tuple[Node, Refused]] = []
        self.converted: dict[tuple[str, str], Codes] = {}
        self.origins: dict[str, tuple[Codes, np.ndarray]] = {}
        """For tensors that tables wrote: the tensor that they are a function of, and their codes for its codes."""
        self.reshapes: dict[str, Codes] = {}

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
        self._drop_unread(output)
        return output

    def _drop_unread(self, output: str) -> None:
        needed, kept = {output, "input"}, []
        for operator in reversed(self.operators):
            if needed.intersection(writes(operator)):
                needed |= {*reads(operator), *writes(operator)}
                kept.insert(0, operator)
        self.operators = kept
        names = {operator.name for operator in kept}
        self.tensors = {name: tensor for name, tensor in self.tensors.items() if name in needed}
        self.constants = {
            key: value for key, value in self.constants.items() if key.rpartition("/")[0] in names
        }
        self.layers = [layer for layer in self.layers if layer.name in names]

    # Tensors and operators

    def declare(self, name: str, found: Range, shape: tuple[int, ...]) -> Codes:
        wide = found.hi - found.lo > 255
        while name in self.tensors:
            name += "_"
        self.tensors[name] = Tensor(
            name=name,
            shape=tuple(shape),
            dtype="s16" if wide else "s8",
            scale=found.scale,
            zero_point=found.zero_point,
            bits=16 if wide else bits_of(found),
        )
        return Codes(name, found, tuple(shape))

    def emit(self, operator: Operator, fields: dict[str, np.ndarray], value: str, **figures: object) -> None:
        self.operators.append(operator)
        self.constants |= {f"{operator.name}/{field}": array for field, array in fields.items()}
        self.layers.append(Layer(operator.name, operator.op, value, **figures))

    def name(self, wanted: str) -> str:
        """An operator's name that is not yet taken."""
        names = {operator.name for operator in self.operators}
        while wanted in names:
            wanted += "_"
        return wanted

    def tensor(self, form: Form, node: Node) -> Codes:
        """The form as a tensor; one that no `quant` follows has 16 bits and the step that its bounds allow."""
        if isinstance(form, Codes):
            return form
        if isinstance(form, Sums) and all(act in CLAMPS for act in form.acts):
            low, high = form.bounds()
            found = dataclasses.replace(_WIDE, scale=max(abs(low), abs(high), 1e-9) / 32767)
            return self.drain(form, found, "ROUND", node.name)
        raise Refused("is not quantized", _NOT_QUANTIZED)

    def read(self, form: Form, node: Node) -> Codes:
        """An 8-bit tensor."""
        codes = self.tensor(form, node) if isinstance(form, Codes) else None
        if codes is None or codes.wide:
            raise Refused("reads a value that is not quantized to 8 bits", _NOT_QUANTIZED)
        return codes

    def wide(self, codes: Codes, gain: int = 1) -> Codes:
        """The same values times `gain` in 16 bits and without zero point, exactly."""
        if codes.wide and gain == 1:
            return codes
        key = (codes.name, f"s16.{gain}")
        if key not in self.converted:
            m, n = _IDENTITY
            found = dataclasses.replace(_WIDE, scale=codes.range.scale / gain)
            result = self.declare(f"{codes.name}.s16", found, codes.shape)
            n -= gain.bit_length() - 1
            fields = _fields(m, n, (1 << n - 1) - codes.range.zero_point * m)
            operator = Elementwise(
                name=self.name(result.name),
                input=codes.name,
                output=result.name,
                drain=Drain(lo=-32768, hi=32767),
            )
            self.emit(operator, fields, result.name)
            self.converted[key] = result
        return self.converted[key]

    def symmetric(self, codes: Codes) -> Codes:
        """The values in 8 bits without zero point: the codes themselves, or codes of a step that covers them."""
        if codes.range.zero_point == 0:
            return codes
        key = (codes.name, "symmetric")
        if key not in self.converted:
            found = codes.range
            most = max(abs(found.lo - found.zero_point), abs(found.hi - found.zero_point))
            target = Range(found.scale * most / 127, 0, -127, 127)
            self.converted[key] = self.table(
                Unary(codes, codes.real, codes.shape), target, "ROUND", f"{codes.name}.symmetric"
            )
        return self.converted[key]

    def table(self, form: Unary, found: Range, rounding: str, name: str) -> Codes:
        if found.hi - found.lo > 255:
            raise Refused("is a table with 16-bit results", "quantize it to 8 bits")
        fields = _fields(*_IDENTITY, 1 << _IDENTITY[1] - 1)
        table = quantized(form.values, found, rounding)
        fields["table"] = table.astype(np.int8)
        result = self.declare(name, found, form.source.shape)
        root, codes = self.origins.get(form.source.name, (form.source, _ALL))
        self.origins[result.name] = root, table[codes + 128]
        drain = Drain(lo=found.lo, hi=found.hi, table=True)
        operator = Elementwise(name=self.name(name), input=form.source.name, output=result.name, drain=drain)
        self.emit(operator, fields, name)
        return self.reshaped(result, form.shape)

    def reshaped(self, codes: Codes, shape: tuple[int, ...], name: str = "") -> Codes:
        """The tensor with its positions numbered otherwise."""
        codes = self.reshapes.get(codes.name, codes)
        if codes.shape == tuple(shape):
            return codes
        key = (codes.name, f"reshape.{shape}")
        if key not in self.converted:
            result = self.declare(name or f"{codes.name}.reshape", codes.range, shape)
            operator = Reshape(name=self.name(result.name), input=codes.name, output=result.name)
            self.emit(operator, {}, result.name)
            self.converted[key], self.reshapes[result.name] = result, codes
        return self.converted[key]

    def rooted(self, form: Form) -> Unary | None:
        """The form as a function of the tensor that the tables before it start from."""
        unary = _unary(form)
        if unary is None:
            return None
        root, codes = self.origins.get(unary.source.name, (unary.source, _ALL))
        values = unary.values[codes + 128]
        if root.name in self.reshapes:
            root = self.reshapes[root.name]
        return Unary(root, values, unary.shape)

    # From accumulators to a tensor

    def drain(self, form: Sums, found: Range, rounding: str, name: str) -> Codes:
        node, shape = form.node, form.node.shape
        lo, hi = found.lo, found.hi
        if hi - lo > 255 and found.zero_point == 0 and found is not _WIDE:
            low, high = form.bounds()  # codes of 16 bits that need fewer
            lo, hi = max(lo, int(np.floor(low / found.scale))), min(hi, int(np.ceil(high / found.scale)))
        if lo != found.lo or hi != found.hi:
            shift = 128 if lo >= 0 and 127 < hi < 256 else 0
            if hi - lo <= 255 and (shift or (lo >= -128 and hi <= 127)):
                lo, hi = lo - shift, hi - shift
                found = Range(found.scale, -shift, lo, hi)
            else:
                lo, hi = found.lo, found.hi
        for act in form.acts:
            if act in CLAMPS:
                lo = max(lo, found.zero_point)
                hi = hi if act == "relu" else min(hi, found.zero_point + int(np.rint(6 / found.scale)))
        lo = min(lo, hi)
        figures = self._figures(form)
        operator_name = self.name(node.name)
        constants = dict(form.constants)
        if rounding == BIPOLAR:
            fields, drain = _threshold(form), Drain(lo=-1, hi=1, table=True)
        elif any(act not in CLAMPS for act in form.acts):
            fields, drain = _looked_up(form, found, rounding), Drain(lo=found.lo, hi=found.hi, table=True)
        elif form.residual is not None:
            return self._summed(form, found, (lo, hi), name, operator_name)
        else:
            ratio = form.scale / found.scale
            nudge = {"ROUND": 0.0, "FLOOR": -0.5 + ratio / 2, "CEIL": 0.5 - ratio / 2}[rounding]
            fields = scaled(ratio, form.bias / found.scale + nudge, form.offset, found.zero_point)
            drain = Drain(lo=lo, hi=hi)
        result = self.declare(name, found, shape)
        self.emit(form.operator(operator_name, result.name, drain), constants | fields, name, **figures)
        return result

    def _figures(self, form: Sums) -> dict[str, object]:
        most = int(max(-form.least.min(), form.greatest.max(), 1))
        if most.bit_length() + 1 > numerics.ACCUMULATOR_BITS:
            raise Refused(
                f"can need accumulators of {most.bit_length() + 1} bits, more than {numerics.ACCUMULATOR_BITS}",
                "quantize its weights to fewer bits, or split the layer",
            )
        figures: dict[str, object] = {"accumulator_bits": most.bit_length() + 1}
        if "scheme" in form.constants:
            kinds = zip(*np.unique(form.constants["scheme"], return_counts=True), strict=True)
            figures["schemes"] = {Scheme(kind).name: int(count) for kind, count in kinds}
        return figures

    def _summed(
        self, form: Sums, found: Range, limits: tuple[int, int], name: str, operator_name: str
    ) -> Codes:
        """The sum in 16 bits at a fraction of the output's step, and from there the output."""
        addend = self.wide(form.residual)
        only = dataclasses.replace(form, residual=None).bounds()
        most = (
            max(*(abs(end) for end in (*only, *form.bounds())), np.abs(form.residual.real).max())
            / found.scale
        )
        fine = _FINEST
        while fine > 16 and most * fine > 32767:
            fine //= 2
        middle = dataclasses.replace(_WIDE, scale=found.scale / fine)
        ratio = form.scale / middle.scale
        fields = scaled(ratio, form.bias / middle.scale, form.offset, 0)
        m, n = numerics.scale_to_mn(addend.range.scale / middle.scale)
        first = self.declare(f"{name}.sum" if found.hi - found.lo <= 255 else name, middle, form.node.shape)
        second = None
        result = first
        if found.hi - found.lo <= 255:
            result = self.declare(name, found, form.node.shape)
            factor = scaled(np.array([1 / fine]), np.zeros(1), np.zeros(1), found.zero_point)
            second = Second(
                tensor=result.name,
                m=int(factor["m"][0]),
                n=int(factor["n"][0]),
                constant=int(factor["C"][0]),
                lo=limits[0],
                hi=limits[1],
            )
        residual = Residual(tensor=addend.name, m=m, n=n)
        drain = Drain(lo=-32768, hi=32767, residual=residual, second=second)
        operator = form.operator(operator_name, first.name, drain)
        self.emit(operator, form.constants | fields, name, **self._figures(form))
        return result

    # Nodes

    def quant(self, node: Node, form: Form) -> Form:
        found, rounding = stored(node.attrs), node.attrs["rounding"]
        match form:
            case Raw():
                return self._input(node, form, found, rounding)
            case Codes():
                if form.range == found:
                    return form
                if form.wide:
                    sums = self._elementwise(node, form)
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
        if np.ptp(slope) or np.ptp(start) or old.raw_max > 255:
            raise Refused(
                f"quantizes the image by {rounding} with several channels' factors",
                "use pixels 0..255 with the same mean and deviation for all channels",
            )
        self.preprocessing = dataclasses.replace(old, mean=(0.0,) * len(mean), std=(1.0,) * len(std))
        image = self.declare("input", Range(old.scale, -128, -128, 127), shape)
        return self.table(Unary(image, slope[0] * (_ALL + 128) + start[0], shape), found, rounding, node.name)

    def _elementwise(self, node: Node, codes: Codes) -> Sums:
        found = codes.range
        return Sums(
            node=dataclasses.replace(node, shape=codes.shape),
            operator=lambda name, output, drain: Elementwise(
                name=name, input=codes.name, output=output, drain=drain
            ),
            constants={},
            scale=np.array([found.scale]),
            bias=np.zeros(1),
            offset=np.array([found.zero_point]),
            least=np.array([found.lo]),
            greatest=np.array([found.hi]),
        )

    def weighted(self, node: Node, form: Form) -> Form:
        weight, bias = (node.params[key].double().numpy() for key in ("weight", "bias"))
        if _is_affine(node):
            factor = weight.reshape(-1)
            if isinstance(form, Raw):
                return Raw(form.scale * factor, form.shift * factor + bias)
            if isinstance(form, Codes | Unary) and not np.ptp(factor) and not np.ptp(bias):
                unary = _unary(form)
                if unary is not None:
                    return dataclasses.replace(
                        unary, values=unary.values * np.float32(factor[0]) + np.float32(bias[0])
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
            scale=scale * x.range.scale,
            bias=bias,
            offset=x.range.zero_point * codes.sum(axis=1),
            least=least,
            greatest=greatest,
        )

    def act(self, node: Node, form: Form) -> Form:
        kind = node.attrs["kind"]
        if isinstance(form, Sums):
            return dataclasses.replace(form, acts=(*form.acts, kind))
        unary = _unary(form)
        if unary is None:
            raise Refused("reads a value that is not quantized to 8 bits", _NOT_QUANTIZED)
        values = ACTIVATIONS[kind](torch.from_numpy(unary.values)).numpy()
        return dataclasses.replace(unary, values=values)

    def add(self, node: Node, form: Form, other: Form | None = None) -> Form:
        if other is None:
            constant = node.params["constant"].double().numpy()
            if isinstance(form, Raw):
                rows = constant.reshape(-1, constant.shape[-1])
                if np.ptp(rows, axis=0).any():
                    raise Refused("adds an image to the image", "add one number per channel")
                return Raw(form.scale, form.shift + rows[0])
            unary = _unary(form)
            if unary is not None and not np.ptp(constant):
                return dataclasses.replace(unary, values=unary.values + np.float32(constant.flat[0]))
            other = self._constant(f"{node.name}.constant", constant, node.shape)
        first, second = self.rooted(form), self.rooted(other)
        if first is not None and second is not None and first.source == second.source:
            return dataclasses.replace(first, values=first.values + second.values)
        for a, b in ((form, other), (other, form)):
            if isinstance(a, Sums) and not a.acts and a.residual is None and isinstance(b, Codes):
                if self._readers(a.node.name) > 1 or a.node.kind == "multiply":
                    continue
                return dataclasses.replace(a, residual=b)
        if not (isinstance(form, Codes) and isinstance(other, Codes)):
            raise Refused("adds a value that is not quantized", _NOT_QUANTIZED)
        if form.wide and not other.wide:
            form, other = other, form
        return dataclasses.replace(self._elementwise(node, form), residual=other)

    def _readers(self, name: str) -> int:
        return sum(node.inputs.count(name) for node in self.graph.nodes)

    def _constant(self, name: str, values: np.ndarray, shape: tuple[int, ...]) -> Codes:
        found = dataclasses.replace(_WIDE, scale=max(float(np.abs(values).max()), 1e-9) / 32767)
        result = self.declare(name, found, shape)
        codes = quantized(np.broadcast_to(values, shape), found, "ROUND").astype(np.int16)
        self.emit(Constant(name=self.name(name), output=result.name), {"value": codes}, name)
        return result

    def multiply(self, node: Node, form: Form, other: Form | None = None) -> Form:
        if other is None:
            constant = node.params["constant"].double().numpy()
            unary = _unary(form)
            if unary is None or np.ptp(constant):
                raise Refused("multiplies by constants that differ by place", "multiply by one number")
            return dataclasses.replace(unary, values=unary.values * np.float32(constant.flat[0]))
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
        ends = [x * y for x in _ends(form) for y in _ends(Codes("", b.range, ()))]
        if a.range.scale != form.range.scale or b.range.scale != other.range.scale:
            ends = [*ends, 255 * 127, -255 * 127]
        return Sums(
            node=node,
            operator=lambda name, output, drain: Multiply(
                name=name, input=a.name, other=b.name, output=output, drain=drain
            ),
            constants={},
            scale=np.array([a.range.scale * b.range.scale]),
            bias=np.zeros(1),
            offset=np.zeros(1, np.int64),
            least=np.array([int(min(ends))]),
            greatest=np.array([int(max(ends))]),
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
        unary = _unary(form)
        if node.kind == "reshape" and unary is not None and unary.shape[-1] == node.shape[-1]:
            readers = [other for other in self.graph.nodes if node.name in other.inputs]
            if isinstance(form, Unary) or (readers and all(_is_uniform(reader) for reader in readers)):
                return dataclasses.replace(unary, shape=node.shape)
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


def _fields(m: int, n: int, constant: int) -> dict[str, np.ndarray]:
    return {"m": np.array([m], np.uint16), "n": np.array([n], np.uint8), "C": np.array([constant], np.int64)}


def _unary(form: Form) -> Unary | None:
    if isinstance(form, Codes) and not form.wide:
        return Unary(form, form.real, form.shape)
    return form if isinstance(form, Unary) else None


def _ends(codes: Codes) -> tuple[int, int]:
    found = codes.range
    return found.lo - found.zero_point, found.hi - found.zero_point


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


def _threshold(form: Sums) -> dict[str, np.ndarray]:
    """m, n, C and table for +1 where the real value is not negative, else -1: exact."""
    if form.acts or form.residual is not None:
        raise Refused("takes the sign of an activation or a sum", "quantize in front of it")
    least = np.ceil(-form.bias / form.scale + form.offset)
    m, n = _IDENTITY
    constant = -np.clip(least, -(1 << 30), 1 << 30).astype(np.int64) << n
    rows = len(form.scale)
    table = np.where(_ALL >= 0, 1, -1).astype(np.int8)
    return {"m": np.full(rows, m, np.uint16), "n": np.full(rows, n, np.uint8), "C": constant, "table": table}


def _looked_up(form: Sums, found: Range, rounding: str) -> dict[str, np.ndarray]:
    """m, n, C and the activations as a table over a 10-bit index that spans where the output's code changes."""

    def codes(real: np.ndarray) -> np.ndarray:
        value = torch.from_numpy(np.asarray(real, np.float64))
        for act in form.acts:
            value = ACTIVATIONS[act](value)
        return quantized(value.numpy(), found, rounding)

    if form.residual is not None:
        raise Refused("is an activation of a sum of two tensors", "quantize the sum")
    if found.hi - found.lo > 255:
        raise Refused("is a table with 16-bit results", "quantize it to 8 bits")
    grid = np.linspace(*form.bounds(), 1 << 16)
    changes = np.flatnonzero(np.diff(codes(grid)))
    if len(changes):
        grid = grid[max(changes[0] - 1, 0) : changes[-1] + 3]
    half = 512
    scale = max(float(grid[-1] - grid[0]), 1e-6) / (2 * half - 1)
    zero = round(-half - float(grid[0]) / scale)
    table = codes((np.arange(-half, half) - zero) * scale).astype(np.int8)
    return scaled(form.scale / scale, form.bias / scale, form.offset, zero) | {"table": table}


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

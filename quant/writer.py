"""The integer graph of a quantized model while it is written: tensors, tables, and what drains do."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..arch import numerics
from ..arch.graph import (
    Constant,
    Drain,
    Elementwise,
    Operator,
    Reshape,
    Residual,
    Second,
    Tensor,
    reads,
    writes,
)
from ..arch.schemes import Scheme
from .builder import scaled
from .calibrate import Range
from .fake_quantize import BIPOLAR
from .floatgraph import Node
from .forms import (
    ALL_CODES,
    IDENTITY,
    NOT_QUANTIZED,
    SIXTEEN_BITS,
    WIDE,
    Codes,
    Form,
    Sums,
    Unary,
    fields_of,
    looked_up,
    threshold,
    unary,
)
from .onnx_dialects import Refused
from .prescribed import bits_of, quantized
from .report import Layer
from .units import CLAMPS

__all__ = ["Writer"]

_FINEST, _COARSEST = 256, 16
"""Steps of a sum for each step of the tensor that it is quantized to."""


class Writer:
    """Appends operators, tensors and constants."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.operators: list[Operator] = []
        self.constants: dict[str, np.ndarray] = {}
        self.layers: list[Layer] = []
        self.converted: dict[tuple[str, str], Codes] = {}
        self.origins: dict[str, tuple[Codes, np.ndarray]] = {}
        """For tensors that tables wrote: the tensor that they are a function of, and their codes for its codes."""
        self.reshapes: dict[str, Codes] = {}

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
            found = dataclasses.replace(WIDE, scale=max(abs(low), abs(high), 1e-9) / 32767)
            return self.drain(form, found, "ROUND", node.name)
        raise Refused("is not quantized", NOT_QUANTIZED)

    def read(self, form: Form, node: Node) -> Codes:
        """An 8-bit tensor."""
        if not isinstance(form, Codes):
            raise Refused("reads a value that is not quantized to 8 bits", NOT_QUANTIZED)
        if form.wide:
            raise Refused(*SIXTEEN_BITS)
        return form

    def wide(self, codes: Codes, gain: int = 1) -> Codes:
        """The same values times `gain` in 16 bits and without zero point, exactly."""
        if codes.wide and gain == 1:
            return codes
        key = (codes.name, f"s16.{gain}")
        if key not in self.converted:
            m, n = IDENTITY
            found = dataclasses.replace(WIDE, scale=codes.range.scale / gain)
            result = self.declare(f"{codes.name}.s16", found, codes.shape)
            n -= gain.bit_length() - 1
            fields = fields_of(m, n, (1 << n - 1) - codes.range.zero_point * m)
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
        fields = fields_of(*IDENTITY, 1 << IDENTITY[1] - 1)
        table = quantized(form.values, found, rounding)
        fields["table"] = table.astype(np.int8)
        result = self.declare(name, found, form.source.shape)
        root, codes = self.origins.get(form.source.name, (form.source, ALL_CODES))
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
        known = unary(form)
        if known is None:
            return None
        root, codes = self.origins.get(known.source.name, (known.source, ALL_CODES))
        values = known.values[codes + 128]
        if root.name in self.reshapes:
            root = self.reshapes[root.name]
        return Unary(root, values, known.shape)

    def drain(self, form: Sums, found: Range, rounding: str, name: str) -> Codes:
        node, shape = form.node, form.node.shape
        lo, hi = found.lo, found.hi
        if hi - lo > 255 and found.zero_point == 0 and found is not WIDE:
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
            fields, drain = threshold(form), Drain(lo=-1, hi=1, table=True)
        elif any(act not in CLAMPS for act in form.acts):
            fields, drain = looked_up(form, found, rounding), Drain(lo=found.lo, hi=found.hi, table=True)
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
        """The sum in 16 bits at a fraction of the output's step, and from there the output.

        The first addend is rounded down to whole fractions, which changes no rounding of the sum: only the rounding of
        the second can move a code. Sums of 16 bits take the output's own step.
        """
        addend = self.wide(form.residual)
        narrow = found.hi - found.lo <= 255
        fine = _fraction(form, found) if narrow else 1
        middle = dataclasses.replace(WIDE, scale=found.scale / fine)
        offset = form.bias / middle.scale - (0.5 if narrow else 0)
        fields = scaled(form.scale / middle.scale, offset, form.offset, 0)
        m, n = numerics.scale_to_mn(addend.range.scale / middle.scale)
        if not narrow:
            result = first = self.declare(name, found, form.node.shape)
            drain = Drain(lo=limits[0], hi=limits[1], residual=Residual(tensor=addend.name, m=m, n=n))
        else:
            first = self.declare(f"{name}.sum", middle, form.node.shape)
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

    def elementwise(self, node: Node, codes: Codes) -> Sums:
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

    def constant(self, name: str, values: np.ndarray, shape: tuple[int, ...]) -> Codes:
        """A tensor of 16 bits with these values."""
        found = dataclasses.replace(WIDE, scale=max(float(np.abs(values).max()), 1e-9) / 32767)
        codes = quantized(np.broadcast_to(values, shape), found, "ROUND").astype(np.int16)
        return self.constant_codes(name, codes, found.scale)

    def constant_codes(self, name: str, codes: np.ndarray, scale: float) -> Codes:
        """A tensor of these codes, int8 or int16, without zero point."""
        limit = np.iinfo(codes.dtype)
        found = Range(scale, 0, int(limit.min), int(limit.max))
        result = self.declare(name, found, codes.shape)
        self.emit(Constant(name=self.name(name), output=result.name), {"value": codes}, name)
        return result

    def drop_unread(self, output: str) -> None:
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


def _fraction(form: Sums, found: Range) -> int:
    """Steps of a sum for each step of the output, so that neither the first addend nor a sum whose code is in the
    output's range leaves 16 bits."""
    ends = (end / found.scale for end in dataclasses.replace(form, residual=None).bounds())
    most = max(*map(abs, ends), found.zero_point - found.lo, found.hi - found.zero_point)
    fine = _FINEST
    while fine > _COARSEST and most * fine > 32767:
        fine //= 2
    return fine

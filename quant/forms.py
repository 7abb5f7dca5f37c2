"""What is known of a value while a quantized model is imported, until a `quant` gives it codes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from ..arch.graph import Drain, Operator
from .builder import scaled
from .calibrate import Range
from .floatgraph import ACTIVATIONS, Node
from .onnx_dialects import Refused
from .prescribed import quantized

__all__ = [
    "ALL_CODES",
    "IDENTITY",
    "NOT_QUANTIZED",
    "SIXTEEN_BITS",
    "WIDE",
    "Codes",
    "Form",
    "Raw",
    "Sums",
    "Unary",
    "Whole",
    "ends",
    "fields_of",
    "looked_up",
    "threshold",
    "unary",
]

IDENTITY = (1 << 15, 15)
ALL_CODES = np.arange(-128, 128)
WIDE = Range(1.0, 0, -32768, 32767)
NOT_QUANTIZED = "quantize it: put QuantizeLinear and DequantizeLinear (or Quant) behind it"
SIXTEEN_BITS = (
    "reads codes of 16 bits, but layers, tables and products read 8 bits",
    "quantize activations to 8 bits (onnxruntime: activation_type QuantType.QInt8 or QUInt8)",
)
"""Reason and remedy."""


@dataclasses.dataclass(frozen=True)
class Raw:
    """The image before any quantization: scale * input + shift, per channel."""

    scale: np.ndarray
    shift: np.ndarray


@dataclasses.dataclass(frozen=True)
class Codes:
    """A tensor of the integer graph. The zero point of an image of signs lies between two codes, at -0.5; its readers
    take that into their constants."""

    name: str
    range: Range
    shape: tuple[int, ...]

    @property
    def wide(self) -> bool:
        return self.range.hi - self.range.lo > 255

    @property
    def real(self) -> np.ndarray:
        """The values of codes -128..127, in float32 as the model computes them."""
        return (ALL_CODES - self.range.zero_point).astype(np.float32) * np.float32(self.range.scale)


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


def fields_of(m: int, n: int, constant: int) -> dict[str, np.ndarray]:
    return {"m": np.array([m], np.uint16), "n": np.array([n], np.uint8), "C": np.array([constant], np.int64)}


def unary(form: Form) -> Unary | None:
    if isinstance(form, Codes) and not form.wide:
        return Unary(form, form.real, form.shape)
    return form if isinstance(form, Unary) else None


def ends(codes: Codes) -> tuple[int, int]:
    found = codes.range
    return found.lo - found.zero_point, found.hi - found.zero_point


def threshold(form: Sums) -> dict[str, np.ndarray]:
    """m, n, C and table for +1 where the real value is not negative, else -1: exact."""
    if form.acts or form.residual is not None:
        raise Refused("takes the sign of an activation or a sum", "quantize in front of it")
    least = np.ceil(-form.bias / form.scale + form.offset)
    m, n = IDENTITY
    constant = -np.clip(least, -(1 << 30), 1 << 30).astype(np.int64) << n
    rows = len(form.scale)
    table = np.where(ALL_CODES >= 0, 1, -1).astype(np.int8)
    return {"m": np.full(rows, m, np.uint16), "n": np.full(rows, n, np.uint8), "C": constant, "table": table}


def looked_up(form: Sums, found: Range, rounding: str) -> dict[str, np.ndarray]:
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

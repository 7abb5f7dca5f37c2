"""The integer graph: operators on named integer tensors of one image, with everything that evaluation needs.

Structure is JSON, numbers are arrays ("constants") named `operator/field`, both in one safetensors file. Nothing
here mentions tiles, memories or instructions. Semantics is `arch.numerics`; `sim.reference` executes it.

Activation tensors have no batch axis and end in channels: (H, W, C) pixels or (T, C) tokens. Operators stand in
execution order and every tensor is written once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from .errors import UserError
from .files import FileError, read_bundle, write_bundle
from .schemes import Scheme, codebook

__all__ = [
    "Attention",
    "AvgPool",
    "Constant",
    "Conv",
    "Drain",
    "Elementwise",
    "Graph",
    "GraphError",
    "LayerNorm",
    "Linear",
    "MaxPool",
    "Operator",
    "Preprocessing",
    "Reshape",
    "Residual",
    "Second",
    "Slice",
    "Tensor",
]

VERSION = 1


class GraphError(UserError):
    """A graph that breaks its contract; the message lists every violation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """An activation tensor: real value = scale * (code - zero_point)."""

    name: str
    shape: tuple[int, ...]
    """(H, W, C) or (T, C)."""
    dtype: Literal["s8", "s16"]
    scale: float
    zero_point: int = 0
    """Only an s8 tensor that feeds Linear, Conv or AvgPool layers, MaxPool, Reshape, Slice or Elementwise may have one."""
    bits: int
    """Significant bits of the codes: 4..8 for s8, 16 for s16."""

    @property
    def positions(self) -> int:
        """Number of pixels or tokens."""
        return int(np.prod(self.shape[:-1]))

    @property
    def channels(self) -> int:
        """Length of the last axis."""
        return self.shape[-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From an 8-bit or float image to the real values that the input tensor codes."""

    scale: float
    """Multiplies raw pixel values first (1/255 for 8-bit images, 1/16 for scikit-learn's digits)."""
    mean: tuple[float, ...]
    """Subtracted per channel after scaling."""
    std: tuple[float, ...]
    """Divides per channel after subtracting."""
    resize: int | None = None
    """Shorter side in pixels after bilinear resizing of an image file; None resizes to the input's shape."""
    raw_max: float = 255.0
    """The largest raw value (image files are read as 0..255 and rescaled to 0..raw_max)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual:
    """The second addend of an output: an s16 tensor of the output's shape, and its rescaling."""

    tensor: str
    m: int
    n: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Second:
    """A second output: the first output's codes requantized once more, per tensor."""

    tensor: str
    m: int
    n: int
    constant: int
    """C, at most 40 bits signed."""
    lo: int
    hi: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drain:
    """What happens to an accumulator on its way to a tensor.

    v = (acc * m + C) >> n with `NAME/m` (uint16), `NAME/n` (uint8), `NAME/C` (int64) of one entry per output
    channel (Linear, Conv) or one entry in all (AvgPool, Elementwise). Then
      table:     v = numerics.lookup(v, NAME/table), int8 of 256 or 1024 entries; then clamp(lo, hi)
      residual:  v = numerics.residual_add(v, r, m_r, n_r, lo, hi)
      otherwise: v = clamp(v, lo, hi)
    `table` and `residual` exclude each other. With `second`, numerics.requantize(v, ...) is written as well.
    """

    lo: int
    hi: int
    table: bool = False
    residual: Residual | None = None
    second: Second | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Base:
    name: str
    """Unique; the module path of the float model where there is one."""
    input: str
    output: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(_Base):
    """acc[p, o] = sum_k x[p, k] * w[o, k], on the last axis of any tensor; `NAME/weight` int8 (O, K) holds the
    codes and `NAME/scheme` uint8 (O,) the `Scheme` of each row. Zero point and bias are in C."""

    op: Literal["linear"] = "linear"
    drain: Drain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv(_Base):
    """2-D convolution of an (H, W, C) tensor; `NAME/weight` int8 (O, kh, kw, C / groups), `NAME/scheme` uint8 (O,).

    Padding pads with the input's zero point. `prefix` > 0 flattens the output to (prefix + Ho * Wo, O) tokens, the
    first `prefix` of which see nothing but padding (their residual then makes them class tokens).
    """

    op: Literal["conv"] = "conv"
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Rows above, rows below, columns left, columns right."""
    groups: int = 1
    prefix: int = 0
    drain: Drain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention(_Base):
    """Multi-head attention of `input` = queries, `keys` and `values`, each (T, heads * head_dim), s8, no zero point.

    Per head h: logits = requantize(q.k, NAME/m[h], NAME/n[h], NAME/C[h], -2048, 2047); E = softmax_exp(logits,
    NAME/exp); row scale = softmax_row_scale(sum E, NAME/m2[h], NAME/n2[h], recip); output =
    requantize(E.v, row m, row n, row C, lo, hi). m, m2: uint16; n, n2: uint8; C: int64; exp: uint8 (256,).
    """

    op: Literal["attention"] = "attention"
    keys: str
    values: str
    heads: int
    lo: int
    hi: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNorm(_Base):
    """numerics.layernorm over channels of an s16 tensor; `NAME/g` int16 (C,), `NAME/b` int64 (C,)."""

    op: Literal["layernorm"] = "layernorm"
    n: int
    eps: int
    lo: int
    hi: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaxPool(_Base):
    """Maximum over a window of an (H, W, C) s8 tensor; padding never wins; moves codes unchanged."""

    op: Literal["maxpool"] = "maxpool"
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AvgPool(_Base):
    """acc = sum over a window (padding counts as the zero point), drained per tensor; on (T, C) tensors the
    kernel is (T, 1). The output is (Ho, Wo, C), or (1, C) of a (T, C) tensor."""

    op: Literal["avgpool"] = "avgpool"
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    drain: Drain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Elementwise(_Base):
    """Every code of `input` (s8 or s16) taken as an accumulator and drained per tensor: requantization, table
    lookup, or addition of two tensors."""

    op: Literal["elementwise"] = "elementwise"
    drain: Drain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice(_Base):
    """Positions start..start+count of a (T, C) tensor; moves codes unchanged."""

    op: Literal["slice"] = "slice"
    start: int
    count: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reshape(_Base):
    """(H, W, C) to (H * W, C) or back: the same codes in the same order."""

    op: Literal["reshape"] = "reshape"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """A tensor of the program itself, the same for every image: `NAME/value`, int8 or int16 as the tensor, of its
    shape. It has no input (position embeddings and class tokens are the residual of the patch convolution)."""

    op: Literal["constant"] = "constant"
    name: str
    output: str


Operator = Annotated[
    Constant | Linear | Conv | Attention | LayerNorm | MaxPool | AvgPool | Elementwise | Slice | Reshape,
    Field(discriminator="op"),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Header:
    __pydantic_config__ = ConfigDict(extra="forbid")
    version: int
    name: str
    input: str
    output: str
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]


_HEADER = TypeAdapter(_Header)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """An integer graph; checked at construction."""

    name: str
    input: str
    output: str
    preprocessing: Preprocessing
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    constants: dict[str, np.ndarray] = dataclasses.field(repr=False)
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise GraphError(f"graph {self.name!r} is not valid:\n  " + "\n  ".join(problems))

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`."""
        return self._by_name[name]

    @property
    def _by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def constant(self, operator: Operator, field: str) -> np.ndarray:
        """The array `NAME/field` of an operator."""
        return self.constants[f"{operator.name}/{field}"]

    def macs(self, operator: Operator) -> int:
        """Multiply-accumulates that the definition of `operator` needs for one image."""
        out = self.tensor(operator.output)
        if isinstance(operator, Linear | Conv):
            weight = self.constant(operator, "weight")
            positions = out.positions - (operator.prefix if isinstance(operator, Conv) else 0)
            return positions * int(weight.size)
        if isinstance(operator, Attention):
            keys = self.tensor(operator.keys)
            return 2 * out.positions * keys.positions * out.channels
        return 0

    def save(self, path: str | Path) -> Path:
        """Write the graph file."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(_Header) if f.name != "version"}
        header = _HEADER.dump_python(_Header(version=VERSION, **fields), mode="json")
        return write_bundle(path, "graph", header, self.constants)

    @classmethod
    def load(cls, path: str | Path) -> Graph:
        """Read and check a graph file. Raises FileError or GraphError."""
        raw, constants = read_bundle(path, "graph")
        if isinstance(raw, dict) and raw.get("version") != VERSION:
            raise FileError(
                f"{path}: graph version must be {VERSION}, not {raw.get('version')}. Quantize again."
            )
        try:
            header = _HEADER.validate_python(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FileError(f"{path}: graph header field {where}: {first['msg']}.") from None
        fields = {f.name: getattr(header, f.name) for f in dataclasses.fields(_Header) if f.name != "version"}
        return cls(constants=constants, **fields)


def drained(operator: Operator) -> Drain | None:
    """The operator's drain, where it has one."""
    return getattr(operator, "drain", None)


def _reads(operator: Operator) -> Iterator[str]:
    if isinstance(operator, Constant):
        return
    yield operator.input
    if isinstance(operator, Attention):
        yield operator.keys
        yield operator.values
    drain = drained(operator)
    if drain is not None and drain.residual is not None:
        yield drain.residual.tensor


def _writes(operator: Operator) -> Iterator[str]:
    yield operator.output
    drain = drained(operator)
    if drain is not None and drain.second is not None:
        yield drain.second.tensor


def _problems(graph: Graph) -> Iterator[str]:
    """Every violation of the contract, one line each."""
    tensors = graph._by_name
    if len(tensors) != len(graph.tensors):
        yield "tensor names must be unique"
    names = [operator.name for operator in graph.operators]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"operator {name}: name must be unique"
    for tensor in graph.tensors:
        if len(tensor.shape) not in (2, 3) or min(tensor.shape) < 1:
            yield f"tensor {tensor.name}: shape must be (H, W, C) or (T, C), not {tensor.shape}"
        if not 4 <= tensor.bits <= (8 if tensor.dtype == "s8" else 16):
            yield f"tensor {tensor.name}: bits must be 4..8 (s8) or 16 (s16), not {tensor.bits}"
        if tensor.dtype == "s16" and tensor.zero_point:
            yield f"tensor {tensor.name}: an s16 tensor has no zero point, not {tensor.zero_point}"
        if not (np.isfinite(tensor.scale) and tensor.scale > 0):
            yield f"tensor {tensor.name}: scale must be positive and finite, not {tensor.scale}"
    written = {graph.input}
    for operator in graph.operators:
        for name in _reads(operator):
            if name not in written:
                yield f"operator {operator.name}: reads {name}, which must be written before"
        for name in _writes(operator):
            if name not in tensors:
                yield f"operator {operator.name}: writes {name}, which must be a declared tensor"
            if name in written:
                yield f"operator {operator.name}: writes {name}, which must be written once"
            written.add(name)
        if all(name in tensors for name in (*_reads(operator), *_writes(operator))):
            yield from _operator_problems(graph, operator)
    if graph.output not in written or graph.input not in tensors:
        yield f"input {graph.input} and output {graph.output} must be tensors of the graph"


def _operator_problems(graph: Graph, operator: Operator) -> Iterator[str]:
    y = graph.tensor(operator.output)
    x = y if isinstance(operator, Constant) else graph.tensor(operator.input)
    where = f"operator {operator.name}"
    needed = _constant_shapes(graph, operator)
    for field, (shape, dtype) in needed.items():
        array = graph.constants.get(f"{operator.name}/{field}")
        if array is None:
            yield f"{where}: constant {field} must be present"
        elif shape is not None and array.shape != shape:
            yield f"{where}: constant {field} must have shape {shape}, not {array.shape}"
        elif array.dtype != dtype:
            yield f"{where}: constant {field} must be {np.dtype(dtype)}, not {array.dtype}"
    if any(f"{operator.name}/{field}" not in graph.constants for field in needed):
        return
    expected = _output_shape(operator, x, graph)
    if expected is not None and y.shape != expected:
        yield f"{where}: output {y.name} must have shape {expected}, not {y.shape}"
    if isinstance(operator, Linear | Conv):
        weight, scheme = graph.constant(operator, "weight"), graph.constant(operator, "scheme")
        for row, code in enumerate(scheme):
            if code not in set(Scheme) or not np.isin(weight[row], codebook(Scheme(code))).all():
                yield f"{where}: row {row} must hold codes of its scheme {code}"
                break
    if isinstance(operator, LayerNorm) and (x.dtype != "s16" or x.channels > 2048 or operator.eps < 1):
        yield f"{where}: LayerNorm needs s16 input of at most 2048 channels and eps >= 1"
    drain = drained(operator)
    if drain is not None and drain.table and drain.residual is not None:
        yield f"{where}: table and residual exclude each other"
    if drain is not None and drain.residual is not None:
        r = graph.tensor(drain.residual.tensor)
        if r.positions * r.channels != y.positions * y.channels or r.zero_point:
            yield f"{where}: residual {r.name} must have {y.name}'s shape {y.shape} and no zero point"


def _constant_shapes(graph: Graph, operator: Operator) -> dict[str, tuple[tuple[int, ...] | None, type]]:
    """Constants that an operator needs: field -> (shape or None for several legal ones, dtype)."""
    y = graph.tensor(operator.output)
    x = y if isinstance(operator, Constant) else graph.tensor(operator.input)
    needed: dict[str, tuple[tuple[int, ...] | None, type]] = {}
    drain = drained(operator)
    if drain is not None:
        entries = (y.channels if isinstance(operator, Linear | Conv) else 1,)
        needed |= {"m": (entries, np.uint16), "n": (entries, np.uint8), "C": (entries, np.int64)}
        if drain.table:
            needed["table"] = (None, np.int8)
    if isinstance(operator, Constant):
        needed["value"] = (y.shape, np.int8 if y.dtype == "s8" else np.int16)
    elif isinstance(operator, Linear):
        needed |= {"weight": ((y.channels, x.channels), np.int8), "scheme": ((y.channels,), np.uint8)}
    elif isinstance(operator, Conv):
        needed |= {"weight": (None, np.int8), "scheme": ((y.channels,), np.uint8)}
    elif isinstance(operator, LayerNorm):
        needed |= {"g": ((x.channels,), np.int16), "b": ((x.channels,), np.int64)}
    elif isinstance(operator, Attention):
        per_head = (operator.heads,)
        needed |= {"m": (per_head, np.uint16), "n": (per_head, np.uint8), "C": (per_head, np.int64)}
        needed |= {"m2": (per_head, np.uint16), "n2": (per_head, np.uint8), "exp": ((256,), np.uint8)}
    return needed


def _window(
    shape: tuple[int, ...], kernel: tuple[int, int], operator: Conv | MaxPool | AvgPool
) -> tuple[int, int]:
    top, bottom, left, right = operator.padding
    return (
        (shape[0] + top + bottom - kernel[0]) // operator.stride[0] + 1,
        (shape[1] + left + right - kernel[1]) // operator.stride[1] + 1,
    )


def _output_shape(operator: Operator, x: Tensor, graph: Graph) -> tuple[int, ...] | None:
    channels = graph.tensor(operator.output).channels
    if isinstance(operator, Linear):
        return (*x.shape[:-1], channels)
    if isinstance(operator, Conv) and len(x.shape) == 3:
        _, kh, kw, _ = graph.constant(operator, "weight").shape
        height, width = _window(x.shape, (kh, kw), operator)
        if operator.prefix:
            return (operator.prefix + height * width, channels)
        return (height, width, channels)
    if isinstance(operator, AvgPool) and len(x.shape) == 2:
        return (1, x.channels)
    if isinstance(operator, MaxPool | AvgPool) and len(x.shape) == 3:
        return (*_window(x.shape, operator.kernel, operator), x.channels)
    if isinstance(operator, LayerNorm | Elementwise | Attention):
        return x.shape
    if isinstance(operator, Slice):
        return (operator.count, x.channels)
    return None

"""The operators of the integer graph and the tensors between them, as records; their checks are in `arch.legality`,
their arithmetic in `arch.numerics`.

Activation tensors have no batch axis and end in channels: (H, W, C) pixels or (T, C) tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

__all__ = [
    "Attention",
    "AvgPool",
    "Concat",
    "Constant",
    "Conv",
    "Drain",
    "Elementwise",
    "Gather",
    "LayerNorm",
    "Linear",
    "MaxPool",
    "Multiply",
    "Operator",
    "Preprocessing",
    "Reshape",
    "Residual",
    "Second",
    "Slice",
    "Tensor",
    "drained",
    "reads",
    "writes",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """An activation tensor: real value = scale * (code - zero_point)."""

    name: str
    shape: tuple[int, ...]
    """(H, W, C) or (T, C)."""
    dtype: Literal["s8", "s16"]
    scale: float
    zero_point: int = 0
    """Only an s8 tensor may have one, and not where Attention, Multiply or a residual reads it."""
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
    channel (Linear, Conv) or one entry in all (AvgPool, Elementwise, Multiply). Then
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

    Padding pads with the input's zero point; `dilation` is the distance of neighbouring taps. `prefix` > 0 flattens the output to (prefix + Ho * Wo, O) tokens, the
    first `prefix` of which see nothing but padding (their residual then makes them class tokens).
    """

    op: Literal["conv"] = "conv"
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Rows above, rows below, columns left, columns right."""
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    prefix: int = 0
    drain: Drain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention(_Base):
    """Multi-head attention of `input` = queries (T, heads * d) with `keys` (Tk, heads * d) and `values` (Tk, heads * e),
    s8 without zero points; the output (T, heads * e) is s8 or s16.

    Tokens are `windows` equal groups of consecutive queries, keys and values, and attention stays inside each. Per
    head h: logits = requantize(q.k, NAME/m[h], NAME/n[h], NAME/C[h], -2048, 2047); with `bias`, logits =
    numerics.logit_bias(logits, NAME/bias); E = softmax_exp(logits, NAME/exp), masked where the bias is
    numerics.MASKED; row scale = softmax_row_scale(sum E, NAME/m2[h], NAME/n2[h], recip); output = requantize(E.v,
    row m, row n, row C, lo, hi). m, m2: uint16; n, n2: uint8; C: int64; exp: uint8 (256,); bias: int16 (1 or
    windows, 1 or heads, T / windows, Tk / windows) in steps of the logits, MASKED or in LOGIT_BIAS_RANGE. The step is
    EXP_STEP, or in models that come quantized that of their scores; `exp` is made for it.
    """

    op: Literal["attention"] = "attention"
    keys: str
    values: str
    heads: int
    windows: int = 1
    bias: bool = False
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
class Multiply(_Base):
    """acc = a * b of the codes of `input` and `other` (at most one of them s16, no zero points), drained per tensor. `other` has
    the shape of `input` or one position, (1, C) or (1, 1, C), which then multiplies every position. A residual is
    excluded."""

    op: Literal["multiply"] = "multiply"
    other: str
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
class Gather(_Base):
    """Output position p is input position index[p], or the zero point where index[p] = -1; `NAME/index` int32 with
    an entry for each output position. Pixels count row by row; both shapes may be (H, W, C) or (T, C)."""

    op: Literal["gather"] = "gather"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concat:
    """Two or more tensors of one scale and zero point one after the other: their channels at equal positions, or
    their positions at equal channels (the output is then of any shape with so many positions)."""

    op: Literal["concat"] = "concat"
    name: str
    inputs: tuple[str, ...]
    output: str
    axis: Literal["channels", "positions"] = "channels"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """A tensor of the program itself, the same for every image: `NAME/value`, int8 or int16 as the tensor, of its
    shape. It has no input (position embeddings and class tokens are the residual of the patch convolution)."""

    op: Literal["constant"] = "constant"
    name: str
    output: str


Operator = Annotated[
    Constant
    | Linear
    | Conv
    | Attention
    | LayerNorm
    | MaxPool
    | AvgPool
    | Elementwise
    | Multiply
    | Slice
    | Reshape
    | Gather
    | Concat,
    Field(discriminator="op"),
]


def drained(operator: Operator) -> Drain | None:
    """The operator's drain, where it has one."""
    return getattr(operator, "drain", None)


def reads(operator: Operator) -> tuple[str, ...]:
    """Names of the tensors that an operator reads, a residual last."""
    match operator:
        case Constant():
            names = ()
        case Concat():
            names = operator.inputs
        case Attention():
            names = (operator.input, operator.keys, operator.values)
        case Multiply():
            names = (operator.input, operator.other)
        case _:
            names = (operator.input,)
    drain = drained(operator)
    return names if drain is None or drain.residual is None else (*names, drain.residual.tensor)


def writes(operator: Operator) -> tuple[str, ...]:
    """Names of the tensors that an operator writes."""
    drain = drained(operator)
    return (
        (operator.output,)
        if drain is None or drain.second is None
        else (operator.output, drain.second.tensor)
    )

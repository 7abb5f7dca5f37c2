"""Attention between `quant` nodes.

Scores keep their codes: they are the logits, and the exponential's table is made for their step. Zero points of
queries and keys are further channels of the product, so that scores are exact. Softmax's results are not rounded to
codes: the machine divides behind the product with the values.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..arch import numerics
from ..arch.graph import Attention, Drain, Elementwise, Linear
from ..arch.schemes import Scheme
from .builder import scaled
from .calibrate import Range
from .floatgraph import Node
from .forms import IDENTITY, WIDE, Codes, Form, Whole
from .onnx_dialects import Refused

if TYPE_CHECKING:
    from .imported import Importer

__all__ = ["attention"]

_TOP = (1 << numerics.LOGIT_BITS - 1) - 1
"""The greatest logit: the score with the greatest code, so that scores beyond it saturate as they do in the model."""
_FINEST = 128
"""Steps of the 16-bit output for each of the 8-bit one."""
_CODE = 127


def attention(importer: Importer, node: Node, *forms: Form) -> Whole:
    """Attention of three 8-bit tensors, to be written with the range that follows it."""
    q, k, v = (importer.read(form, node) for form in forms)
    if any(codes.range.zero_point % 1 for codes in (q, k, v)):
        raise Refused("reads signs of the image", "quantize queries, keys and values")
    heads = int(node.attrs["heads"])
    step, scores = _scores(node)
    bias = _bias(node, step)

    def emit(found: Range, name: str) -> Codes:
        queries, keys, total = _without_zero_points(importer, node, q, k, heads)
        values = (
            v
            if v.range.zero_point == 0
            else _selected(importer, v, f"{v.name}.codes", np.arange(v.shape[-1]))
        )
        logits = np.full(heads, q.range.scale * k.range.scale * float(node.attrs["scale"]) / step)
        top = 0 if scores is None or bias is not None else scores.zero_point + _TOP - scores.hi
        fields = scaled(logits, np.zeros(heads), np.full(heads, total), top)
        fields |= {"exp": _exponentials(step, bias)} | ({} if bias is None else {"bias": bias})
        exact = v.range.zero_point == 0 == found.zero_point
        ratio = v.range.scale / found.scale
        fine = 1 if exact else _fraction(ratio)
        m2, n2 = numerics.scale_to_mn(ratio * fine, n_max=30)
        fields |= {"m2": np.full(heads, m2, np.uint16), "n2": np.full(heads, n2, np.uint8)}
        middle = found if exact else dataclasses.replace(WIDE, scale=found.scale / fine)
        attended = importer.declare(name if exact else f"{name}.s16", middle, node.shape)
        operator = Attention(
            name=importer.name(node.name),
            input=queries,
            keys=keys,
            values=values.name,
            output=attended.name,
            heads=heads,
            windows=int(node.attrs.get("windows", 1)),
            bias=bias is not None,
            lo=middle.lo,
            hi=middle.hi,
        )
        importer.emit(operator, fields, attended.name)
        if exact:
            return attended
        result = importer.declare(name, found, node.shape)
        offset = np.array([-ratio * v.range.zero_point])  # the values' codes still hold their zero point
        fields = scaled(np.array([1 / fine]), offset, np.zeros(1), found.zero_point)
        rounded = Elementwise(
            name=importer.name(f"{node.name}.s8"),
            input=attended.name,
            output=result.name,
            drain=Drain(lo=found.lo, hi=found.hi),
        )
        importer.emit(rounded, fields, name)
        return result

    return Whole(emit)


def _scores(node: Node) -> tuple[float, Range | None]:
    """The step of the logits, and the range of the scores' codes where the model quantizes them to 8 bits."""
    attrs = node.attrs.get("scores")
    if attrs is None:
        return numerics.EXP_STEP, None
    if attrs["rounding"] != "ROUND" or attrs["hi"] - attrs["lo"] > 255:
        raise Refused(
            f"quantizes its scores to {attrs['lo']}..{attrs['hi']} by {attrs['rounding']}",
            "quantize the scores of attention to 8 bits by ROUND",
        )
    return attrs["scale"], Range(attrs["scale"], attrs["zero_point"], attrs["lo"], attrs["hi"])


def _bias(node: Node, step: float) -> np.ndarray | None:
    if "bias" not in node.params:
        return None
    bias = node.params["bias"].double().numpy()
    codes = np.clip(np.rint(np.where(np.isneginf(bias), 0, bias) / step), *numerics.LOGIT_BIAS_RANGE)
    return np.where(np.isneginf(bias), numerics.MASKED, codes).astype(np.int16)


def _exponentials(step: float, bias: np.ndarray | None) -> np.ndarray:
    table = numerics.exp_table(step)
    if bias is None:  # nothing is masked, and codes may be 255 apart
        table[255] = round(255 * float(np.exp(-255 * step)))
    return table.astype(np.uint8)


def _fraction(ratio: float) -> int:
    """Steps of 16 bits for each output step, for values of 8 bits whose step is `ratio` output steps."""
    fine = _FINEST
    while fine > 1 and ratio * fine * 128 > 32767:
        fine //= 2
    return fine


def _without_zero_points(
    importer: Importer, node: Node, q: Codes, k: Codes, heads: int
) -> tuple[str, str, int]:
    """Tensors whose product, less the third result, is that of the codes without their zero points.

    (q - a)(k - b) = q k - a k - b q + a b, where each product is a further set of channels of each head.
    """
    a, b = int(q.range.zero_point), int(k.range.zero_point)
    size = q.shape[-1] // heads
    left: list[int | None] = [None]
    right: list[int | None] = [None]
    for part in _parts(-a):
        left.append(part)
        right.append(None)
    for part in _parts(-b):
        left.append(None)
        right.append(part)
    if len(left) == 1:
        return q.name, k.name, 0
    names = []
    for codes, parts, suffix in ((q, left, "queries"), (k, right, "keys")):
        channels = np.arange(codes.shape[-1]).reshape(heads, 1, size)
        copied = np.array([part is None for part in parts])[:, None]
        rows = np.where(copied, channels, -1).reshape(-1)
        constants = np.broadcast_to(
            np.array([part or 0 for part in parts])[:, None], (heads, len(parts), size)
        )
        names.append(_selected(importer, codes, f"{node.name}.{suffix}", rows, constants.reshape(-1)).name)
    return *names, -size * a * b


def _parts(value: int) -> list[int]:
    """Codes whose sum is `value`; none for zero."""
    return [] if value == 0 else [value] if abs(value) <= _CODE else [value // 2, value - value // 2]


def _selected(
    importer: Importer, codes: Codes, name: str, rows: np.ndarray, constants: np.ndarray | None = None
) -> Codes:
    """A tensor without zero point whose channel i has the codes of channel rows[i], or constants[i] where that is -1."""
    weight = np.zeros((len(rows), codes.shape[-1]), np.int8)
    weight[np.flatnonzero(rows >= 0), rows[rows >= 0]] = 1
    m, n = IDENTITY
    added = np.zeros(len(rows), np.int64) if constants is None else constants.astype(np.int64)
    fields = {
        "weight": weight,
        "scheme": np.full(len(rows), Scheme.FIXED8, np.uint8),
        "m": np.full(len(rows), m, np.uint16),
        "n": np.full(len(rows), n, np.uint8),
        "C": added << n,
    }
    result = importer.declare(name, Range(codes.range.scale, 0, -128, 127), (*codes.shape[:-1], len(rows)))
    operator = Linear(
        name=importer.name(result.name), input=codes.name, output=result.name, drain=Drain(lo=-128, hi=127)
    )
    importer.emit(operator, fields, result.name)
    return result

"""The float graph: what a frontend makes of a model and the quantizer reads.

Shapes are those of the integer graph: no batch axis, channels last, (H, W, C) or (T, C). Values of a batch carry
a leading batch axis. BatchNorm is already folded into convolutions, dropout and identities are gone.
`FloatGraph.run` evaluates it in torch float32 and is the float side of every comparison.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F

from ..arch.graph import Preprocessing
from ..arch.numerics import EXP_STEP
from ..arch.published import EXP_TABLES, SHIFT_GELU_SLOPE
from .fake_quantize import fake_quantize

__all__ = ["ACTIVATIONS", "FloatGraph", "Node"]

_POLYNOMIAL_ERF = (-0.2888, -1.769)
"""a and b of erf(x) = sign(x) (a (min(|x|, -b) + b)^2 + 1) (I-BERT: Kim et al., 2021)."""


def _shift_gelu(x: torch.Tensor) -> torch.Tensor:
    """ShiftGELU without the roundings of its input: x * sigmoid(1.702 x) in 128 steps, exponentials linear in between."""
    p = (x * SHIFT_GELU_SLOPE * 1.4375).clamp(-60, 60)
    q = torch.ceil(p)
    e = torch.exp2(q) * (1 + (p - q) / 2)
    return x * torch.floor(128 * e / (e + 1)).clamp(max=127) / 128


def _polynomial_gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU of HeatViT (arXiv 2211.08110, equations 11 and 12) with delta1 = 0.5."""
    a, b = _POLYNOMIAL_ERF
    u = x / math.sqrt(2)
    return x / 2 * (1 + 0.5 * torch.sign(u) * (a * (u.abs().clamp(max=-b) + b) ** 2 + 1))


def _plan_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """PLAN (Amin, Curtis and Hayes-Gill, 1997): the sigmoid in lines whose slopes are powers of two."""
    size = x.abs()
    y = torch.where(
        size < 1, size / 4 + 0.5, torch.where(size < 2.375, size / 8 + 0.625, size / 32 + 0.84375)
    )
    y = torch.where(size < 5, y, 1.0)
    return torch.where(x < 0, 1 - y, y)


ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "erf": torch.erf,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "shift_gelu": _shift_gelu,
    "polynomial_gelu": _polynomial_gelu,
    "plan_sigmoid": _plan_sigmoid,
}


@dataclasses.dataclass(kw_only=True)
class Node:
    """One operator. `params` holds float32 arrays (`index`: int64), `attrs` plain values:

    conv       weight (O, kh, kw, C/groups), bias (O,); stride (2,), padding (top, bottom, left, right), dilation (2,) or 1,
               groups
    linear     weight (O, K), bias (O,)
    layernorm  gamma (C,), beta (C,); eps
    attention  inputs q (T, heads * head_dim), k and v (Tk, heads * head_dim); heads, scale (multiplies q.k); windows:
               q, k and v are that many groups of successive tokens with attention inside each; params["bias"]
               (1 or windows, 1 or heads, T / windows, Tk / windows) is added to the scaled q.k where present; exp: a key of
               EXP_TABLES ("exact" where absent), share: multiplies the softmax (1 where absent). In models that come
               quantized: scores and probabilities, the arguments of `fake_quantize` for what softmax reads and returns, or None
    act        kind: a key of ACTIVATIONS; relu6 may have params["cap"] (C,) in place of 6
    quant      scale, zero_point, lo, hi, rounding of `fake_quantize`: only in models that come quantized
    add        two inputs of one shape, or one input and params["constant"] of that shape
    multiply   two inputs of one shape, or the second with one position for all; or one input and params["constant"]
    gather     index (positions of the output,): position p is position index[p] of the input, or zeros where it is -1
    concat     two or more inputs; axis "channels" (one shape before them) or "positions" (one number of channels)
    tokens     (N, C) or (H, W, C) to (1 + N, C): params["prefix"] (P, C) is put in front
    maxpool, avgpool   kernel (2,), stride (2,), padding (4,); a global mean of (T, C) is avgpool with kernel (T, 1)
    slice      start, count of positions of a (T, C) tensor
    reshape    shape: (H, W, C) to (H * W, C) or back; also (H, W, C) to (1, H * W * C) in front of a linear
    """

    kind: str
    name: str
    """Unique; the module path of the model."""
    inputs: tuple[str, ...]
    """Names of nodes, or "input"."""
    shape: tuple[int, ...]
    """Of the output, without batch."""
    params: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    attrs: dict[str, object] = dataclasses.field(default_factory=dict)


def _conv(node: Node, x: torch.Tensor) -> torch.Tensor:
    top, bottom, left, right = node.attrs["padding"]
    x = F.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom))
    y = F.conv2d(
        x,
        node.params["weight"].permute(0, 3, 1, 2),
        node.params["bias"],
        stride=node.attrs["stride"],
        dilation=node.attrs.get("dilation", (1, 1)),
        groups=node.attrs["groups"],
    )
    return y.permute(0, 2, 3, 1)


def _pool(node: Node, x: torch.Tensor) -> torch.Tensor:
    tokens = x.dim() == 3
    x = (x.unsqueeze(2) if tokens else x).permute(0, 3, 1, 2)
    top, bottom, left, right = node.attrs["padding"]
    if node.kind == "maxpool":
        x = F.pad(x, (left, right, top, bottom), value=float("-inf"))
        y = F.max_pool2d(x, node.attrs["kernel"], node.attrs["stride"])
    else:
        x = F.pad(x, (left, right, top, bottom))
        y = F.avg_pool2d(x, node.attrs["kernel"], node.attrs["stride"])
    y = y.permute(0, 2, 3, 1)
    return y.flatten(1, 2) if tokens else y


def _attention(node: Node, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    heads = node.attrs["heads"]
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    q, k, v = (
        t.unflatten(2, (node.attrs.get("windows", 1), -1)).transpose(1, 2) for t in (q, k, v)
    )  # N, W, h, T, d
    scores = q @ k.transpose(-1, -2) * node.attrs["scale"]
    if "bias" in node.params:
        scores = scores + node.params["bias"]
    if found := node.attrs.get("scores"):
        scores = fake_quantize(scores, **found)
    shares = _softmax(node, scores)
    if found := node.attrs.get("probabilities"):
        shares = fake_quantize(shares, **found)
    return (shares @ v).transpose(2, 3).flatten(3).flatten(1, 2)


def _softmax(node: Node, scores: torch.Tensor) -> torch.Tensor:
    exp = node.attrs.get("exp", "exact")
    if exp == "exact":
        return torch.softmax(scores, dim=-1)
    distance = torch.round((scores.amax(-1, keepdim=True) - scores) / EXP_STEP).clamp(max=255)
    e = torch.from_numpy(EXP_TABLES[exp]()).to(scores)[distance.long()]
    return e * (node.attrs.get("share", 1.0) / e.sum(-1, keepdim=True))


def _gather(node: Node, x: torch.Tensor) -> torch.Tensor:
    index, x = node.params["index"], x.flatten(1, -2)
    taken = x[:, index.clamp(min=0)] * (index >= 0).unsqueeze(1)
    return taken.reshape(x.shape[0], *node.shape)


def evaluate(node: Node, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The float value of one node for a batch."""
    x = inputs[0]
    match node.kind:
        case "conv":
            return _conv(node, x)
        case "linear":
            return F.linear(x, node.params["weight"], node.params["bias"])
        case "layernorm":
            return F.layer_norm(x, x.shape[-1:], node.params["gamma"], node.params["beta"], node.attrs["eps"])
        case "attention":
            return _attention(node, *inputs)
        case "act":
            if "cap" in node.params:
                return torch.minimum(F.relu(x), node.params["cap"])
            return ACTIVATIONS[node.attrs["kind"]](x)
        case "quant":
            fields = ("scale", "zero_point", "lo", "hi", "rounding")
            return fake_quantize(x, *(node.attrs[field] for field in fields))
        case "add":
            return x + (inputs[1] if len(inputs) == 2 else node.params["constant"])
        case "multiply":
            other = inputs[1] if len(inputs) == 2 else node.params["constant"]
            return x * other
        case "gather":
            return _gather(node, x)
        case "concat":
            return torch.cat(inputs, dim=-1 if node.attrs["axis"] == "channels" else 1)
        case "tokens":
            x = x.flatten(1, -2)
            return torch.cat([node.params["prefix"].expand(x.shape[0], -1, -1), x], dim=1)
        case "maxpool" | "avgpool":
            return _pool(node, x)
        case "slice":
            return x[:, node.attrs["start"] : node.attrs["start"] + node.attrs["count"]]
        case "reshape":
            return x.reshape(x.shape[0], *node.attrs["shape"])
    raise AssertionError(node.kind)


@dataclasses.dataclass(kw_only=True)
class FloatGraph:
    """Nodes in execution order; the last node's value is the output."""

    name: str
    input_shape: tuple[int, int, int]
    """(H, W, C)."""
    nodes: list[Node]

    @torch.no_grad()
    def run(self, x: torch.Tensor, *, keep: bool = False) -> torch.Tensor | dict[str, torch.Tensor]:
        """Evaluate a batch (N, H, W, C) of preprocessed float32 images; with `keep`, every node's value by name."""
        values = {"input": x}
        for node in self.nodes:
            values[node.name] = evaluate(node, [values[name] for name in node.inputs])
        return values if keep else values[self.nodes[-1].name]

    def classify(self, images: np.ndarray, preprocessing: Preprocessing, batch: int = 64) -> np.ndarray:
        """Top-1 classes (N,) of raw images (N, H, W, C)."""
        mean, std = (torch.tensor(v, dtype=torch.float32) for v in (preprocessing.mean, preprocessing.std))
        classes = []
        for start in range(0, len(images), batch):
            raw = torch.from_numpy(np.asarray(images[start : start + batch], dtype=np.float32))
            classes.append(
                self.run((raw * preprocessing.scale - mean) / std).flatten(1).argmax(dim=1).numpy()
            )
        return np.concatenate(classes)

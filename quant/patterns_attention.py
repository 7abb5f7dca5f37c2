"""Attention, whole or spelled as softmax(q.k).v.

Functions named as ATen operators take their arguments after the `Call`, and return the operator's value.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from .affine import affine
from .operands import Call, Value, as_constant, need_view, taint
from .orders import ordered
from .views import Draft, Scores, Unsupported, View

__all__ = [
    "biased",
    "product",
    "quantized",
    "scaled_dot_product_attention",
    "scaled_scores",
    "softmax",
    "weighted_values",
]

_MASKED = -1e4
"""A bias at or below this leaves nothing of a probability."""


def scaled_dot_product_attention(
    call, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    q, k, v = (need_view(x, what) for x, what in ((q, "the query"), (k, "the key"), (v, "the value")))
    if dropout_p > 0:
        raise Unsupported("attention drops at random", "set dropout_p=0 at inference (check self.training)")
    heads = q.index.shape[-3] if q.index.dim() > 3 else 1
    if enable_gqa:
        k, v = (x.at(x.index.repeat_interleave(heads // x.index.shape[-3], -3)) for x in (k, v))
    if q.index.shape[:-2] != k.index.shape[:-2] or k.index.shape[:-2] != v.index.shape[:-2]:
        raise Unsupported(
            "queries, keys and values differ in their heads", "use as many key heads as query heads"
        )
    shape = (*q.index.shape[:-1], k.index.shape[-2])
    bias = torch.zeros(()) if attn_mask is None else as_constant(attn_mask)
    if bias is None:
        raise Unsupported("attention takes no mask that depends on the image", "use a constant mask or bias")
    if isinstance(attn_mask, torch.Tensor) and attn_mask.dtype == torch.bool:
        bias = torch.zeros(attn_mask.shape).masked_fill(~attn_mask, float("-inf"))
    if is_causal:
        bias = bias + torch.full(shape[-2:], float("-inf")).triu(1)
    scale = q.index.shape[-1] ** -0.5 if scale is None else scale
    return _attend(call, q, k, v, scale, bias.expand(shape))


def softmax(call, x, dim, *_, **__):
    if not isinstance(x, Scores):
        raise Unsupported(
            "softmax has hardware inside attention only",
            "return the logits and take softmax outside the model",
            layout=len(call.shape) > 2,  # behind an unsupported operator it may be attention's
        )
    if dim not in (-1, x.index.dim() - 1):
        raise Unsupported(f"attention's softmax must run over keys, not axis {dim}", "use softmax(dim=-1)")
    return dataclasses.replace(x, normalized=True)


def product(call: Call, a: Value, b: Value) -> Scores:
    """q.k, where k comes transposed."""
    a, b = need_view(a, "the left factor"), need_view(b, "the right factor")
    lead = call.shape[:-2]
    a, b = (x.at(x.index.expand(*lead, *x.index.shape[-2:])) for x in (a, b))
    index = torch.arange(math.prod(call.shape)).reshape(call.shape)
    return Scores(a, b.at(b.index.transpose(-1, -2)), 1.0, index, (call.path, call.op))


def scaled_scores(call: Call, scores: Scores, factor: torch.Tensor) -> Scores:
    """Scores times a constant: one number, or one for each head."""
    if scores.normalized:
        need_view(scores)
    if factor.numel() == 1:
        bias = None if scores.bias is None else scores.bias * float(factor)
        found = scores.quantized
        if found is not None:
            if float(factor) <= 0:
                raise Unsupported(
                    "quantized scores of attention are multiplied by a number that is not positive",
                    "scale the queries instead",
                )
            found = found | {"scale": found["scale"] * float(factor)}
        return dataclasses.replace(scores, scale=scores.scale * float(factor), bias=bias, quantized=found)
    whole = torch.equal(scores.index.reshape(-1), torch.arange(scores.index.numel()))
    if not whole or factor.shape[-2:] != (1, 1) or scores.bias is not None or scores.quantized:
        raise Unsupported(
            "attention scores are multiplied by a constant of many values",
            "use one scale, or one for each head",
        )
    queries = scores.queries
    lead = factor.expand(*scores.index.shape[:-2], 1, 1).reshape(*queries.index.shape[:-2], 1, 1)
    scaled = affine(queries, lead, None, call.batch, call.name("mul"))
    return dataclasses.replace(scores, queries=scaled)


def biased(scores: Scores, constant: torch.Tensor) -> Scores:
    """Scores plus a constant that broadcasts with them; the next quantization is that of the sum."""
    if scores.normalized:
        need_view(scores)
    bias = torch.zeros(scores.index.numel())
    bias[scores.index.reshape(-1)] = constant.expand(scores.index.shape).reshape(-1)
    bias = bias if scores.bias is None else scores.bias + bias
    return dataclasses.replace(scores, bias=bias, quantized=None)


def quantized(scores: Scores, found: dict[str, object]) -> Scores:
    """Scores, or softmax's results, with the arguments of a `fake_quantize`."""
    return dataclasses.replace(scores, **{"probabilities" if scores.normalized else "quantized": found})


def weighted_values(call: Call, scores: Scores, values: View) -> View:
    if not scores.normalized:
        need_view(scores)
    whole = torch.arange(scores.index.numel())
    queries, keys = scores.queries.index.shape[-2], scores.keys.index.shape[-2]
    if not torch.equal(scores.index.reshape(-1), whole) or tuple(scores.index.shape[-2:]) != (queries, keys):
        raise Unsupported(
            "attention probabilities are rearranged before they meet the values",
            "multiply softmax(q.k) by v directly",
        )
    values = values.at(values.index.expand(*call.shape[:-2], *values.index.shape[-2:]))
    bias = torch.zeros(1) if scores.bias is None else scores.bias
    shape = (*scores.queries.index.shape[:-1], keys)
    bias = bias.reshape(shape) if bias.numel() > 1 else bias.expand(shape)
    quants = {"scores": scores.quantized, "probabilities": scores.probabilities}
    attended = _attend(call, scores.queries, scores.keys, values, scores.scale, bias, quants)
    return attended.at(attended.index.reshape(call.shape))


def _places(view: View, batch: int) -> torch.Tensor:
    """Which of the leading (..., T, head_dim) of queries is window w and head h of image n: (N, W, heads)."""
    index = view.index.reshape(-1, *view.index.shape[-2:])
    image = torch.div(index[:, 0, 0], view.base.size, rounding_mode="floor")
    channels = index[:, 0, :] % view.base.channels
    position = index[:, :, 0] % view.base.size
    position = torch.div(position, view.base.channels, rounding_mode="floor")
    heads, head = torch.unique(channels, dim=0, return_inverse=True)
    windows, window = torch.unique(position, dim=0, return_inverse=True)
    places = torch.full((batch, len(windows), len(heads)), -1)
    if int(index.min()) >= 0 and places.numel() == len(index):
        places[image, window, head] = torch.arange(len(index))
    if int(places.min()) < 0:
        raise Unsupported(
            "queries are no product of windows, heads, tokens and channels",
            "split heads from the channels and windows from the tokens, each in one step",
            layout=True,
        )
    return places


def _tokens(call: Call, view: View, places: torch.Tensor, width: int, what: str) -> Draft:
    """The (W * T, heads * width) node of queries, keys or values given as (..., T, head_dim)."""
    index = view.index.reshape(-1, *view.index.shape[-2:])
    index = torch.nn.functional.pad(index, (0, width - index.shape[-1]), value=-1)[places]
    index = index.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    draft = ordered(view.at(index), tuple(index.shape[1:]), call.batch)
    for source in (draft, *draft.inputs):
        if source.part_of:
            source.path = f"{source.part_of}.{what}"
    return draft


def _bias(bias: torch.Tensor, places: torch.Tensor) -> dict[str, torch.Tensor]:
    """`bias` (..., T, Tk) as the attention node takes it; nothing where it is zero."""
    if not bool(bias.any()):
        return {}
    placed = bias.reshape(-1, *bias.shape[-2:])[places].to(torch.float32)
    placed = torch.where(placed <= _MASKED, float("-inf"), placed)
    if not all(torch.equal(placed[0], other) for other in placed[1:]):
        raise Unsupported("a mask differs between the images of a batch", "use one mask for all images")
    placed = placed[0]
    for axis in (0, 1):
        first = placed.narrow(axis, 0, 1)
        if torch.equal(placed, first.expand_as(placed)):
            placed = first
    return {"bias": placed.contiguous()}


def _attend(
    call: Call,
    queries: View,
    keys: View,
    values: View,
    scale: float,
    bias: torch.Tensor,
    quants: dict | None = None,
) -> View:
    if values.index.shape[-2] != keys.index.shape[-2]:
        raise Unsupported("keys and values differ in their number of tokens", "use one sequence for both")
    places = _places(queries, call.batch)
    _, windows, heads = places.shape
    width = max(queries.index.shape[-1], values.index.shape[-1])
    q, k, v = (
        _tokens(call, view, places, width, what)
        for view, what in ((queries, "q"), (keys, "k"), (values, "v"))
    )
    draft = Draft(
        kind="attention",
        path=call.name("attention"),
        inputs=(q, k, v),
        shape=q.shape,
        params=_bias(bias, places),
        attrs={"heads": heads, "windows": windows, "scale": float(scale)} | (quants or {}) | taint(q, k, v),
    )
    index = draft.view(call.batch).index.unflatten(-1, (heads, width)).unflatten(1, (windows, -1))
    index = index.permute(0, 1, 3, 2, 4)[..., : values.index.shape[-1]]
    result = torch.empty(places.numel(), *index.shape[3:], dtype=torch.long)
    result[places.reshape(-1)] = index.flatten(0, 2)
    return View(draft, result.reshape(*queries.index.shape[:-1], -1))

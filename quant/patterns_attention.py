"""Attention, whole or spelled as softmax(q.k).v.

Functions named as ATen operators take their arguments after the `Call`, and return the operator's value.
"""

from __future__ import annotations

import dataclasses
import math

import torch

from .operands import Call, Value, need_view, taint
from .views import Draft, Scores, Unsupported, View, ordered

__all__ = ["product", "scaled_dot_product_attention", "softmax", "weighted_values"]


def scaled_dot_product_attention(
    call, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    q, k, v = (need_view(x, what) for x, what in ((q, "the query"), (k, "the key"), (v, "the value")))
    if attn_mask is not None and not _is_no_mask(attn_mask):
        raise Unsupported("attention takes no mask or bias", "remove attn_mask")
    if is_causal:
        raise Unsupported("attention takes no causal mask", "set is_causal=False")
    if dropout_p > 0:
        raise Unsupported("attention drops at random", "set dropout_p=0 at inference (check self.training)")
    if q.index.shape[:-2] != k.index.shape[:-2] or k.index.shape[:-2] != v.index.shape[:-2]:
        raise Unsupported(
            "queries, keys and values differ in their heads", "use as many key heads as query heads"
        )
    return _attend(call, q, k, v, q.index.shape[-1] ** -0.5 if scale is None else scale)


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
    index = torch.arange(math.prod(call.shape)).reshape(call.shape)
    return Scores(a, b.at(b.index.transpose(-1, -2)), 1.0, index, (call.path, call.op))


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
    attended = _attend(call, scores.queries, scores.keys, values, scores.scale)
    return attended.at(attended.index.reshape(call.shape))


def _heads(call: Call, view: View, what: str) -> tuple[Draft, int]:
    """The (T, heads * head_dim) node of queries, keys or values given as (..., T, head_dim)."""
    index = view.index
    index = index.reshape(call.batch, -1, *index.shape[-2:]).permute(0, 2, 1, 3)
    _, tokens, heads, width = index.shape
    draft = ordered(view.at(index), (tokens, heads * width), call.batch)
    for source in (draft, *draft.inputs):
        if source.part_of:
            source.path = f"{source.part_of}.{what}"
    return draft, heads


def _attend(call: Call, queries: View, keys: View, values: View, scale: float) -> View:
    if values.index.shape[-2] != keys.index.shape[-2]:
        raise Unsupported("keys and values differ in their number of tokens", "use one sequence for both")
    (q, heads), (k, _), (v, _) = (
        _heads(call, view, what) for view, what in ((queries, "q"), (keys, "k"), (values, "v"))
    )
    if values.index.shape[-1] != queries.index.shape[-1]:
        raise Unsupported("values and queries differ in head_dim", "use one head_dim")
    draft = Draft(
        kind="attention",
        path=call.name("attention"),
        inputs=(q, k, v),
        shape=q.shape,
        attrs={"heads": heads, "scale": float(scale)} | taint(q, k, v),
    )
    index = draft.view(call.batch).index.unflatten(-1, (heads, -1)).permute(0, 2, 1, 3)
    return View(draft, index.reshape(*queries.index.shape[:-1], -1))


def _is_no_mask(mask: Value) -> bool:
    if not isinstance(mask, torch.Tensor):
        return False
    return bool(mask.all()) if mask.dtype == torch.bool else not bool(mask.any())

"""Padding and concatenation.

Functions named as ATen operators take their arguments after the `Call`, and return the operator's value.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

from .moves import concatenated, reshaped
from .operands import Call, need_view, taint
from .orders import dense, is_whole, ordered
from .views import Draft, Unsupported, View, layout_error

__all__ = ["cat", "fold", "pad", "stack", "unfold"]


def pad(call, x, pad, *rest, **kwargs):
    mode = next((value for value in (*rest, *kwargs.values()) if isinstance(value, str)), "constant")
    value = next((v for v in (*rest, *kwargs.values()) if isinstance(v, int | float)), 0)
    if any(pad) and (mode != "constant" or value != 0):
        raise Unsupported(f"pads with mode {mode!r} and value {value}", "pad with zeros")
    view = need_view(x)
    return view.at(F.pad(view.index, pad, value=-1))


def unfold(call, x, kernel_size, dilation, padding, stride):
    """Windows of an image as columns: im2col moves element numbers as it moves numbers."""
    view = need_view(x)
    numbers = (view.index + 1).to(torch.float64)  # zeros that it pads become -1
    columns = torch.ops.aten.im2col(numbers, kernel_size, dilation, padding, stride)
    return view.at(columns.to(torch.long) - 1)


def fold(call, x, output_size, kernel_size, dilation, padding, stride):
    """Columns back to an image, where no two fall on one pixel."""
    view = need_view(x)
    arguments = (output_size, kernel_size, dilation, padding, stride)
    if int(torch.ops.aten.col2im(torch.ones(view.index.shape), *arguments).max()) > 1:
        raise Unsupported("adds overlapping windows", "use a stride of the kernel's size")
    numbers = torch.ops.aten.col2im((view.index + 1).to(torch.float64), *arguments)
    return view.at(numbers.to(torch.long) - 1)


def stack(call, tensors, dim=0):
    axis = dim % len(call.shape)
    parts = [
        x.unsqueeze(axis) if isinstance(x, torch.Tensor) else x.at(x.index.unsqueeze(axis)) for x in tensors
    ]
    return cat(call, parts, axis)


def cat(call, tensors, dim=0):
    dim = dim % len(call.shape)
    tensors = [x for x in tensors if not isinstance(x, torch.Tensor) or x.numel()]
    views = [need_view(x) for x in tensors if not isinstance(x, torch.Tensor)]
    channels = _runs_through_channels(views[0], dim, call.batch)
    if len({view.base for view in views}) > 1:
        views = _channels(call, views) if channels else _positions(call, views, dim)
    constants = [x.to(torch.float32) for x in tensors if isinstance(x, torch.Tensor)]
    if constants and len(call.shape) == 3 and not channels:
        return _tokens(call, tensors, views, dim)
    if any(bool(x.any()) for x in constants):
        raise Unsupported(
            "concatenates constants to something else than tokens",
            "put class tokens first: cat([token.expand(N, -1, -1), x], dim=1)",
        )
    rest = iter(views)
    parts = [torch.full(x.shape, -1) if isinstance(x, torch.Tensor) else next(rest).index for x in tensors]
    return View(views[0].base, torch.cat(parts, dim))


def _runs_through_channels(view: View, dim: int, batch: int) -> bool:
    """Whether the axis runs through the channels of each position rather than through positions."""
    base, index = view.base, view.index
    if index.shape[dim] > 1:
        first, second = (int(index.select(dim, i).max()) for i in (0, 1))
        return first // base.channels == second // base.channels
    positions = torch.unique(torch.div(index % base.size, base.channels, rounding_mode="floor"))
    return index.dim() == 2 or len(positions) > 1 or index.numel() < batch * base.channels


def _channels(call: Call, views: list[View]) -> list[View]:
    """The views as parts of one base that has the channels of all of theirs at each position."""
    bases: list[Draft] = []
    wholes = [view if is_whole(view, call.batch) else _taken(view, call.batch) for view in views]
    for view in wholes:
        if view.base not in bases:
            bases.append(view.base)
    counts = {base.size // base.channels for base in bases}
    if len(counts) > 1:
        raise layout_error(bases[0], "channels of equally many positions")
    shape = max((base.shape[:-1] for base in bases), key=len)
    parts = [reshaped(base, (*shape, base.channels)) for base in bases]
    joined = merged(parts) or concatenated(call.name("cat"), parts, "channels")
    offsets = dict(zip(bases, [sum(b.channels for b in bases[:i]) for i in range(len(bases))], strict=True))
    result = []
    for view in wholes:
        position = torch.div(view.index, view.base.channels, rounding_mode="floor")
        index = position * joined.channels + offsets[view.base] + view.index % view.base.channels
        result.append(View(joined, torch.where(view.index < 0, -1, index)))
    return result


def _taken(view: View, batch: int) -> View:
    """The view of a base with only the view's positions, if these can be told."""
    try:
        return dense(view, batch)
    except Unsupported:
        return view


def merged(parts: list[Draft]) -> Draft | None:
    """One linear layer for several that read the same node, also behind the same move; None if they do not."""
    first = parts[0]
    if any(part.kind != first.kind or len(part.inputs) != 1 for part in parts):
        return None
    channels = sum(part.channels for part in parts)
    shape = (*first.shape[:-1], channels)
    if first.kind == "linear" and all(part.inputs == first.inputs for part in parts):
        params = {key: torch.cat([part.params[key] for part in parts]) for key in ("weight", "bias")}
        return dataclasses.replace(first, shape=shape, params=params, derived={})
    same = all(
        part.attrs.get("start") == first.attrs.get("start")
        and part.shape[:-1] == first.shape[:-1]
        and (first.kind != "gather" or torch.equal(part.params["index"], first.params["index"]))
        for part in parts
    )
    if first.kind not in ("slice", "gather", "reshape") or not same:
        return None
    before = merged([part.inputs[0] for part in parts])
    if before is None:
        return None
    attrs = first.attrs | ({"shape": shape} if first.kind == "reshape" else {})
    return dataclasses.replace(first, inputs=(before,), shape=shape, attrs=attrs, derived={})


def _positions(call: Call, views: list[View], dim: int) -> list[View]:
    """The views as parts of one base (T, C) that has their positions one after the other."""
    drafts, places = [], []
    for view in views:
        order = (0, dim, *[axis for axis in range(1, view.index.dim()) if axis != dim])
        moved = view.index.permute(order)
        tokens = moved.shape[1]
        if dim == 0:
            raise layout_error(view.base, "whole tokens of each image")
        drafts.append(ordered(view.at(moved), (tokens, moved[0, 0].numel()), call.batch))
        back = tuple(order.index(axis) for axis in range(len(order)))
        places.append((moved.shape, back))
    joined = concatenated(call.name("cat"), drafts, "positions")
    whole, start, result = joined.view(call.batch).index, 0, []
    for moved, back in places:
        part = whole[:, start : start + moved[1]]
        result.append(View(joined, part.reshape(moved).permute(back)))
        start += moved[1]
    return result


def _tokens(call: Call, tensors: list, views: list[View], dim: int) -> View:
    """Constant tokens among those of one node: a node with all constants in front, and the wanted order as a view."""
    order = (0, 1, 2) if dim == 1 else (1, 0, 2)
    constants = [x.to(torch.float32).permute(order) for x in tensors if isinstance(x, torch.Tensor)]
    prefix = torch.cat(constants, dim=1)
    if not torch.equal(prefix, prefix[:1].expand_as(prefix)):
        raise Unsupported("the class token differs between images", "use one class token")
    index = torch.cat([view.index.permute(order) for view in views], dim=1)
    source = ordered(views[0].at(index), tuple(index.shape[1:]), call.batch, flat=True)
    draft = Draft(
        kind="tokens",
        path=call.name("tokens"),
        inputs=(source,),
        shape=(prefix.shape[1] + index.shape[1], index.shape[2]),
        params={"prefix": prefix[0].contiguous()},
        attrs=taint(source),
    )
    numbers, places = draft.view(call.batch).index, []
    starts = {True: 0, False: prefix.shape[1]}
    for tensor in tensors:
        constant = isinstance(tensor, torch.Tensor)
        count = tensor.shape[dim] if constant else tensor.index.shape[dim]
        places.append(numbers[:, starts[constant] : starts[constant] + count])
        starts[constant] += count
    return View(draft, torch.cat(places, dim=1).permute(order))

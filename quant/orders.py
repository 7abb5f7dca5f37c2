"""From the elements of a view to a node that has them in the order that an operator needs.

Positions in another order become a `gather`, channels in another order other rows of the layer that computes them.
"""

from __future__ import annotations

import math

import torch

from .moves import choose_channels, choose_positions, concatenated, has_free_rows, reshaped
from .views import Draft, Unsupported, View, layout_error

__all__ = ["by_position", "dense", "in_base_order", "is_whole", "ordered"]

_MOST_PARTS = 16
"""Positions of which one row is put together."""


def is_whole(view: View, batch: int) -> bool:
    """Whether the view has every element of its base exactly once."""
    total = batch * view.base.size
    if view.index.numel() != total or int(view.index.min()) < 0:
        return False
    hit = torch.zeros(total, dtype=torch.bool)
    hit[view.index.reshape(-1)] = True
    return bool(hit.all())


def _selection(view: View, width: int, batch: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The position (P,) and the channel (width,) of the rows of `width` elements that the view consists of in
    each image, -1 for zeros; None where its elements are not the product of the two."""
    base = view.base
    if view.index.numel() % (width * batch):
        return None
    index = view.index.reshape(batch, -1, width)
    void = index < 0
    channels = torch.where(void, -1, index % base.channels).amax(dim=(0, 1))
    first = torch.arange(batch)[:, None, None] * base.size
    positions = torch.where(void, -1, torch.div(index - first, base.channels, rounding_mode="floor")).amax(2)
    if int(positions.max()) >= base.size // base.channels:
        return None
    again = first + positions[:, :, None] * base.channels + channels
    again[(positions < 0)[:, :, None].expand_as(again) | (channels < 0)] = -1
    if not (torch.equal(again, index) and torch.equal(positions, positions[:1].expand_as(positions))):
        return None
    return positions[0], channels


def _depth(view: View, width: int, batch: int) -> View:
    """The view, where its rows of `width` elements lie in several positions each: a view of the concatenation of
    what they take from each (patches as channels). Otherwise the view itself."""
    base = view.base
    if view.index.numel() % (width * batch) or int(view.index.min()) < 0:
        return view
    index = view.index.reshape(batch, -1, width)
    row, order = index[0, 0].sort()
    places = torch.unique_consecutive(row // base.channels, return_counts=True)[1].tolist()
    if not 1 < len(places) <= _MOST_PARTS:
        return view
    parts = [
        ordered(view.at(part), (index.shape[1], part.shape[-1]), batch)
        for part in index[:, :, order].split(places, dim=-1)
    ]
    joined = concatenated(f"{base.path}.depth" if base.path else "depth", parts, "channels")
    result = torch.empty_like(index)
    result[:, :, order] = joined.view(batch).index
    return View(joined, result.reshape(view.index.shape))


def ordered(view: View, shape: tuple[int, ...], batch: int, *, flat: bool = False) -> Draft:
    """The node whose output is exactly `view.index` taken as (N, *shape); with `flat`, any shape of that order."""
    base = view.base
    if shape == (1, base.size) and torch.equal(
        view.index.reshape(-1), torch.arange(batch * base.size)
    ):  # a flattened image
        return base if flat else reshaped(base, shape)
    found = _selection(view, shape[-1], batch)
    if found is None:
        view = _depth(view, shape[-1], batch)
        found = _selection(view, shape[-1], batch)
        if found is None:
            raise layout_error(base, f"channels-last {shape}")
        base = view.base
    positions, channels = found
    chosen = choose_channels(base, channels)
    whole = torch.equal(positions, torch.arange(base.size // base.channels))
    return chosen if flat and whole else choose_positions(chosen, positions, shape)


def dense(view: View, batch: int) -> View:
    """The same elements as a view of a base that has each of them exactly once.

    Gathers the tokens where some are left out, padded or repeated, and computes fewer rows where channels are.
    """
    if is_whole(view, batch):
        return view
    index, axes = view.index, view.index.dim()
    if int(index.min()) >= 0 and len(torch.unique(index)) == index.numel():
        base = view.base
        channels = torch.unique(index % base.channels)
        positions = torch.unique((index % base.size) // base.channels)
        if batch * len(positions) * len(channels) == index.numel():
            number = torch.full((batch * base.size,), -1)
            kept = torch.arange(batch * base.size).reshape(batch, -1, base.channels)
            chosen = choose_channels(base, channels)
            if len(positions) < kept.shape[1]:
                chosen = choose_positions(chosen, positions, (len(positions), len(channels)))
            kept = kept[:, positions][:, :, channels].reshape(-1)
            number[kept] = torch.arange(len(kept))
            return View(chosen, number[index])
    for order in ((0, *range(2, axes), 1), tuple(range(axes))):  # (N, C, H, W) and (N, T, C)
        moved = index.permute(order) if axes > 1 else index
        if axes > 1 and moved.shape[0] == batch and _selection(view.at(moved), moved.shape[-1], batch):
            shape = tuple(moved.shape[1:])
            shape = shape if 2 <= len(shape) <= 3 else (math.prod(shape[:-1]), shape[-1])
            numbers = torch.arange(index.numel()).reshape(moved.shape)
            back = tuple(order.index(axis) for axis in range(axes))
            return View(ordered(view.at(moved), shape, batch), numbers.permute(back))
    raise layout_error(view.base, "whole tokens or channels")


def by_position(
    view: View, width: int, batch: int, *, subset: bool = False
) -> tuple[Draft, torch.Tensor, torch.Tensor]:
    """For an operator on the last axis, of length `width`: the node, the position of each row of the value in
    (N * positions), and the channel of each element of a row. Pixels that torch sees as tokens become tokens.

    With `subset` the node may have more channels than a row.
    """
    base = view.base
    found = _selection(view, width, batch) if subset and not has_free_rows(base) else None
    if found is not None and torch.equal(found[0].sort().values, torch.arange(base.size // base.channels)):
        positions, channels = found
        if int(channels.min()) >= 0 and 1 < len(torch.unique(channels)) == width < base.channels:
            images = torch.arange(batch)[:, None] * len(positions)
            return base, (images + positions).reshape(-1), channels
    if base.channels < width < base.size:
        view = _depth(view, width, batch)
    view = dense(view, batch)
    base = view.base
    if len(base.shape) == view.index.dim() == 3 and base.size > base.channels == width:
        base = reshaped(base, (base.size // width, width))
    if base.channels != width and base.size == width:
        base = reshaped(base, (1, width))
    if base.channels != width:
        raise layout_error(base, f"rows of {width} channels")
    index = view.index.reshape(-1, width)
    positions, rows = index[:, 0] // width, index[0] % width
    if not torch.equal(index, positions[:, None] * width + rows):
        raise layout_error(base, f"rows of {width} channels")
    return base, positions, rows


def in_base_order(view: View, constant: torch.Tensor, batch: int) -> torch.Tensor:
    """A constant that meets a dense view elementwise, as an array of the base's shape."""
    spread = torch.empty(batch * view.base.size)
    spread[view.index.reshape(-1)] = constant.to(torch.float32).expand(view.index.shape).reshape(-1)
    spread = spread.reshape(batch, *view.base.shape)
    if not all(torch.equal(spread[0], other) for other in spread[1:]):
        raise Unsupported(
            "a constant differs between the images of a batch", "use one constant for all images"
        )
    return spread[0]

"""Tensors in other places: channels and positions in the order that a reader needs, slices, concatenation."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..arch import graph as g
from ..arch.isa import FetchMode
from . import vector
from .ir import Place
from .matrix import Operand, Output, Params, emit
from .rows import plain
from .tensors import Tensors
from .widths import CODES

if TYPE_CHECKING:
    from .lower import _Lowering

__all__ = ["arranged", "concat", "gather", "identity", "shares", "slice_"]

_SAME = Params(m=np.array([2]), n=np.array([1]), constant=np.array([0]), tensor=True, lo=-128, hi=127)
"""Drains an 8-bit code as it is."""


def arranged(
    tensors: Tensors, tag: int, name: str, window: int = 0, slots: tuple[int, ...] | None = None
) -> Place:
    """Tensor `name` with its channels in `slots` and windows of `window` positions: where it is, or a copy."""
    x, a = tensors.places[name], tensors.accelerator
    if not window % a.columns or window >= x.positions:
        window = 0
    if (x.window, x.slots) == (window, slots):
        return x
    key = name, window, slots
    if key not in tensors.copies:
        spare = name in tensors.padded
        if x.slots != slots:
            y = tensors.place(f"{name}/copy", x.positions, x.channels, x.wide, slots, x.window, spare=spare)
            identity(tensors, tag, name, x, Output(place=y))
            x = y
        if x.window != window:
            y = tensors.place(f"{name}/copy", x.positions, x.channels, x.wide, slots, window, spare=spare)
            _reorder(tensors, tag, name, x, np.arange(x.positions), y)
            x = y
        tensors.copies[key] = x
    return tensors.copies[key]


def identity(
    tensors: Tensors, tag: int, name: str, x: Place, output: Output, slots: tuple[int, ...] | None = None
) -> None:
    """The codes of x, byte by byte through the matrix engine, with channels in other slots: those of the output's
    place, or `slots` of keys and values."""
    a, size = tensors.accelerator, 2 if x.wide else 1
    source = _bytes(x.slots, x.channels, size)
    target = _bytes(slots if output.place is None else output.place.slots, x.channels, size)
    chunks = -(-x.physical * size // a.depth)
    weights = np.zeros((len(source), chunks * a.depth), np.int8)
    weights[np.arange(len(source)), source] = 1
    order = np.full(target[-1] + 1, -1)
    order[target] = np.arange(len(source))
    order, params = output.padded(a, order), _SAME
    if output.lanes > a.lanes.fixed8:
        params = dataclasses.replace(_SAME, lo=CODES[0], hi=CODES[1])
    if output.place is not None:
        output = Output(place=dataclasses.replace(output.place, wide=False))
    operand = Operand(
        place=x, mode=FetchMode.LINEAR, positions=x.reach(a), chunks=chunks, group_chunks=chunks
    )
    emit(
        tensors,
        tag,
        name,
        operand=operand,
        weights=weights.reshape(len(weights), chunks, a.depth),
        order=order,
        parts=[plain(0, len(order), a)],
        params=params,
        output=output,
    )


def _bytes(slots: tuple[int, ...] | None, channels: int, size: int) -> np.ndarray:
    """Where each byte of a position lies."""
    first = np.arange(channels) if slots is None else np.array(slots)
    return (first[:, None] * size + np.arange(size)).ravel()


def _reorder(
    tensors: Tensors, tag: int, name: str, x: Place, index: np.ndarray, y: Place, zero_point: int = 0
) -> None:
    """Position p of y is position index[p] of x, or the zero point where index[p] is -1."""
    a = tensors.accelerator
    rows = np.zeros(y.reach(a), np.int64)
    rows[y.spots(a)] = np.where(index < 0, -1, x.spots(a)[index])
    vector.gather(tensors, tag, name, x, rows, y, zero_point)


def gather(lowering: _Lowering, tag: int, operator: g.Gather) -> None:
    """Positions in any order."""
    tensors, tensor = lowering.tensors, lowering.graph.tensor(operator.output)
    x = tensors.places[operator.input]
    y = tensors.output(tensor, x.slots, lowering.wanted.get(tensor.name, 0))
    index = lowering.graph.constant(operator, "index").astype(np.int64)
    _reorder(tensors, tag, operator.name, x, index, y, tensor.zero_point)


def slice_(lowering: _Lowering, tag: int, operator: g.Slice) -> None:
    """Positions that begin a tile stay where they are."""
    tensors, tensor = lowering.tensors, lowering.graph.tensor(operator.output)
    x, columns = tensors.places[operator.input], lowering.accelerator.columns
    if operator.start % columns or x.window:
        y = tensors.output(tensor, x.slots)
        index = np.arange(operator.start, operator.start + operator.count)
        _reorder(tensors, tag, operator.name, x, index, y)
    else:
        offset = x.offset + operator.start // columns * x.stride
        tensors.places[tensor.name] = dataclasses.replace(x, offset=offset, positions=operator.count)


def shares(tensors: Tensors) -> dict[str, tuple[str, int]]:
    """Which tensors can be written where they are concatenated, by which tensor, and at which row of its tiles: those
    whose channels fill rows up to the last that their operator writes."""
    graph, depth, found = tensors.graph, tensors.accelerator.depth, {}
    writers = (
        g.Linear
        | g.Conv
        | g.LayerNorm
        | g.MaxPool
        | g.AvgPool
        | g.Elementwise
        | g.Multiply
        | g.Gather
        | g.Concat
    )
    written = {name for op in graph.operators if isinstance(op, writers) for name in g.writes(op)}
    fixed = {op.input for op in graph.operators if isinstance(op, g.Slice | g.Reshape)}
    for operator in graph.operators:
        if not isinstance(operator, g.Concat) or operator.axis != "channels":
            continue
        parts = [graph.tensor(name) for name in operator.inputs]
        if any(part.channels % depth for part in parts[:-1]):
            continue
        row = 0
        for part in parts:
            wide = part.dtype == "s16"
            rows = part.channels * (2 if wide else 1) // depth
            free = part.name in written - fixed - tensors.padded - found.keys() - {graph.output}
            if free and part.channels % depth == 0 and rows == tensors.rows_of(part.channels, wide):
                found[part.name] = operator.output, row
            row += rows
    return found


def concat(lowering: _Lowering, tag: int, operator: g.Concat) -> None:
    """Channels begin at multiples of depth; positions are put together in whole tiles and then gathered."""
    tensors, first = lowering.tensors, lowering.tensors.places[operator.inputs[0]]
    places = [tensors.places[name] for name in operator.inputs]
    if operator.axis == "positions":
        arrangement = [(place.window, first.slots) for place in places]
    elif operator.output in tensors.places:
        arrangement = [(0, None) for _ in places]
    else:
        arrangement = [(first.window, place.slots) for place in places]
    xs = [
        arranged(tensors, tag, name, window, slots)
        for name, (window, slots) in zip(operator.inputs, arrangement, strict=True)
    ]
    (_channels if operator.axis == "channels" else _positions)(lowering, tag, operator, xs)


def _channels(lowering: _Lowering, tag: int, operator: g.Concat, xs: list[Place]) -> None:
    tensors, depth = lowering.tensors, lowering.accelerator.depth
    slots, bases, end = [], [], 0
    for x in xs:
        bases.append(end)
        slots += [end + slot for slot in (range(x.channels) if x.slots is None else x.slots)]
        end = -(-(end + x.physical) // depth) * depth
    moved = None if slots == list(range(len(slots))) else tuple(slots)
    y = tensors.places.get(operator.output)
    if y is None:
        y = tensors.output(lowering.graph.tensor(operator.output), moved, xs[0].window)
    for x, base in zip(xs, bases, strict=True):
        offset = y.offset + base * (2 if y.wide else 1) // depth
        if (x.buffer, x.offset) != (y.buffer, offset):
            part = dataclasses.replace(y, offset=offset, channels=x.channels, slots=x.slots)
            vector.move(tensors, tag, x, part)


def _positions(lowering: _Lowering, tag: int, operator: g.Concat, xs: list[Place]) -> None:
    tensors, a = lowering.tensors, lowering.accelerator
    tensor, slots = lowering.graph.tensor(operator.output), xs[0].slots
    spots, tiles = [], 0
    for x in xs:
        spots.append(tiles * a.columns + x.spots(a))
        tiles += -(-x.reach(a) // a.columns)
    index = np.concatenate(spots)
    y = tensors.output(tensor, slots)
    direct = np.array_equal(index, np.arange(len(index)))
    whole = y
    if not direct:
        shape = (tiles * a.columns, tensor.channels, tensor.dtype == "s16")
        whole = tensors.place(f"{operator.name}/parts", *shape, slots)
    tile = 0
    for x in xs:
        part = dataclasses.replace(x, buffer=whole.buffer, offset=tile * whole.stride, stride=whole.stride)
        vector.move(tensors, tag, x, part)
        tile += -(-x.reach(a) // a.columns)
    if not direct:
        _reorder(tensors, tag, operator.name, whole, index, y)

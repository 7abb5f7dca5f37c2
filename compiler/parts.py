"""Items cut into ranges of position tiles, so that what follows a part need not wait for the whole layer."""

from __future__ import annotations

import dataclasses
import itertools

from ..arch.accelerator import Accelerator
from ..arch.isa import Destination, FetchMode, Opcode, ParamMode, Region, VectorOp
from . import estimate
from .ir import At, Buffer, Content, Item, Memory, Span, row_bytes

__all__ = ["separated", "split"]

_VECTOR_OPS = (VectorOp.ELEMENTWISE, VectorOp.LAYERNORM, VectorOp.SOFTMAX, VectorOp.MULTIPLY)
_LEAST_CYCLES = 128
"""A part shorter than this would spend more on its start than it hides."""
_LEAST_MATRIX = 64
"""The same of the matrix engine, which overlaps its instructions."""
_FIRST = 0.4
"""Part of a part that begins when it has come."""


def split(accelerator: Accelerator, items: list[Item], count: int) -> list[Item]:
    """Items that compute the same, each cut into at most `count` parts where its fields allow that. The first part of what
    reads the frame's input is cut again, to begin when little of it has come; LOADs to the scratchpad are cut where the
    parts end that read them."""
    loads = [item for item in items if _outside(item)]
    inputs = {s.buffer for item in loads if item.values["region"] == Region.INPUT for s in item.writes}
    made = [
        [item]
        if _outside(item)
        else _parts(accelerator, item, count, not inputs.isdisjoint(s.buffer for s in item.reads))
        for item in items
    ]
    ends: dict[Buffer, set[int]] = {span.buffer: set() for item in loads for span in item.writes}
    for part in itertools.chain.from_iterable(made):
        for span in part.reads:
            if span.buffer in ends:
                ends[span.buffer].add(span.first + span.rows)
    return [
        piece
        for part in itertools.chain.from_iterable(made)
        for piece in (_loads(accelerator, part, ends) if _outside(part) else [part])
    ]


def _outside(item: Item) -> bool:
    """Whether an item brings rows of the scratchpad from the input or a constant."""
    return item.opcode == Opcode.LOAD and item.values["region"] in (Region.INPUT, Region.WEIGHTS)


def separated(items: list[Item]) -> list[Item]:
    """The items on buffers of the scratchpad that are cut between rows that no item accesses together: these need not be
    alive together. So less is alive at once, but rows are written again sooner."""
    spans: dict[Buffer, list[tuple[int, int]]] = {}
    whole: set[Buffer] = set()
    for item in items:
        mine: dict[Buffer, list[tuple[int, int]]] = {}
        for span in (*item.reads, *item.writes):
            mine.setdefault(span.buffer, []).append((span.first, span.first + span.rows))
        for value in item.values.values():
            if isinstance(value, At):  # windows of later parts count rows from the begin of the image
                found = mine.get(value.buffer, ())
                if not any(first <= value.offset < end for first, end in found):
                    whole.add(value.buffer)
        for buffer, found in mine.items():
            spans.setdefault(buffer, []).extend(found)
    pieces: dict[Buffer, list[tuple[int, Buffer]]] = {}
    for buffer, found in spans.items():
        cuttable = buffer.memory in (Memory.SCRATCHPAD, Memory.ROW_SCALE) and buffer.data is None
        if cuttable and not (buffer.whole or buffer.spare or buffer in whole):
            merged: list[list[int]] = []
            for first, end in sorted(set(found)):
                if merged and first < merged[-1][1]:
                    merged[-1][1] = max(merged[-1][1], end)
                else:
                    merged.append([first, end])
            if len(merged) > 1:
                pieces[buffer] = [
                    (first, dataclasses.replace(buffer, name=f"{buffer.name}[{number}]", rows=end - first))
                    for number, (first, end) in enumerate(merged)
                ]

    def moved(value):
        if not isinstance(value, At | Span) or value.buffer not in pieces:
            return value
        row = value.offset if isinstance(value, At) else value.first
        first, piece = next(p for p in reversed(pieces[value.buffer]) if p[0] <= row)
        return At(piece, row - first) if isinstance(value, At) else Span(piece, row - first, value.rows)

    return [
        dataclasses.replace(
            item,
            values={key: moved(value) for key, value in item.values.items()},
            reads=tuple(map(moved, item.reads)),
            writes=tuple(map(moved, item.writes)),
        )
        for item in items
    ]


def _parts(a: Accelerator, item: Item, count: int, first: bool) -> list[Item]:
    if item.opcode not in (Opcode.MATRIX, Opcode.VECTOR):
        return [item]
    if item.opcode == Opcode.VECTOR and item.values["op"] not in _VECTOR_OPS:
        return [item]
    tiles = -(-item.values["positions"] // a.columns)
    cuts = _cuts(a, item, tiles, count)
    edges = [0, *(_earlier(a, item, tiles, cuts[0] if cuts else tiles) if first else []), *cuts, tiles]
    if len(edges) == 2:
        return [item]
    return [_part(a, item, first, end, tiles) for first, end in itertools.pairwise(edges)]


def _cuts(a: Accelerator, item: Item, tiles: int, count: int) -> list[int]:
    """Tiles at which parts after the first begin: the same ones for all items of as many tiles, as far as they can."""
    values, unit = item.values, _unit(a)
    even = [round(tiles * part / count / unit) * unit for part in range(1, count)]
    if item.opcode == Opcode.MATRIX and values["mode"] != FetchMode.LINEAR:
        single = values["out_width"] == 1
        return _near(
            _starts(a, item, tiles), even if single else [tiles * p / count for p in range(1, count)]
        )
    cuts = sorted(cut for cut in set(even) if unit <= cut <= tiles - unit // 2)
    sizes = [end - first for first, end in zip([0, *cuts], [*cuts, tiles], strict=True)]
    least = _LEAST_MATRIX if item.opcode == Opcode.MATRIX else _LEAST_CYCLES
    whole = estimate.occupied(item, estimate.cycles(a, item))
    return [] if whole * min(sizes) < least * tiles else cuts


def _earlier(a: Accelerator, item: Item, tiles: int, end: int) -> list[int]:
    """Tiles that cut the part 0..end of an item in two, and the first of these again."""
    cuts, each = [], estimate.occupied(item, estimate.cycles(a, item)) / tiles
    for _ in range(2):
        found = [tile for tile in _starts(a, item, end) if tile * each >= 2 * _LEAST_CYCLES]
        if found:
            end = min(found, key=lambda tile: abs(tile - _FIRST * end))
            cuts.append(end)
    return sorted(cuts)


def _near(starts: list[int], wanted: list[float]) -> list[int]:
    """The start next to each wanted tile, none twice."""
    cuts: list[int] = []
    for tile in wanted:
        left = [start for start in starts if start not in cuts]
        if left:
            cuts.append(min(left, key=lambda start: abs(start - tile)))
    return sorted(cuts)


def _unit(a: Accelerator) -> int:
    """Tiles at a multiple of which a part may begin, whatever it writes: whole blocks of keys, whole words of values."""
    return max(a.depth // a.columns * a.lanes.fixed8 // a.depth, a.depth // a.columns)


def _starts(a: Accelerator, item: Item, tiles: int) -> list[int]:
    """Tiles of the first `tiles` at which a part after the first may begin: with the first window of a row of windows."""
    values = item.values
    if item.opcode == Opcode.VECTOR or values["mode"] == FetchMode.LINEAR:
        return list(range(_unit(a), tiles, _unit(a)))
    prefix, width = values.get("prefix", 0), values["out_width"]
    return [
        tile
        for tile in range(1, tiles)
        if tile * a.columns >= prefix and (tile * a.columns - prefix) % width == 0
    ]


def _part(a: Accelerator, item: Item, first: int, end: int, tiles: int) -> Item:
    """Tiles first..end of an item of `tiles`."""
    values = dict(item.values)
    values["positions"] = min(values["positions"] - first * a.columns, (end - first) * a.columns)
    moved: list[tuple[At, int]] = []
    """First rows of what is moved on from tile to tile, and by how many rows."""

    def advance(field: str, stride: str | int) -> None:
        rows = values[stride] if isinstance(stride, str) else stride
        moved.append((values[field], rows))
        values[field] = At(values[field].buffer, values[field].offset + first * rows)

    windows = item.opcode == Opcode.MATRIX and values["mode"] != FetchMode.LINEAR
    if windows:
        line = (first * a.columns - values.get("prefix", 0)) // values["out_width"] if first else 0
        values["start_y"] = values.get("start_y", 0) + line * values["stride_y"]
        values["prefix"] = 0 if first else values.get("prefix", 0)
    else:
        advance("src", "src_stride")
    if values.get("residual") or values.get("bias") or values.get("op") == VectorOp.MULTIPLY:
        advance("residual_row", 0 if values.get("broadcast") else "residual_stride")
    if item.opcode == Opcode.VECTOR:
        advance("dst", "dst_stride")
        if values["op"] == VectorOp.SOFTMAX:
            advance("param", 1)
        if values.get("measured") or values.get("summed"):
            advance("index", 1)
    else:
        _destination(a, values, first, advance)
        if values.get("param_mode") == ParamMode.TOKEN:
            advance("param", 1)
        if values.get("second"):
            advance("second_dst", "second_stride")
        if values.get("maxima") or values.get("moments"):
            advance("second_dst", 1)
    reads = tuple(_span(span, moved, first, end, tiles) for span in item.reads)
    if windows:
        reads = tuple(_seen(a, values, span) for span in reads)
    writes = tuple(_span(span, moved, first, end, tiles) for span in item.writes)
    return dataclasses.replace(item, values=values, reads=reads, writes=writes, place=first / tiles)


def _destination(a: Accelerator, values: dict, first: int, advance) -> None:
    """Where a part's outputs go."""
    if values.get("destination", Destination.SCRATCHPAD) == Destination.SCRATCHPAD:
        advance("dst", "dst_stride")
        return
    rows = first // (a.depth // a.columns)
    if values["destination"] == Destination.KEYS:
        block, values["dst_part"] = divmod(values.get("dst_part", 0) + first, values["dst_block"])
        rows = block * values["dst_stride"]
    values["dst"] = At(values["dst"].buffer, values["dst"].offset + rows)


def _span(span: Span, moved: list[tuple[At, int]], first: int, end: int, tiles: int) -> Span:
    """The rows of a span of all tiles that belong to tiles first..end."""
    for at, stride in moved:
        if span.buffer is at.buffer and span.first == at.offset and stride:
            last = span.rows - (tiles - 1) * stride
            return Span(span.buffer, span.first + first * stride, (end - first - 1) * stride + last)
    return span


def _seen(a: Accelerator, values: dict, span: Span) -> Span:
    """The rows of an image that a part's windows see."""
    source, stride = values["src"], values["src_stride"]
    if span.buffer is not source.buffer or span.first != source.offset:
        return span
    lines = -(-(values["positions"] - values["prefix"]) // values["out_width"])
    top = max(0, values["start_y"])
    bottom = min(values["height"], values["start_y"] + (lines - 1) * values["stride_y"] + values["taps_y"])
    width = 1 if values["mode"] == FetchMode.JOIN else values["width"]
    if bottom <= top:
        return span
    first, last = top * width // a.columns, (bottom * width - 1) // a.columns
    rest = span.rows - (-(-values["height"] * width // a.columns) - 1) * stride
    return Span(span.buffer, span.first + first * stride, (last - first) * stride + rest)


def _loads(a: Accelerator, item: Item, ends: dict[Buffer, set[int]]) -> list[Item]:
    """A LOAD to the scratchpad in runs of rows that end at `ends` of its buffer, where runs are long enough."""
    (span,) = item.writes
    total, pitch = item.values["rows"], a.pitch(row_bytes(a, Memory.SCRATCHPAD))
    least, edges = -(-_LEAST_CYCLES // (pitch // a.line_bytes)), [0]
    for end in sorted(end - span.first for end in ends[span.buffer]):
        if edges[-1] + least <= end <= total - least:
            edges.append(end)
    parts = []
    for first, end in itertools.pairwise([*edges, total]):
        row = item.values["row"]
        values = item.values | {"row": At(row.buffer, row.offset + first), "rows": end - first}
        start = values.get("offset", 0)
        values["offset"] = (
            Content(start.data, start.offset + first * pitch)
            if isinstance(start, Content)
            else start + first * pitch
        )
        writes = (Span(span.buffer, span.first + first, end - first),)
        parts.append(dataclasses.replace(item, values=values, writes=writes))
    return parts

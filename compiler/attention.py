"""Attention: keys and values to the weight memory, then QK, softmax and PV of the heads, pipelined."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..arch import graph as g
from ..arch import numerics
from ..arch.accelerator import TABLE_ROW_BYTES, Accelerator
from ..arch.isa import Destination, FetchMode, Opcode, ParamMode, Region, VectorOp, fields
from ..arch.layout import token_slots
from ..arch.schemes import Scheme
from . import moves
from .ir import At, Buffer, Content, Item, Memory, Place, Span
from .matrix import Output
from .rows import pack_params
from .tensors import Tensors
from .widths import dynamic_lanes

if TYPE_CHECKING:
    from .lower import _Lowering

__all__ = ["bias_rows", "lower", "slots"]

_BIASES_AHEAD = 2
"""Heads whose biases are loaded while others are computed."""


def slots(channels: int, heads: int, unit: int) -> tuple[int, ...] | None:
    """Channels of rows in which every head begins at a multiple of `unit`; None where nothing moves."""
    size = channels // heads
    padded = -(-size // unit) * unit
    if padded == size:
        return None
    return tuple(head * padded + i for head in range(heads) for i in range(size))


def bias_rows(tensors: Tensors) -> int:
    """Scratchpad rows of all biases of a graph."""
    graph, a, rows = tensors.graph, tensors.accelerator, 0
    for operator in graph.operators:
        if isinstance(operator, g.Attention) and operator.bias:
            value = graph.constant(operator, "bias")
            tokens, keys = value.shape[2:]
            distinct = len({each.tobytes() for each in value.reshape(-1, tokens * keys)})
            rows += (
                distinct * -(-tokens // a.columns) * tensors.rows_of(int(token_slots(a, keys)[-1]) + 1, True)
            )
    return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Outputs of a product of two activations on lanes, from the first on."""

    count: int
    lanes: int
    """Of a block, which keys or values fill."""

    @classmethod
    def of(cls, outputs: int, most: int, unit: int) -> Blocks:
        """The fewest blocks of at most `most` lanes, of equal size: a multiple of `unit`."""
        count = -(-outputs // (most // unit * unit))
        return cls(count=count, lanes=-(-outputs // (count * unit)) * unit)

    @property
    def channels(self) -> int:
        """Of all blocks."""
        return self.count * self.lanes

    def steps(self, a: Accelerator, outputs: int) -> int:
        """Drain steps of a block."""
        return -(-min(outputs, self.lanes) // a.plain_drain)


def _key_blocks(lowering: _Lowering, operator: g.Attention, slots: int) -> Blocks:
    """Lanes for the slots of the keys."""
    a, limits = lowering.accelerator, lowering.limits
    lanes = dynamic_lanes(a, limits[operator.keys], limits[operator.input])
    even = a.columns & (a.columns - 1) == 0
    tiles = next(f for f in fields(Opcode.MATRIX) if f.name == "dst_block").hi
    most = tiles * a.columns if even else tiles // (a.depth // a.columns) * a.depth
    return Blocks.of(slots, min(lanes, most), max(a.columns, a.plain_drain) if even else a.depth)


def _value_blocks(lowering: _Lowering, operator: g.Attention) -> Blocks:
    """Lanes for the channels of a head."""
    graph, limits = lowering.graph, lowering.limits
    largest = int(graph.constant(operator, "exp").max())
    lanes = dynamic_lanes(lowering.accelerator, limits[operator.values], (0, largest))
    size = graph.tensor(operator.values).channels // operator.heads
    return Blocks.of(size, lanes, lowering.accelerator.plain_drain)


def lower(lowering: _Lowering, tag: int, operator: g.Attention) -> None:
    """Append the items of one attention and of the layers that make its keys and values."""
    tensors, a = lowering.tensors, lowering.accelerator
    out = lowering.graph.tensor(operator.output)
    tokens = out.positions // operator.windows
    padded = -(-_value_blocks(lowering, operator).channels // a.depth) * a.depth
    moved = slots(out.channels, operator.heads, padded)
    y = tensors.output(out, moved, tokens, room=operator.heads * padded)
    if not _supported(lowering, operator):
        return
    channels = lowering.graph.tensor(operator.input).channels
    queries = moves.arranged(tensors, tag, operator.input, tokens, slots(channels, operator.heads, a.depth))
    windows = [
        _Window(lowering, tag, operator, number, queries, y, padded * (1 + y.wide) // a.depth)
        for number in range(operator.windows)
    ]
    sizes = [blocks.lanes for blocks in windows[0].blocks.values()]
    parts = [min(a.lanes.fixed8, size) * (sum(sizes) - size) for size in sizes]
    tensors.rows_by_kind[operator.name] = {
        Scheme.FIXED8: sum(parts),
        Scheme.FIXED4: 2 * sizes[0] * sizes[1] - sum(parts),
    }
    work = [(window, head) for window in windows for head in range(operator.heads)]
    ahead = min(tensors.heads_ahead, len(work), a.row_scales // -(-tokens // a.columns))
    for window, head in work[:ahead]:
        window.scores(head)
    for index, (window, head) in enumerate(work):
        for later, other in work[index + ahead : index + ahead + _BIASES_AHEAD]:
            later.load_bias(other)
        window.output(head)
        for later, other in work[index + ahead : index + ahead + 1]:
            later.scores(other)


def _supported(lowering: _Lowering, operator: g.Attention) -> bool:
    tensors, a = lowering.tensors, lowering.accelerator
    before = len(tensors.problems)
    queries, keys = (lowering.graph.tensor(name) for name in (operator.input, operator.keys))
    tokens = queries.positions // operator.windows
    tiles = -(-tokens // a.columns)
    if tiles > a.row_scales:
        tensors.problem(
            operator.name,
            f"row_scales must be at least {tiles} for {tokens} tokens, not {a.row_scales}. Raise row_scales",
        )
    size = queries.channels // operator.heads
    chunks = max(-(-size // a.depth), -(-(keys.positions // operator.windows) // a.tokens_per_word))
    if chunks > a.operand_chunks:
        tensors.problem(
            operator.name,
            f"operand_chunks must be at least {chunks}, not {a.operand_chunks}. Raise operand_chunks",
        )
    return len(tensors.problems) == before


def _spread(value: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Rows of values by key, by slot."""
    spread = np.zeros((len(value), slots[-1] + 1), value.dtype)
    spread[:, slots] = value
    return spread


class _Window:
    """The parts of one window of an attention, with keys and values of its own."""

    def __init__(
        self,
        lowering: _Lowering,
        tag: int,
        operator: g.Attention,
        number: int,
        queries: Place,
        y: Place,
        head_rows: int,
    ):
        self.lowering, self.tag, self.operator, self.number = lowering, tag, operator, number
        self.head_rows = head_rows
        """Rows of a tile of the output that one head takes."""
        self.tensors, a = lowering.tensors, lowering.accelerator
        self.accelerator = a
        tokens = queries.positions // operator.windows
        self.x, self.y = queries.part(a, number, tokens), y.part(a, number, tokens)
        keys = lowering.graph.tensor(operator.keys)
        heads = operator.heads
        self.keys_count = keys.positions // operator.windows
        self.slots = token_slots(a, self.keys_count)
        self.slot_count = int(self.slots[-1]) + 1
        """Lanes that keys take, and channels of the logits."""
        self.key_chunks = -(-(keys.channels // heads) // a.depth)
        self.size = lowering.graph.tensor(operator.values).channels // heads
        """Channels of a head of the values."""
        self.blocks = {
            Destination.KEYS: _key_blocks(lowering, operator, self.slot_count),
            Destination.VALUES: _value_blocks(lowering, operator),
        }
        self.strides = {
            Destination.KEYS: self.tensors.rows_of(heads * self.key_chunks * a.depth, False),
            Destination.VALUES: -(-self.slot_count // a.depth),
        }
        fixed8, values = a.lanes.fixed8, self.blocks[Destination.VALUES]
        written = heads * values.channels
        if written > fixed8:  # perhaps as blocks of all Fixed-8 lanes
            written = -(-written // fixed8) * fixed8
        blocks = {
            Destination.KEYS: self.blocks[Destination.KEYS].count,
            Destination.VALUES: -(-written // values.lanes),
        }
        self.buffers = {
            kind: Buffer(
                name=f"{operator.name}/{kind.name.lower()}{number or ''}",
                memory=Memory.WEIGHT,
                rows=blocks[kind] * self.strides[kind],
            )
            for kind in blocks
        }
        self.softmax: dict[int, tuple[Place, Buffer]] = {}
        self.biases: dict[int, Place] = {}

    def project(self, name: str, kind: Destination) -> None:
        """Keys or values of all heads to the weight memory: from the Linear layer that makes them, or copied."""
        lowering, tensors, a = self.lowering, self.tensors, self.accelerator
        blocks = self.blocks[kind]
        unit = a.depth if kind == Destination.KEYS else blocks.channels
        order = slots(lowering.graph.tensor(name).channels, self.operator.heads, unit)
        output = Output(
            destination=kind, buffer=self.buffers[kind], stride=self.strides[kind], lanes=blocks.lanes
        )
        tag, linear = lowering.projections.get(name, (self.tag, None))
        source = name if linear is None else linear.input
        x = moves.arranged(tensors, tag, source, self.keys_count, tensors.places[source].slots)
        x = x.part(a, self.number, self.keys_count)
        if linear is None:
            moves.identity(tensors, tag, self.operator.name, x, output, order)
        else:
            lowering.project(tag, linear, x, order, output)

    def load_bias(self, head: int) -> None:
        """Bring the constant that is added to the logits of a head, unless it stays on chip."""
        if not self.operator.bias or head in self.biases:
            return
        tensors, a = self.tensors, self.accelerator
        value = self.lowering.graph.constant(self.operator, "bias")
        value = value[self.number % len(value), head % value.shape[1]]
        name = f"{self.operator.name}/bias{self.number}.{head}"
        place = tensors.place(name, self.x.positions, self.slot_count, True)
        value = _spread(value, self.slots)
        data = place.layout.pack(a, value)
        if self.lowering.keeps_biases:
            place = dataclasses.replace(place, buffer=tensors.data(Memory.SCRATCHPAD, name, self.tag, data))
        else:
            values = {"target": Memory.SCRATCHPAD.value, "region": Region.WEIGHTS, "rows": len(data)}
            values |= {"offset": Content(data, 0), "row": place.at()}
            self._append(Opcode.LOAD, values, (), (Span(place.buffer, 0, len(data)),))
        self.biases[head] = place

    def scores(self, head: int) -> None:
        """Logits of a head and their softmax."""
        if head == 0:
            self.project(self.operator.keys, Destination.KEYS)
            self.project(self.operator.values, Destination.VALUES)
        tensors, a, operator = self.tensors, self.accelerator, self.operator
        constant = self.lowering.graph.constant
        keys, chunks, stride = self.buffers[Destination.KEYS], self.key_chunks, self.strides[Destination.KEYS]
        blocks = self.blocks[Destination.KEYS].count
        steps = self.blocks[Destination.KEYS].steps(a, self.slot_count)
        written = -(-self.slot_count // a.plain_drain)
        name = f"{head}" if operator.windows == 1 else f"{self.number}.{head}"
        logits = tensors.place(
            f"{operator.name}/logits{name}",
            self.x.positions,
            self.slot_count,
            True,
            room=written * a.plain_drain,
        )
        records = (np.full(a.drain, constant(operator, field)[head], np.int64) for field in ("m", "n", "C"))
        param = tensors.data(
            Memory.PARAM,
            f"{operator.name}/param{head}",
            self.tag,
            pack_params(a, *records, np.zeros(a.drain)),
        )
        values = {
            "mode": FetchMode.LINEAR,
            "positions": self.x.positions,
            "src": self.x.at(head * chunks),
            "src_stride": self.x.stride,
            "groups": 1,
            "blocks": blocks,
            "chunks": chunks,
            "weight": At(keys, head * chunks),
            "weight_stride": stride,
            "steps": steps,
            "skip": blocks * steps - written,
            "plain": a.plain_steps - 1,
            "param_mode": ParamMode.TENSOR,
            "param": At(param),
            "lo": -(1 << (numerics.LOGIT_BITS - 1)),
            "hi": (1 << (numerics.LOGIT_BITS - 1)) - 1,
            "wide": 1,
            "dst": logits.at(),
            "dst_stride": logits.stride,
        }
        reads = (
            self.x.span(a, head * chunks, chunks),
            Span(keys, head * chunks, (blocks - 1) * stride + chunks),
            Span(param, 0, 1),
        )
        writes = [logits.span(a, 0, -(-written * a.plain_drain * 2 // a.depth))]
        tiles = -(-self.x.positions // a.columns)
        maxima = Buffer(name=f"{operator.name}/maxima{name}", memory=Memory.ROW_MAXIMA, rows=tiles)
        one_pass = tiles <= a.row_maxima and not operator.bias
        if one_pass:
            values |= {"maxima": 1, "second_dst": At(maxima), "second_stride": self.slot_count}
            writes.append(Span(maxima, 0, tiles))
        self._append(Opcode.MATRIX, values, reads, tuple(writes))

        exp = tensors.data(
            Memory.EXP,
            f"{operator.name}/exp",
            self.tag,
            constant(operator, "exp").reshape(-1, TABLE_ROW_BYTES),
        )
        table = numerics.recip_table().astype("<u2").view(np.uint8).reshape(-1, TABLE_ROW_BYTES)
        recip = tensors.data(Memory.RECIP, "recip", self.tag, table)
        e = tensors.place(f"{operator.name}/e{name}", self.x.positions, self.slot_count, False)
        scales = Buffer(name=f"{operator.name}/scale{name}", memory=Memory.ROW_SCALE, rows=tiles)
        values = {
            "op": VectorOp.SOFTMAX,
            "positions": self.x.positions,
            "channels": self.slot_count,
            "src": logits.at(),
            "src_stride": logits.stride,
            "src_wide": 1,
            "dst": e.at(),
            "dst_stride": e.stride,
            "m": int(constant(operator, "m2")[head]),
            "n": int(constant(operator, "n2")[head]),
            "param": At(scales),
        }
        reads = (
            logits.span(a, 0, -(-self.slot_count * 2 // a.depth)),
            Span(exp, 0, exp.rows),
            Span(recip, 0, recip.rows),
        )
        if operator.bias:
            self.load_bias(head)
            bias = self.biases[head]
            values |= {"bias": 1, "residual_row": bias.at(), "residual_stride": bias.stride}
            reads = (*reads, bias.span(a, 0, -(-self.slot_count * 2 // a.depth)))
        if one_pass:
            values |= {"measured": 1, "index": At(maxima)}
            reads = (*reads, Span(maxima, 0, tiles))
        writes = (e.span(a, 0, -(-self.slot_count // a.depth)), Span(scales, 0, tiles))
        self._append(Opcode.VECTOR, values, reads, writes)
        self.softmax[head] = e, scales

    def output(self, head: int) -> None:
        """PV of a head: rescaled by the row scales of its softmax."""
        a, operator, (e, scales) = self.accelerator, self.operator, self.softmax[head]
        chunks = stride = self.strides[Destination.VALUES]
        taken, buffer = self.blocks[Destination.VALUES], self.buffers[Destination.VALUES]
        blocks, steps = taken.count, taken.steps(a, self.size)
        first = head * blocks * stride
        row = head * self.head_rows
        values = {
            "mode": FetchMode.LINEAR,
            "unsigned": 1,
            "positions": e.positions,
            "src": e.at(),
            "src_stride": e.stride,
            "groups": 1,
            "blocks": blocks,
            "chunks": chunks,
            "weight": At(buffer, first),
            "weight_stride": stride,
            "steps": steps,
            "plain": a.plain_steps - 1,
            "param_mode": ParamMode.TOKEN,
            "param": At(scales),
            "lo": operator.lo,
            "hi": operator.hi,
            "wide": int(self.y.wide),
            "dst": self.y.at(row),
            "dst_stride": self.y.stride,
        }
        reads = (e.span(a, 0, chunks), Span(buffer, first, blocks * stride), Span(scales, 0, scales.rows))
        written = self.y.span(a, row, -(-blocks * steps * a.plain_drain * (1 + self.y.wide) // a.depth))
        self._append(Opcode.MATRIX, values, reads, (written,))

    def _append(
        self, opcode: Opcode, values: dict, reads: tuple[Span, ...], writes: tuple[Span, ...]
    ) -> None:
        self.tensors.items.append(
            Item(opcode=opcode, tag=self.tag, values=values, reads=reads, writes=writes)
        )

"""MATRIX items: a layer's segments cut to what the memories take, with their weight, parameter and table data."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np

from ..arch.accelerator import Accelerator
from ..arch.graph import Residual, Second
from ..arch.isa import Destination, FetchMode, Opcode, ParamMode
from .ir import At, Buffer, Item, Memory, Page, Place, Span
from .rows import Segment, pack_params, pack_weights
from .tensors import Tensors

__all__ = ["Operand", "Output", "Params", "emit"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operand:
    """What a MATRIX instruction fetches."""

    place: Place
    mode: FetchMode
    positions: int
    """Output positions."""
    chunks: int
    group_chunks: int
    """Rows of a tile that one group reads."""
    window: dict[str, int] = dataclasses.field(default_factory=dict)
    """Fields of CONV and JOIN."""
    maximum: bool = False

    def fetches(self, accelerator: Accelerator) -> int:
        """Cycles that the fetch of a chunk takes, about."""
        if self.mode == FetchMode.LINEAR:
            return 1
        if self.mode == FetchMode.JOIN:
            return accelerator.columns
        return min(accelerator.columns, self.window["stride_x"] + (self.window["stride_x"] > 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Params:
    """Requantizers: one entry for each weight row, or `tensor`: one in all."""

    m: np.ndarray
    n: np.ndarray
    constant: np.ndarray
    tensor: bool = False
    lo: int
    hi: int
    table: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Where a layer's results go: a tensor in the scratchpad, or keys or values in the weight memory."""

    place: Place | None = None
    destination: Destination = Destination.SCRATCHPAD
    buffer: Buffer | None = None
    stride: int = 0
    lanes: int = 0
    """In a block of keys or values."""
    second: tuple[Second, Place] | None = None
    residual: tuple[Residual, Place] | None = None

    def unit(self, accelerator: Accelerator) -> int:
        """Channels at a multiple of which an instruction may begin to write."""
        return accelerator.drain if self.destination == Destination.VALUES else accelerator.depth

    def padded(self, accelerator: Accelerator, order: np.ndarray) -> np.ndarray:
        """Weight rows of output channels (-1: none), so many that zeros fill the last row of keys or block of values."""
        unit = self.lanes if self.destination == Destination.VALUES else accelerator.depth
        return order if self.place is not None else np.pad(order, (0, -len(order) % unit), constant_values=-1)


def emit(
    tensors: Tensors,
    tag: int,
    name: str,
    *,
    operand: Operand,
    weights: np.ndarray,
    order: np.ndarray,
    parts: list[Segment],
    groups: int = 1,
    params: Params,
    output: Output,
) -> None:
    """Append the instructions of one layer: `weights` (rows, chunks, depth) int8 in the order of the operand (of a private
    one as many chunks as its taps fill),
    `order` the weight row of each output channel or -1. With groups > 1 there is one segment of `groups` times its
    blocks per group. Problems go to `tensors.problems`."""
    a = tensors.accelerator
    k, weight_rows, per_unit = operand.chunks, weights.shape[1], output.unit(a)
    for part in parts:
        assert not (part.permute and params.tensor), (
            "the lane groups of a permutation are in its own parameters"
        )
        size = part.steps * a.drain
        whole = groups > 1 or "private" in operand.window
        step = part.blocks // groups if whole else 1
        unit = step * max(1, per_unit // np.gcd(per_unit, step * size))
        limits = [
            tensors.limits[Memory.WEIGHT] // weight_rows,
            tensors.limits[Memory.PARAM] // part.steps,
            2047 * step,
        ]
        if groups == 1 and k > a.operand_chunks:
            limits.append(1)
        elif Memory.WEIGHT in tensors.alone and part.blocks > limits[0]:
            # Two take turns, unless the fetch would hold up a single block.
            limits.append(max(tensors.limits[Memory.WEIGHT] // 2 // weight_rows, step * operand.fetches(a)))
        count = min(limits)
        if count < part.blocks:
            count = count // unit * unit
        if count < 1:
            tensors.short |= {m for m in (Memory.WEIGHT, Memory.PARAM) if m in tensors.limited}
        if count < 1 or (whole and step > 1 and k > a.operand_chunks):
            tensors.problem(
                name,
                f"a block of outputs must fit: {unit} x {weight_rows} weight rows in {tensors.limits[Memory.WEIGHT]}, "
                f"{unit} x {part.steps} parameter rows in {tensors.limits[Memory.PARAM]}, {k} operand chunks in "
                f"{a.operand_chunks}. Raise weight_rows, param_rows or operand_chunks, or make the layer narrower",
            )
            continue
        for first in range(0, part.blocks, count):
            blocks = min(count, part.blocks - first)
            _piece(tensors, tag, name, operand, weights, order, part, first, blocks, groups, params, output)


def _piece(
    tensors: Tensors,
    tag: int,
    name: str,
    operand: Operand,
    weights: np.ndarray,
    order: np.ndarray,
    part: Segment,
    first: int,
    blocks: int,
    groups: int,
    params: Params,
    output: Output,
) -> None:
    """Blocks first..first+blocks of a segment as one instruction."""
    a = tensors.accelerator
    size, k = part.steps * a.drain, operand.chunks
    base, channels = part.base + first * size, blocks * size
    rows = np.full(channels, -1)
    present = order[base : base + channels]
    rows[: len(present)] = present
    step = part.blocks // groups if groups > 1 or "private" in operand.window else blocks
    lanes = part.lanes[first : first + blocks]
    digest = hashlib.blake2b(weights[rows[rows >= 0]].tobytes()).digest()
    key = "weights", digest, weights.shape, rows.tobytes(), lanes.tobytes(), size
    packed, shared = tensors.once(key, lambda: _codes(a, weights, rows, lanes))
    weight = tensors.data(Memory.WEIGHT, f"{name}/weight", tag, packed)
    fields = ("m", "n", "constant")
    if params.tensor:
        values = [np.full(a.drain, getattr(params, field)[0], np.int64) for field in fields]
        entry = np.zeros(a.drain)
    else:
        values = [
            np.where(rows >= 0, getattr(params, field)[rows], field == "n").astype(np.int64)
            for field in fields
        ]
        entry = lanes.ravel() // a.drain if part.permute else np.zeros(channels)
    param = tensors.data(Memory.PARAM, f"{name}/param", tag, pack_params(a, *values, entry))

    source = operand.place
    offset = first // step * operand.group_chunks if groups > 1 else 0
    width = source.stride if operand.mode == FetchMode.JOIN else (blocks // step) * operand.group_chunks
    reads = [source.span(a, offset, width), Span(weight, 0, weight.rows), Span(param, 0, param.rows)]
    item = Item(
        opcode=Opcode.MATRIX,
        tag=tag,
        values={
            "mode": operand.mode,
            "maximum": operand.maximum,
            "positions": operand.positions,
            "src": source.at(offset),
            "src_stride": source.stride,
            "groups": blocks // step,
            "blocks": step,
            "chunks": k,
            **operand.window,
            "weight": At(weight),
            "weight_stride": 0 if shared else weights.shape[1],
            "steps": part.steps,
            "param_mode": ParamMode.TENSOR if params.tensor else ParamMode.CHANNEL,
            "param": At(param),
            "permute": part.permute,
            "digits": part.digits,
        },
    )
    _finish(tensors, item, name, reads, params, output, base, channels)


def _codes(
    a: Accelerator, weights: np.ndarray, rows: np.ndarray, lanes: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Weight rows of blocks whose channels have the rows `rows` (or none, -1) on `lanes` (blocks, channels); and
    whether all blocks share those of the first."""
    codes = np.zeros((len(lanes), weights.shape[1], a.lanes.total, a.depth), np.int8)
    used = np.flatnonzero(rows >= 0)
    codes[used // lanes.shape[1], :, lanes.ravel()[used]] = weights[rows[used]]
    shared = len(lanes) > 1 and bool((codes == codes[0]).all())
    codes = codes[:1] if shared else codes
    return pack_weights(a, codes.reshape(-1, a.lanes.total, a.depth)), shared


def _finish(
    tensors: Tensors,
    item: Item,
    name: str,
    reads: list[Span],
    params: Params,
    output: Output,
    base: int,
    channels: int,
) -> None:
    """Drain fields and output spans of an item that writes channels base..base+channels; append it."""
    a, values, writes = tensors.accelerator, item.values, []
    values |= {"lo": params.lo, "hi": params.hi}
    if params.table is not None:
        page = tensors.table(name, item.tag, params.table)
        values |= {"table": 1, "table_wide": len(params.table) > 256, "table_page": Page(page)}
        reads.append(Span(page, 0, page.rows))
    if output.residual is not None:
        residual, place = output.residual
        offset = base * 2 // a.depth
        values |= {"residual": 1, "residual_row": place.at(offset), "residual_stride": place.stride}
        values |= {"residual_m": residual.m, "residual_n": residual.n}
        reads.append(place.span(a, offset, -(-channels * 2 // a.depth)))
    values["destination"] = output.destination
    if output.place is not None:
        size = 2 if output.place.wide else 1
        offset = base * size // a.depth
        values |= {
            "wide": output.place.wide,
            "dst": output.place.at(offset),
            "dst_stride": output.place.stride,
        }
        writes.append(output.place.span(a, offset, -(-channels * size // a.depth)))
    else:
        writes.append(_to_weights(a, values, output, base, channels))
    if output.second is not None:
        second, place = output.second
        offset = base // a.depth
        values |= {"second": 1, "second_dst": place.at(offset), "second_stride": place.stride}
        values |= {"second_m": second.m, "second_n": second.n, "second_constant": second.constant}
        values |= {"second_lo": second.lo, "second_hi": second.hi}
        writes.append(place.span(a, offset, -(-channels // a.depth)))
    item.reads, item.writes = tuple(reads), tuple(writes)
    tensors.items.append(item)


def _to_weights(a: Accelerator, values: dict, output: Output, base: int, channels: int) -> Span:
    """Fields of an item that writes channels base..base+channels of keys or values; the rows that it writes."""
    if output.destination == Destination.KEYS:
        offset = base // a.depth
        values |= {"dst_block": lane_tiles(a, output.lanes)}
        rows = output.buffer.rows - output.stride + -(-channels // a.depth)
    else:
        block, part = divmod(base, output.lanes)
        offset = block * output.stride
        values |= {"dst_block": output.lanes // a.drain, "dst_part": part // a.drain}
        rows = -(-(part + channels) // output.lanes) * output.stride
    values |= {"dst": At(output.buffer, offset), "dst_stride": output.stride}
    return Span(output.buffer, offset, rows)


def lane_tiles(a: Accelerator, lanes: int) -> int:
    """Tiles of keys in a block of so many lanes."""
    word = a.depth // a.columns
    return lanes // a.depth * word + lanes % a.depth // a.columns

"""Output channels to lanes: which rows of a weight matrix run where, and the bytes of weight and parameter rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from ..arch.accelerator import NORM_BYTES, PARAM_BYTES, Accelerator
from ..arch.schemes import Scheme, encode, storage_bits

__all__ = ["Segment", "fastest", "pack_norms", "pack_params", "pack_weights", "plain", "segments"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Segment:
    """Channels base..base+blocks*steps*drain of a layer, run by one kind of block."""

    base: int
    blocks: int
    steps: int
    lanes: np.ndarray
    """(blocks, steps * drain) lane of each channel."""
    permute: bool
    """The lane group comes from the parameter record."""
    digits: bool = False
    """Operands are taken as digits of base 16, a block's chunks twice."""

    def cycles(self, chunks: int) -> int:
        """Of the matrix engine for a tile, where all blocks have `chunks` chunks and outputs take a cycle per step."""
        return self.blocks * max(chunks << self.digits, self.steps)


def segments(
    order: np.ndarray, schemes: np.ndarray, accelerator: Accelerator, unit: int, refused: Collection[int] = ()
) -> list[Segment]:
    """Segments for output channels whose weight rows are `order` (-1: padding, a row of zeros).

    Full blocks of all lanes first, as long as every block's rows find lanes of their scheme (or free Fixed-8
    lanes) in their bank; the rest on one shorter block of the same kind or on the Fixed-8 lanes. A segment after
    the first begins at a multiple of `unit` channels. Lanes that are `refused`, by the operands, are left out; then full
    blocks have the size that makes the fewest blocks.
    """
    a = accelerator
    kinds = np.where(order < 0, -1, np.asarray(schemes, dtype=np.int64)[order])
    groups = [
        group
        for group in range(a.lanes.total // a.drain)
        if not set(range(group * a.drain, (group + 1) * a.drain)) & set(refused)
    ]
    most = len(groups) * a.drain
    sizes = [*range(most, a.lanes.fixed8, -a.drain), a.lanes.fixed8] if refused else [most]
    found = [_segments(kinds, a, unit, groups, size) for size in sizes]
    return min(found, key=lambda parts: (sum(part.blocks for part in parts), len(parts)))


def fastest(
    order: np.ndarray,
    schemes: np.ndarray,
    accelerator: Accelerator,
    unit: int,
    refused: Collection[int],
    chunks: int,
    missing: Collection[int] = (),
) -> list[Segment]:
    """`segments` of a layer of `chunks` chunks: without the lanes that are `refused`, or with digits on all where that takes
    fewer cycles; never with those that are `missing`."""
    a, parts = accelerator, segments(order, schemes, accelerator, unit, {*refused, *missing})
    if not refused or not a.lanes.fixed4_digits or chunks > a.operand_chunks:
        return parts
    every = [
        dataclasses.replace(part, digits=not set(refused).isdisjoint(part.lanes.flat))
        for part in segments(order, schemes, a, unit, missing)
    ]
    return min(parts, every, key=lambda parts: sum(part.cycles(chunks) for part in parts))


def _segments(kinds: np.ndarray, a: Accelerator, unit: int, groups: list[int], total: int) -> list[Segment]:
    """`segments` for rows of `kinds` with full blocks of `total` rows on lane groups `groups`."""
    fixed8, drain, count = a.lanes.fixed8, a.drain, len(kinds)
    full = []
    while total > fixed8 and (len(full) + 1) * total <= count:
        lanes = _assign(kinds[len(full) * total :][:total], a, groups)
        if lanes is None:
            break
        full.append(lanes)
    for blocks in range(len(full), -1, -1):
        base = blocks * total
        rest = kinds[base:]
        if len(rest) and base % unit:
            continue
        head = [_segment(0, full[:blocks], a)] if blocks else []
        if not len(rest):
            return head
        if fixed8 < len(rest) < total:
            lanes = _assign(np.pad(rest, (0, -len(rest) % drain), constant_values=-1), a, groups)
            if lanes is not None:
                return [*head, _segment(base, [lanes], a)]
        if len(rest) <= fixed8 or base % fixed8 == 0:
            return [*head, plain(base, len(rest), a)]
    raise AssertionError("base 0 always ends the loop")


def plain(base: int, count: int, accelerator: Accelerator, block: int | None = None) -> Segment:
    """`count` channels on the Fixed-8 lanes, `block` (default: as many as there are lanes) at a time."""
    a = accelerator
    block = block or min(a.lanes.fixed8, -(-count // a.drain) * a.drain)
    blocks = -(-count // block)
    lanes = np.broadcast_to(np.arange(block), (blocks, block))
    return Segment(base=base, blocks=blocks, steps=block // a.drain, lanes=lanes, permute=False)


def _segment(base: int, blocks: list[np.ndarray], accelerator: Accelerator) -> Segment:
    lanes = np.stack(blocks)
    return Segment(
        base=base, blocks=len(blocks), steps=lanes.shape[1] // accelerator.drain, lanes=lanes, permute=True
    )


def _assign(kinds: np.ndarray, accelerator: Accelerator, usable: list[int]) -> np.ndarray | None:
    """A lane of the same bank, in a group of `usable`, for every row of a block (-1: any lane), or None where they do not
    suffice."""
    a = accelerator
    groups: dict[int, list[int]] = {}
    for group in usable:
        groups.setdefault(int(a.lanes.kinds[group * a.drain]), []).append(group)
    lanes = np.full(len(kinds), -1)
    for bank in range(a.drain):
        free = {kind: list(members) for kind, members in groups.items()}
        rows = range(bank, len(kinds), a.drain)
        for row in sorted(rows, key=lambda r: (kinds[r] < 0, kinds[r] != Scheme.FIXED8)):
            wanted = [int(kinds[row]), int(Scheme.FIXED8)] if kinds[row] >= 0 else list(free)
            source = next((free[kind] for kind in wanted if free.get(kind)), None)
            if source is None:
                return None
            lanes[row] = source.pop(0) * a.drain + bank
    return lanes


def pack_weights(accelerator: Accelerator, codes: np.ndarray) -> np.ndarray:
    """Codes (rows, lanes, depth) to weight memory rows (rows, row bytes). Zeros on Binary lanes, where no row runs, are 1."""
    parts, at = [], 0
    for kind, count in accelerator.lanes.by_scheme.items():
        part, bits = codes[:, at : at + count], storage_bits(kind)
        if kind == Scheme.BINARY:
            part = np.where(part == 0, 1, part)
        patterns = encode(part, kind).reshape(len(codes), -1, 8 // bits)
        parts.append(np.bitwise_or.reduce(patterns << np.arange(0, 8, bits, dtype=np.uint8), axis=2))
        at += count
    return np.concatenate(parts, axis=1)


def pack_params(accelerator: Accelerator, m, n, constant, entry) -> np.ndarray:
    """Drain records (a multiple of `drain` each) to parameter rows."""
    m, n, constant, entry = (np.asarray(v, dtype=np.int64) for v in (m, n, constant, entry))
    record = np.empty((len(m), PARAM_BYTES), np.uint8)
    record[:, :2] = m.astype("<u2")[:, None].view(np.uint8)
    record[:, 2], record[:, 3] = n, entry
    record[:, 4:] = constant.astype("<i8")[:, None].view(np.uint8)[:, :6]
    return record.reshape(-1, accelerator.drain * PARAM_BYTES)


def pack_norms(accelerator: Accelerator, g: np.ndarray, b: np.ndarray) -> np.ndarray:
    """LayerNorm records of every channel to norm rows."""
    padding = (0, -len(g) % accelerator.vector)
    g, b = np.pad(np.asarray(g, dtype=np.int64), padding), np.pad(np.asarray(b, dtype=np.int64), padding)
    record = np.empty((len(g), NORM_BYTES), np.uint8)
    record[:, :2] = g.astype("<i2")[:, None].view(np.uint8)
    record[:, 2:] = b.astype("<i8")[:, None].view(np.uint8)[:, :6]
    return record.reshape(-1, accelerator.vector * NORM_BYTES)

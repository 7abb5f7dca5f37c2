"""The memories of docs/machine.md: transfers from and to DRAM, tensors in the scratchpad, codes in the weight memory."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..arch import isa
from ..arch.accelerator import NORM_BYTES, PARAM_BYTES, TABLE_PAGE_ENTRIES, TABLE_ROW_BYTES, Accelerator
from ..arch.isa import Destination, Instruction, LoadTarget, Region
from ..arch.layout import drained_lanes, lane_bytes, token_slots
from ..arch.schemes import Scheme, decode, encode, storage_bits

__all__ = ["MachineError", "Memories", "Write"]


class MachineError(RuntimeError):
    """An instruction that the machine cannot execute; the message names its index."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Write:
    """What one instruction wrote to one memory."""

    instruction: int
    memory: str
    """SCRATCHPAD, WEIGHT, PARAM, NORM, TABLE, EXP, RECIP, RSQRT, INDEX, REGISTER, ROW_SCALE, ROW_MAXIMA, ROW_MOMENTS or
    OUTPUT (DRAM, rows of a transfer)."""
    rows: np.ndarray
    """(N,) row numbers."""
    mask: np.ndarray
    """(N, row bytes) bool: bytes written. A row scale has 4 bytes per column: m u16, n u16; a row maximum 2; row moments 16: sum s64,
    squares s64."""
    data: np.ndarray
    """(N, row bytes) uint8."""


class Memories:
    """What one accelerator remembers, and how instructions reach it. Every address is checked."""

    def __init__(self, accelerator: Accelerator, *, log: bool = False):
        a = self.accelerator = accelerator
        self.log: list[Write] | None = [] if log else None
        self.scratchpad = np.zeros((a.scratchpad_regions * a.scratchpad_rows, a.columns, a.depth), np.uint8)
        zero = [decode(np.zeros(1), kind)[0] for kind in a.lanes.kinds]  # what lanes make of bits that are 0
        self.weights = np.zeros((a.weight_rows, a.lanes.total, a.depth), np.int8)
        self.weights[:] = np.array(zero, np.int8)[:, None]
        """Codes, already decoded."""
        self.param_m = np.zeros((a.param_rows, a.drain), np.int64)
        self.param_n = np.zeros_like(self.param_m)
        self.param_entry = np.zeros_like(self.param_m)
        self.param_c = np.zeros_like(self.param_m)
        self.norm_g = np.zeros((a.norm_rows, a.vector), np.int64)
        self.norm_b = np.zeros_like(self.norm_g)
        self.row_m = np.zeros((a.row_scales, a.columns), np.int64)
        self.row_n = np.ones((a.row_scales, a.columns), np.int64)
        self.row_maxima = np.zeros((a.row_maxima, a.columns), np.int64)
        self.row_moments = np.zeros((a.row_moments, a.columns, 2), np.int64)
        """Sums of codes and of their squares."""
        self.index = np.zeros(a.index_rows, np.int64)
        self.registers = np.zeros(isa.REGISTERS, np.int64)
        page_rows = TABLE_PAGE_ENTRIES // TABLE_ROW_BYTES
        self.tables = {
            LoadTarget.TABLE: np.zeros((a.table_pages * page_rows, TABLE_ROW_BYTES), np.uint8),
            LoadTarget.EXP: np.zeros((32, TABLE_ROW_BYTES), np.uint8),
            LoadTarget.RECIP: np.zeros((64, TABLE_ROW_BYTES), np.uint8),
            LoadTarget.RSQRT: np.zeros((256, TABLE_ROW_BYTES), np.uint8),
        }
        self.written: dict[int, np.ndarray] = {}
        """What each instruction wrote last to registers or index memory: rows of LOAD, positions that COMPACT kept."""
        self.dram = {region: np.zeros(0, np.uint8) for region in Region}
        self._index = 0

    def _fail(self, message: str):
        raise MachineError(f"instruction {self._index}: {message}")

    def _rows(self, memory: str, rows: np.ndarray, size: int) -> np.ndarray:
        """`rows`, after a check that all are inside a memory of `size` rows."""
        if rows.size and (rows.min() < 0 or rows.max() >= size):
            self._fail(f"{memory} rows must be in 0..{size - 1}, not {rows.min()}..{rows.max()}")
        return rows

    def _note(self, memory: str, rows: np.ndarray, mask: np.ndarray, data: np.ndarray) -> None:
        if self.log is not None:
            n = len(rows)
            data = np.ascontiguousarray(data).reshape(n, -1).copy()
            mask = np.broadcast_to(mask, data.shape).copy()
            self.log.append(
                Write(instruction=self._index, memory=memory, rows=rows.copy(), mask=mask, data=data)
            )

    def _pitch(self, row_bytes: int) -> int:
        return self.accelerator.pitch(row_bytes)

    def _transfer(self, i: Instruction, row_bytes: int, offset: int, rows: int) -> np.ndarray:
        """A view of `rows` rows of the instruction's region from `offset` on: (rows, row bytes)."""
        length, limit = rows * self._pitch(row_bytes), len(self.dram[i.region])
        if rows < 1 or offset % self.accelerator.line_bytes or offset + length > limit:
            self._fail(
                f"transfer of {length} bytes at offset {offset} must be aligned to {self.accelerator.line_bytes} "
                f"bytes and lie inside the {limit} bytes of region {Region(i.region).name}"
            )
        return self.dram[i.region][offset : offset + length].reshape(rows, -1)[:, :row_bytes]

    def _source(self, i: Instruction, row_bytes: int) -> np.ndarray:
        """The rows that a LOAD takes (rows, row bytes)."""
        if not i.gather:
            return self._transfer(i, row_bytes, i.offset, i.rows)
        if i.item_rows < 1:
            self._fail("item_rows must be at least 1")
        entries = self.index[
            self._rows("INDEX", i.index + np.arange(-(-i.rows // i.item_rows)), len(self.index))
        ]
        starts = i.offset + entries * i.item_rows * self._pitch(row_bytes)
        counts = [min(i.item_rows, i.rows - item * i.item_rows) for item in range(len(entries))]
        items = zip(starts, counts, strict=True)
        return np.concatenate([self._transfer(i, row_bytes, int(start), count) for start, count in items])

    def _load(self, i: Instruction) -> None:
        a, target = self.accelerator, LoadTarget(i.target)
        row_bytes = {
            LoadTarget.SCRATCHPAD: a.scratchpad_row_bytes,
            LoadTarget.WEIGHT: a.weight_row_bytes,
            LoadTarget.PARAM: PARAM_BYTES * a.drain,
            LoadTarget.NORM: NORM_BYTES * a.vector,
        }.get(target, TABLE_ROW_BYTES)
        sizes = {
            LoadTarget.SCRATCHPAD: len(self.scratchpad),
            LoadTarget.WEIGHT: a.weight_rows,
            LoadTarget.PARAM: a.param_rows,
            LoadTarget.NORM: a.norm_rows,
            LoadTarget.REGISTER: isa.REGISTERS,
            LoadTarget.INDEX: a.index_rows // 4,
        }
        size = sizes[target] if target in sizes else len(self.tables[target])
        raw = self._source(i, row_bytes)
        rows = self._rows(target.name, np.arange(i.row, i.row + i.rows), size)
        if target == LoadTarget.SCRATCHPAD:
            self.scratchpad[rows] = raw.reshape(-1, a.columns, a.depth)
        elif target == LoadTarget.WEIGHT:
            self.weights[rows] = self._decode_weights(raw)
        elif target == LoadTarget.PARAM:
            record = raw.reshape(i.rows, a.drain, PARAM_BYTES).astype(np.int64)
            self.param_m[rows] = record[..., 0] | record[..., 1] << 8
            self.param_n[rows] = record[..., 2] & 63
            self.param_entry[rows] = record[..., 3]
            self.param_c[rows] = _signed48(record[..., 4:])
        elif target == LoadTarget.NORM:
            record = raw.reshape(i.rows, a.vector, NORM_BYTES).astype(np.int64)
            self.norm_g[rows] = ((record[..., 0] | record[..., 1] << 8) ^ 0x8000) - 0x8000
            self.norm_b[rows] = _signed48(record[..., 2:])
        elif target == LoadTarget.REGISTER:
            values = np.ascontiguousarray(raw[:, :4]).view("<u4").ravel() & ((1 << isa.REGISTER_BITS) - 1)
            self.registers[rows] = self.written[self._index] = values.astype(np.int64)
        elif target == LoadTarget.INDEX:
            entries = self.index.reshape(-1, 4)
            entries[rows] = np.ascontiguousarray(raw).view("<u2")
            self.written[self._index] = entries[rows].ravel()
        else:
            self.tables[target][rows] = raw
        if target == LoadTarget.REGISTER:
            raw = self.registers[rows].astype("<u4").view(np.uint8)
        elif target == LoadTarget.INDEX:
            rows = (4 * rows[:, None] + np.arange(4)).ravel()
        self._note(target.name, rows, np.True_, raw)

    def _decode_weights(self, raw: np.ndarray) -> np.ndarray:
        """Weight rows as in DRAM to codes (rows, lanes, depth)."""
        depth, at, lanes = self.accelerator.depth, 0, []
        for kind, count in self.accelerator.lanes.by_scheme.items():
            size = count * depth * storage_bits(kind) // 8
            part = raw[:, at : at + size]
            bits = storage_bits(kind)
            part = part[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & ((1 << bits) - 1)
            lanes.append(decode(part.reshape(len(raw), count, depth), kind))
            at += size
        return np.concatenate(lanes, axis=1)

    def _store(self, i: Instruction) -> None:
        row_bytes = self.accelerator.scratchpad_row_bytes
        rows = self._rows("SCRATCHPAD", np.arange(i.row, i.row + i.rows), len(self.scratchpad))
        target = self._transfer(i, row_bytes, i.offset, i.rows)
        target[:] = self.scratchpad[rows].reshape(i.rows, -1)
        self._note(Region(i.region).name, np.arange(i.rows), np.True_, target)

    def _read(self, row: int, stride: int, positions: int, channels: int, wide: bool) -> np.ndarray:
        """Codes (positions, channels) of a tensor, int64."""
        a, size = self.accelerator, 2 if wide else 1
        tiles, height = -(-positions // a.columns), -(-channels * size // a.depth)
        rows = row + stride * np.arange(tiles)[:, None] + np.arange(height)
        raw = self.scratchpad[self._rows("SCRATCHPAD", rows, len(self.scratchpad))].transpose(0, 2, 1, 3)
        raw = np.ascontiguousarray(raw).reshape(tiles * a.columns, height * a.depth)
        return raw.view("<i2" if wide else "i1")[:positions, :channels].astype(np.int64)

    def _write(self, row: int, stride: int, codes: np.ndarray, wide: bool, first: int = 0) -> None:
        """Write codes (positions, channels) from channel `first` of a tensor on."""
        a, size = self.accelerator, 2 if wide else 1
        positions, channels = codes.shape
        skipped, first = divmod(first, a.depth // size)
        row += skipped
        channels += first
        tiles, height = -(-positions // a.columns), -(-channels * size // a.depth)
        if tiles > 1 and stride < skipped + height:
            self._fail(
                f"output stride must be at least the {skipped + height} rows up to a tile's last, not {stride}"
            )
        data = np.zeros((tiles * a.columns, height * a.depth // size), "<i2" if wide else "i1")
        mask = np.zeros((tiles * a.columns, height * a.depth), bool)
        data[:positions, first:channels] = codes
        mask[:positions, first * size : channels * size] = True
        raw = data.view(np.uint8)
        raw, mask = (
            v.reshape(tiles, a.columns, height, a.depth).transpose(0, 2, 1, 3).reshape(-1, a.columns, a.depth)
            for v in (raw, mask)
        )
        rows = (row + stride * np.arange(tiles)[:, None] + np.arange(height)).ravel()
        self._rows("SCRATCHPAD", rows, len(self.scratchpad))
        self.scratchpad[rows] = np.where(mask, raw, self.scratchpad[rows])
        self._note("SCRATCHPAD", rows, mask.reshape(len(rows), -1), raw)

    def _write_weights(self, i: Instruction, v: np.ndarray, positions: int) -> None:
        """Outputs (positions, channels) to the first lanes as keys or values; 0 up to the end of the last tile."""
        a, keys = self.accelerator, i.destination == Destination.KEYS
        if i.wide:
            self._fail("keys and values must not be wide")
        if not i.dst_part < i.dst_block:
            self._fail(f"dst_part must be below dst_block, not {i.dst_part} and {i.dst_block}")
        full = np.zeros((positions, v.shape[1]), np.int8)
        full[: len(v)] = v
        p, o = np.arange(positions)[:, None], np.arange(v.shape[1])
        slot = token_slots(a, positions)[p]
        place, within = divmod(p, a.columns) if keys else divmod(o, a.drain)
        block, part = divmod(i.dst_part + place, i.dst_block)
        lane, minor = drained_lanes(a, part, keys, within), o if keys else slot
        if lane.max() >= a.lanes.dynamic:
            self._fail(f"keys and values must be on the first {a.lanes.dynamic} lanes, not {lane.max()}")
        if lane.max() >= a.lanes.fixed8 and not -8 <= i.lo <= i.hi <= 7:
            self._fail(f"keys and values on Fixed-4 lanes must be -8..7, not {i.lo}..{i.hi}")
        rows = self._rows("WEIGHT", i.dst + block * i.dst_stride + minor // a.depth, a.weight_rows)
        rows, lane, code = np.broadcast_arrays(rows, lane, minor % a.depth)
        self.weights[rows, lane, code] = full
        if self.log is not None:
            used, place = np.unique(rows, return_inverse=True)
            mask = np.zeros((len(used), a.weight_row_bytes), bool)
            first, bits = lane_bytes(a)
            mask[place.reshape(rows.shape), first[lane] + code * bits[lane] // 8] = True
            self._note("WEIGHT", used, mask, self._encode_weights(self.weights[used]))

    def _encode_weights(self, codes: np.ndarray) -> np.ndarray:
        """The inverse of `_decode_weights`."""
        parts, at = [], 0
        for kind, count in self.accelerator.lanes.by_scheme.items():
            part = codes[:, at : at + count].reshape(len(codes), -1)
            plain = kind in (Scheme.FIXED8, Scheme.FIXED4)  # -8 is no weight's code, but a value's
            bits = storage_bits(kind)
            part = part.view(np.uint8) & ((1 << bits) - 1) if plain else encode(part, kind)
            raw = np.zeros((len(part), part.shape[1] * bits // 8), np.uint8)
            for i in range(8 // bits):
                raw |= part[:, i :: 8 // bits] << i * bits
            parts.append(raw)
            at += count
        return np.concatenate(parts, axis=1)


def _signed48(raw: np.ndarray) -> np.ndarray:
    """Six little-endian bytes on the last axis to int64."""
    value = sum(raw[..., i] << (8 * i) for i in range(6))
    return (value ^ (1 << 47)) - (1 << 47)

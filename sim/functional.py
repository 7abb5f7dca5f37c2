"""Functional simulator: executes instruction words on the memories of docs/machine.md, one instruction at a time.

Program order, no time. Every address is checked; a semaphore that is not positive where an instruction waits for
it is an error, because in program order every earlier instruction has completed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from ..arch import isa, numerics
from ..arch.accelerator import TABLE_PAGE_ENTRIES, Accelerator
from ..arch.isa import Destination, FetchMode, Instruction, LoadTarget, Opcode, ParamMode, Region, VectorOp
from ..arch.options import refusal
from ..arch.program import Program
from .kernels.products import product
from .memories import MachineError, Memories, Write

__all__ = ["Frame", "Machine", "MachineError", "Write", "frames", "pack_rows", "run"]

_SEMAPHORE_MAX = 255


class Machine(Memories):
    """One accelerator that executes instructions."""

    def __init__(self, accelerator: Accelerator, *, log: bool = False):
        super().__init__(accelerator, log=log)
        self.semaphores = [0] * isa.SEMAPHORES

    def load(self, program: Program) -> None:
        """Take a program's instructions and WEIGHTS region. Raises FileError where it is for another accelerator."""
        program.require(self.accelerator)
        self.program = program
        self._decoded: dict[int, Instruction] = {}
        self.dram[Region.WEIGHTS] = program.weights
        self.dram[Region.SCRATCH] = np.zeros(program.scratch_bytes, np.uint8)

    def run(self, entry: int, input_bytes: np.ndarray | bytes = b"") -> np.ndarray:
        """Execute from instruction `entry` to END on an INPUT buffer; the OUTPUT buffer, uint8."""
        self.dram[Region.INPUT] = np.frombuffer(bytes(input_bytes), np.uint8)
        rows = self.program.output.rows(self.accelerator)
        self.dram[Region.OUTPUT] = np.zeros(
            rows * self._pitch(self.accelerator.scratchpad_row_bytes), np.uint8
        )
        self.semaphores = [0] * isa.SEMAPHORES
        index = entry
        while True:
            instruction = self._fetch(index)
            if instruction.opcode == Opcode.END:
                break
            self.execute(instruction, index)
            index += 1
        if any(self.semaphores):
            raise MachineError(f"instruction {index}: semaphores must be 0 at END, not {self.semaphores}")
        return self.dram[Region.OUTPUT]

    def execute(self, instruction: Instruction, index: int = 0) -> None:
        """Execute one instruction, which errors and the log call `index`. Raises MachineError."""
        self._index = index
        reason = refusal(self.accelerator, instruction)
        if reason:
            self._fail(reason)
        self._wait(instruction)
        instruction = self._resolved(instruction)
        getattr(self, f"_{instruction.opcode.name.lower()}")(instruction)
        self._signal(instruction)

    def _fetch(self, index: int) -> Instruction:
        if index not in self._decoded:
            if not 0 <= index < len(self.program.instructions):
                raise MachineError(f"instruction {index}: must be in 0..{len(self.program.instructions) - 1}")
            try:
                self._decoded[index] = isa.decode(self.program.instructions[index])
            except isa.IsaError as error:
                raise MachineError(f"instruction {index}: {error}") from None
        return self._decoded[index]

    def _resolved(self, i: Instruction) -> Instruction:
        """The instruction with its operand slots added to its fields."""
        values, fields = dict(i.values), isa.operands(i.opcode)
        for slot in isa.SLOTS:
            number = getattr(i, f"{slot}_field")
            if number > len(fields):
                self._fail(f"{i.opcode.name}.{slot}_field must be at most {len(fields)}, not {number}")
            if number:
                field, shift = fields[number - 1], getattr(i, f"{slot}_shift")
                amount = -(-int(self.registers[getattr(i, f"{slot}_register")]) >> shift)
                values[field.name] = values.get(field.name, 0) + amount
                if values[field.name] > field.hi:
                    self._fail(
                        f"{i.opcode.name}.{field.name} must be at most {field.hi} with its registers, "
                        f"not {values[field.name]}"
                    )
        for slot in isa.SLOTS:
            number = getattr(i, f"{slot}_field")
            if number and values[fields[number - 1].name] < fields[number - 1].least:
                self._fail(f"{i.opcode.name}.{fields[number - 1].name} must be at least 1 with its registers")
        return Instruction(i.opcode, values)

    def _wait(self, i: Instruction) -> None:
        for s in range(isa.SEMAPHORES):
            if i.wait >> s & 1:
                if not self.semaphores[s]:
                    self._fail(f"semaphore {s} must be positive before the start; nothing before signals it")
                self.semaphores[s] -= 1

    def _signal(self, i: Instruction) -> None:
        for s in range(isa.SEMAPHORES):
            if i.signal >> s & 1:
                self.semaphores[s] += 1
                if self.semaphores[s] > _SEMAPHORE_MAX:
                    self._fail(f"semaphore {s} must be at most {_SEMAPHORE_MAX}")

    def _table(self, i: Instruction) -> np.ndarray:
        start = i.table_page * TABLE_PAGE_ENTRIES
        return (
            self.tables[LoadTarget.TABLE]
            .view(np.int8)
            .ravel()[start : start + (1024 if i.table_wide else 256)]
        )

    def _finish(self, i: Instruction, v: np.ndarray) -> np.ndarray:
        """Table, residual and clamp of a requantized output (positions, channels)."""
        if i.table:
            return numerics.clamp(numerics.lookup(v, self._table(i)), i.lo, i.hi)
        if i.residual:
            r = self._read(i.residual_row, i.residual_stride, *v.shape, True)
            return numerics.residual_add(v, r, i.residual_m, i.residual_n, i.lo, i.hi)
        return numerics.clamp(v, i.lo, i.hi)

    # MATRIX

    def _matrix(self, i: Instruction) -> None:
        a = self.accelerator
        if min(i.positions, i.groups, i.blocks, i.chunks, i.steps) < 1:
            self._fail("positions, groups, blocks, chunks and steps must be at least 1")
        if i.skip >= i.steps:
            self._fail(f"skip must be below steps ({i.steps}), not {i.skip}")
        tiles, blocks = -(-i.positions // a.columns), i.groups * i.blocks
        drain = a.drain << i.plain
        if i.plain:
            self._check_plain(i)
        if i.private:
            self._check_private(i)
        if i.digits:
            self._check_digits(i)
        operand = self._operand(
            i, tiles
        )  # tiles * columns, groups, chunks, depth; with private all of a tap's
        lanes = a.lanes.total if i.permute else i.steps * drain
        if lanes > a.lanes.total or (i.maximum and lanes > a.lanes.fixed8):
            self._fail(f"steps * drain must not exceed the lanes that can run this, not {lanes}")
        if i.gather:
            entries = i.index + i.chunks * np.arange(blocks)[:, None] + np.arange(i.chunks)
            rows = i.weight + self.index[self._rows("INDEX", entries, len(self.index))]
        else:
            chunks = -(-i.chunks // a.depth) if i.private else i.chunks
            rows = i.weight + i.weight_stride * np.arange(blocks)[:, None] + np.arange(chunks)
        weights = self.weights[self._rows("WEIGHT", rows, a.weight_rows)][:, :, :lanes]
        weights = weights.reshape(i.groups, i.blocks, -1, lanes, a.depth)
        acc = (self._private if i.private else self._accumulate)(i, operand, weights)

        channels = blocks * i.steps * drain
        if i.param_mode == ParamMode.CHANNEL:
            records = self._rows("PARAM", i.param + np.arange(blocks * i.steps), a.param_rows)
        elif i.param_mode == ParamMode.TENSOR or i.permute:
            records = self._rows("PARAM", np.full(blocks * i.steps, i.param), a.param_rows)
        if i.permute:
            group = self.param_entry[records].reshape(blocks, i.steps, a.drain)
        else:
            group = np.broadcast_to(np.arange(i.steps)[None, :, None], (blocks, i.steps, drain))
        lane = group * drain + np.arange(drain)
        if lane.max() >= lanes:
            self._fail(
                f"lane group of a parameter record must be below {lanes // a.drain}, not {group.max()}"
            )
        acc = acc[:, np.arange(blocks)[:, None], lane.reshape(blocks, -1)].reshape(-1, channels)[
            : i.positions
        ]
        if i.param_mode == ParamMode.TOKEN:
            t = self._rows("ROW_SCALE", i.param + np.arange(tiles), a.row_scales)
            m, n = (v[t].reshape(-1, 1)[: i.positions] for v in (self.row_m, self.row_n))
            constant = np.where(m == 0, 0, np.int64(1) << np.maximum(n - 1, 0))
        else:
            fields = (self.param_m, self.param_n, self.param_c)
            m, n, constant = (np.tile(v[records], 1 + i.plain).ravel() for v in fields)
        v = self._finish(i, ((acc * m + constant) >> n)[:, : channels - i.skip * drain])
        if i.destination == Destination.SCRATCHPAD:
            if i.dst_channel % a.drain:
                self._fail(f"dst_channel must be a multiple of drain ({a.drain}), not {i.dst_channel}")
            self._write(i.dst, i.dst_stride, v, bool(i.wide), i.dst_channel)
        else:
            self._write_weights(i, v, tiles * a.columns)
        if i.maxima:
            self._keep_maxima(i, v, tiles)
        if i.moments:
            self._keep_moments(i, v, tiles)
        if i.second:
            v = numerics.requantize(v, i.second_m, i.second_n, i.second_constant, i.second_lo, i.second_hi)
            self._write(i.second_dst, i.second_stride, v, False)

    def _keep_maxima(self, i: Instruction, v: np.ndarray, tiles: int) -> None:
        """The largest of the valid channels of every position to the row maxima."""
        a, bound = self.accelerator, 1 << (numerics.LOGIT_BITS - 1)
        if i.second or i.destination != Destination.SCRATCHPAD:
            self._fail("maxima go with outputs to the scratchpad, and without second")
        if not -bound <= i.lo <= i.hi < bound:
            self._fail(f"lo and hi must be {-bound}..{bound - 1} with maxima, not {i.lo}..{i.hi}")
        if not 1 <= i.second_stride <= v.shape[1]:
            self._fail(f"second_stride must be 1..{v.shape[1]} with maxima, not {i.second_stride}")
        alive = np.arange(i.second_stride) % a.depth < a.tokens_per_word
        largest = np.zeros(tiles * a.columns, np.int64)
        largest[: len(v)] = v[:, : i.second_stride][:, alive].max(axis=1)
        rows = self._rows("ROW_MAXIMA", i.second_dst + np.arange(tiles), a.row_maxima)
        present = (np.arange(tiles * a.columns) < i.positions).reshape(tiles, -1)
        self.row_maxima[rows] = np.where(present, largest.reshape(tiles, -1), self.row_maxima[rows])
        record = self.row_maxima[rows].astype("<i2").view(np.uint8)
        self._note("ROW_MAXIMA", rows, np.repeat(present, 2, axis=1), record)

    def _keep_moments(self, i: Instruction, v: np.ndarray, tiles: int) -> None:
        """Sums of every position's outputs and of their squares to the row moments."""
        a, steps = self.accelerator, i.groups * i.blocks * i.steps - i.skip
        if i.second or i.maxima or i.plain or i.destination != Destination.SCRATCHPAD:
            self._fail("moments go with outputs to the scratchpad, and without second, maxima and plain")
        if steps < a.moment_steps:
            self._fail(f"a tile must have at least {a.moment_steps} drain steps with moments, not {steps}")
        sums = np.zeros((tiles * a.columns, 2), np.int64)
        sums[: len(v)] = np.stack([v.sum(axis=1), (v * v).sum(axis=1)], axis=1)
        sums = sums.reshape(tiles, a.columns, 2)
        rows = self._rows("ROW_MOMENTS", i.second_dst + np.arange(tiles), a.row_moments)
        if i.moments == isa.Moments.ADD:
            sums = sums + self.row_moments[rows]
        half = 1 << (numerics.SUM_BITS - 1)
        sums[..., 0] = (sums[..., 0] + half) % (2 * half) - half
        sums[..., 1] %= 1 << numerics.SQUARES_BITS
        present = (np.arange(tiles * a.columns) < i.positions).reshape(tiles, -1)
        self.row_moments[rows] = np.where(present[..., None], sums, self.row_moments[rows])
        record = self.row_moments[rows].reshape(tiles, -1).view(np.uint8)
        self._note("ROW_MOMENTS", rows, np.repeat(present, 16, axis=1), record)

    def _accumulate(self, i: Instruction, operand: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Accumulators (positions, groups * blocks, lanes), int64."""
        groups, blocks, chunks, lanes, depth = weights.shape
        if i.maximum:
            x, w = operand.astype(np.float64), weights.astype(np.float64)  # sums stay below 2**53: exact
            sums = [np.einsum("pgd,gbld->pgbl", x[:, :, k], w[:, :, k], optimize=True) for k in range(chunks)]
            acc = np.maximum.reduce(sums).astype(np.int64)
        else:
            x = operand.reshape(-1, groups, chunks * depth)
            w = weights.transpose(0, 1, 3, 2, 4).reshape(groups, blocks * lanes, chunks * depth)
            acc = np.stack([product(x[:, g], w[g]) for g in range(groups)], axis=1)
        return _wrapped(acc.reshape(len(operand), groups * blocks, lanes))

    def _check_plain(self, i: Instruction) -> None:
        if i.permute or i.table or i.residual or i.second or i.dst_channel or i.private:
            self._fail("plain outputs have no permute, table, residual, second, dst_channel or private")
        if i.destination != Destination.SCRATCHPAD or i.param_mode == ParamMode.CHANNEL:
            self._fail("plain outputs go to the scratchpad, with TENSOR or TOKEN parameters")

    def _check_private(self, i: Instruction) -> None:
        a, width = self.accelerator, i.tap_chunks
        if i.mode != FetchMode.CONV or i.gather or i.permute:
            self._fail("private needs CONV, and neither gather nor permute")
        if width & (width - 1) or not 1 <= width <= a.private:
            self._fail(f"tap_chunks must be a power of two up to {a.private} with private, not {width}")
        if i.src % width or i.src_stride % width:
            self._fail(f"src and src_stride must be multiples of tap_chunks ({width}) with private")
        lanes, blocks = min(width, a.private_chunks) * a.depth, -(-width // a.private_chunks)
        if i.steps * a.drain > lanes or i.blocks != blocks:
            self._fail(
                f"steps * drain must be at most {lanes} and blocks {blocks} with {width} private chunks"
            )
        if i.maximum and a.private_taps > 1:
            self._fail("maximum is impossible with private where lanes multiply two taps at once")
        if blocks > 1 and (i.chunks + 1) * a.private > a.operand_chunks:
            self._fail(f"chunks must be below {a.operand_chunks // a.private} with {width} private chunks")

    def _check_digits(self, i: Instruction) -> None:
        if i.gather or i.maximum or i.private:
            self._fail("digits excludes gather, maximum and private")
        if i.chunks > self.accelerator.operand_chunks:
            self._fail(f"chunks must be at most operand_chunks with digits, not {i.chunks}")

    def _private(self, i: Instruction, operand: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Accumulators (positions, groups * blocks, lanes) of lanes with channels of their own."""
        depth, lanes = self.accelerator.depth, weights.shape[3]
        shape = (len(operand), i.groups, i.taps_y, i.tap_chunks, i.taps_x, depth)
        x = operand.reshape(shape).transpose(2, 4, 0, 1, 3, 5)  # taps, positions, groups, channels
        x = x.reshape(i.chunks, len(operand), i.groups, i.blocks, -1)[..., :lanes].astype(np.int32)
        acc = None
        for k in range(i.chunks):
            product = x[k] * weights[:, :, k // depth, :, k % depth].astype(np.int32)
            acc = product if acc is None else np.maximum(acc, product) if i.maximum else acc + product
        return _wrapped(acc.reshape(len(operand), -1, lanes).astype(np.int64))

    def _operand(self, i: Instruction, tiles: int) -> np.ndarray:
        """Operand bytes as numbers (tiles * columns, groups, chunks, depth)."""
        a, source = self.accelerator, self.scratchpad
        dtype = np.uint8 if i.unsigned else np.int8
        if i.mode == FetchMode.LINEAR:
            per_tile = np.arange(i.groups * i.chunks)
            rows = self._rows(
                "SCRATCHPAD", i.src + i.src_stride * np.arange(tiles)[:, None] + per_tile, len(source)
            )
            x = source[rows].transpose(0, 2, 1, 3).reshape(-1, i.groups, i.chunks, a.depth)
            return np.ascontiguousarray(x).view(dtype)
        taps_x = i.taps_x if i.mode == FetchMode.CONV else 1
        tap_chunks = 1 if i.private else i.tap_chunks
        if i.taps_y * taps_x * tap_chunks != i.chunks or not i.out_width:
            self._fail("chunks must be taps_y * taps_x * tap_chunks and out_width positive")
        p = np.arange(tiles * a.columns) - i.prefix
        oy, ox = p // i.out_width, p % i.out_width
        k = np.arange(i.taps_y * taps_x * i.tap_chunks)
        ky, cc, kx = k // (taps_x * i.tap_chunks), k // taps_x % i.tap_chunks, k % taps_x
        iy = oy[:, None] * i.stride_y + ky + i.start_y
        visible = (p[:, None] >= 0) & (p[:, None] < i.positions - i.prefix) & (iy >= 0) & (iy < i.height)
        pad = np.array(i.pad_value, np.int8).view(dtype)
        if i.mode == FetchMode.CONV:
            ix = ox[:, None] * i.stride_x + kx + i.start_x
            visible &= (ix >= 0) & (ix < i.width)
            q = np.where(visible, iy * i.width + ix, 0)
            chunk = np.arange(i.groups)[:, None] * i.tap_chunks + cc
            rows = i.src + (q // a.columns * i.src_stride)[:, None, :] + chunk
            rows = self._rows("SCRATCHPAD", np.where(visible[:, None], rows, i.src), len(source))
            x = source[rows, (q % a.columns)[:, None]].view(dtype)
            return np.where(visible[:, None, :, None], x, pad)
        if i.groups != 1:
            self._fail(f"groups must be 1 with JOIN, not {i.groups}")
        byte = (ox[:, None] * i.stride_x + i.start_x + cc * a.depth)[..., None] + np.arange(a.depth)
        inside = visible[..., None] & (byte >= 0) & (byte < i.width)
        byte, y = np.where(inside, byte, 0), np.where(visible, iy, 0)[..., None]
        rows = self._rows("SCRATCHPAD", i.src + y // a.columns * i.src_stride + byte // a.depth, len(source))
        x = source[rows, y % a.columns, byte % a.depth].view(dtype)
        return np.where(inside, x, pad)[:, None]

    # VECTOR

    def _vector(self, i: Instruction) -> None:
        if min(i.positions, i.channels) < 1:
            self._fail("positions and channels must be at least 1")
        if i.op == VectorOp.GATHER:
            return self._gather(i)
        wide = bool(i.src_wide) or i.op in (VectorOp.LAYERNORM, VectorOp.SOFTMAX)
        if i.op == VectorOp.COMPACT:
            return self._compact(i, self._read(i.src, i.src_stride, i.positions, 1, wide)[:, 0])
        x = self._read(i.src, i.src_stride, i.positions, i.channels, wide)
        if i.op == VectorOp.SOFTMAX:
            return self._softmax(i, x)
        if i.op == VectorOp.LAYERNORM:
            a = self.accelerator
            if i.summed:
                self._check_moments(i, x)
            rows = self._rows("NORM", i.param + np.arange(-(-i.channels // a.vector)), a.norm_rows)
            g, b = (v[rows].ravel()[: i.channels] for v in (self.norm_g, self.norm_b))
            rsqrt = self.tables[LoadTarget.RSQRT].view("<u2").ravel()
            y = numerics.layernorm(x, g, b, i.n, i.constant, rsqrt, i.lo, i.hi)
            return self._write_vector(i, y, a.vector, False)
        if i.op == VectorOp.MULTIPLY:
            x, i = _wrapped(x * self._factor(i)), dataclasses.replace(i, values=i.values | {"residual": 0})
        y = self._finish(i, (x * i.m + i.constant) >> i.n)
        self._write_vector(i, y, self.accelerator.vector, bool(i.dst_wide))

    def _check_moments(self, i: Instruction, x: np.ndarray) -> None:
        """The row moments must be those of the codes."""
        rows = i.index + np.arange(-(-i.positions // self.accelerator.columns))
        rows = self._rows("ROW_MOMENTS", rows, self.accelerator.row_moments)
        sums = self.row_moments[rows].reshape(-1, 2)[: i.positions]
        wrong = np.flatnonzero((sums != np.stack([x.sum(axis=1), (x * x).sum(axis=1)], axis=1)).any(axis=1))
        if len(wrong):
            self._fail(f"row moments must be those of the codes; they are not at position {wrong[0]}")

    def _factor(self, i: Instruction) -> np.ndarray:
        """The second operand of MULTIPLY, (positions or 1, channels)."""
        positions = 1 if i.broadcast else i.positions
        return self._read(i.residual_row, i.residual_stride, positions, i.channels, bool(i.residual_wide))

    def _compact(self, i: Instruction, scores: np.ndarray) -> None:
        kept = np.flatnonzero(scores >= i.lo)
        entries = self._rows("INDEX", i.index + np.arange(len(kept)), len(self.index))
        self.index[entries] = kept
        self.registers[i.count_register] = len(kept)
        self.written[self._index] = kept
        self._note("INDEX", entries, np.True_, kept.astype("<u2").view(np.uint8))
        self._note(
            "REGISTER", np.array([i.count_register]), np.True_, np.array([len(kept)], "<u4").view(np.uint8)
        )

    def _gather(self, i: Instruction) -> None:
        a, size = self.accelerator, 2 if i.src_wide else 1
        entries = self._rows("INDEX", i.index + np.arange(i.positions), len(self.index))
        source = self.index[entries].astype(np.int64)
        height = -(-i.channels * size // a.depth)
        rows = (i.src + source // a.columns * i.src_stride)[:, None] + np.arange(height)
        self._rows("SCRATCHPAD", rows, len(self.scratchpad))
        if len(np.unique(rows // a.scratchpad_rows)) > 1:
            self._fail("the positions that GATHER reads must lie in one region of the scratchpad")
        codes = self.scratchpad[rows, (source % a.columns)[:, None]].reshape(i.positions, -1).view("<i2")
        self._write_vector(i, codes[:, : -(-i.channels * size // 2)].astype(np.int64), a.vector, True)

    def _write_vector(self, i: Instruction, y: np.ndarray, unit: int, wide: bool) -> None:
        padded = np.zeros((len(y), -(-y.shape[1] // unit) * unit), np.int64)
        padded[:, : y.shape[1]] = y
        self._write(
            i.dst,
            i.dst_stride,
            padded.astype(np.int16 if wide else np.uint8).view("<i2" if wide else "i1"),
            wide,
        )

    def _softmax(self, i: Instruction, logits: np.ndarray) -> None:
        a, mask = self.accelerator, None
        if i.bias:
            bias = self._read(i.residual_row, i.residual_stride, *logits.shape, True)
            logits, mask = numerics.logit_bias(logits, bias), bias != numerics.MASKED
        alive = np.arange(logits.shape[1]) % a.depth < a.tokens_per_word
        mask = mask if mask is None else mask[:, alive]
        e, exp = np.zeros(logits.shape, np.int64), self.tables[LoadTarget.EXP].ravel()
        if i.measured:
            e[:, alive] = exp[self._distances(i, logits[:, alive])]
        else:
            e[:, alive] = numerics.softmax_exp(logits[:, alive], exp, mask)
        recip = self.tables[LoadTarget.RECIP].view("<u2").ravel()
        scale = numerics.softmax_row_scale(e.sum(axis=1), i.m, i.n, recip)
        tiles = -(-i.positions // a.columns)
        rows = self._rows("ROW_SCALE", i.param + np.arange(tiles), a.row_scales)
        m, n = (np.zeros(tiles * a.columns, np.int64) for _ in range(2))
        m[: i.positions], n[: i.positions] = scale.m, scale.n
        present = (np.arange(tiles * a.columns) < i.positions).reshape(tiles, -1)
        self.row_m[rows] = np.where(present, m.reshape(tiles, -1), self.row_m[rows])
        self.row_n[rows] = np.where(present, n.reshape(tiles, -1), self.row_n[rows])
        record = np.stack([self.row_m[rows], self.row_n[rows]], axis=-1).astype("<u2")
        self._note("ROW_SCALE", rows, np.repeat(present, 4, axis=1), record.reshape(tiles, -1).view(np.uint8))
        self._write_vector(i, e, a.depth, False)

    def _distances(self, i: Instruction, logits: np.ndarray) -> np.ndarray:
        """Indices of EXP by the row maxima; 255 also for a logit above its row's."""
        if i.bias:
            self._fail("measured is for logits without bias")
        rows = i.index + np.arange(-(-i.positions // self.accelerator.columns))
        largest = self.row_maxima[self._rows("ROW_MAXIMA", rows, self.accelerator.row_maxima)]
        distance = largest.reshape(-1, 1)[: i.positions] - logits
        return np.where(distance < 0, 255, np.minimum(distance, 255))


def _wrapped(acc: np.ndarray) -> np.ndarray:
    """Modulo 2 ** ACCUMULATOR_BITS, signed."""
    half = np.int64(1) << (numerics.ACCUMULATOR_BITS - 1)
    return ((acc + half) & (2 * half - 1)) - half


def pack_rows(accelerator: Accelerator, rows: np.ndarray) -> np.ndarray:
    """Scratchpad rows (N, row bytes) to a DRAM buffer: every row starts a bus beat."""
    pitch = accelerator.pitch(rows.shape[1])
    return np.pad(rows, ((0, 0), (0, pitch - rows.shape[1]))).ravel()


@dataclasses.dataclass(frozen=True)
class Frame:
    """What a frame gave."""

    outputs: np.ndarray
    """Codes (positions, channels), int64."""
    written: dict[int, np.ndarray]
    """What its instructions wrote to registers and index memory, as `cycle.predict` wants it."""


def frames(program: Program, codes: np.ndarray) -> Iterator[Frame]:
    """Setup once, then one frame per image: input codes (N, ...)."""
    machine, a = Machine(program.accelerator), program.accelerator
    machine.load(program)
    machine.run(program.setup_entry)
    for image in codes:
        machine.written = {}
        raw = machine.run(program.frame_entry, pack_rows(a, program.input.pack(a, image)))
        rows = raw.reshape(program.output.rows(a), -1)[:, : a.scratchpad_row_bytes]
        yield Frame(program.output.unpack(a, rows), machine.written)


def run(program: Program, codes: np.ndarray) -> np.ndarray:
    """The outputs of `frames`: (N, positions, channels), int64."""
    return np.stack([frame.outputs for frame in frames(program, codes)])

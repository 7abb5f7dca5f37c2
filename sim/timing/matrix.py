"""Timing of the matrix engine: the states of hw/fetch, hw/compute and hw/drain, without data.

State is an int64 array of `STATE` words, zero after a reset; `config` makes the parameters. docs/machine.md,
"Timing models", states the functions. A grant may only be given to a request; the drain's are always granted.
"""

from __future__ import annotations

import numba
import numpy as np

from ...arch.accelerator import Accelerator
from ...arch.isa import Destination, FetchMode
from .table import COLUMN

__all__ = ["STATE", "busy", "config", "ready", "request", "stalled", "step"]

_MODE, _POSITIONS, _GROUPS = COLUMN["mode"], COLUMN["positions"], COLUMN["groups"]
_BLOCKS, _CHUNKS, _STEPS = COLUMN["blocks"], COLUMN["chunks"], COLUMN["steps"]
_SRC, _SRC_STRIDE = COLUMN["src"], COLUMN["src_stride"]
_TAPS_Y, _TAPS_X, _TAP_CHUNKS = COLUMN["taps_y"], COLUMN["taps_x"], COLUMN["tap_chunks"]
_STRIDE_Y, _STRIDE_X, _START_Y = COLUMN["stride_y"], COLUMN["stride_x"], COLUMN["start_y"]
_START_X, _HEIGHT, _WIDTH = COLUMN["start_x"], COLUMN["height"], COLUMN["width"]
_OUT_WIDTH, _PREFIX = COLUMN["out_width"], COLUMN["prefix"]
_RESIDUAL, _RESIDUAL_ROW = COLUMN["residual"], COLUMN["residual_row"]
_RESIDUAL_STRIDE = COLUMN["residual_stride"]
_DESTINATION, _WIDE, _DST, _DST_STRIDE = (
    COLUMN["destination"],
    COLUMN["wide"],
    COLUMN["dst"],
    COLUMN["dst_stride"],
)
_SECOND, _SECOND_DST, _SECOND_STRIDE = COLUMN["second"], COLUMN["second_dst"], COLUMN["second_stride"]
_LINEAR, _CONV, _JOIN = map(int, (FetchMode.LINEAR, FetchMode.CONV, FetchMode.JOIN))
_SCRATCHPAD = int(Destination.SCRATCHPAD)

# Parameters.
_COLUMNS_LOG2, _DEPTH_LOG2, _DRAIN_LOG2, _ROWS_LOG2, _REGIONS, _OPERAND_CHUNKS = range(6)

# Fixed pipelines, in cycles.
_LANES_LATENCY = 4
_BLOCK = 1 + _LANES_LATENCY
"""From a block's last issue to `block` at the drain."""
_RESIDUAL_READ, _WRITE, _SECOND_WRITE, _DONE = 2, 14, 15, 16
"""From a drain step's p0."""
_WHEEL = 32

# State: registers by their names in hw/fetch.py, hw/compute.py and hw/drain.py. S1..S4 hold elements before, A1..A4
# after the grant: 0 if empty, else 1 | counts << 1 | (row + 1) << 2, where row = -1 needs no read.
(
    _CYCLE,
    _F_INS,
    _F_START,
    _W_VALID,
    _W_LEFT,
    _W_GROUP,
    _W_GROUP_ROW,
    _W_TAP_Y,
    _W_TAP_X,
    _W_INNER,
    _W_COLUMN,
    _W_INDEX,
    _W_BASE,
    _W_TILE,
    _SKIP,
    _OUT_X,
    _X,
    _Y,
    _FIRST_SKIP,
    _FIRST_OUT_X,
    _FIRST_X,
    _FIRST_Y,
    _S1,
    _S2,
    _S3,
    _S4,
    _A1,
    _A2,
    _A3,
    _A4,
    _WRITTEN,
    _PENDING,
    _PENDING_VALID,
    _C_INS,
    _C_VALID,
    _C_LEFT,
    _C_GROUP,
    _C_BLOCK,
    _C_CHUNK,
    _C_BASE,
    _C_INDEX,
    _FREED,
    _COUNTDOWN,
    _USED,
    _WRITING,
    _SLOT_0,
    _SLOT_1,
    _SLOT,
    _ACTIVE,
    _PHASE,
    _TILE_END,
    _END,
    _STEP,
    _OUTPUT,
    _TILE,
) = range(55)
# What the fixed pipelines will do, by cycle modulo _WHEEL: blocks at the drain (1 | tile_end << 1 | end << 2), rows of
# residual reads and writes + 1, weight writes, and 1 + slot of a completion.
_BLOCKS_AT, _RESIDUALS_AT, _WRITES_AT, _WEIGHTS_AT, _DONE_AT = (55 + i * _WHEEL for i in range(5))
STATE = 55 + 5 * _WHEEL


def config(accelerator: Accelerator) -> np.ndarray:
    """The parameters that the functions below take as `cfg`."""
    a = accelerator
    powers = (a.columns, a.depth, a.drain, a.scratchpad_rows)
    logs = [value.bit_length() - 1 for value in powers]
    return np.array([*logs, a.scratchpad_regions, a.operand_chunks], dtype=np.int64)


@numba.njit
def _fetching(s):
    if s[_W_VALID] | s[_F_START]:
        return True
    return (s[_S1] | s[_S2] | s[_S3] | s[_S4] | s[_A1] | s[_A2] | s[_A3] | s[_A4]) != 0


@numba.njit
def ready(s, cfg):
    """Whether an instruction is accepted in this cycle."""
    return s[_PENDING_VALID] == 0 and not _fetching(s)


@numba.njit
def busy(s):
    """Whether any instruction is under way."""
    return (s[_PENDING_VALID] | s[_C_VALID] | s[_USED]) != 0 or _fetching(s)


@numba.njit
def _issues(s, T):
    """Whether compute issues a pair in this cycle."""
    if s[_C_VALID] == 0 or s[_C_INDEX] == s[_WRITTEN]:
        return False
    return s[_COUNTDOWN] == 0 or s[_C_CHUNK] + 1 != T[s[_C_INS], _CHUNKS]


@numba.njit
def stalled(s, T):
    """Whether the engine is busy, but the array gets nothing in this cycle."""
    return busy(s) and not _issues(s, T)


@numba.njit
def _region(row, cfg):
    return row >> cfg[_ROWS_LOG2] & (cfg[_REGIONS] - 1)


@numba.njit
def request(s, T, cfg):
    """(residual region or -1, fetch region or -1, drain's write region or -1, 1 if the weight memory is written)."""
    at = s[_CYCLE] & (_WHEEL - 1)
    residual = fetch = write = -1
    if s[_RESIDUALS_AT + at] != 0:
        residual = _region(s[_RESIDUALS_AT + at] - 1, cfg)
    if s[_S4] >= 4:
        fetch = _region((s[_S4] >> 2) - 1, cfg)
    if s[_WRITES_AT + at] != 0:
        write = _region(s[_WRITES_AT + at] - 1, cfg)
    return residual, fetch, write, s[_WEIGHTS_AT + at]


@numba.njit
def _element(s, T, cfg):
    """The walk's element as it enters S1."""
    columns_log2, depth_log2 = cfg[_COLUMNS_LOG2], cfg[_DEPTH_LOG2]
    ins, inner = s[_F_INS], s[_W_INNER]
    mode = T[ins, _MODE]
    row = np.int64(-1)
    if mode == _LINEAR:
        row = T[ins, _SRC] + s[_W_TILE] * T[ins, _SRC_STRIDE] + s[_W_GROUP_ROW] + inner
        return 3 | ((row & 0xFFFF) + 1) << 2
    y = s[_Y] + s[_W_TAP_Y]
    if s[_SKIP] == 0 and 0 <= y < T[ins, _HEIGHT]:
        if mode == _CONV:
            x = s[_X] + s[_W_TAP_X]
            if 0 <= x < T[ins, _WIDTH]:
                tile = (y * T[ins, _WIDTH] + x) >> columns_log2
                row = T[ins, _SRC] + tile * T[ins, _SRC_STRIDE] + s[_W_GROUP_ROW] + inner
        else:
            first = (s[_X] >> depth_log2) + inner
            if 0 <= first << depth_log2 < T[ins, _WIDTH] and s[_X] + (inner << depth_log2) >= 0:
                row = T[ins, _SRC] + (y >> columns_log2) * T[ins, _SRC_STRIDE] + first
    counts = s[_W_COLUMN] + 1 == 1 << columns_log2 and (mode == _CONV or inner != 0)
    return 1 | np.int64(counts) << 1 | ((row & 0xFFFF) + 1 if row >= 0 else 0) << 2


@numba.njit
def _walk(s, T, cfg):
    """Advances the walk by an element."""
    columns = 1 << cfg[_COLUMNS_LOG2]
    ins = s[_F_INS]
    mode = T[ins, _MODE]
    inner_count = T[ins, _CHUNKS]
    if mode != _LINEAR:
        inner_count = T[ins, _TAP_CHUNKS] + (mode == _JOIN)
    if mode != _JOIN or s[_W_INNER] != 0:
        s[_W_INDEX] += 1
    s[_W_INNER] += 1
    if s[_W_INNER] != inner_count:
        return
    s[_W_INNER] = 0
    if mode != _LINEAR:
        if s[_SKIP] != 0:
            s[_SKIP] -= 1
        elif s[_OUT_X] + 1 == T[ins, _OUT_WIDTH]:
            s[_OUT_X] = 0
            s[_X] = T[ins, _START_X]
            s[_Y] += T[ins, _STRIDE_Y]
        else:
            s[_OUT_X] += 1
            s[_X] += T[ins, _STRIDE_X]
        s[_W_COLUMN] += 1
        if s[_W_COLUMN] != columns:
            s[_W_INDEX] = s[_W_BASE]
            return
        s[_W_COLUMN] = 0
    s[_W_BASE] = s[_W_INDEX]
    if mode == _CONV:
        s[_W_TAP_X] += 1
        if s[_W_TAP_X] != T[ins, _TAPS_X]:
            s[_SKIP : _Y + 1] = s[_FIRST_SKIP : _FIRST_Y + 1]
            return
        s[_W_TAP_X] = 0
    if mode != _LINEAR:
        s[_W_TAP_Y] += 1
        if s[_W_TAP_Y] != T[ins, _TAPS_Y]:
            s[_SKIP : _Y + 1] = s[_FIRST_SKIP : _FIRST_Y + 1]
            return
        s[_W_TAP_Y] = 0
    s[_W_GROUP_ROW] += T[ins, _CHUNKS] if mode == _LINEAR else T[ins, _TAP_CHUNKS]
    s[_W_GROUP] += 1
    if s[_W_GROUP] != T[ins, _GROUPS]:
        s[_SKIP : _Y + 1] = s[_FIRST_SKIP : _FIRST_Y + 1]
        return
    s[_W_GROUP] = s[_W_GROUP_ROW] = 0
    s[_FIRST_SKIP : _FIRST_Y + 1] = s[_SKIP : _Y + 1]
    s[_W_TILE] += 1
    s[_W_LEFT] -= columns
    if s[_W_LEFT] <= 0:
        s[_W_VALID] = 0


@numba.njit
def _fetch(s, T, cfg, freed, granted):
    """One clock edge of the fetch, except its start."""
    s[_WRITTEN] += s[_A4] >> 1 & 1
    s[_A4], s[_A3], s[_A2] = s[_A3], s[_A2], s[_A1]
    s[_A1] = 0
    if s[_S4] < 4 or granted:
        s[_A1] = s[_S4]
        s[_S4], s[_S3], s[_S2] = s[_S3], s[_S2], s[_S1]
        s[_S1] = 0
        if s[_W_VALID] == 1 and s[_W_INDEX] - freed < cfg[_OPERAND_CHUNKS]:
            s[_S1] = _element(s, T, cfg)
            _walk(s, T, cfg)
    if s[_F_START] == 1:
        ins = s[_F_INS]
        s[_F_START] = s[_W_TILE] = 0
        s[_W_VALID] = 1
        s[_W_LEFT] = T[ins, _POSITIONS]
        s[_SKIP] = s[_FIRST_SKIP] = T[ins, _PREFIX]
        s[_OUT_X] = s[_FIRST_OUT_X] = 0
        s[_X] = s[_FIRST_X] = T[ins, _START_X]
        s[_Y] = s[_FIRST_Y] = T[ins, _START_Y]


@numba.njit
def _compute(s, T, cfg, slot_free):
    """One clock edge of compute: an issue, and the next instruction's start; `_issues` holds."""
    finish = False
    countdown = max(s[_COUNTDOWN] - 1, 0)
    if _issues(s, T):
        ins = s[_C_INS]
        block_last = s[_C_BLOCK] + 1 == T[ins, _BLOCKS]
        s[_C_INDEX] += 1
        s[_C_CHUNK] += 1
        if block_last:
            s[_FREED] = s[_C_INDEX]
        if s[_C_CHUNK] == T[ins, _CHUNKS]:
            s[_C_CHUNK] = 0
            countdown = (T[ins, _STEPS] << T[ins, _SECOND]) - 1
            tile_end = block_last and s[_C_GROUP] + 1 == T[ins, _GROUPS]
            finish = tile_end and s[_C_LEFT] <= 1 << cfg[_COLUMNS_LOG2]
            at = (s[_CYCLE] + _BLOCK) & (_WHEEL - 1)
            s[_BLOCKS_AT + at] = 1 | np.int64(tile_end) << 1 | np.int64(finish) << 2
            if block_last:
                s[_C_BLOCK] = 0
                s[_C_GROUP] = 0 if tile_end else s[_C_GROUP] + 1
                s[_C_BASE] = s[_C_INDEX]
            else:
                s[_C_BLOCK] += 1
                s[_C_INDEX] = s[_C_BASE]
            if tile_end:
                s[_C_LEFT] -= 1 << cfg[_COLUMNS_LOG2]
    s[_COUNTDOWN] = countdown
    if finish:
        s[_C_VALID] = 0
    if s[_PENDING_VALID] == 1 and s[_C_VALID] == 0 and slot_free:
        s[_PENDING_VALID] = 0
        s[_C_VALID] = 1
        s[_C_INS] = s[_PENDING]
        s[_C_LEFT] = T[s[_PENDING], _POSITIONS]
        s[_SLOT_0 + s[_WRITING]] = s[_PENDING]
        s[_USED] |= 1 << s[_WRITING]
        s[_WRITING] ^= 1


@numba.njit
def _drain(s, T, cfg):
    """One clock edge of the drain's step counters."""
    cycle, mask = s[_CYCLE], _WHEEL - 1
    if s[_ACTIVE] == 1:
        ins = s[_SLOT_0 + s[_SLOT]]
        block_log2 = cfg[_DEPTH_LOG2] - cfg[_DRAIN_LOG2]
        output, tile = s[_OUTPUT], s[_TILE]
        step_last = s[_STEP] + 1 == T[ins, _STEPS]
        if s[_PHASE] == 0:
            if T[ins, _RESIDUAL] == 1:
                row = T[ins, _RESIDUAL_ROW] + tile * T[ins, _RESIDUAL_STRIDE] + (output << 1 >> block_log2)
                s[_RESIDUALS_AT + (cycle + _RESIDUAL_READ & mask)] = (row & 0xFFFF) + 1
            if T[ins, _DESTINATION] == _SCRATCHPAD:
                row = T[ins, _DST] + tile * T[ins, _DST_STRIDE] + (output << T[ins, _WIDE] >> block_log2)
                s[_WRITES_AT + (cycle + _WRITE & mask)] = (row & 0xFFFF) + 1
            else:
                s[_WEIGHTS_AT + (cycle + _WRITE & mask)] = 1
            if T[ins, _SECOND] == 1:
                row = T[ins, _SECOND_DST] + tile * T[ins, _SECOND_STRIDE] + (output >> block_log2)
                s[_WRITES_AT + (cycle + _SECOND_WRITE & mask)] = (row & 0xFFFF) + 1
            if step_last and s[_END] == 1:
                s[_DONE_AT + (cycle + _DONE & mask)] = 1 + s[_SLOT]
        if s[_PHASE] == 0 and T[ins, _SECOND] == 1:
            s[_PHASE] = 1
        else:
            s[_PHASE] = 0
            s[_STEP] += 1
            s[_OUTPUT] += 1
            if step_last:
                s[_STEP] = s[_ACTIVE] = 0
                if s[_TILE_END] == 1:
                    s[_OUTPUT] = 0
                    s[_TILE] = 0 if s[_END] == 1 else tile + 1
                s[_SLOT] ^= s[_END]
    block = s[_BLOCKS_AT + (cycle & mask)]
    if block != 0:
        s[_BLOCKS_AT + (cycle & mask)] = 0
        s[_ACTIVE] = 1
        s[_TILE_END], s[_END] = block >> 1 & 1, block >> 2


@numba.njit
def step(s, T, cfg, start, fetch_granted):
    """One clock edge; returns the index of the instruction whose `done` is high in this cycle, or -1."""
    at = s[_CYCLE] & (_WHEEL - 1)
    done, freed = -1, s[_FREED]
    slot_free = s[_USED] >> s[_WRITING] & 1 == 0
    if s[_DONE_AT + at] != 0:
        slot = s[_DONE_AT + at] - 1
        done = s[_SLOT_0 + slot]
        s[_USED] &= ~(1 << slot)
    s[_RESIDUALS_AT + at] = s[_WRITES_AT + at] = s[_WEIGHTS_AT + at] = s[_DONE_AT + at] = 0
    _drain(s, T, cfg)
    _compute(s, T, cfg, slot_free)
    _fetch(s, T, cfg, freed, fetch_granted)
    if start >= 0:
        s[_F_INS] = s[_PENDING] = start
        s[_F_START] = s[_PENDING_VALID] = 1
    s[_CYCLE] += 1
    return done

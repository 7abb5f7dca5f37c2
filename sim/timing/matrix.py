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

__all__ = ["STATE", "activity", "busy", "config", "ready", "request", "stalled", "step"]

_MODE, _POSITIONS, _GROUPS = COLUMN["mode"], COLUMN["positions"], COLUMN["groups"]
_PRIVATE = COLUMN["private"]
_BLOCKS, _CHUNKS = COLUMN["blocks"], COLUMN["chunks"]
_STEPS, _SKIP = COLUMN["steps"], COLUMN["skip"]
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
_DST_CHANNEL = COLUMN["dst_channel"]
_PLAIN, _DIGITS = COLUMN["plain"], COLUMN["digits"]
_SECOND, _SECOND_DST, _SECOND_STRIDE = COLUMN["second"], COLUMN["second_dst"], COLUMN["second_stride"]
_LINEAR, _CONV, _JOIN = map(int, (FetchMode.LINEAR, FetchMode.CONV, FetchMode.JOIN))
_SCRATCHPAD = int(Destination.SCRATCHPAD)

# Parameters; BLOCK is from a block's last issue to `block` at the drain, AHEAD by how much more than
# one cycle a step's sums are chosen.
_COLUMN_COUNT, _DEPTH_LOG2, _DRAIN_LOG2, _ROWS_LOG2, _REGIONS, _OPERAND_CHUNKS = range(6)
_BANKS, _TAPS, _BLOCK, _AHEAD = range(6, 10)

# Fixed pipelines, in cycles.
_LANES_LATENCY = 8
_RESIDUAL_READ, _WRITE, _SECOND_WRITE, _DONE = 4, 18, 19, 20
"""From a drain step's counters, with one drain stage."""
_WHEEL = 32
_COLUMNS = 64
"""At most."""
_SCALARS = 75
_ALIGN = 5
"""From a grant to the count of its chunk."""
_TAPS_LENGTH = 4
"""Stages from the walk to the tap, which move together."""

# State: registers by their names in hw/walk.py, hw/fetch.py, hw/compute.py and hw/steps.py. Where a stage holds rows,
# NEEDS is 1 for a low row | 2 for a high one. REQUEST is 0 if empty, else 1 | counts << 1 | (row + 1) << 2, where
# row = -1 needs no read; ARRIVING has 8 bits for each cycle after a grant: what the chunk that it completes counts in
# the operand buffer. F_STEP, REQUEST_STEP and C_STEP are that of a chunk of their instruction.
(
    _CYCLE,
    _F_INS,
    _F_STEP,
    _FULL,
    _F_START,
    _W_VALID,
    _W_NUMBER,
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
    _ORIGIN,
    _TAP,
    _UNIT_VALID,
    _UNIT_COUNTS,
    _UNIT_NEEDS,
    _UNIT_TILE,
    _UNIT_OFFSET,
    _OLDER,
    _NEWER,
    _KEPT_OFFSET,
    _NEAR_VALID,
    _NEAR_COUNTS,
    _NEAR_READS,
    _NEAR_ROW,
    _SPARE_VALID,
    _SPARE_COUNTS,
    _SPARE_READS,
    _SPARE_ROW,
    _ROWS_VALID,
    _ROWS_COUNTS,
    _ROWS_READS,
    _ROWS_ROW,
    _CURRENT_VALID,
    _CURRENT_COUNTS,
    _CURRENT_READS,
    _CURRENT_ROW,
    _REQUEST,
    _REQUEST_STEP,
    _ARRIVING,
    _WRITTEN,
    _PENDING,
    _PENDING_VALID,
    _C_INS,
    _C_STEP,
    _C_TAPS,
    _C_VALID,
    _C_LEFT,
    _C_GROUP,
    _C_BLOCK,
    _C_CHUNK,
    _C_LOW,
    _C_BASE,
    _C_INDEX,
    _FREED,
    _COUNTDOWN,
    _C_FRESH,
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
) = range(_SCALARS)
# What the fixed pipelines will do, by cycle modulo _WHEEL: blocks at the drain (1 | tile_end << 1 | end << 2), rows of
# residual reads and writes + 1, weight writes, and 1 + slot of a completion.
_BLOCKS_AT, _RESIDUALS_AT, _WRITES_AT, _WEIGHTS_AT, _DONE_AT = (_SCALARS + i * _WHEEL for i in range(5))
# Of each column: the origin of its window in the walk's tile, its position's distance from _ORIGIN.
_Y_AT, _X_AT, _DISTANCE_AT, _TAPS_AT = (_SCALARS + 5 * _WHEEL + i * _COLUMNS for i in range(4))
# Of each stage from the walk on: whether it is valid, and what it holds; of each column the distance, and whether it has a
# pixel that is not served yet. _TAP is the place of the last stage; the walk enters where that was.
_TAP_VALID, _TAP_COUNTS, _TAP_POSITION, _TAP_OFFSET, _TAP_DISTANCE, _TAP_PENDING = 0, 1, 2, 3, 4, 4 + _COLUMNS
_TAP_WORDS = 4 + 2 * _COLUMNS
STATE = _TAPS_AT + _TAPS_LENGTH * _TAP_WORDS


def config(accelerator: Accelerator) -> np.ndarray:
    """The parameters that the functions below take as `cfg`."""
    a = accelerator
    logs = [value.bit_length() - 1 for value in (a.depth, a.drain, a.scratchpad_rows)]
    private, block = (a.private, a.private_taps), a.broadcast_stages + _LANES_LATENCY + a.tree_stages - 2
    values = [a.columns, *logs, a.scratchpad_regions, a.operand_chunks, *private, block, a.drain_stages - 1]
    return np.array(values, dtype=np.int64)


@numba.njit
def _fetching(s):
    walk = s[_W_VALID] | s[_W_NUMBER] | s[_F_START]
    for stage in range(_TAPS_LENGTH):
        walk |= s[_TAPS_AT + stage * _TAP_WORDS + _TAP_VALID]
    deciding = s[_UNIT_VALID] | s[_NEAR_VALID] | s[_SPARE_VALID]
    return (walk | deciding | s[_ROWS_VALID] | s[_CURRENT_VALID]) != 0


@numba.njit
def ready(s, cfg):
    """Whether an instruction is accepted in this cycle."""
    return s[_PENDING_VALID] == 0 and not _fetching(s)


@numba.njit
def busy(s):
    """Whether any instruction is under way."""
    return (s[_PENDING_VALID] | s[_C_VALID] | s[_USED]) != 0 or _fetching(s)


@numba.njit
def _aligned(count, unit):
    """The first multiple of `unit` from `count` on."""
    return (count + unit - 1) // unit * unit


@numba.njit
def _taps(s, T):
    """Chunks that the next issue takes."""
    return min(s[_C_TAPS], T[s[_C_INS], _CHUNKS] - s[_C_CHUNK])


@numba.njit
def _issues(s, T):
    """Whether compute issues a pair in this cycle."""
    if s[_C_VALID] == 0 or s[_C_FRESH] == 1:
        return False
    taps = _taps(s, T)
    if _aligned(s[_WRITTEN], s[_C_STEP]) - s[_C_INDEX] < taps * s[_C_STEP]:
        return False
    if s[_COUNTDOWN] == 0 or s[_C_CHUNK] + taps != T[s[_C_INS], _CHUNKS]:
        return True
    return s[_C_LOW] != T[s[_C_INS], _DIGITS]


@numba.njit
def stalled(s, T):
    """Whether the engine is busy, but the array gets nothing in this cycle."""
    return busy(s) and not _issues(s, T)


@numba.njit
def activity(s, T):
    """(what the array does in this cycle, the instruction that it does it for or -1): 0 it computes, 1 it waits for
    the drain, 2 for operands, -1 it has no instruction."""
    if s[_C_VALID] == 1:
        if _issues(s, T):
            return 0, s[_C_INS]
        return (2 if s[_C_INDEX] == s[_WRITTEN] else 1), s[_C_INS]
    if s[_PENDING_VALID] == 1:
        return (1 if s[_USED] == 3 else 2), s[_PENDING]
    return -1, (s[_SLOT_0 + s[_SLOT]] if s[_USED] != 0 else -1)


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
    if s[_REQUEST] >= 4:
        fetch = _region((s[_REQUEST] >> 2) - 1, cfg)
    if s[_WRITES_AT + at] != 0:
        write = _region(s[_WRITES_AT + at] - 1, cfg)
    return residual, fetch, write, s[_WEIGHTS_AT + at]


@numba.njit
def _windows(s, T, cfg):
    """The columns' windows of the walk's tile; a column without a position is far below the image."""
    columns, ins = cfg[_COLUMN_COUNT], s[_F_INS]
    out_width, width = T[ins, _OUT_WIDTH], T[ins, _WIDTH]
    for c in range(columns - 1, -1, -1):
        place = s[_W_TILE] * columns + c
        p = place - T[ins, _PREFIX]
        y = p // out_width * T[ins, _STRIDE_Y] + T[ins, _START_Y]
        x = p % out_width * T[ins, _STRIDE_X] + T[ins, _START_X]
        position = y * width + x
        if c == columns - 1:
            s[_ORIGIN] = position - c
        s[_Y_AT + c] = y if p >= 0 and place < T[ins, _POSITIONS] else 1 << 20
        s[_X_AT + c], s[_DISTANCE_AT + c] = x, position - s[_ORIGIN]


@numba.njit
def _tap(s, T, cfg, at):
    """The walk's element as it enters the stage `at`."""
    columns, depth_log2 = cfg[_COLUMN_COUNT], cfg[_DEPTH_LOG2]
    ins, inner = s[_F_INS], s[_W_INNER]
    mode = T[ins, _MODE]
    s[at + _TAP_OFFSET] = s[_W_GROUP_ROW] + inner
    s[at + _TAP_COUNTS] = 1
    if mode == _LINEAR:
        s[at + _TAP_POSITION] = s[_W_TILE] * columns
        s[at + _TAP_PENDING] = 1
    elif mode == _JOIN:
        y = s[_Y_AT + s[_W_COLUMN]] + s[_W_TAP_Y]
        x = s[_X_AT + s[_W_COLUMN]] + (inner << depth_log2)
        s[at + _TAP_POSITION], s[at + _TAP_OFFSET] = y, x >> depth_log2
        inside = 0 <= y < T[ins, _HEIGHT] and x >= 0 and x >> depth_log2 << depth_log2 < T[ins, _WIDTH]
        s[at + _TAP_PENDING] = inside
        s[at + _TAP_COUNTS] = inner != 0 and s[_W_COLUMN] + 1 == columns
    else:
        s[at + _TAP_POSITION] = s[_ORIGIN] + s[_W_TAP_Y] * T[ins, _WIDTH] + s[_W_TAP_X]
        for c in range(columns):
            y, x = s[_Y_AT + c] + s[_W_TAP_Y], s[_X_AT + c] + s[_W_TAP_X]
            s[at + _TAP_PENDING + c] = 0 <= y < T[ins, _HEIGHT] and 0 <= x < T[ins, _WIDTH]
            s[at + _TAP_DISTANCE + c] = s[_DISTANCE_AT + c]


@numba.njit
def _unit(s, T, cfg):
    """Serves a unit of the tap stage; returns whether nothing remains."""
    at = _TAPS_AT + s[_TAP] * _TAP_WORDS
    columns = cfg[_COLUMN_COUNT]
    tile, word = s[at + _TAP_POSITION] // columns, s[at + _TAP_POSITION] % columns
    s[_UNIT_OFFSET] = s[at + _TAP_OFFSET]
    if T[s[_F_INS], _MODE] != _CONV:
        s[_UNIT_TILE], s[_UNIT_NEEDS], s[_UNIT_COUNTS] = tile, s[at + _TAP_PENDING], s[at + _TAP_COUNTS]
        return True
    first, needs = 0, 0
    while first < columns and s[at + _TAP_PENDING + first] == 0:
        first += 1
    if first < columns:
        distance = s[at + _TAP_DISTANCE + first] // columns
        tile += distance
        c = first
        while c < columns and s[at + _TAP_DISTANCE + c] // columns == distance:
            if s[at + _TAP_PENDING + c] == 1:
                needs |= 1 if word + s[at + _TAP_DISTANCE + c] % columns < columns else 2
                s[at + _TAP_PENDING + c] = 0
            c += 1
    s[_UNIT_TILE], s[_UNIT_NEEDS] = tile, needs
    done = True
    for c in range(first, columns):
        if s[at + _TAP_PENDING + c] == 1:
            done = False
    s[_UNIT_COUNTS] = done
    return done


@numba.njit
def _rows(s, T):
    """The unit's reads, as they enter the stage where they are decided; tiles that are kept are stored + 1."""
    ins, needs = s[_F_INS], s[_UNIT_NEEDS]
    low, high = s[_UNIT_TILE] + 1, s[_UNIT_TILE] + 2
    conv = T[ins, _MODE] == _CONV
    older = newer = np.int64(-1)
    if conv and s[_UNIT_OFFSET] == s[_KEPT_OFFSET]:
        older, newer = s[_OLDER], s[_NEWER]
    misses_low = needs & 1 and low != older and low != newer
    misses_high = needs & 2 and high != older and high != newer
    reads = 1 if misses_low or misses_high else 0
    if (misses_low and needs & 2 and high != newer) or (misses_high and needs & 1 and low != newer):
        reads = 2
    first = high if misses_high and reads == 1 else low
    s[_NEAR_READS], s[_NEAR_COUNTS] = reads, s[_UNIT_COUNTS]
    s[_NEAR_ROW] = T[ins, _SRC] + (first - 1) * T[ins, _SRC_STRIDE] + s[_UNIT_OFFSET]
    if conv and reads != 0:
        s[_OLDER] = low if reads == 2 else newer
        s[_NEWER] = high if reads == 2 else first
        s[_KEPT_OFFSET] = s[_UNIT_OFFSET]


@numba.njit
def _walk(s, T, cfg):
    """Advances the walk by an element."""
    columns = cfg[_COLUMN_COUNT]
    ins = s[_F_INS]
    mode = T[ins, _MODE]
    inner_count = T[ins, _CHUNKS]
    if mode != _LINEAR:
        inner_count = 1 if T[ins, _PRIVATE] else T[ins, _TAP_CHUNKS] + (mode == _JOIN)
    if mode != _JOIN or s[_W_INNER] != 0:
        s[_W_INDEX] += s[_F_STEP]
    if mode == _CONV:
        s[_W_TAP_X] += 1
        if s[_W_TAP_X] != T[ins, _TAPS_X]:
            return
        s[_W_TAP_X] = 0
    s[_W_INNER] += 1
    if s[_W_INNER] != inner_count:
        return
    s[_W_INNER] = 0
    if mode == _JOIN:
        s[_W_COLUMN] += 1
        if s[_W_COLUMN] != columns:
            s[_W_INDEX] = s[_W_BASE]
            return
        s[_W_COLUMN] = 0
    s[_W_BASE] = s[_W_INDEX]
    if mode != _LINEAR:
        s[_W_TAP_Y] += 1
        if s[_W_TAP_Y] != T[ins, _TAPS_Y]:
            return
        s[_W_TAP_Y] = 0
    s[_W_GROUP_ROW] += T[ins, _CHUNKS] if mode == _LINEAR else T[ins, _TAP_CHUNKS]
    s[_W_GROUP] += 1
    if s[_W_GROUP] != T[ins, _GROUPS]:
        return
    s[_W_GROUP] = s[_W_GROUP_ROW] = 0
    s[_W_TILE] += 1
    s[_W_LEFT] -= columns
    if s[_W_LEFT] <= 0:
        s[_W_VALID] = 0
    elif mode != _LINEAR:
        _windows(s, T, cfg)


@numba.njit
def _pass(s, target, source):
    """A unit with its reads moves into the stage `target`."""
    for i in range(4):
        s[target + i] = s[source + i]


@numba.njit
def _addresses(s, T, cfg):
    """The stages before the decision, where they move; returns whether the walk advances."""
    s[_NEAR_VALID] = s[_UNIT_VALID]
    if s[_UNIT_VALID] == 1:
        _rows(s, T)
    at = _TAPS_AT + s[_TAP] * _TAP_WORDS
    s[_UNIT_VALID] = s[at + _TAP_VALID]
    if s[at + _TAP_VALID] == 1 and not _unit(s, T, cfg):
        return False
    s[at + _TAP_VALID] = 0
    s[_TAP] = (s[_TAP] + 1) % _TAPS_LENGTH
    advances = s[_W_VALID] == 1 and s[_FULL] == 0
    if advances:
        s[at + _TAP_VALID] = 1
        _tap(s, T, cfg, at)
        _walk(s, T, cfg)
    return advances


@numba.njit
def _requests(s, T):
    """The request stage takes a read, or a unit that needs none, or both; returns whether the stage before it moves on."""
    s[_REQUEST], s[_REQUEST_STEP] = 0, s[_F_STEP]
    stride = T[s[_F_INS], _SRC_STRIDE]
    if s[_CURRENT_VALID] == 1 and s[_CURRENT_READS] == 2:
        s[_REQUEST] = 1 | ((s[_CURRENT_ROW] & 0xFFFF) + 1) << 2
        s[_CURRENT_READS] = 1
        s[_CURRENT_ROW] += stride
        return False
    ahead = 0
    if s[_CURRENT_VALID] == 1:
        s[_REQUEST] = 1 | s[_CURRENT_COUNTS] << 1
        if s[_CURRENT_READS] == 1:
            s[_REQUEST] |= ((s[_CURRENT_ROW] & 0xFFFF) + 1) << 2
        elif s[_ROWS_VALID] == 1 and s[_ROWS_READS] != 0:
            s[_REQUEST] |= ((s[_ROWS_ROW] & 0xFFFF) + 1) << 2
            ahead = 1
    _pass(s, _CURRENT_VALID, _ROWS_VALID)
    if ahead:
        s[_CURRENT_READS] -= 1
        s[_CURRENT_ROW] += stride
    return True


@numba.njit
def _fetch(s, T, cfg, freed, granted):
    """One clock edge of the fetch, except its start."""
    unit, used, advances = s[_ARRIVING] >> 8 * (_ALIGN - 1), s[_W_INDEX] - freed, False
    if unit != 0:
        s[_WRITTEN] = _aligned(s[_WRITTEN], unit) + unit
    s[_ARRIVING] = s[_ARRIVING] << 8 & (1 << 8 * _ALIGN) - 1
    flows = False
    if s[_REQUEST] < 4 or granted:
        s[_ARRIVING] |= (s[_REQUEST] >> 1 & 1) * s[_REQUEST_STEP]
        flows = _requests(s, T)
    moves = s[_SPARE_VALID] == 0
    if flows:
        _pass(s, _ROWS_VALID, _NEAR_VALID if moves else _SPARE_VALID)
        s[_SPARE_VALID] = 0
    elif moves:
        _pass(s, _SPARE_VALID, _NEAR_VALID)
    if moves:
        advances = _addresses(s, T, cfg)
    if s[_W_NUMBER] != 0:
        s[_W_NUMBER] += 1
        if s[_W_NUMBER] == cfg[_COLUMN_COUNT] + 2:
            s[_W_VALID] = 1
            _windows(s, T, cfg)
        elif s[_W_NUMBER] > cfg[_COLUMN_COUNT] + 2:
            s[_W_NUMBER] = 0
    if s[_F_START] == 1:
        s[_F_START] = s[_W_TILE] = 0
        s[_F_STEP] = cfg[_BANKS] if T[s[_F_INS], _PRIVATE] else 1
        s[_W_INDEX] = _aligned(s[_W_INDEX], s[_F_STEP])
        s[_OLDER] = s[_NEWER] = -1
        s[_W_LEFT] = T[s[_F_INS], _POSITIONS]
        if T[s[_F_INS], _MODE] == _LINEAR:
            s[_W_VALID] = 1
        else:
            s[_W_NUMBER] = 1
    s[_FULL] = used + (2 if advances else 1) * s[_F_STEP] > cfg[_OPERAND_CHUNKS]


@numba.njit
def _compute(s, T, cfg, slot_free):
    """One clock edge of compute: an issue, and the next instruction's start; `_issues` holds."""
    finish = False
    countdown = max(s[_COUNTDOWN] - 1, 0)
    if _issues(s, T):
        ins = s[_C_INS]
        block_last = s[_C_BLOCK] + 1 == T[ins, _BLOCKS]
        taps = _taps(s, T)
        s[_C_INDEX] += taps * s[_C_STEP]
        s[_C_CHUNK] += taps
        last = s[_C_LOW] == T[ins, _DIGITS]
        if block_last and last:
            s[_FREED] = s[_C_INDEX]
        if s[_C_CHUNK] == T[ins, _CHUNKS] and not last:
            s[_C_CHUNK], s[_C_LOW], s[_C_INDEX] = 0, 1, s[_C_BASE]
        elif s[_C_CHUNK] == T[ins, _CHUNKS]:
            s[_C_CHUNK] = s[_C_LOW] = 0
            tile_end = block_last and s[_C_GROUP] + 1 == T[ins, _GROUPS]
            countdown = (T[ins, _STEPS] - tile_end * T[ins, _SKIP] << T[ins, _SECOND]) - 1
            finish = tile_end and s[_C_LEFT] <= cfg[_COLUMN_COUNT]
            at = (s[_CYCLE] + cfg[_BLOCK]) & (_WHEEL - 1)
            s[_BLOCKS_AT + at] = 1 | np.int64(tile_end) << 1 | np.int64(finish) << 2
            if block_last:
                s[_C_BLOCK] = 0
                s[_C_GROUP] = 0 if tile_end else s[_C_GROUP] + 1
                s[_C_BASE] = s[_C_INDEX]
            else:
                s[_C_BLOCK] += 1
                s[_C_INDEX] = s[_C_BASE]
            if tile_end:
                s[_C_LEFT] -= cfg[_COLUMN_COUNT]
    s[_COUNTDOWN], s[_C_FRESH] = countdown, 0
    if finish:
        s[_C_VALID] = 0
    if s[_PENDING_VALID] == 1 and s[_C_VALID] == 0 and slot_free:
        s[_PENDING_VALID] = 0
        s[_C_VALID], s[_C_FRESH] = 1, cfg[_BANKS] > 1
        s[_C_INS] = s[_PENDING]
        s[_C_LEFT] = T[s[_PENDING], _POSITIONS]
        s[_C_STEP] = cfg[_BANKS] if T[s[_PENDING], _PRIVATE] else 1
        s[_C_TAPS] = cfg[_TAPS] if T[s[_PENDING], _PRIVATE] else 1
        s[_C_INDEX] = s[_C_BASE] = _aligned(s[_C_INDEX], s[_C_STEP])
        s[_SLOT_0 + s[_WRITING]] = s[_PENDING]
        s[_USED] |= 1 << s[_WRITING]
        s[_WRITING] ^= 1


@numba.njit
def _drain(s, T, cfg):
    """One clock edge of the drain's step counters."""
    cycle, mask = s[_CYCLE], _WHEEL - 1
    later = cycle + cfg[_AHEAD]
    if s[_ACTIVE] == 1:
        ins = s[_SLOT_0 + s[_SLOT]]
        block_log2 = cfg[_DEPTH_LOG2] - cfg[_DRAIN_LOG2]
        output, tile = s[_OUTPUT], s[_TILE]
        step_last = s[_STEP] + 1 == T[ins, _STEPS] - s[_TILE_END] * T[ins, _SKIP]
        if s[_PHASE] == 0:
            if T[ins, _RESIDUAL] == 1:
                row = T[ins, _RESIDUAL_ROW] + tile * T[ins, _RESIDUAL_STRIDE] + (output << 1 >> block_log2)
                s[_RESIDUALS_AT + (later + _RESIDUAL_READ & mask)] = (row & 0xFFFF) + 1
            if T[ins, _DESTINATION] == _SCRATCHPAD:
                placed = output + (T[ins, _DST_CHANNEL] >> cfg[_DRAIN_LOG2])
                units = placed << T[ins, _WIDE] + T[ins, _PLAIN]
                row = T[ins, _DST] + tile * T[ins, _DST_STRIDE] + (units >> block_log2)
                s[_WRITES_AT + (later + _WRITE & mask)] = (row & 0xFFFF) + 1
            else:
                s[_WEIGHTS_AT + (later + _WRITE & mask)] = 1
            if T[ins, _SECOND] == 1:
                row = T[ins, _SECOND_DST] + tile * T[ins, _SECOND_STRIDE] + (output >> block_log2)
                s[_WRITES_AT + (later + _SECOND_WRITE & mask)] = (row & 0xFFFF) + 1
            if step_last and s[_END] == 1:
                s[_DONE_AT + (later + _DONE & mask)] = 1 + s[_SLOT]
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

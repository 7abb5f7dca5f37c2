"""Timing of the load and store engines with the memory of `arch.memory`: the states of hw/load.py and hw/store.py.

State of each is an int64 array, made by `load_state` and `store_state`; `config` makes the parameters. docs/machine.md,
"Timing models", states the functions; some also take the number of the cycle, from which
the memory answers. Region bases must be multiples of a whole burst, and transfers legal.
"""

from __future__ import annotations

import numba
import numpy as np

from ...arch import isa
from ...arch.accelerator import NORM_BYTES, PARAM_BYTES, TABLE_ROW_BYTES, Accelerator
from ...arch.memory import MemoryModel
from .table import COLUMN

__all__ = [
    "config",
    "load_ready",
    "load_request",
    "load_stalled",
    "load_state",
    "load_step",
    "store_ready",
    "store_request",
    "store_stalled",
    "store_state",
    "store_step",
]

_OFFSET, _ROW, _ROWS, _TARGET = (COLUMN[name] for name in ("offset", "row", "rows", "target"))
_GATHER, _FIRST_ITEM, _ITEM_ROWS = (COLUMN[name] for name in ("gather", "index", "item_rows"))
_NEVER = -(1 << 40)

# Parameters; from _TARGET_BEATS on: lines of a row of each load target.
(
    _BURST,
    _LINE,
    _LATENCY,
    _INTERVAL,
    _REFRESH,
    _PERIOD,
    _REGION_ROWS,
    _REGIONS,
    _STORE_BEATS,
    _ROWS_AHEAD,
    _TARGET_BEATS,
) = range(11)

# Constants of the hardware: lines in the load buffers, transfers described, responses awaited,
# cycles from a row's move to the arrival of the one that takes its place.
_BUFFER, _TRANSFERS, _PENDING_MOST, _REFILL_CYCLES = 512, 4, 255, 4

# States of hw/bursts.py, and the first words of both engines' state: the transfer being cut.
_IDLE, _SUM, _COMPARE, _CHECK, _ISSUE = range(5)
_STATE, _INDEX, _ADDRESS, _REMAINING, _CUT_ROWS = range(5)

# States of hw/items.py.
_PASS, _LOOK, _FOUND, _SCALE, _ADD, _OFFER = range(6)

# Load: registers by their names there; `_DONE` and `_ROW_DONE` hold an instruction's index or -1.
(
    _ROOM,
    _TAKEN,
    _AR,
    _AR_LENGTH,
    _R,
    _LEVEL,
    _BEAT,
    _ROW_VALID,
    _ROW_TARGET,
    _ROW_ADDRESS,
    _ROW_DONE,
    _DONE,
    _POSITION,
    _ROWS_DONE,
    _QUEUED,
    _QUEUE_HEAD,
    _PRESENTED,
    _BURSTS,
    _BURST_HEAD,
    _ITEMS_STATE,
    _ITEMS_INDEX,
    _ITEM,
    _ITEMS_ROW,
    _ITEMS_LEFT,
    _DESCRIBED,
    _DESCRIBED_ROW,
    _DESCRIBED_ROWS,
    _DESCRIBED_LAST,
) = range(5, 33)
_QUEUE = 33
"""Transfers under way: instruction, first row, rows, whether the instruction's last."""
_ELIGIBLE = _QUEUE + 4 * _TRANSFERS
_LENGTHS = _ELIGIBLE + _BUFFER
_LOAD_WORDS = _LENGTHS + _BUFFER

# Store: registers by their names there, then the memory's.
(
    _ROW_NEXT,
    _ROWS_LEFT,
    _CLAIMED,
    _ARRIVING,
    _AHEAD,
    _CURRENT,
    _BEATS_LEFT,
    _W,
    _W_LAST,
    _PENDING,
    _LAST_W,
    _B,
    _KEPT,
    _LAST_B,
    _RESPONSES,
    _RESPONSE_HEAD,
    _WRITTEN,
    _WRITTEN_HEAD,
    _STORE_DONE,
) = range(5, 24)
_UNANSWERED = 24
"""Transfers that are not done: instruction, bursts without response."""
_DUE = _UNANSWERED + 2 * _TRANSFERS
_STORE_WORDS = _DUE + _PENDING_MOST + 1


def config(accelerator: Accelerator, memory: MemoryModel) -> np.ndarray:
    """The parameters that the functions below take as `cfg`."""
    a = accelerator
    row_bytes = {
        isa.LoadTarget.SCRATCHPAD: a.scratchpad_row_bytes,
        isa.LoadTarget.WEIGHT: a.weight_row_bytes,
        isa.LoadTarget.PARAM: PARAM_BYTES * a.drain,
        isa.LoadTarget.NORM: NORM_BYTES * a.vector,
    }
    beats = [a.beats(row_bytes.get(target, TABLE_ROW_BYTES)) for target in isa.LoadTarget]
    outside = (a.burst_beats, a.line_bytes, memory.latency, memory.interval)
    refresh = (memory.refresh_cycles, memory.refresh_period)
    row_beats = a.beats(a.scratchpad_row_bytes)
    inside = (a.scratchpad_rows, a.scratchpad_regions, row_beats, -(-_REFILL_CYCLES // row_beats))
    return np.array([*outside, *refresh, *inside, *beats], dtype=np.int64)


def load_state() -> np.ndarray:
    """The load engine after a reset."""
    s = np.zeros(_LOAD_WORDS, dtype=np.int64)
    s[_ROOM] = _BUFFER
    s[_ROW_DONE] = s[_DONE] = -1
    s[_PRESENTED] = _NEVER
    return s


def store_state() -> np.ndarray:
    """The store engine after a reset."""
    s = np.zeros(_STORE_WORDS, dtype=np.int64)
    s[_LAST_W] = s[_LAST_B] = _NEVER
    s[_STORE_DONE] = -1
    return s


@numba.njit
def _refreshing(cycle, cfg):
    """Whether the memory moves nothing in this cycle."""
    return cycle % cfg[_PERIOD] >= cfg[_PERIOD] - cfg[_REFRESH]


@numba.njit
def _region(row, cfg):
    return (row & 0xFFFF) // cfg[_REGION_ROWS] % cfg[_REGIONS]


@numba.njit
def _length(s, cfg):
    """Lines of the next burst."""
    return min(s[_REMAINING], cfg[_BURST] - s[_ADDRESS] % cfg[_BURST])


@numba.njit
def _cut(s, cfg, start, address, rows, row_beats, enable, taken):
    """One clock edge of hw/bursts.py; `start` is the instruction of a transfer that begins, `address` in lines."""
    state = s[_STATE]
    if state == _IDLE and start >= 0:
        s[_INDEX], s[_ADDRESS], s[_CUT_ROWS] = start, address, rows
        s[_STATE] = _SUM
    elif state == _SUM:
        s[_REMAINING] = s[_CUT_ROWS] * row_beats
        s[_STATE] = _COMPARE
    elif state == _COMPARE:
        s[_STATE] = _CHECK
    elif state == _CHECK and enable:
        s[_STATE] = _ISSUE
    elif taken:
        length = _length(s, cfg)
        s[_ADDRESS] += length
        s[_REMAINING] -= length
        if s[_REMAINING] == 0:
            s[_STATE] = _IDLE


@numba.njit
def load_ready(s, cfg):
    """Whether an instruction is accepted in this cycle."""
    return s[_STATE] == _IDLE and s[_ITEMS_STATE] == _PASS


@numba.njit
def load_request(s, T, cfg):
    """(target memory of the row that waits to be written or -1, its scratchpad region)."""
    if s[_ROW_VALID] == 0:
        return -1, -1
    return s[_ROW_TARGET], _region(s[_ROW_ADDRESS], cfg)


@numba.njit
def load_stalled(s, granted):
    """Whether no beat leaves the buffer in this cycle."""
    return s[_BEAT] == 0 or (s[_ROW_VALID] == 1 and not granted)


@numba.njit
def _offer(s, T, cfg, items, start):
    """One clock edge of hw/items.py: (instruction or -1, address in lines, rows) of the transfer that begins."""
    state = s[_ITEMS_STATE]
    if state == _PASS:
        if start < 0:
            return -1, 0, 0
        if T[start, _GATHER] == 0:
            s[_DESCRIBED_ROW], s[_DESCRIBED_LAST] = T[start, _ROW], 1
            return start, T[start, _OFFSET] // cfg[_LINE], T[start, _ROWS]
        s[_ITEMS_STATE], s[_ITEMS_INDEX], s[_ITEM] = _LOOK, start, T[start, _FIRST_ITEM]
        s[_ITEMS_ROW], s[_ITEMS_LEFT] = T[start, _ROW], T[start, _ROWS]
    elif state == _LOOK:
        s[_ITEMS_STATE] = _FOUND
    elif state == _FOUND:
        s[_ITEMS_STATE] = _SCALE
    elif state == _SCALE:
        s[_ITEMS_STATE] = _ADD
    elif state == _ADD:
        s[_ITEMS_STATE] = _OFFER
    elif s[_STATE] == _IDLE:
        index = s[_ITEMS_INDEX]
        size = T[index, _ITEM_ROWS]
        last = s[_ITEMS_LEFT] <= size
        rows = s[_ITEMS_LEFT] if last else size
        first = items[s[_ITEM]] * size * cfg[_TARGET_BEATS + T[index, _TARGET]]
        s[_DESCRIBED_ROW], s[_DESCRIBED_LAST] = s[_ITEMS_ROW], last
        s[_ITEM] += 1
        s[_ITEMS_ROW] += size
        s[_ITEMS_LEFT] -= size
        s[_ITEMS_STATE] = _PASS if last else _LOOK
        return index, T[index, _OFFSET] // cfg[_LINE] + first, rows
    return -1, 0, 0


@numba.njit
def load_step(s, T, cfg, items, cycle, start, granted):
    """One clock edge; returns the index of the instruction whose `done` is high in this cycle, or -1."""
    done = s[_DONE]
    advance = s[_BEAT] == 1 and (s[_ROW_VALID] == 0 or granted)
    read = s[_LEVEL] > 0 and (s[_BEAT] == 0 or advance)
    issue = s[_STATE] == _ISSUE and s[_ROOM] >= cfg[_BURST]
    begin = s[_STATE] == _CHECK and s[_QUEUED] < _TRANSFERS
    arrived = s[_R]

    # The memory takes the address, and decides about the next cycle.
    if s[_AR] == 1:
        slot = (s[_BURST_HEAD] + s[_BURSTS]) % _BUFFER
        s[_ELIGIBLE + slot], s[_LENGTHS + slot] = cycle + cfg[_LATENCY], s[_AR_LENGTH]
        s[_BURSTS] += 1
    now = cycle + 1
    head = s[_BURST_HEAD]
    eligible = max(s[_ELIGIBLE + head], s[_PRESENTED] + cfg[_INTERVAL])
    s[_R] = s[_BURSTS] > 0 and now >= eligible and not _refreshing(now, cfg)
    if s[_R] == 1:
        s[_PRESENTED] = now
        s[_LENGTHS + head] -= 1
        if s[_LENGTHS + head] == 0:
            s[_BURST_HEAD] = (head + 1) % _BUFFER
            s[_BURSTS] -= 1

    length = _length(s, cfg) if issue else 0
    s[_AR], s[_AR_LENGTH] = issue, length
    s[_ROOM] += s[_TAKEN] - length
    s[_TAKEN] = read
    s[_LEVEL] += arrived - read

    # Rows.
    s[_DONE] = s[_ROW_DONE] if s[_ROW_VALID] == 1 and granted else -1
    if granted:
        s[_ROW_VALID] = 0
    if advance:
        index, first, rows, last = s[_QUEUE + 4 * s[_QUEUE_HEAD] : _QUEUE + 4 * s[_QUEUE_HEAD] + 4]
        target = T[index, _TARGET]
        last_beat = s[_POSITION] == cfg[_TARGET_BEATS + target] - 1
        last_row = s[_ROWS_DONE] == rows - 1
        s[_ROW_VALID] = last_beat
        s[_ROW_TARGET], s[_ROW_ADDRESS] = target, first + s[_ROWS_DONE]
        s[_ROW_DONE] = index if last_row and last == 1 else -1
        s[_POSITION] = 0 if last_beat else s[_POSITION] + 1
        if last_beat:
            s[_ROWS_DONE] = 0 if last_row else s[_ROWS_DONE] + 1
            if last_row:
                s[_QUEUE_HEAD] = (s[_QUEUE_HEAD] + 1) % _TRANSFERS
                s[_QUEUED] -= 1
    s[_BEAT] = read or (s[_BEAT] == 1 and not advance)
    if begin:
        slot = _QUEUE + 4 * ((s[_QUEUE_HEAD] + s[_QUEUED]) % _TRANSFERS)
        for i in range(4):  # an assignment of slices takes numba seconds to compile
            s[slot + i] = s[_DESCRIBED + i]
        s[_QUEUED] += 1
    offered, address, rows = _offer(s, T, cfg, items, start)
    if offered >= 0:
        s[_DESCRIBED], s[_DESCRIBED_ROWS] = offered, rows
    _cut(s, cfg, offered, address, rows, cfg[_TARGET_BEATS + T[s[_INDEX], _TARGET]], begin, issue)
    return done


@numba.njit
def _accepts(s, cfg, cycle):
    """Whether the memory accepts a beat in this cycle."""
    return cycle >= s[_LAST_W] + cfg[_INTERVAL] and not _refreshing(cycle, cfg)


@numba.njit
def _sends(s, cfg, cycle):
    """Whether a beat is put on the bus in this cycle."""
    accepted = _accepts(s, cfg, cycle)
    return s[_BEATS_LEFT] != 0 and s[_CURRENT] != 0 and (s[_W] == 0 or accepted)


@numba.njit
def _moves(s, cfg, cycle):
    """Whether the row ahead becomes the current one in this cycle."""
    return s[_AHEAD] > 0 and (s[_CURRENT] == 0 or (s[_CURRENT] == 1 and _sends(s, cfg, cycle)))


@numba.njit
def store_ready(s, cfg):
    """Whether an instruction is accepted in this cycle."""
    return s[_STATE] == _IDLE and s[_ROWS_LEFT] == 0


@numba.njit
def store_request(s, T, cfg):
    """Region that is read, or -1."""
    if s[_ROWS_LEFT] == 0 or s[_CLAIMED] == cfg[_ROWS_AHEAD]:
        return -1
    return _region(s[_ROW_NEXT], cfg)


@numba.njit
def store_stalled(s, cfg, cycle):
    """Whether no beat is put on the bus in this cycle."""
    return not _sends(s, cfg, cycle)


@numba.njit
def store_step(s, T, cfg, cycle, start, granted):
    """One clock edge; returns the index of the instruction whose `done` is high in this cycle, or -1."""
    done = s[_STORE_DONE]
    s[_STORE_DONE] = -1
    send, move = _sends(s, cfg, cycle), _moves(s, cfg, cycle)
    begin = s[_STATE] == _CHECK and s[_WRITTEN] < _TRANSFERS
    opened = (
        s[_STATE] == _ISSUE
        and (s[_BEATS_LEFT] == 0 or (s[_BEATS_LEFT] == 1 and send))
        and s[_PENDING] != _PENDING_MOST
    )
    answered = s[_KEPT]
    if answered == 1:
        head = _UNANSWERED + 2 * s[_WRITTEN_HEAD]
        s[head + 1] -= 1
        if s[head + 1] == 0:
            s[_STORE_DONE] = s[head]
            s[_WRITTEN_HEAD] = (s[_WRITTEN_HEAD] + 1) % _TRANSFERS
            s[_WRITTEN] -= 1
    s[_KEPT] = s[_B]

    # The memory takes the beat, and decides about the next cycle.
    accepted = s[_W] == 1 and _accepts(s, cfg, cycle)
    if accepted:
        s[_LAST_W] = cycle
        if s[_W_LAST] == 1:
            s[_DUE + (s[_RESPONSE_HEAD] + s[_RESPONSES]) % (_PENDING_MOST + 1)] = cycle + cfg[_LATENCY]
            s[_RESPONSES] += 1
    if s[_B] == 1:
        s[_LAST_B] = cycle
    now = cycle + 1
    due = max(s[_DUE + s[_RESPONSE_HEAD]], s[_LAST_B] + 1)
    s[_B] = s[_RESPONSES] > 0 and now >= due and not _refreshing(now, cfg)
    if s[_B] == 1:
        s[_RESPONSE_HEAD] = (s[_RESPONSE_HEAD] + 1) % (_PENDING_MOST + 1)
        s[_RESPONSES] -= 1

    # Beats and bursts.
    if send:
        s[_W], s[_W_LAST] = 1, s[_BEATS_LEFT] == 1
    elif accepted:
        s[_W] = 0
    if opened:
        s[_BEATS_LEFT] = _length(s, cfg)
    elif send:
        s[_BEATS_LEFT] -= 1
    s[_PENDING] += opened - answered

    # Rows.
    if move:
        s[_CURRENT] = cfg[_STORE_BEATS]
    elif send:
        s[_CURRENT] -= 1
    s[_AHEAD] += (s[_ARRIVING] >> 1 & 1) - move
    s[_ARRIVING] = (s[_ARRIVING] << 1 | granted) & 3
    s[_CLAIMED] += granted - move
    if begin:
        slot = _UNANSWERED + 2 * ((s[_WRITTEN_HEAD] + s[_WRITTEN]) % _TRANSFERS)
        last = s[_ADDRESS] + s[_REMAINING] - 1
        s[slot], s[slot + 1] = s[_INDEX], last // cfg[_BURST] - s[_ADDRESS] // cfg[_BURST] + 1
        s[_WRITTEN] += 1
        s[_ROWS_LEFT] = T[s[_INDEX], _ROWS]
    elif granted:
        s[_ROWS_LEFT] -= 1
        s[_ROW_NEXT] += 1
    _cut(s, cfg, start, T[start, _OFFSET] // cfg[_LINE], T[start, _ROWS], cfg[_STORE_BEATS], begin, opened)
    if start >= 0:
        s[_ROW_NEXT] = T[start, _ROW]
    return done

"""Timing of the vector engine: the states of hw/vector, without data.

State is an int64 array of `STATE` words, zero after a reset; `config` makes the parameters. docs/machine.md,
"Timing models", states the functions. A grant may only be given to a request.
"""

from __future__ import annotations

import numba
import numpy as np

from ...arch.accelerator import Accelerator
from ...arch.isa import VectorOp
from .table import COLUMN

__all__ = ["STATE", "busy", "config", "ready", "request", "stalled", "step"]

_OP, _POSITIONS, _CHANNELS = COLUMN["op"], COLUMN["positions"], COLUMN["channels"]
_SRC, _SRC_STRIDE, _SRC_WIDE = COLUMN["src"], COLUMN["src_stride"], COLUMN["src_wide"]
_DST, _DST_STRIDE, _DST_WIDE = COLUMN["dst"], COLUMN["dst_stride"], COLUMN["dst_wide"]
_RESIDUAL, _RESIDUAL_ROW = COLUMN["residual"], COLUMN["residual_row"]
_RESIDUAL_STRIDE, _RESIDUAL_WIDE = COLUMN["residual_stride"], COLUMN["residual_wide"]
_BROADCAST, _BIAS, _MEASURED = COLUMN["broadcast"], COLUMN["bias"], COLUMN["measured"]
_SUMMED = COLUMN["summed"]
_ELEMENTWISE, _LAYERNORM, _SOFTMAX, _MULTIPLY, _COMPACT, _GATHER = map(int, VectorOp)

# Parameters.
_COLUMNS, _DEPTH_LOG2, _VECTOR_LOG2, _ROWS_LOG2, _REGIONS = range(5)

# The pipeline of hw/vector/steps.py.
_OUTPUT_STAGE = 21
_QUEUE_STEPS = 32
_LAYERNORM_LATENCY = 11
_MOMENTS_LATENCY = 5
_MOMENTS_WAIT = 8
_SOFTMAX_LATENCY = 30
_GATHER_LATENCY = 4

# State: the registers of hw/vector/sequencer.py by their names there, then those of the writer. `PIPE` has a bit
# for each stage with a step that will be written. _READ is the region of the read that is asked for + 1, or 0; it has a
# ticket if _READ_TICKET (its row) is not -1, and the count stands with it if it is _READ_TIMED. _HELD: the step at _HEAD asks to be written.
(
    _INDEX,
    _BUSY,
    _SETUP,
    _ISSUING,
    _MEASURE,
    _AT_RESIDUAL,
    _NUMBER,
    _READ_NUMBER,
    _VALID_LAST,
    _PADDED_LAST,
    _TO_MEASURE,
    _TO_WRITE,
    _MEASURED_ROW,
    _WRITTEN_ROW,
    _RESIDUAL_NOW,
    _DST_NOW,
    _DST_COLUMN,
    _PENDING,
    _COUNTING,
    _PIPE,
    _WAITING,
    _HEAD,
    _ISSUED,
    _READ,
    _READ_TICKET,
    _READ_TIMED,
    _HELD,
) = range(27)
_TICKETS = 27
STATE = _TICKETS + _QUEUE_STEPS


def config(accelerator: Accelerator) -> np.ndarray:
    """The parameters that the functions below take as `cfg`."""
    a = accelerator
    logs = [value.bit_length() - 1 for value in (a.depth, a.vector, a.scratchpad_rows)]
    return np.array([a.columns, *logs, a.scratchpad_regions], dtype=np.int64)


@numba.njit
def ready(s, cfg):
    """Whether an instruction is accepted in this cycle."""
    return s[_BUSY] == 0


@numba.njit
def busy(s):
    """Whether an instruction is being executed."""
    return s[_BUSY] == 1


@numba.njit
def _second(now):
    """Whether each step has a second operand."""
    op = now[_OP]
    if op == _ELEMENTWISE:
        return now[_RESIDUAL] == 1
    return op == _MULTIPLY or (op == _SOFTMAX and now[_BIAS] == 1)


@numba.njit
def _wide(now, at_residual):
    """Whether codes of the first or second operand are 16 bits."""
    op = now[_OP]
    if at_residual:
        return op != _MULTIPLY or now[_RESIDUAL_WIDE] == 1
    return op in (_LAYERNORM, _SOFTMAX, _GATHER) or now[_SRC_WIDE] == 1


@numba.njit
def _last(s, op):
    """Number of the last step of the current pass."""
    return s[_PADDED_LAST] if op == _SOFTMAX and s[_MEASURE] == 0 else s[_VALID_LAST]


@numba.njit
def _blocked(s, now):
    """Whether the next step must wait for the write queue or for what `_COUNTING` counts."""
    op = now[_OP]
    if s[_MEASURE] == 0 and s[_PENDING] == _QUEUE_STEPS:
        return True
    end = s[_NUMBER] == _last(s, op)
    if op == _LAYERNORM and s[_MEASURE] == 1:
        return end and s[_COUNTING] != 0
    if op == _COMPACT or (op == _SOFTMAX and s[_MEASURE] == 0):
        return end and s[_COUNTING] > _SOFTMAX_LATENCY
    if op == _GATHER or (op == _LAYERNORM and (s[_TO_WRITE] == 1 or now[_SUMMED] == 1)):
        return s[_NUMBER] == 0 and s[_COUNTING] != 0
    return False


@numba.njit
def _region(row, cfg):
    return (row & 0xFFFF) >> cfg[_ROWS_LOG2] & (cfg[_REGIONS] - 1)


@numba.njit
def request(s, T, cfg):
    """(read region or -1, write region or -1). GATHER's source must lie in one region."""
    write = _region(s[_TICKETS + s[_HEAD]], cfg) if s[_HELD] == 1 else -1
    return s[_READ] - 1, write


@numba.njit
def stalled(s, T, read_granted, write_granted):
    """Whether the engine is busy and waits for something."""
    if s[_BUSY] == 0:
        return False
    if (s[_HELD] == 1 and not write_granted) or (s[_READ] != 0 and not read_granted):
        return True
    return s[_ISSUING] == 1 and _blocked(s, T[s[_INDEX]])


@numba.njit
def _start(s, T, cfg):
    """The cycle after the start."""
    now = T[s[_INDEX]]
    columns, depth_log2, vector_log2 = cfg[_COLUMNS], cfg[_DEPTH_LOG2], cfg[_VECTOR_LOG2]
    tiles = (now[_POSITIONS] + columns - 1) // columns
    op, channels = now[_OP], now[_CHANNELS]
    if op == _COMPACT:
        channels = 1
    elif op == _GATHER and now[_SRC_WIDE] == 0:
        channels = (channels + 1) >> 1
    chunks = (channels + (1 << depth_log2) - 1) >> depth_log2
    summed = op == _LAYERNORM and now[_SUMMED] == 1
    two_passes = (op == _LAYERNORM and not summed) or (op == _SOFTMAX and now[_MEASURED] == 0)
    s[_SETUP] = 0
    s[_ISSUING] = 1
    s[_MEASURE] = two_passes
    s[_AT_RESIDUAL] = _second(now)
    s[_NUMBER] = s[_READ_NUMBER] = 0
    s[_VALID_LAST] = (channels - 1) >> vector_log2
    s[_PADDED_LAST] = (chunks << (depth_log2 - vector_log2)) - 1
    s[_TO_MEASURE] = tiles if two_passes else 0
    s[_TO_WRITE] = now[_POSITIONS] if op == _GATHER else tiles
    s[_MEASURED_ROW] = s[_WRITTEN_ROW] = now[_SRC]
    s[_RESIDUAL_NOW] = now[_RESIDUAL_ROW]
    s[_DST_NOW] = now[_DST]
    s[_DST_COLUMN] = 0
    if op == _GATHER:
        s[_COUNTING] = _GATHER_LATENCY
    elif summed:
        s[_COUNTING] = columns + _MOMENTS_LATENCY + _MOMENTS_WAIT


@numba.njit
def _read(s, now, cfg):
    """The region of the next read."""
    wide = _wide(now, s[_AT_RESIDUAL] == 1)
    base = s[_WRITTEN_ROW]
    if s[_AT_RESIDUAL] == 1:
        base = s[_RESIDUAL_NOW]
    elif s[_MEASURE] == 1:
        base = s[_MEASURED_ROW]
    place = s[_READ_NUMBER] << wide >> (cfg[_DEPTH_LOG2] - cfg[_VECTOR_LOG2])
    return _region(now[_SRC] if now[_OP] == _GATHER else base + place, cfg)


@numba.njit
def _issue(s, T, cfg):
    """The next read goes into its register."""
    now = T[s[_INDEX]]
    op = now[_OP]
    s[_READ], s[_READ_TICKET], s[_READ_TIMED] = _read(s, now, cfg) + 1, -1, 0
    if s[_AT_RESIDUAL] == 1:
        s[_AT_RESIDUAL] = 0
        return
    s[_AT_RESIDUAL] = _second(now)
    number, measure = s[_NUMBER], s[_MEASURE]
    if measure == 0 and op != _COMPACT:
        wide = op == _GATHER or ((op in (_ELEMENTWISE, _MULTIPLY)) and now[_DST_WIDE] == 1)
        slot = number << wide
        s[_READ_TICKET] = s[_DST_NOW] + (slot >> (cfg[_DEPTH_LOG2] - cfg[_VECTOR_LOG2]))
        s[_PENDING] += 1
    if op == _GATHER and number == 0:
        s[_COUNTING] = _GATHER_LATENCY
    if op == _LAYERNORM and now[_SUMMED] == 1 and number == 0 and s[_TO_WRITE] != 1:
        s[_COUNTING] = cfg[_COLUMNS] + _MOMENTS_LATENCY
    if number != _last(s, op):
        s[_NUMBER] = number + 1
        if number < s[_VALID_LAST]:
            s[_READ_NUMBER] = number + 1
        return
    s[_NUMBER] = s[_READ_NUMBER] = 0
    if measure == 1:
        if op == _LAYERNORM:
            s[_COUNTING], s[_READ_TIMED] = cfg[_COLUMNS] + _LAYERNORM_LATENCY, 1
        s[_MEASURE] = op == _LAYERNORM and s[_TO_MEASURE] == s[_TO_WRITE] and s[_TO_MEASURE] != 1
        s[_TO_MEASURE] -= 1
        s[_MEASURED_ROW] += now[_SRC_STRIDE]
    else:
        if op in (_SOFTMAX, _COMPACT):
            s[_COUNTING], s[_READ_TIMED] = cfg[_COLUMNS] + _SOFTMAX_LATENCY, 1
        s[_MEASURE] = s[_TO_MEASURE] != 0
        s[_TO_WRITE] -= 1
        s[_ISSUING] = s[_TO_WRITE] != 0
        s[_WRITTEN_ROW] += now[_SRC_STRIDE]
        if op != _MULTIPLY or now[_BROADCAST] == 0:
            s[_RESIDUAL_NOW] += now[_RESIDUAL_STRIDE]
        s[_DST_COLUMN] = (s[_DST_COLUMN] + 1) % cfg[_COLUMNS]
        if op != _GATHER or s[_DST_COLUMN] == 0:
            s[_DST_NOW] += now[_DST_STRIDE]


@numba.njit
def step(s, T, cfg, start, read_granted, write_granted):
    """One clock edge; returns the index of the instruction whose `done` is high in this cycle, or -1."""
    done = -1
    setup = s[_SETUP] == 1
    if s[_BUSY] == 1 and not setup and s[_ISSUING] == 0 and s[_PENDING] == 0 and s[_COUNTING] == 0:
        done = s[_INDEX]
        s[_BUSY] = 0
    stands = s[_READ] != 0 and not read_granted
    issues = s[_ISSUING] == 1 and not stands and not _blocked(s, T[s[_INDEX]])
    if s[_COUNTING] != 0 and not (stands and s[_READ_TIMED] == 1):
        s[_COUNTING] -= 1
    if read_granted:
        if s[_READ_TICKET] >= 0:
            s[_TICKETS + s[_ISSUED]] = s[_READ_TICKET]
            s[_ISSUED] = (s[_ISSUED] + 1) % _QUEUE_STEPS
            s[_PIPE] |= 1
        s[_READ] = 0
    if issues:
        _issue(s, T, cfg)
    take = s[_WAITING] != 0 and (s[_HELD] == 0 or write_granted)
    s[_WAITING] += (s[_PIPE] >> _OUTPUT_STAGE & 1) - take
    s[_PIPE] = s[_PIPE] << 1 & ((2 << _OUTPUT_STAGE) - 1)
    if write_granted:
        s[_HEAD] = (s[_HEAD] + 1) % _QUEUE_STEPS
        s[_HELD] = 0
        s[_PENDING] -= 1
    if take:
        s[_HELD] = 1
    if setup:
        _start(s, T, cfg)
    if start >= 0:
        s[_INDEX] = start
        s[_BUSY] = s[_SETUP] = 1
    return done

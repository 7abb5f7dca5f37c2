"""The cycle model: when every instruction starts and ends, without computing any value.

Equal to the RTL to the cycle: the same states, one clock at a time (docs/machine.md, "Timing models").
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numba
import numpy as np

from ..arch import isa
from ..arch.isa import Engine, LoadTarget, Opcode, VectorOp
from ..arch.memory import MemoryModel
from ..arch.program import Program
from .timing import matrix, memory, vector
from .timing.table import COLUMN
from .timing.values import resolved

__all__ = ["Activity", "CycleError", "Span", "Timing", "frames", "predict"]

_OPCODE, _TAG, _WAIT, _SIGNAL = (COLUMN[name] for name in ("opcode", "tag", "wait", "signal"))
_END, _FIRST = int(Opcode.END), int(Opcode.LOAD)
_LOAD, _MATRIX, _VECTOR, _STORE = map(int, Engine)
_ENGINES = len(Engine)
_QUEUE = 4
_FIRST_CYCLE = 7
"""Of a run in which an instruction is dispatched."""
_OPERAND_CYCLES = 8
"""By which operand slots delay a start."""
_A_FIELD, _B_FIELD, _C_FIELD = (COLUMN[f"{slot}_field"] for slot in isa.SLOTS)
_SCRATCHPAD, _WEIGHT, _INDEX = map(int, (LoadTarget.SCRATCHPAD, LoadTarget.WEIGHT, LoadTarget.INDEX))
_OP, _COMPACT = COLUMN["op"], int(VectorOp.COMPACT)
_DEADLOCK, _NO_END = -1, -2


class Activity(enum.IntEnum):
    """What an engine does in a cycle; in none of them where no instruction has come to it."""

    COMPUTING = 0
    """It gives the array a chunk (MATRIX), takes a step (VECTOR), or moves data (LOAD, STORE)."""
    DRAINING = 1
    """It waits for its own pipeline: the drain of an earlier block, or results on their way."""
    MEMORY = 2
    """It waits for operands or for a port of the scratchpad, for a transfer, or for the memory outside."""
    SEMAPHORE = 3
    """Its next instruction waits for another engine than LOAD and STORE."""


_COMPUTING, _DRAINING, _MEMORY, _SEMAPHORE = map(int, Activity)


class CycleError(ValueError):
    """A program that does not come to its end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """First start and last end of a layer's instructions, in cycles of its run."""

    start: int
    done: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """A run. Cycle 0 is the one of `trace_run_start`."""

    cycles: int
    """Cycle of `trace_run_end`; the register CYCLES."""
    start: np.ndarray
    """Of each instruction of the program (int64): the cycle in which it goes into its engine; -1 if it does not run."""
    done: np.ndarray
    """The same for its completion."""
    layers: dict[int, Span]
    """By tag."""
    busy: dict[Engine, int]
    """Cycles in which an engine has an instruction."""
    stalled: dict[Engine, int]
    """Those of them in which it is held up."""
    spent: np.ndarray
    """Cycles by tag, engine and `Activity`, int64 (1024, 4, 4); an instruction that waits counts for its own layer."""


def predict(
    program: Program,
    memory_model: MemoryModel,
    entry: int | None = None,
    written: Sequence[Mapping[int, np.ndarray]] = (),
) -> Timing:
    """Time of a run from `entry` (the frame's if None) after the setup, on a machine and memory that are idle before.

    `written` tells what the data decide in each run from `entry` since the setup, that in question last, by instruction:
    positions that COMPACT kept, and what LOAD wrote to count registers or index memory from another region than WEIGHTS
    (`written` of the functional simulator's frames; `frames` of this module puts both together).
    Regions must start at a multiple of 4096. Random stalls cannot be predicted: ValueError, and so where a value is
    needed that is not told. Raises CycleError for a program that waits for ever or has no END.
    """
    if memory_model.stall:
        raise ValueError(f"memory stall must be 0 to be predicted, not {memory_model.stall}.")
    accelerator, entry = program.accelerator, program.frame_entry if entry is None else entry
    table, items = resolved(program, entry, written)
    start = np.full(len(table), -1, dtype=np.int64)
    done = np.full(len(table), -1, dtype=np.int64)
    busy, stalled = (np.zeros(_ENGINES, dtype=np.int64) for _ in range(2))
    spent = np.zeros((1 << isa.TAG_BITS, _ENGINES, len(Activity)), dtype=np.int64)
    cycles = _compiled_run()(
        table,
        items,
        entry,
        memory.config(accelerator, memory_model),
        matrix.config(accelerator),
        vector.config(accelerator),
        memory.load_state(),
        np.zeros(matrix.STATE, dtype=np.int64),
        np.zeros(vector.STATE, dtype=np.int64),
        memory.store_state(),
        start,
        done,
        busy,
        stalled,
        spent,
    )
    if cycles == _NO_END:
        raise CycleError(f"program {program.name!r} must have an END after entry {entry}. Compile again.")
    if cycles == _DEADLOCK:
        waiting = np.flatnonzero((start < 0) & (table[:, _OPCODE] != _END))
        first = waiting[waiting >= entry][0]
        raise CycleError(
            f"program {program.name!r} must signal every semaphore that it waits for; instruction {first} "
            f"({Opcode(int(table[first, _OPCODE])).name}) waits for ever. Compile again."
        )
    ran = start >= 0
    tags = table[:, COLUMN["tag"]]
    layers = {
        int(tag): Span(start=int(start[ran & (tags == tag)].min()), done=int(done[ran & (tags == tag)].max()))
        for tag in np.unique(tags[ran])
    }
    return Timing(
        cycles=int(cycles),
        start=start,
        done=done,
        layers=layers,
        busy={engine: int(busy[engine]) for engine in Engine},
        stalled={engine: int(stalled[engine]) for engine in Engine},
        spent=spent,
    )


def frames(
    program: Program, memory_model: MemoryModel, written: Sequence[Mapping[int, np.ndarray]]
) -> list[Timing]:
    """The time of each frame after the setup, of which `written` tells what the data decide; see `predict`."""
    keys = [{number: values.tobytes() for number, values in frame.items()} for frame in written]
    if all(key == keys[0] for key in keys[1:]):
        return [predict(program, memory_model, written=written[:1])] * len(written)
    return [predict(program, memory_model, written=written[: n + 1]) for n in range(len(written))]


@numba.njit
def _satisfied(semaphores, wait):
    missing = 0
    for bit in range(16):
        missing += (wait >> bit & 1) & (semaphores[bit] == 0)
    return missing == 0


@numba.njit
def _missing(semaphores, wait):
    """A bit for each producer that is waited for."""
    missing = 0
    for bit in range(16):
        if wait >> bit & 1 and semaphores[bit] == 0:
            missing |= 1 << bit // 4
    return missing


@numba.njit
def _add(semaphores, mask, amount):
    for bit in range(16):
        semaphores[bit] += amount * (mask >> bit & 1)


def _run(T, items, entry, m_cfg, x_cfg, v_cfg, load, mat, vec, store, start, done, busy, stalled, spent):
    """Steps all blocks from the cycle after run_start on; fills the last five arrays, returns the cycle of run_end."""
    semaphores = np.zeros(16, dtype=np.int64)
    queue = np.zeros((_ENGINES, _QUEUE), dtype=np.int64)
    head, level = np.zeros(_ENGINES, dtype=np.int64), np.zeros(_ENGINES, dtype=np.int64)
    following = np.full(_ENGINES, -1, dtype=np.int64)
    executing, on = np.zeros(_ENGINES, dtype=np.int64), np.zeros(_ENGINES, dtype=np.bool_)
    now = np.zeros(_ENGINES, dtype=np.int64)
    compacting = claimed = False
    waited = np.zeros(_ENGINES, dtype=np.int64)
    starting, ending = np.zeros(_ENGINES, dtype=np.int64), np.zeros(_ENGINES, dtype=np.int64)
    pc, cycle = entry, _FIRST_CYCLE - 2
    dispatched, started, ended = 0, 0, 0
    # What was found in the cycle before: the next instruction is dispatched, an engine's next one starts.
    dispatching, due = False, np.zeros(_ENGINES, dtype=np.bool_)
    while True:
        cycle += 1
        # Dispatch.
        if pc >= len(T):
            return _NO_END
        opcode, pushed = T[pc, _OPCODE], -1
        if dispatching:
            pushed, dispatching = opcode - _FIRST, False
        elif opcode == _END:
            if ended == dispatched:
                return cycle + 1
        else:
            dispatching = level[opcode - _FIRST] < _QUEUE

        # Starts.
        starting[:] = -1
        moving = False
        for engine in range(_ENGINES):
            index = following[engine]
            moving |= index < 0 and level[engine] > 0
            if due[engine]:
                starting[engine], due[engine] = index, False
            elif index >= 0 and _satisfied(semaphores, T[index, _WAIT]):
                slots = T[index, _A_FIELD] | T[index, _B_FIELD] | T[index, _C_FIELD]
                if slots == 0 or waited[engine] == _OPERAND_CYCLES:
                    due[engine] = True
                else:
                    waited[engine] += 1
        due[_LOAD] &= memory.load_ready(load, m_cfg)
        due[_MATRIX] &= matrix.ready(mat, x_cfg)
        due[_VECTOR] &= vector.ready(vec, v_cfg)
        due[_STORE] &= memory.store_ready(store, m_cfg)
        idle = pushed < 0 and not dispatching and starting.max() < 0 and not due.any()
        if idle and started == ended and waited.max() == 0 and not moving:
            return _DEADLOCK

        # Grants. Engines without work are left out: their state does not change.
        for engine in range(_ENGINES):
            on[engine] = executing[engine] > 0 or starting[engine] >= 0
        residual = fetch = drain = v_read = v_write = target = l_write = s_read = -1
        weights = 0
        if on[_MATRIX]:
            residual, fetch, drain, weights = matrix.request(mat, T, x_cfg)
        if on[_VECTOR]:
            v_read, v_write = vector.request(vec, T, v_cfg)
        if on[_LOAD]:
            target, l_write = memory.load_request(load, T, m_cfg)
        if on[_STORE]:
            s_read = memory.store_request(store, T, m_cfg)
        fetch_granted = fetch >= 0 and fetch != residual
        v_read_granted = v_read >= 0 and v_read != residual and v_read != fetch
        s_read_granted = s_read >= 0 and s_read != residual and s_read != fetch and s_read != v_read
        v_write_granted = v_write >= 0 and v_write != drain
        if target == _SCRATCHPAD:
            l_granted = l_write != drain and l_write != v_write
        else:
            l_granted = (
                target >= 0 and not (target == _WEIGHT and weights) and not (target == _INDEX and claimed)
            )

        claimed = compacting

        # What the engines do.
        for engine in range(_ENGINES):
            what, index = -1, -1
            if engine == _MATRIX:
                if on[_MATRIX]:
                    what, index = matrix.activity(mat, T)
            elif executing[engine] > 0:
                index = now[engine]
                if engine == _VECTOR:
                    if v_read >= 0 or v_write >= 0:
                        refused = (v_read >= 0 and not v_read_granted) or (
                            v_write >= 0 and not v_write_granted
                        )
                        what = _MEMORY if refused else _COMPUTING
                    else:
                        what = _DRAINING
                elif engine == _LOAD:
                    what = _MEMORY if memory.load_stalled(load, l_granted) else _COMPUTING
                else:
                    what = _MEMORY if memory.store_stalled(store, m_cfg, cycle) else _COMPUTING
            if what < 0 and following[engine] >= 0:
                waits = following[engine]
                missing = _missing(semaphores, T[waits, _WAIT])
                if missing & (1 << _LOAD | 1 << _STORE):
                    what, index = _MEMORY, waits
                elif missing & ~(1 << engine):
                    what, index = _SEMAPHORE, waits
                elif missing or index < 0:
                    what, index = _DRAINING, waits
            if what < 0 and index >= 0:
                what = _DRAINING
            if what >= 0:
                spent[T[index, _TAG], engine, what] += 1

        # Counters of what the engines say of themselves, and the clock edge.
        ending[:] = -1
        if on[_LOAD]:
            busy[_LOAD] += executing[_LOAD] > 0
            stalled[_LOAD] += executing[_LOAD] > 0 and memory.load_stalled(load, l_granted)
            ending[_LOAD] = memory.load_step(load, T, m_cfg, items, cycle, starting[_LOAD], l_granted)
        if on[_MATRIX]:
            busy[_MATRIX] += matrix.busy(mat)
            stalled[_MATRIX] += matrix.stalled(mat, T)
            ending[_MATRIX] = matrix.step(mat, T, x_cfg, starting[_MATRIX], fetch_granted)
        if on[_VECTOR]:
            busy[_VECTOR] += vector.busy(vec)
            stalled[_VECTOR] += vector.stalled(vec, T, v_read_granted, v_write_granted)
            ending[_VECTOR] = vector.step(vec, T, v_cfg, starting[_VECTOR], v_read_granted, v_write_granted)
        if on[_STORE]:
            busy[_STORE] += executing[_STORE] > 0
            stalled[_STORE] += executing[_STORE] > 0 and memory.store_stalled(store, m_cfg, cycle)
            ending[_STORE] = memory.store_step(store, T, m_cfg, cycle, starting[_STORE], s_read_granted)
        for engine in range(_ENGINES):
            index = starting[engine]
            if index >= 0:
                start[index] = cycle
                executing[engine] += 1
                now[engine] = index
                waited[engine] = 0
                if engine == _VECTOR:
                    compacting = T[index, _OP] == _COMPACT
                started += 1
                following[engine] = -1
                _add(semaphores, T[index, _WAIT], -1)
            index = ending[engine]
            if index >= 0:
                done[index] = cycle
                executing[engine] -= 1
                if engine == _VECTOR:
                    compacting = False
                ended += 1
                _add(semaphores, T[index, _SIGNAL], 1)
        for engine in range(_ENGINES):
            if following[engine] < 0 and level[engine] > 0:
                following[engine] = queue[engine, head[engine]]
                head[engine] = (head[engine] + 1) % _QUEUE
                level[engine] -= 1
        if pushed >= 0:
            queue[pushed, (head[pushed] + level[pushed]) % _QUEUE] = pc
            level[pushed] += 1
            dispatched += 1
            pc += 1


@functools.cache
def _compiled_run():
    """`_run`, compiled, or from numba's cache. The cache does not see changes in called functions and in constants of
    other modules, so the cached name holds a digest of their sources."""
    sources = [Path(module.__file__) for module in (isa, memory, matrix, vector)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    _run.__qualname__ = f"_run_{digest}"
    return numba.njit(cache=True)(_run)

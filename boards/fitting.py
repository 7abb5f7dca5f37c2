"""Parameters that fit a board, by an estimate that synthesis confirms."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping

from ..arch.accelerator import (
    NORM_BYTES,
    PARAM_BYTES,
    TABLE_PAGE_ENTRIES,
    TABLE_ROW_BYTES,
    Accelerator,
    AcceleratorError,
)
from ..arch.schemes import Scheme, storage_bits
from ..hw.decode import STORED_BITS
from ..hw.lines import BUFFER_LINES
from .board import Board, BoardError, Resources

__all__ = ["estimate", "fit", "require_interface", "with_luts", "with_quads"]

RAM_SHAPES = {
    "xcup": (
        (512, 36, 0.5),
        (1024, 18, 0.5),
        (2048, 9, 0.5),
        (4096, 4, 0.5),
        (8192, 2, 0.5),
        (16384, 1, 0.5),
    ),
    "xc7": (
        (512, 36, 0.5),
        (1024, 18, 0.5),
        (2048, 9, 0.5),
        (4096, 4, 0.5),
        (8192, 2, 0.5),
        (16384, 1, 0.5),
    ),
    "ecp5": ((512, 36, 1), (1024, 18, 1), (2048, 9, 1), (4096, 4, 1), (8192, 2, 1), (16384, 1, 1)),
}
"""Depth, width and size (in the budget's unit) of a block RAM with a read and a write port, by flow."""

SMALL_RAM_WORDS = 64
"""Memories up to this depth become LUT RAM."""
SMALL_RAM_BITS = {"xcup": 56, "xc7": 48, "ecp5": 10.7}
"""Bits of it per LUT."""
DIVISION_DSPS = 2
"""Of a division by the columns that is no shift (`hw.divide`): one for a position in fetch and GATHER, and one for each column."""


Cost = tuple[float, float, float]
"""LUT, FF and DSP."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KindCosts:
    """Of a lane kind, from single rows of 2 columns x depth 4 and 4 or 5 columns x depth 16; shadow registers included."""

    product: Cost
    """Of one multiply-accumulate."""
    sum: Cost
    """Of a lane in a column: the accumulator, and what depends on no depth."""
    code: Cost
    """Of one weight of a lane: registers on its way from DRAM and from its memory, and decoding, which the columns share."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """From `synthesis.count`'s modules of the demo's accelerator (both flows), of `deit_accelerator` (xcup) and of ulx3s-85f's
    default (ecp5)."""

    kinds: Mapping[Scheme, KindCosts]
    others: Mapping[Scheme, KindCosts]
    """Of `hw.lanes.OTHERS`."""
    output: Cost
    """Of one drain output (drain * columns of them)."""
    element: Cost
    """Of one vector lane (vector * columns of them), its share of the column included."""
    word: Cost
    """Of one byte of a scratchpad row: fetch, alignment, multiplexers, write masks. Each private chunk is counted as much
    again, though it has neither address generators nor write masks; no synthesis has measured it."""
    base: Cost
    """Control, queues, load, store, address generators."""


COSTS = {
    "xcup": Costs(
        kinds={
            Scheme.FIXED8: KindCosts(product=(4.7, 0, 0.5), sum=(22.4, 73, 0), code=(8, 30, 0)),
            Scheme.FIXED4: KindCosts(product=(25.3, 15.4, 0), sum=(48, 35, 0), code=(6.5, 24, 0)),
            Scheme.POT4: KindCosts(product=(30.5, 12, 0), sum=(39.4, 35, 0), code=(5, 22, 0)),
            Scheme.SP2_4: KindCosts(product=(25.3, 15.4, 0), sum=(48, 35, 0), code=(6.5, 24, 0)),
        },
        others={
            Scheme.FIXED8: KindCosts(product=(51, 27, 0), sum=(98, 54, 0), code=(21, 52, 0)),
            Scheme.FIXED4: KindCosts(product=(2.8, 0.5, 0.25), sum=(17, 65, 0), code=(0, 15, 0)),
        },
        output=(800, 570, 3),
        element=(1010, 670, 4),
        word=(110, 110, 0),
        base=(12_500, 8_500, 16),
    ),
    # Lanes in LUTs, drain and vector engine as on UltraScale+; Fixed-8 from a row of 4 columns x depth 16, whose DSP48E1s make a
    # product each and are added in LUTs.
    "xc7": Costs(
        kinds={
            Scheme.FIXED8: KindCosts(product=(22.6, 9, 1), sum=(22.4, 73, 0), code=(8, 30, 0)),
            Scheme.FIXED4: KindCosts(product=(25.3, 15.4, 0), sum=(48, 35, 0), code=(6.5, 24, 0)),
            Scheme.POT4: KindCosts(product=(30.5, 12, 0), sum=(39.4, 35, 0), code=(5, 22, 0)),
            Scheme.SP2_4: KindCosts(product=(25.3, 15.4, 0), sum=(48, 35, 0), code=(6.5, 24, 0)),
        },
        others={
            Scheme.FIXED8: KindCosts(product=(51, 27, 0), sum=(98, 54, 0), code=(21, 52, 0)),
            Scheme.FIXED4: KindCosts(product=(22.6, 9, 1), sum=(22.4, 73, 0), code=(0, 15, 0)),
        },
        output=(800, 570, 3),
        element=(1010, 670, 4),
        word=(110, 110, 0),
        base=(12_500, 8_500, 16),
    ),
    "ecp5": Costs(
        kinds={
            Scheme.FIXED8: KindCosts(product=(18, 35, 1), sum=(72, 93, 0), code=(0, 14, 0)),
            Scheme.FIXED4: KindCosts(product=(50, 15.4, 0), sum=(96, 120, 0), code=(13, 16, 0)),
            Scheme.POT4: KindCosts(product=(60, 11, 0), sum=(96, 120, 0), code=(10, 14, 0)),
            Scheme.SP2_4: KindCosts(product=(50, 15.4, 0), sum=(96, 120, 0), code=(13, 16, 0)),
        },
        others={
            Scheme.FIXED8: KindCosts(product=(102, 27, 0), sum=(196, 100, 0), code=(26, 36, 0)),
            Scheme.FIXED4: KindCosts(product=(20, 20, 1), sum=(60, 100, 0), code=(0, 7, 0)),
        },
        output=(1160, 570, 4),
        element=(1240, 820, 5),
        word=(190, 170, 0),
        base=(18_200, 10_600, 22),
    ),
}
"""By flow."""


def memories(accelerator: Accelerator) -> Iterator[tuple[int, int, int]]:
    """(copies, words, bits) of each memory; those that `Costs` includes left out."""
    a = accelerator
    # Each byte is written on its own: that takes the ninth bit of a block RAM's byte as well.
    yield a.scratchpad_regions * a.private, a.scratchpad_rows // a.private, a.scratchpad_row_bytes * 9
    for kind, lanes in a.lanes.by_scheme.items():
        yield lanes, a.weight_rows, storage_bits(kind) * a.depth
    yield a.columns * a.private, a.operand_chunks // a.private, a.depth * 8
    yield 1, a.param_rows, PARAM_BYTES * 8 * a.drain
    yield 1, a.norm_rows, NORM_BYTES * 8 * a.vector
    yield 1, a.row_scales, 22 * a.columns
    yield 3, a.index_rows // 4, 64  # a copy per reader
    yield 1, a.instructions, STORED_BITS
    yield a.ports, BUFFER_LINES, a.bus_bytes * 8 + 1
    yield 1, 1024, 36  # reciprocal square roots
    table_words = a.table_pages * TABLE_PAGE_ENTRIES // TABLE_ROW_BYTES
    yield a.vector_lanes + a.drain * a.columns, table_words, TABLE_ROW_BYTES * 8


def estimate(accelerator: Accelerator, board: Board) -> Resources:
    """What `accelerator` needs on `board`; a test compares ulx3s-85f's default and the second accelerator on zcu102 with
    synthesis, within 15 %."""
    lut, ff, dsp = _logic(accelerator, board)
    bram = 0.0
    for copies, words, bits in memories(accelerator):
        if words <= SMALL_RAM_WORDS:
            lut += copies * bits * words / SMALL_RAM_BITS[board.flow]
        else:
            bram += copies * _block_rams(board.flow, words, bits)
    return Resources(lut=round(lut), ff=round(ff), dsp=round(dsp), bram=bram)


@functools.cache
def _block_rams(flow: str, words: int, bits: int) -> float:
    return min(-(-words // depth) * -(-bits // width) * size for depth, width, size in RAM_SHAPES[flow])


def _logic(a: Accelerator, board: Board) -> tuple[float, float, float]:
    """LUT, FF and DSP of all but the memories."""
    costs = COSTS[board.flow]
    terms = [
        *_lane_terms(a, costs),
        (a.drain * a.columns, costs.output),
        (a.vector_lanes, costs.element),
        (a.scratchpad_row_bytes * a.private, costs.word),
        (1, costs.base),
    ]
    lut, ff, dsp = (sum(count * cost[i] for count, cost in terms) for i in range(3))
    if a.columns & (a.columns - 1):
        dsp += DIVISION_DSPS * (a.columns + 2)
    return lut, ff, dsp


def with_luts(accelerator: Accelerator, board: Board, dsp: float) -> Accelerator:
    """The same with the fewest Fixed-8 lanes in LUTs that let the rest do with `dsp` DSPs; unchanged if all would not."""
    a = accelerator
    excess = round(_logic(a, board)[2]) - dsp
    pair = 2 * a.columns * a.depth * COSTS[board.flow].kinds[Scheme.FIXED8].product[2]
    luts = a.lanes.fixed8_luts + 2 * max(0, math.ceil(excess / pair))
    if luts > a.lanes.fixed8 or luts == a.lanes.fixed8_luts:
        return a
    return dataclasses.replace(a, lanes=dataclasses.replace(a.lanes, fixed8_luts=luts))


def with_quads(accelerator: Accelerator, board: Board, dsp: float) -> Accelerator:
    """The same with as many Fixed-4 lanes on multipliers as `dsp` DSPs allow."""
    a = accelerator
    plain = dataclasses.replace(a, lanes=dataclasses.replace(a.lanes, fixed4_quads=0))
    pair = 2 * a.columns * a.depth * COSTS[board.flow].others[Scheme.FIXED4].product[2]
    quads = min(a.lanes.fixed4 // 2, int(max(0, dsp - round(_logic(plain, board)[2])) // pair)) * 2
    return dataclasses.replace(a, lanes=dataclasses.replace(a.lanes, fixed4_quads=quads))


def _lane_terms(a: Accelerator, costs: Costs) -> Iterator[tuple[int, Cost]]:
    """How often each cost of the lanes occurs."""
    for scheme, lanes in a.lanes.by_scheme.items():
        others = a.lanes.others.get(scheme, 0)
        for table, count in ((costs.kinds, lanes - others), (costs.others, others)):
            if count:
                kind = table[scheme]
                yield count * a.columns * a.depth, kind.product
                yield count * a.columns, kind.sum
                yield count * a.depth, kind.code


def fit(board: Board, request: Mapping) -> Accelerator:
    """The board's default with the parameters in `request` (names of `Accelerator`, `lanes` a mapping of its own).

    Parameters that are not requested shrink where that is needed. Raises BoardError, which says what is missing and
    which values of the requested parameters would fit, and AcceleratorError for unknown names.
    """
    values = board.default.to_dict()
    lanes = {**values["lanes"], **request.get("lanes", {})}
    wanted = {**values, **request, "lanes": lanes}
    fixed = {*(set(request) - {"lanes"}), *(f"lanes.{kind}" for kind in request.get("lanes", {}))}
    start = _adapted(wanted, fixed)
    fitted, accelerator = _shrunk(board, start, fixed)
    if not fitted:
        possible, nearest = _shrunk(board, accelerator, frozenset())
        missing = "; ".join(
            f"needs {need}, {board.name} has {has}" for need, has in _missing(board, accelerator)
        )
        hint = ", ".join(f"{name}={_value(nearest, name)}" for name in sorted(fixed))
        remedy = f"The nearest that fits: {hint}." if possible else "Nothing near it fits."
        raise BoardError(f"{board.name} must hold the accelerator: {missing}. {remedy}")
    return accelerator


def _adapted(values: dict, fixed: set[str]) -> Accelerator:
    """An accelerator of `values`, where free parameters give way to the relations between parameters."""
    error = None
    for drain in (values["drain"], 8, 4, 2, 1):
        adapted = dict(values)
        limits = {"columns": values["depth"], "vector": values["depth"] // 2, "drain": values["depth"] // 2}
        for name, limit in limits.items():
            if name not in fixed:
                adapted[name] = min(drain if name == "drain" else adapted[name], limit)
        if "burst_beats" not in fixed:
            adapted["burst_beats"] = min(adapted["burst_beats"], 4096 // max(1, adapted["bus_bytes"]))
        try:
            return Accelerator.from_dict(adapted)
        except AcceleratorError as problem:
            error = error or problem
    raise error


def _value(accelerator: Accelerator, name: str) -> int:
    owner, _, inner = name.rpartition(".")
    return getattr(accelerator.lanes if owner else accelerator, inner)


MEMORY_FLOORS = {
    "weight_rows": 512,
    "scratchpad_rows": 256,
    "param_rows": 128,
    "norm_rows": 64,
    "operand_chunks": 64,
    "instructions": 128,
    "table_pages": 1,
}
"""Parameters that shrink only where block RAM is short, and how far."""

FLOORS = {
    "lanes.fixed8": 2,
    "lanes.fixed4": 0,
    "lanes.pot4": 0,
    "lanes.sp2_4": 0,
    "vector": 2,
    "drain": 2,
    "columns": 2,
    "depth": 4,
    "bus_bytes": 4,
    "ports": 1,
}
"""Parameters that shrink for any shortage, and how far."""


def _halved(
    accelerator: Accelerator, fixed: frozenset[str] | set[str], floors: Mapping[str, int]
) -> Iterator[Accelerator]:
    """Valid accelerators with one free parameter of `floors` halved."""
    for name, floor in floors.items():
        half = _value(accelerator, name) // 2
        if name in fixed or half < floor or half == _value(accelerator, name):
            continue
        owner, _, inner = name.rpartition(".")
        try:
            if owner:
                yield dataclasses.replace(
                    accelerator, lanes=dataclasses.replace(accelerator.lanes, **{inner: half})
                )
            else:
                yield dataclasses.replace(accelerator, **{inner: half})
        except AcceleratorError:
            continue


def _shrunk(board: Board, accelerator: Accelerator, fixed) -> tuple[bool, Accelerator]:
    """Halve free parameters, each time that which helps most, until the board holds it or nothing helps."""
    while excess := _excess(board, accelerator):
        need = estimate(accelerator, board)
        for floors in (MEMORY_FLOORS, FLOORS) if need.bram > board.budget.bram else (FLOORS,):
            options = _halved(accelerator, fixed, floors)
            best = min(options, key=lambda other: _excess(board, other), default=None)
            if best is not None and _excess(board, best) < excess:
                accelerator = best
                break
        else:
            return False, accelerator
    return True, accelerator


def _needs(board: Board, accelerator: Accelerator) -> list[tuple[str, float, float]]:
    """(what, needed, available), LUTs with a tenth left for placement."""
    need, has = estimate(accelerator, board), board.budget
    return [
        ("LUT (with a tenth left for placement)", round(need.lut / 0.9), has.lut),
        ("FF", need.ff, has.ff),
        ("DSP", need.dsp, has.dsp),
        ("block RAM", need.bram, has.bram),
        *_interface_needs(board, accelerator),
    ]


def _interface_needs(board: Board, accelerator: Accelerator) -> list[tuple[str, float, float]]:
    """(what, needed, available) at the way to DRAM."""
    interface, rate = board.interface, accelerator.line_bytes * board.clock_mhz
    return [
        ("AXI ports", accelerator.ports, interface.ports),
        ("bus bytes", accelerator.bus_bytes, interface.bus_bytes),
        ("MB/s of DRAM at full rate", rate, round(interface.bandwidth_bytes_per_second / 1e6)),
    ]


def require_interface(accelerator: Accelerator, board: Board) -> None:
    """Raises BoardError, with the nearest that works, for AXI ports that are more, wider or faster than the board's."""
    missing = [need for need in _interface_needs(board, accelerator) if need[1] > need[2]]
    if not missing:
        return
    a, interface = accelerator, board.interface
    nearest = min(
        (
            (ports, size)
            for ports in (1, 2, 4)
            for size in (4, 8, 16, 32, 64, 128)
            if ports <= interface.ports
            and size <= interface.bus_bytes
            and ports * size * board.clock_mhz * 1e6 <= interface.bandwidth_bytes_per_second
        ),
        key=lambda pair: (abs(pair[0] * pair[1] - a.line_bytes), abs(pair[1] - a.bus_bytes)),
    )
    text = "; ".join(f"needs {need:,.0f} {what}, {board.name} has {has:,.0f}" for what, need, has in missing)
    raise BoardError(
        f"{board.name} must have the accelerator's way to DRAM ({interface.description}): {text}. "
        f"The nearest that works: ports={nearest[0]}, bus_bytes={nearest[1]}."
    )


def _missing(board: Board, accelerator: Accelerator) -> list[tuple[str, str]]:
    """What the board lacks: (needed, available) as text."""
    return [
        (f"{math.ceil(need):,} {what}", f"{has:,}")
        for what, need, has in _needs(board, accelerator)
        if need > has
    ]


def _excess(board: Board, accelerator: Accelerator) -> float:
    """How far the needs exceed the board, summed over resources; 0 if they fit."""
    return sum(max(0.0, need / has - 1) for _, need, has in _needs(board, accelerator))

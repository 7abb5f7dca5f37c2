"""What an accelerator needs on a board: an estimate that synthesis confirms."""

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
)
from ..arch.numerics import LOGIT_BITS, SQUARES_BITS, SUM_BITS
from ..arch.schemes import Scheme, storage_bits
from ..hw.decode import stored_bits
from ..hw.lines import BUFFER_LINES
from ..hw.store import rows_ahead
from .board import Board, BoardError, Resources

__all__ = ["COSTS", "estimate", "require_lanes", "with_luts", "with_quads", "with_triples"]

_XILINX_RAMS = (
    (512, 36, 0.5),
    (1024, 18, 0.5),
    (2048, 9, 0.5),
    (4096, 4, 0.5),
    (8192, 2, 0.5),
    (16384, 1, 0.5),
)
RAM_SHAPES = {
    "xcup": _XILINX_RAMS,
    "xc7": _XILINX_RAMS,
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
class PartCosts:
    """Of an optional part: LUTs from columns of `pynq_accelerator` with each of them and the modules that vanish without all; flip-flops
    from columns of `mobilenet_accelerator` with each (xcup 1,112, with norm rows 1,737, row scales 1,291, table pages 1,146, all 1,982;
    ecp5 1,960, 2,391, 2,227, 1,962, 2,660) and the modules of `Costs`' machines. Row moments from the modules of `mixed_accelerator` that have them: `moments` 2,076 LUT and 2,703 FF, 23 LUT in each output of the drain, 15 in
    `summed` (xcup; as guessed from these on ecp5)."""

    element: Cost
    """Of one vector lane."""
    output: Cost
    """Of one drain output."""
    once: Cost
    column: Cost = (0, 0, 0)
    """Of a column, beside its elements and outputs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """From `synthesis.count`'s modules: of the demo's accelerator (both flows), then at ecd2ada of `deit_accelerator`, `mixed_accelerator`,
    `quads_accelerator` and `mobilenet_accelerator` (xcup), `pynq_accelerator` and `zc706_accelerator` (xc7; its private chunks as on xcup)
    and of ulx3s-85f's default (ecp5, where a private chunk is taken for a row like the first)."""

    kinds: Mapping[Scheme, KindCosts]
    others: Mapping[str, KindCosts]
    """Of those of `hw.lanes.OTHERS` that the flow has multipliers for."""
    dynamic: Cost
    """Of one code of a Fixed-4 lane that takes keys and values: the choice between the drain's and LOAD's, which Fixed-8 lanes
    have in `code`."""
    choice: Cost
    """Of a lane in a column: the drain's choice among the sums; of half the lanes again for plain outputs."""
    operand_bit: Cost
    """Of a Fixed-4 product in LUTs, for each bit of its operand below 9: rows of 8 columns x depth 16 have 3,494 and 2,655
    LUTs, 2,184 and 1,752 FF at 8 and 5 bits (xcup)."""
    digit: Cost
    """Of one byte of an operand that Fixed-4 lanes take as digits; an array of 2 columns x depth 8 has 120 LUTs more (xcup; on
    ecp5 not measured)."""
    output: Cost
    """Of one drain output (drain * columns of them), optional parts apart."""
    plain: Cost
    """Of one that is plain (as many again with plain_steps 2); 229 LUTs (xcup) without the choice of its sum."""
    maximum: Cost
    """Of one drain output that row maxima are of: with 8 columns and drain 4, 607 LUTs in the drain and 18 in each vector column
    (xcup; as guessed from these on ecp5)."""
    element: Cost
    """Of one vector lane (vector * columns of them), its share of the column included, optional parts apart."""
    word: Cost
    """Of one byte of a scratchpad row: fetch, alignment, multiplexers, write masks, operands in front of the lanes; rows in
    registers are `_registers`."""
    private: Cost
    """Of one byte of the rows of each further private chunk."""
    column: Cost
    """Of a column, beside its elements and outputs."""
    parts: Mapping[str, PartCosts]
    """Of parts that a machine may be without, by the parameter that is 0 then."""
    base: Cost
    """Control, queues, load, store, address generators."""


# Fixed-4 lanes that share a multiplier by three from rows of 2 columns x depth 4, 4 x 16 and 8 x 16: 252, 1,478 and 2,922 LUT;
# 374, 1,056 and 1,920 FF; 8, 64 and 128 DSP. Ternary and binary lanes from rows of 2 and 4 columns x depth 16 and of 4 x 32: xcup 474, 908 and 1,758 LUT; 297, 569
# and 976; ecp5 826, 1,628 and 3,092; 498, 976 and 1,788.
_XCUP = Costs(
    kinds={
        Scheme.FIXED8: KindCosts(product=(4.7, 0, 0.5), sum=(22.4, 73, 0), code=(8, 30, 0)),
        Scheme.FIXED4: KindCosts(product=(25.5, 14.5, 0), sum=(48, 66, 0), code=(6.5, 22, 0)),
        Scheme.POT4: KindCosts(product=(30.5, 12, 0), sum=(39.4, 35, 0), code=(5, 22, 0)),
        Scheme.SP2_4: KindCosts(product=(25.3, 15.4, 0), sum=(48, 35, 0), code=(6.5, 24, 0)),
        Scheme.TERNARY: KindCosts(product=(12.7, 6, 0), sum=(14.5, 51, 0), code=(2.5, 12, 0)),
        Scheme.BINARY: KindCosts(product=(6, 4.3, 0), sum=(40.5, 15, 0), code=(1.6, 7, 0)),
    },
    others={
        "fixed8_luts": KindCosts(product=(51, 27, 0), sum=(98, 54, 0), code=(21, 52, 0)),
        "fixed4_triples": KindCosts(product=(6.7, 1.5, 1 / 3), sum=(14, 76, 0), code=(0.7, 16, 0)),
        "fixed4_quads": KindCosts(product=(2.8, 0.5, 0.25), sum=(17, 65, 0), code=(0, 12, 0)),
    },
    dynamic=(4.2, 0, 0),
    choice=(9, 0, 0),
    operand_bit=(2.15, 1.1, 0),
    digit=(7.5, 0.5, 0),
    output=(582, 556, 3),
    plain=(240, 180, 1),
    maximum=(24, 15, 0),
    element=(413, 410, 3),
    word=(140, 52, 0),
    private=(114, 52, 0),
    column=(270, 457, 0),
    parts={
        "norm_rows": PartCosts(
            element=(330, 310, 0), output=(0, 0, 0), once=(600, 530, 5), column=(0, 170, 0)
        ),
        "row_scales": PartCosts(
            element=(190, 192, 0), output=(110, 51, 0), once=(290, 213, 1), column=(0, 266, 0)
        ),
        "index_rows": PartCosts(element=(20, 0, 0), output=(0, 0, 0), once=(560, 330, 3)),
        "table_pages": PartCosts(element=(57, 95, 0), output=(36, 128, 0), once=(0, 0, 0)),
        "operand_slots": PartCosts(element=(0, 0, 0), output=(0, 0, 0), once=(3_550, 2_250, 0)),
        "row_moments": PartCosts(element=(0, 0, 0), output=(85, 80, 0), once=(115, 150, 0)),
    },
    base=(7_900, 13_400, 7),
)
# Lanes on multipliers from rows of 4 columns x depth 16: Fixed-8, whose DSP48E1s make a product each and are added in LUTs,
# 3,071 LUT, 1,720 FF, 128 DSP; Fixed-4 quads 816, 1,088, 32. Fixed-8 in LUTs, multipliers of drain and vector engine, and the
# rest from a machine of 32 lanes x 4 columns x depth 8 on pynq-z1 (46,774, 47,130, 216). Others as on UltraScale+.
_XC7 = dataclasses.replace(
    _XCUP,
    kinds={
        **_XCUP.kinds,
        Scheme.FIXED8: KindCosts(product=(22.6, 9, 1), sum=(22.4, 73, 0), code=(8, 30, 0)),
    },
    others={
        "fixed8_luts": KindCosts(product=(45, 27, 0), sum=(98, 54, 0), code=(21, 52, 0)),
        "fixed4_quads": KindCosts(product=(5.3, 6.1, 0.25), sum=(17, 65, 0), code=(0, 12, 0)),
    },
    output=(582, 449, 4),
    element=(413, 205, 4),
    parts={
        **_XCUP.parts,
        "norm_rows": PartCosts(
            element=(330, 396, 1), output=(0, 0, 0), once=(600, 530, 5), column=(0, 120, 0)
        ),
    },
    base=(7_000, 12_420, 11),
)
_ECP5 = Costs(
    kinds={
        Scheme.FIXED8: KindCosts(product=(18, 35, 1), sum=(72, 93, 0), code=(0, 14, 0)),
        Scheme.FIXED4: KindCosts(product=(50, 15.4, 0), sum=(96, 120, 0), code=(13, 16, 0)),
        Scheme.POT4: KindCosts(product=(60, 11, 0), sum=(96, 120, 0), code=(10, 14, 0)),
        Scheme.SP2_4: KindCosts(product=(50, 15.4, 0), sum=(96, 120, 0), code=(13, 16, 0)),
        Scheme.TERNARY: KindCosts(product=(22.5, 5.8, 0), sum=(41, 54, 0), code=(1.5, 12, 0)),
        Scheme.BINARY: KindCosts(product=(12.4, 3, 0), sum=(40.6, 54, 0), code=(1.3, 7, 0)),
    },
    others={
        "fixed8_luts": KindCosts(product=(102, 27, 0), sum=(196, 100, 0), code=(26, 36, 0)),
        "fixed4_quads": KindCosts(product=(20, 20, 1), sum=(60, 100, 0), code=(0, 7, 0)),
    },
    dynamic=(4.2, 0, 0),
    choice=(18, 0, 0),
    operand_bit=(4, 1, 0),
    digit=(11, 0.5, 0),
    output=(929, 665, 4),
    plain=(400, 200, 2),
    maximum=(36, 15, 0),
    element=(469, 847, 4),
    word=(190, 54, 0),
    private=(190, 54, 0),
    column=(0, 431, 0),
    parts={
        "norm_rows": PartCosts(
            element=(430, 215, 1), output=(0, 0, 0), once=(780, 530, 5), column=(0, 170, 0)
        ),
        "row_scales": PartCosts(
            element=(240, 236, 0), output=(145, 51, 0), once=(380, 213, 1), column=(0, 267, 0)
        ),
        "index_rows": PartCosts(element=(26, 0, 0), output=(0, 0, 0), once=(730, 330, 3)),
        "table_pages": PartCosts(element=(75, 79, 0), output=(50, 80, 0), once=(0, 0, 0)),
        "operand_slots": PartCosts(element=(0, 0, 0), output=(0, 0, 0), once=(4_500, 2_250, 0)),
        "row_moments": PartCosts(element=(0, 0, 0), output=(125, 80, 0), once=(170, 150, 0)),
    },
    base=(12_510, 13_600, 13),
)
COSTS = {"xcup": _XCUP, "xc7": _XC7, "ecp5": _ECP5}
"""By flow."""


def memories(accelerator: Accelerator) -> Iterator[tuple[int, int, int, bool]]:
    """(copies, words, bits, whether each byte is written on its own, which takes the ninth bit of a block RAM's byte as well) of each
    memory but the index memory; those that `Costs` includes left out."""
    a = accelerator
    yield a.scratchpad_regions * a.private, a.scratchpad_rows // a.private, a.scratchpad_row_bytes * 8, True
    for kind, lanes in a.lanes.by_scheme.items():
        dynamic = lanes if kind == Scheme.FIXED8 else a.lanes.fixed4_dynamic if kind == Scheme.FIXED4 else 0
        yield dynamic, a.weight_rows, storage_bits(kind) * a.depth, True
        yield lanes - dynamic, a.weight_rows, storage_bits(kind) * a.depth, False
    table_words = a.table_pages * TABLE_PAGE_ENTRIES // TABLE_ROW_BYTES
    for copies, words, bits in (
        (a.columns * a.private, a.operand_chunks // a.private, a.depth * 8),
        (1, a.param_rows, PARAM_BYTES * 8 * a.drain),
        (1, a.norm_rows, NORM_BYTES * 8 * a.vector),
        (1, a.row_scales, 22 * a.columns),
        (1, a.row_maxima, LOGIT_BITS * a.columns),
        (2, a.row_moments << (a.columns - 1).bit_length(), SUM_BITS + SQUARES_BITS),
        (1, a.instructions, _instruction_bits(a)),
        (a.ports, BUFFER_LINES, a.bus_bytes * 8 + 1),
        (int(a.norm_rows > 0), 1024, 36),  # reciprocal square roots
        (a.vector_lanes + a.drain * a.columns, table_words, TABLE_ROW_BYTES * 8),
    ):
        yield copies, words, bits, False


_instruction_bits_of: dict[int, int] = {}


def _instruction_bits(a: Accelerator) -> int:
    """`stored_bits`, which operand slots alone decide and which takes long."""
    if a.operand_slots not in _instruction_bits_of:
        _instruction_bits_of[a.operand_slots] = stored_bits(a)
    return _instruction_bits_of[a.operand_slots]


def estimate(accelerator: Accelerator, board: Board) -> Resources:
    """What `accelerator` needs on `board`; tests compare ulx3s-85f's default and the second accelerator on zcu102 with
    synthesis, within 6 %, and the machines of docs/performance.md with their counts. Raises `require_lanes`'s."""
    require_lanes(accelerator, board)
    lut, ff, dsp = _logic(accelerator, board)
    index, bram = _index(accelerator, board)
    lut += index
    for copies, words, bits, parts in memories(accelerator):
        if words <= SMALL_RAM_WORDS:
            lut += copies * bits * words / SMALL_RAM_BITS[board.flow]
        else:
            width, whole = bits * 9 // 8 if parts else bits, 1 << (words - 1).bit_length()
            blocks = _block_rams(board.flow, words, width)
            bram += copies * blocks
            # Where fewer block RAMs of several depths are taken, their words are chosen.
            lut += copies * bits * (blocks < _block_rams(board.flow, whole, width))
    return Resources(lut=round(lut), ff=round(ff), dsp=round(dsp), bram=bram)


def require_lanes(accelerator: Accelerator, board: Board) -> None:
    """Raises BoardError, with the nearest that works, for lanes whose multipliers are too wide for the board's."""
    for others in accelerator.lanes.others.values():
        for name, count in others.items():
            if count and name not in COSTS[board.flow].others:
                raise BoardError(
                    f"lanes.{name} must be 0 on {board.name}, whose multipliers have no port of 27 bits, not {count}. "
                    f"The nearest that works: lanes.{name}=0."
                )


@functools.cache
def _block_rams(flow: str, words: int, bits: int) -> float:
    return min(-(-words // depth) * -(-bits // width) * size for depth, width, size in RAM_SHAPES[flow])


def _index(a: Accelerator, board: Board) -> tuple[float, float]:
    """LUTs and block RAMs of the index memory, a copy for each reader: where words are written in parts, ECP5's flow takes block
    RAM however few they are."""
    words, bits, copies = a.index_rows // 4, 64, 3
    if board.flow == "ecp5" or words > SMALL_RAM_WORDS:
        return 0, copies * _block_rams(board.flow, words, bits)
    return copies * bits * words / SMALL_RAM_BITS[board.flow], 0


def _logic(a: Accelerator, board: Board) -> tuple[float, float, float]:
    """LUT, FF and DSP of all but the memories."""
    costs = COSTS[board.flow]
    terms = [
        *_lane_terms(a, costs),
        (a.lanes.fixed4_dynamic * a.depth, costs.dynamic),
        (a.lanes.total * a.columns * (1 + a.plain_steps) / 2, costs.choice),
        (a.lanes.fixed4_digits * a.columns * a.depth, costs.digit),
        (a.drain * a.columns, costs.output),
        ((a.plain_steps - 1) * a.drain * a.columns, costs.plain),
        (a.plain_drain * a.columns if a.row_maxima else 0, costs.maximum),
        (a.vector_lanes, costs.element),
        (a.scratchpad_row_bytes, costs.word),
        (a.scratchpad_row_bytes * (a.private - 1), costs.private),
        (a.columns, costs.column),
        (_registers(a), (0, 1, 0)),
        (a.scratchpad_row_bytes * a.private_chunks * (a.broadcast_stages - 1), (0, 9, 0)),
        (a.lanes.total * a.scratchpad_row_bytes / 8 * (a.tree_stages - 1), (0, 16, 0)),  # sums of 8 products
        (a.plain_drain * a.columns * (a.drain_stages - 1), (0, 80, 0)),
        *_part_terms(a, costs),
        (1, costs.base),
    ]
    lut, ff, dsp = (sum(count * cost[i] for count, cost in terms) for i in range(3))
    if a.columns & (a.columns - 1):
        dsp += DIVISION_DSPS * (a.columns + 2)
    return lut, ff, dsp


def _registers(a: Accelerator) -> int:
    """Flip-flops of words that are as wide on every board: what the scratchpad's regions return, rows and a line that STORE sends, a
    row of the norm memory, and what LUT RAM returns."""
    sent = a.scratchpad_row_bytes * (rows_ahead(a) + 1) + a.line_bytes
    norm = a.vector * NORM_BYTES if a.norm_rows else 0
    returned = a.scratchpad_regions * a.private * a.scratchpad_row_bytes
    small = sum(copies * bits for copies, words, bits, _ in memories(a) if 0 < words <= SMALL_RAM_WORDS)
    return 8 * (returned + sent + norm) + small


def _part_terms(a: Accelerator, costs: Costs) -> Iterator[tuple[int, Cost]]:
    """How often each cost of the optional parts occurs."""
    for name, part in costs.parts.items():
        if getattr(a, name):
            yield a.vector_lanes, part.element
            yield a.drain * a.columns, part.output
            yield a.columns, part.column
            yield 1, part.once


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
    pair = 2 * a.columns * a.depth * COSTS[board.flow].others["fixed4_quads"].product[2]
    quads = min(a.lanes.fixed4 // 2, int(max(0, dsp - round(_logic(plain, board)[2])) // pair)) * 2
    return dataclasses.replace(a, lanes=dataclasses.replace(a.lanes, fixed4_quads=quads))


def with_triples(accelerator: Accelerator, board: Board, dsp: float) -> Accelerator:
    """The same with as many Fixed-4 lanes three in a multiplier as `dsp` DSPs allow, where the board's multipliers can."""
    a = accelerator
    cost = COSTS[board.flow].others.get("fixed4_triples")
    if cost is None:
        return a
    plain = dataclasses.replace(a, lanes=dataclasses.replace(a.lanes, fixed4_triples=0))
    row = 3 * a.columns * a.depth * cost.product[2]
    rows = int(max(0, dsp - round(_logic(plain, board)[2])) // row)
    triples = min((a.lanes.fixed4 - a.lanes.fixed4_quads) // 3, rows) * 3
    return dataclasses.replace(a, lanes=dataclasses.replace(a.lanes, fixed4_triples=triples))


def _lane_terms(a: Accelerator, costs: Costs) -> Iterator[tuple[int, Cost]]:
    """How often each cost of the lanes occurs."""
    for scheme, lanes in a.lanes.by_scheme.items():
        others = a.lanes.others.get(scheme, {})
        usual = lanes - sum(others.values())
        if scheme == Scheme.FIXED4:
            yield -usual * a.columns * a.depth * (9 - a.lanes.fixed4_operand_bits), costs.operand_bit
        kinds = [(usual, costs.kinds[scheme]), *((n, costs.others[name]) for name, n in others.items() if n)]
        for count, kind in kinds:
            yield count * a.columns * a.depth, kind.product
            yield count * a.columns, kind.sum
            yield count * a.depth, kind.code

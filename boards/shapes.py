"""Accelerators that a search tries: lanes, widths and memories for a graph on a board."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from ..arch.accelerator import Accelerator, AcceleratorError, Lanes
from ..arch.schemes import Scheme
from .board import Board, Resources
from .fitting import estimate, with_luts, with_quads, with_triples
from .mixtures import Mixture
from .work import Work

__all__ = [
    "INSTRUCTIONS",
    "grown",
    "is_roomy",
    "lane_counts",
    "scratchpad_bytes",
    "shapes",
    "sized",
    "with_moments",
]

WIDTHS = {
    "columns": (2, 3, 4, 5, 6, 8, 10, 12, 16),
    "depth": (8, 16, 32),
    "drain": (2, 4, 8, 16),
    "vector": (2, 4, 8, 16),
}
LANES = 256
"""Most lanes that are tried."""
PRODUCTS = 24_000
"""Most multipliers that are tried: more than any board has LUTs and DSPs for."""
REGIONS = 4
"""Of the scratchpad: reads and writes of all engines seldom meet in one."""
SCRATCHPAD_BYTES = (3 << 19, 3 << 18, 3 << 17, 3 << 16)
"""At most; rows are a power of two."""
WEIGHT_ROWS = (8192, 4096, 2048, 1536, 1024, 512)
FEW_ROWS = 1024
"""With fewer of weights than these, a larger scratchpad is no gain."""
INSTRUCTIONS = 512
"""Unit of the instruction memory's capacity, which follows the program."""
HEADS = 6
"""Heads whose logits' maxima there is room for at least: as many as softmax is behind with."""
MOMENTS = (4, 2)
"""Inputs of LayerNorms whose moments there is room for, of as many as possible: layers in parts have several under way."""
TABLES = ("param_rows", "norm_rows")
"""Memories that are halved where that leaves room for more rows of weights."""


def shapes(
    board: Board, work: Work, mixture: Mixture, fixed: Mapping[str, int], dsp: float
) -> Iterator[Accelerator]:
    """Valid accelerators with the smallest memories, whose rows of `mixture` find lanes.

    What multipliers there are beyond `dsp` is in LUTs: Fixed-8 lanes that need them, and Fixed-4 lanes that could share
    them, by four where operands are narrow, else by three where the board's are wide. They have as many ports as fill no line beyond a row of the scratchpad, and for
    depthwise layers as many private chunks as lanes take and the drain keeps up with. They have no operand slots, which
    the compiler never uses, LAYERNORM, SOFTMAX, unary tables and gathers only where the graph needs them, and row maxima
    where it has attention without bias.
    """
    if any(fixed.get(name, 1) < 1 for name in (*WIDTHS, "bus_bytes", "scratchpad_regions")):
        return
    widths = {name: (fixed[name],) if name in fixed else values for name, values in WIDTHS.items()}
    base = board.default.to_dict() | {
        "instructions": INSTRUCTIONS,
        "scratchpad_regions": REGIONS,
        "operand_slots": 0,
    }
    needed = {
        "norm_rows": work.norms,
        "row_scales": work.attention,
        "table_pages": work.tables,
        "index_rows": work.gathers,
    }
    base |= {name: 0 for name, users in needed.items() if not users}
    for chosen in itertools.product(*widths.values()):
        values = base | dict(zip(widths, chosen, strict=True))
        columns, depth, drain = (values[name] for name in ("columns", "depth", "drain"))
        if drain > depth // 2 or values["vector"] > depth // 2:
            continue
        row = fixed.get("scratchpad_regions", REGIONS) * columns * depth
        values |= {"scratchpad_rows": _rows(SCRATCHPAD_BYTES[-1], row), "weight_rows": WEIGHT_ROWS[-1]}
        most = columns * depth // fixed.get("bus_bytes", values["bus_bytes"])
        if work.measured:
            values["row_maxima"] = 1 << (HEADS * -(-work.measured // columns) - 1).bit_length()
        values["ports"] = max(p for p in (1, 2, 4) if p == 1 or p <= min(most, board.interface.ports))
        for lanes in lane_counts(mixture, drain, work.outputs, PRODUCTS // (columns * depth)):
            if work.depthwise and columns.bit_count() == 1:
                most = min(2 * lanes.fixed8, 8 * drain, 16 * depth)
                values["private"] = 1 << max(1, most // depth).bit_length() - 1
            bits = work.operand_bits if lanes.fixed4 else (lanes.fixed4_operand_bits,)
            for dynamic, operand in itertools.product(_dynamic(work, lanes, columns, drain), bits):
                with contextlib.suppress(AcceleratorError):
                    counts = dataclasses.replace(
                        lanes,
                        fixed4_dynamic=dynamic,
                        fixed4_operand_bits=min(9, operand),
                        fixed4_digits=5 <= operand < bits[-1],
                    )
                    shape = with_luts(Accelerator(**(values | {"lanes": counts} | fixed)), board, dsp)
                    yield (with_quads if work.narrow else with_triples)(shape, board, dsp)


def lane_counts(mixture: Mixture, drain: int, outputs: Sequence[int], most: int) -> Iterator[Lanes]:
    """Lanes in multiples of `drain`, at most `most`: Fixed-8 ones a power of two and at least the mixture's part, which
    run what rows the others leave. All totals are the least for some number of blocks of some of the `outputs`."""
    whole = sum(mixture.values())
    totals = {
        -(-count // blocks // drain) * drain for count in outputs for blocks in range(1, count // drain + 1)
    }
    for total in sorted(t for t in totals if drain <= t <= min(LANES, most)):
        fixed8 = 2
        while fixed8 <= total:
            if fixed8 * whole >= mixture[Scheme.FIXED8] * total and fixed8 % drain == 0:
                rest, parts = total - fixed8, {s: p for s, p in mixture.items() if s != Scheme.FIXED8}
                counts = {s: rest * part // sum(parts.values()) // drain * drain for s, part in parts.items()}
                if parts:
                    counts[min(parts)] += rest - sum(counts.values())
                if parts or not rest:
                    yield Lanes(fixed8=fixed8, **{s.name.lower(): count for s, count in counts.items()})
            fixed8 *= 2


def _dynamic(work: Work, lanes: Lanes, columns: int, drain: int) -> list[int]:
    """Numbers of Fixed-4 lanes that take keys and values: none, and the fewest for each number of blocks."""
    if not lanes.fixed4 or not work.dynamic or columns % 2 or drain % 2:
        return [0]
    unit = max(columns, drain)
    fewest = (math.ceil(size / blocks / unit) * unit for size in work.dynamic for blocks in range(1, 9))
    counts = {math.ceil((count - lanes.fixed8) / drain) * drain for count in fewest}
    return [0, *sorted(count for count in counts if 0 < count <= lanes.fixed4)]


def _rows(most: int, row_bytes: int) -> int:
    """The largest power of two with so many bytes at most."""
    return 1 << max(1, most // row_bytes).bit_length() - 1


def scratchpad_bytes(a: Accelerator) -> int:
    """Of all regions."""
    return a.scratchpad_regions * a.scratchpad_rows * a.scratchpad_row_bytes


def is_roomy(a: Accelerator, work: Work) -> bool:
    """Whether the scratchpad holds what is alive at once, and the weight memory more than few rows."""
    return scratchpad_bytes(a) >= work.alive and a.weight_rows >= FEW_ROWS


def sized(
    shape: Accelerator,
    board: Board,
    holds: Callable[[Resources], bool],
    fixed: Collection[str],
    work: Work,
) -> list[Accelerator]:
    """The shape with the largest memories that `holds` allows: sizes of scratchpad, largest first, weight rows with the
    rest. For more rows of weights, parameters' rows are half of what they were, and instructions, if need be, fewer than
    the work's. Last are those whose scratchpad holds less than is alive, and those that leave few rows of weights."""
    if not holds(estimate(shape, board)):
        return []
    row = shape.scratchpad_regions * shape.scratchpad_row_bytes
    scratchpads = [_rows(size, row) for size in SCRATCHPAD_BYTES]
    if "scratchpad_rows" in fixed:
        scratchpads = [shape.scratchpad_rows]
    rows = [shape.weight_rows] if "weight_rows" in fixed else WEIGHT_ROWS
    halves = {name: getattr(shape, name) // 2 for name in TABLES if name not in fixed}
    wanted = -(-work.instructions // INSTRUCTIONS) * INSTRUCTIONS
    programs = [shape.instructions] if "instructions" in fixed else [wanted, shape.instructions]
    found = []
    for scratchpad in scratchpads:
        for program, weights, tables in itertools.product(programs, rows, ({}, halves)):
            sizes = {"scratchpad_rows": scratchpad, "weight_rows": weights, "instructions": program}
            with contextlib.suppress(AcceleratorError):
                larger = dataclasses.replace(shape, **sizes | tables)
                if holds(estimate(larger, board)):
                    found.append(larger)
                    break
    return sorted(found, key=lambda one: (scratchpad_bytes(one) < work.alive, one.weight_rows < FEW_ROWS))


def with_moments(
    a: Accelerator, board: Board, holds: Callable[[Resources], bool], fixed: Collection[str], work: Work
) -> Accelerator | None:
    """The same with row moments, and with as many rows of weights as `holds` then allows. None where that allows none, the graph has
    no LayerNorm, or `row_moments` is fixed."""
    if not work.norms or "row_moments" in fixed:
        return None
    tiles = max(-(-positions // a.columns) for positions, _ in work.norms)
    fewer = [] if "weight_rows" in fixed else [rows for rows in WEIGHT_ROWS if rows < a.weight_rows]
    for weights, inputs in itertools.product((a.weight_rows, *fewer), MOMENTS):
        moments = 1 << (inputs * tiles - 1).bit_length()
        made = dataclasses.replace(a, weight_rows=weights, row_moments=moments)
        if holds(estimate(made, board)):
            return made
    return None


def grown(shape: Accelerator) -> Iterator[Accelerator]:
    """The shape with larger and larger memories, whatever they take."""
    row = shape.scratchpad_regions * shape.scratchpad_row_bytes
    for scratchpad, weights in zip(reversed(SCRATCHPAD_BYTES), reversed(WEIGHT_ROWS), strict=False):
        sizes = {
            "scratchpad_rows": max(shape.scratchpad_rows, _rows(scratchpad, row)),
            "weight_rows": weights,
        }
        with contextlib.suppress(AcceleratorError):
            yield dataclasses.replace(shape, **sizes)

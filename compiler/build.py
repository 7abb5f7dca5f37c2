"""From an integer graph to a program: lower, place, synchronize, check, encode."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np

from ..arch import isa
from ..arch.accelerator import Accelerator
from ..arch.graph import Conv, Graph
from ..arch.isa import Instruction, Opcode, Region
from ..arch.program import Layer, Program
from ..arch.schemes import Scheme
from . import check
from .allocate import Overflow, allocate
from .ir import (
    INDEX_ROW_ENTRIES,
    PAGE_ROWS,
    At,
    Bytes,
    CompileError,
    Content,
    Entry,
    Item,
    Memory,
    Page,
    Span,
    capacity,
    row_bytes,
)
from .lower import lower
from .needed import needed
from .order import arrange
from .parts import separated, split
from .schedule import synchronize
from .spill import least, schedule
from .stream import Image, Plan, plan, residents, setup_loads
from .tensors import Tensors
from .traffic import Traffic, traffic

__all__ = ["Compiled", "Judge", "compile", "compiled"]

Judge = Callable[[Program], int]
"""What a program costs, for instance the cycles of a frame."""

_PIECES = (8, 6, 4, 3, 2, 1)
"""Parts of a memory's free rows that one instruction may take where data is streamed, best first."""

_WAYS = ((2, 0.9), (3, 0.9), (2, 0.75), (3, 0.75), (2, 1.0), (3, 1.0))
"""Parts that layers are cut into, and the part of the scratchpad that may be alive at once."""

_MORE_WAYS = ((2, 0.9), (3, 0.9), (2, 1.0), (3, 1.0), (4, 0.9), (6, 0.9))
_WHOLE = ((1.0, 0.0), (1.14, 0.0), (1.3, 0.0))
_SEPARATED = ((1.0, 0.0), (1.14, 0.0), (1.0, 0.007), (1.2, 0.007), (1.0, 0.018))
"""What a judge chooses from: ways; and `patience` and `lead` of `order.arrange` for each, on whole buffers and on separated ones.
Ports that the matrix engine holds make the vector engine wait, by more in some networks than in others."""
_HOPELESS = 1.05
"""A judge does not see what by estimate takes so many times the cycles of the best."""

_LARGEST, _SMALL = 0.8, 0.33
"""Parts of the scratchpad that a tensor may take whose rows are rounded for depthwise windows: the first that fits."""

_SETUP_INSTRUCTIONS = 32
"""At most, where they matter: LOADs of what stays, and both ENDs."""

_REMEDIES = {
    Memory.SCRATCHPAD: "Raise scratchpad_rows or scratchpad_regions, or use smaller images",
    Memory.WEIGHT: "Raise weight_rows",
    Memory.PARAM: "Raise param_rows",
    Memory.NORM: "Raise norm_rows",
    Memory.TABLE: "Raise table_pages",
    Memory.INDEX: "Raise index_rows",
    Memory.ROW_SCALE: "Raise row_scales",
    Memory.ROW_MAXIMA: "Raise row_maxima",
    Memory.ROW_MOMENTS: "Raise row_moments",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A program and what is known about it."""

    program: Program
    traffic: Traffic
    activations_bound: int
    """Bytes of activations per frame, input and output included: no schedule of the compiler's kind moves fewer."""
    macs_by_kind: dict[Scheme, int]
    """Useful multiply-accumulates of a frame by the kind of lane that makes them."""

    @property
    def gap(self) -> float:
        """Part of the bound by which the activations' traffic exceeds it; 0 where it is proven the least."""
        return self.traffic.activations / self.activations_bound - 1


def compile(
    graph: Graph, accelerator: Accelerator, name: str | None = None, judge: Judge | None = None
) -> Program:
    """The program that computes `graph` on `accelerator`. Raises CompileError with every reason why not.

    With `judge` more orders of the instructions are tried, and the program that it gives the least figure is taken: the
    estimates that choose otherwise are a few per cent off.
    """
    return compiled(graph, accelerator, name, judge).program


def compiled(
    graph: Graph, accelerator: Accelerator, name: str | None = None, judge: Judge | None = None
) -> Compiled:
    """`compile`, with a report. Raises CompileError."""
    graph = needed(graph)
    pieces: dict[Memory, int] = {}
    """Memories whose data is streamed, and the way in _PIECES."""
    free: dict[Memory, tuple[int, int]] = {}
    ahead, blocks, spills, early, whole, made, summed = 3, True, None, True, None, {}, True
    largest = _LARGEST if accelerator.private > 1 else 0
    room = rows = capacity(accelerator, Memory.SCRATCHPAD)
    """Rows of the scratchpad that a schedule may use; fewer where they could not be packed."""
    while True:
        limits = {memory: max(1, free[memory][1] // _PIECES[way]) for memory, way in pieces.items()}
        alone = frozenset(memory for memory, way in pieces.items() if _PIECES[way] == 1)
        tensors = Tensors(
            graph, accelerator, limits, ahead, made, blocks, largest, alone, summed and spills is None
        )
        lower(tensors, spills, early)
        if tensors.problems:
            if not _larger(pieces, tensors.short):
                raise CompileError(graph.name, tensors.problems)
            continue
        try:
            if tensors.torn:
                sources = (tensors.places[graph.operators[tag].input].buffer for tag in tensors.torn)
                torn = max(sources, key=lambda buffer: buffer.rows)
                raise Overflow(Memory.SCRATCHPAD, torn, torn.rows)
            placed = _fastest(tensors) if spills is None else _placed(tensors, tensors.items)
            items, free, found = placed.items, placed.free, placed.plan
        except Overflow as overflow:
            if overflow.memory == Memory.ROW_MOMENTS:
                summed = False
                continue
            if overflow.memory == Memory.SCRATCHPAD and largest == _LARGEST:
                largest = _SMALL
                continue
            if overflow.memory == Memory.SCRATCHPAD and ahead > 1:
                ahead = 1
                continue
            if overflow.memory == Memory.SCRATCHPAD and blocks:  # bands are cut along rows of pixels
                blocks = False
                continue
            if overflow.memory == Memory.SCRATCHPAD and spills is not None and early:
                early = False
                continue
            if overflow.memory == Memory.SCRATCHPAD and room > rows // 2:
                early = True
                whole = tensors if spills is None else whole
                room -= 0 if spills is None else rows // 16
                spills = schedule(whole, room)
                if spills is not None:
                    continue
                raise CompileError(graph.name, [_no_scratchpad(whole, rows)]) from None
            raise CompileError(graph.name, [_too_small(tensors, accelerator, overflow)]) from None
        short = {memory for memory in (Memory.WEIGHT, Memory.PARAM) if _rows(items, memory) > free[memory][1]}
        if short - pieces.keys():
            pieces |= dict.fromkeys(short - pieces.keys(), 0)
        elif isinstance(found, Plan):
            program = _program(tensors, name or graph.name, items, found, free[Memory.OUTSIDE][0])
            if judge is not None and spills is None:
                program = min(chain([program], _programs(tensors, program.name)), key=judge)
            moved = traffic(program)
            bound = moved.input + moved.output if spills is None else spills.bound
            macs = _macs_by_kind(tensors)
            return Compiled(program=program, traffic=moved, activations_bound=bound, macs_by_kind=macs)
        else:
            largest = max(residents(items, found), key=lambda buffer: buffer.rows)
            overflow = Overflow(found, largest, free[found][0] + largest.rows)
            raise CompileError(graph.name, [_too_small(tensors, accelerator, overflow)])


def _macs_by_kind(tensors: Tensors) -> dict[Scheme, int]:
    found = dict.fromkeys(tensors.accelerator.lanes.by_scheme, 0)
    for operator in tensors.graph.operators:
        rows = tensors.rows_by_kind.get(operator.name, {Scheme.FIXED8: 1})
        for kind, count in rows.items():
            found[kind] = found.get(kind, 0) + tensors.graph.macs(operator) * count // sum(rows.values())
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Placed:
    """Items in an order, and what their order leads to."""

    items: list[Item]
    free: dict[Memory, tuple[int, int]]
    """Of each memory the first row that what is written leaves, and how many rows."""
    plan: Plan | Memory


def _placed(tensors: Tensors, items: list[Item]) -> _Placed:
    """Rows for what items write, and a plan for what they read. Raises Overflow."""
    a = tensors.accelerator
    taken = {memory: allocate(a, items, memory) for memory in Memory}
    free = {memory: (rows, capacity(a, memory) - rows) for memory, rows in taken.items()}
    loaded = {m: free[m] for m in Memory if m not in (Memory.SCRATCHPAD, Memory.OUTSIDE)}
    return _Placed(items=items, free=free, plan=plan(a, items, loaded))


def _fastest(tensors: Tensors) -> _Placed:
    """The items of a frame in the order, and the parts, that take the fewest cycles by estimate. Raises Overflow
    where none fits."""
    a, frame = tensors.accelerator, _frame(tensors)
    found = []
    for tries in _orders(a, frame):
        for items in tries:
            try:
                found.append(_placed(tensors, items))
                break
            except Overflow as overflow:
                last = overflow
    if not found:
        raise last
    room = a.instructions - _SETUP_INSTRUCTIONS
    possible = [
        one
        for one in found
        if isinstance(one.plan, Plan)
        and (one.items is frame or len(one.items) + len(one.plan.copies) <= room)
    ]
    best = min(possible, key=lambda one: one.plan.cycles, default=found[0])
    return best if best is found[-1] else _placed(tensors, best.items)


def _orders(a: Accelerator, frame: list[Item]) -> Iterator[Iterator[list[Item]]]:
    """Orders of the items to choose from; of each that which needs more room first."""
    yield iter([frame])
    for parts, room in _WAYS:
        items = split(a, frame, parts)
        yield (arrange(a, found(items), room) for found in (list, separated))


def _programs(tensors: Tensors, name: str) -> Iterator[Program]:
    """A program for every order that fits and is not hopeless."""
    a, frame = tensors.accelerator, _frame(tensors)
    best = None
    for parts, room in _MORE_WAYS:
        items = split(a, frame, parts)
        for found, choices in ((separated, _SEPARATED), (list, _WHOLE)):
            for patience, lead in choices:
                try:
                    placed = _placed(tensors, arrange(a, found(items), room, patience, lead))
                    if not isinstance(placed.plan, Plan):
                        continue
                    best = min(best or placed.plan.cycles, placed.plan.cycles)
                    if placed.plan.cycles <= _HOPELESS * best:
                        yield _program(
                            tensors, name, placed.items, placed.plan, placed.free[Memory.OUTSIDE][0]
                        )
                except (Overflow, CompileError):  # also more instructions than there is room for
                    continue


def _rows(items: list[Item], memory: Memory) -> int:
    """Rows of all data of a memory."""
    return sum(buffer.rows for buffer in residents(items, memory))


def _larger(pieces: dict[Memory, int], memories: set[Memory]) -> bool:
    """Let an instruction take more of the first of `memories` that can be; False where there is none."""
    for memory in sorted(memories, key=lambda m: m.name):
        if pieces[memory] + 1 < len(_PIECES):
            pieces[memory] += 1
            return True
    return False


def _too_small(tensors: Tensors, accelerator: Accelerator, overflow: Overflow) -> str:
    rows, memory = capacity(accelerator, overflow.memory), overflow.memory
    return (
        f"{memory.name.lower()} memory: must have at least {max(overflow.needed, rows + 1)} rows for what is in use at "
        f"once (the largest is {overflow.buffer.name} with {overflow.buffer.rows}), not {rows}. "
        f"{_REMEDIES.get(memory, 'Use a larger accelerator')}."
    )


def _no_scratchpad(tensors: Tensors, rows: int) -> str:
    index, needed = least(tensors, rows)
    operator = tensors.graph.operators[index]
    if index in tensors.torn and needed > rows << 8:
        source = tensors.places[operator.input].buffer.rows
        return (
            f"layer {operator.name}: scratchpad_rows must be at least {source}, so that one region holds what it gathers "
            f"from, not {tensors.accelerator.scratchpad_rows}. Raise scratchpad_rows."
        )
    return (
        f"layer {operator.name}: the scratchpad must have at least {needed} rows, even for bands of the layer, not "
        f"{rows}. {_REMEDIES[Memory.SCRATCHPAD]}."
    )


def _frame(tensors: Tensors) -> list[Item]:
    """The layers between the LOAD of the input and the STORE of the output."""
    graph = tensors.graph
    x, y = tensors.places[graph.input], tensors.places[graph.output]
    rows = {place: place.layout.rows(tensors.accelerator) for place in (x, y)}
    first = Item(
        opcode=Opcode.LOAD,
        tag=0,
        values={"target": Memory.SCRATCHPAD.value, "region": Region.INPUT, "row": x.at(), "rows": rows[x]},
        writes=(Span(x.buffer, x.offset, rows[x]),),
    )
    last = Item(
        opcode=Opcode.STORE,
        tag=max(0, len(graph.operators) - 1),
        values={"region": Region.OUTPUT, "row": y.at(), "rows": rows[y]},
        reads=(Span(y.buffer, y.offset, rows[y]),),
    )
    return [first, *tensors.items, last]


def _pitch(accelerator: Accelerator) -> int:
    """Bytes from row to row of the scratchpad's rows in DRAM."""
    return accelerator.pitch(row_bytes(accelerator, Memory.SCRATCHPAD))


def _program(tensors: Tensors, name: str, items: list[Item], found: Plan, outside: int) -> Program:
    """Insert the LOADs, encode both sections and check what came out."""
    graph, accelerator = tensors.graph, tensors.accelerator
    image = Image(accelerator)
    frame = [_located(image, item) for item in found.insert(image, items)]
    kept = [*found.rows, *residents(items, Memory.SCRATCHPAD)]
    setup = setup_loads(image, accelerator, kept)
    problems: list[str] = []
    sections = [
        [*_encode(graph, section, problems), isa.encode(Instruction(Opcode.END))]
        for section in (setup, frame)
    ]
    total = sum(map(len, sections))
    if total > accelerator.instructions:
        problems.append(
            f"program: must have at most {accelerator.instructions} instructions, not {total}. Raise instructions."
        )
    if image.size > 1 << 32:
        problems.append(
            f"program: weights must take at most 4 GiB, not {image.size} bytes. Use a smaller model."
        )
    if problems:
        raise CompileError(graph.name, problems)
    index = np.zeros(accelerator.index_rows, np.int64)
    weights = image.bytes()
    for items, words in zip((setup, frame), sections, strict=True):
        check.section(accelerator, np.stack(words), items, weights, index)
    layers = tuple(
        Layer(
            tag=tag,
            name=operator.name,
            op=operator.op,
            macs=graph.macs(operator),
            depthwise=isinstance(operator, Conv) and operator.groups > 1,
        )
        for tag, operator in enumerate(graph.operators)
    )
    return Program(
        name=name,
        accelerator=accelerator,
        setup_entry=0,
        frame_entry=len(sections[0]),
        scratch_bytes=outside * _pitch(accelerator),
        input=tensors.places[graph.input].layout,
        output=tensors.places[graph.output].layout,
        layers=layers,
        instructions=np.stack([word for words in sections for word in words]).astype(np.uint32),
        weights=weights,
    )


def _located(image: Image, item: Item) -> Item:
    """The item with the address of the content that it loads."""
    content = item.values.get("offset")
    if not isinstance(content, Content):
        return item
    return dataclasses.replace(
        item, values={**item.values, "offset": image.address(content.data) + content.offset}
    )


def _encode(graph: Graph, items: list[Item], problems: list[str]) -> list[np.ndarray]:
    """Instruction words of a section; fields out of range go to `problems`."""
    words = []
    for item, (wait, signal) in zip(items, synchronize(items), strict=True):
        values = {key: _resolve(value) for key, value in item.values.items()}
        try:
            words.append(
                isa.encode(
                    Instruction(item.opcode, {**values, "tag": item.tag, "wait": wait, "signal": signal})
                )
            )
        except isa.IsaError as error:
            layer = graph.operators[item.tag].name if graph.operators else graph.name
            problems.append(f"layer {layer}: {error}. Make the layer smaller.")
    return words


def _resolve(value: int | At | Page | Entry | Bytes) -> int:
    if isinstance(value, At):
        return value.buffer.row + value.offset
    if isinstance(value, Bytes):
        return (value.buffer.row + value.offset) * value.pitch
    if isinstance(value, Page):
        return value.buffer.row // PAGE_ROWS
    if isinstance(value, Entry):
        return value.buffer.row * INDEX_ROW_ENTRIES
    return int(value)
